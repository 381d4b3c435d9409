//! Arbitrary bytes as arbitrary inputs.

use bytes::Bytes;

use super::driver::{Chunks, Driver, Step};
use super::judge::{Judge, Pace};
use crate::kind::Start;
use crate::mask::MaskPlan;
use crate::operation::Operation;
use crate::seam::{Conversation, ExchangeId, Side};

/// Feeds `data` as a session: control bytes say who speaks, for how long, and who leaves. Nothing may panic, and every
/// exchange ends once.
pub fn fuzz(start: fn(Start) -> Box<dyn Conversation>, data: &[u8]) {
    let Some((&manner, mut rest)) = data.split_first() else { return };
    let pace = match manner % 3 {
        0 => Pace::AtOnce,
        1 => Pace::Late { seed: u64::from(manner) },
        _ => Pace::Never,
    };
    let judge = if manner & 0x40 == 0 { Judge::allowing() } else { Judge::denying(by_length) };
    let conversation = start(Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() });
    let mut driver = Driver::new(conversation, judge.paced(pace), Chunks::whole());
    while let Some((&control, more)) = rest.split_first() {
        let side = if control & 1 == 0 { Side::Client } else { Side::Upstream };
        let length = (control >> 1) as usize;
        let (bytes, after) = more.split_at(length.min(more.len()));
        match length {
            0 => driver.steps(&[Step::End(side)]),
            127 => driver.steps(&[Step::Reset(side)]),
            _ => driver.steps(&[Step::Data(side, Bytes::copy_from_slice(bytes))]),
        }
        rest = after;
    }
    driver.steps(&[Step::End(Side::Client), Step::End(Side::Upstream)]);
    driver.outcome().assert_finished_once();
}

fn by_length(operation: &Operation) -> bool {
    match operation {
        Operation::Sql(sql) => sql.text.len() % 2 == 1,
        Operation::Http(http) => http.path.len() % 2 == 1,
        Operation::Connect { .. } | Operation::Opaque { .. } => false,
    }
}
