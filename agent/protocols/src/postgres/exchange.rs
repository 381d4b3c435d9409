//! One exchange of a PostgreSQL session: an owned value that travels from the request that asks for it to its last reply,
//! and ends once, in a `Finished`.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{self, ServerError};
use super::frame::Fields;
use super::prepared::{Kept, Portal, Statement};
use super::{types, value};
use crate::mask::{MaskPlan, Masked};
use crate::note::{Finished, Note, OperationRecord, Outcome, PARAMETERS_MAX, TEXT_BYTES_MAX, ValueRecord};
use crate::operation::SqlVerb;
use crate::seam::{Effects, ExchangeId, Instant};
use crate::verdict::{Denial, Grant};

/// Longest column name shown, bytes.
const NAME_BYTES_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Exchange {
    pub id: ExchangeId,
    pub grant: Option<Grant>,
    /// What an Execute runs, or what a Parse defines.
    pub portal: Option<Arc<Portal>>,
    pub statement: Option<Arc<Statement>>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub rule: Arc<str>,
    /// While it is unanswered, the server may take what follows for copy data.
    pub may_copy_in: bool,
    /// It may give or take names by SQL.
    pub names: bool,
    /// For the record, held for its Drop.
    pub kept: Option<Kept>,
    record: OperationRecord,
    asked_at: Instant,
    first_reply_at: Option<Instant>,
    /// DataRows since the last command tag.
    rows_seen: u64,
    /// What the command tags said.
    rows_told: u64,
    columns: Option<Arc<[Column]>>,
    status: Masked,
    error: Option<ServerError>,
}

/// A column of a result, from its RowDescription.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub name: Masked,
    pub type_oid: u32,
    pub format: i16,
}

impl Exchange {
    pub(crate) fn asked(
        id: ExchangeId,
        record: OperationRecord,
        now: Instant,
        out: &mut Effects,
    ) -> Box<Self> {
        out.note(id, Note::Asked(record.clone()));
        Box::new(Self {
            id,
            grant: None,
            portal: None,
            statement: None,
            request_bytes: 0,
            response_bytes: 0,
            rule: Arc::default(),
            may_copy_in: false,
            names: false,
            kept: None,
            record,
            asked_at: now,
            first_reply_at: None,
            rows_seen: 0,
            rows_told: 0,
            columns: None,
            status: Masked::default(),
            error: None,
        })
    }

    pub(crate) fn replied(&mut self, bytes: usize, now: Instant) {
        self.response_bytes += bytes as u64;
        self.first_reply_at.get_or_insert(now);
    }

    pub(crate) fn rows(&mut self, rows: u64) {
        self.rows_seen += rows;
    }

    pub(crate) fn described(&mut self, columns: Arc<[Column]>) {
        self.columns = Some(columns);
    }

    /// A command tag, "INSERT 0 5": its last number counts the rows, where it has one.
    pub(crate) fn completed(&mut self, tag: &[u8], plan: &MaskPlan) {
        let words = tag.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        let told = std::str::from_utf8(words).ok().and_then(|word| word.parse::<u64>().ok());
        self.rows_told = self.rows_told.saturating_add(told.unwrap_or(self.rows_seen));
        self.rows_seen = 0;
        self.status = plan.text(&Bytes::copy_from_slice(tag)).cut(NAME_BYTES_MAX);
    }

    pub(crate) fn status(&mut self, status: Masked) {
        self.status = status;
    }

    pub(crate) fn failed(&mut self, error: ServerError) {
        self.status = error.code.clone();
        self.error = Some(error);
    }

    pub(crate) fn refused(&mut self, denial: &Denial, plan: &MaskPlan) {
        self.rule = denial.rule.clone();
        let message = plan.text(&Bytes::copy_from_slice(denial.reason.as_bytes()));
        self.failed(ServerError { code: Masked::word(error::DENIED), message });
    }

    /// The end. The grant is left for what of the request is still to come.
    pub(crate) fn finish(
        self: Box<Self>,
        outcome: Outcome,
        now: Instant,
        out: &mut Effects,
    ) -> Option<Grant> {
        let outcome =
            if outcome != Outcome::Denied && self.error.is_some() { Outcome::Error } else { outcome };
        let columns = self.shown_columns();
        let id = self.id;
        let finished = Finished {
            operation: self.record,
            outcome,
            status: self.status,
            error: self.error.map(|error| error.message).unwrap_or_default(),
            rows: self.rows_told.saturating_add(self.rows_seen),
            columns,
            asked_at: self.asked_at,
            first_reply_at: self.first_reply_at,
            finished_at: now,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            rule: self.rule,
        };
        out.note(id, Note::Finished(Box::new(finished)));
        self.grant
    }

    /// Of the result itself, else as its portal or its statement was described.
    fn shown_columns(&self) -> Vec<(Masked, Cow<'static, str>)> {
        let portal = self.portal.as_ref();
        let columns =
            self.columns.as_ref().or_else(|| portal.and_then(|portal| Some(&portal.columns.get()?.columns)));
        if let Some(columns) = columns {
            return columns
                .iter()
                .map(|c| (c.name.clone(), types::column_type(c.type_oid, c.format)))
                .collect();
        }
        let statement = portal.and_then(|p| p.statement.as_ref()).or(self.statement.as_ref());
        let told = statement.and_then(|statement| statement.columns.get());
        let columns = told.into_iter().flat_map(|told| told.columns.iter());
        columns
            .enumerate()
            .map(|(n, c)| {
                let format = portal.map_or(c.format, |portal| portal.result_format(n));
                (c.name.clone(), types::column_type(c.type_oid, format))
            })
            .collect()
    }
}

/// What is recorded of a statement: its text is masked whole, then cut.
pub(crate) fn record(verb: SqlVerb, text: &Bytes, oversized: bool, plan: &MaskPlan) -> OperationRecord {
    OperationRecord {
        kind: "sql",
        verb: verb.word(),
        text: plan.text(text).cut(TEXT_BYTES_MAX),
        text_truncated: oversized || text.len() > TEXT_BYTES_MAX,
        oversized,
        ..OperationRecord::default()
    }
}

/// The columns of a RowDescription; of one that is longer than a frame, those in its beginning.
pub(crate) fn columns(frame: &[u8], plan: &MaskPlan) -> Arc<[Column]> {
    let mut fields = Fields::of(frame);
    let count = fields.count().unwrap_or(0).min(PARAMETERS_MAX);
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let Some(column) = column(&mut fields, plan) else { break };
        columns.push(column);
    }
    columns.into()
}

/// Name; table OID, attribute number; type OID, type size, type modifier; format.
fn column(fields: &mut Fields<'_>, plan: &MaskPlan) -> Option<Column> {
    let name = fields.cstr()?;
    fields.take(6)?;
    let type_oid = fields.u32()?;
    fields.take(6)?;
    let format = fields.i16()?;
    let name = plan.text(&Bytes::copy_from_slice(name)).cut(NAME_BYTES_MAX);
    Some(Column { name, type_oid, format })
}

/// Values of a Bind or a FunctionCall as they are shown, within a budget.
pub(crate) struct Shown {
    pub values: Vec<ValueRecord>,
    left: usize,
}

/// What all shown values of one exchange may take, bytes.
const SHOWN_TOTAL_BYTES_MAX: usize = 16 * 1024;

impl Shown {
    pub(crate) fn new() -> Self {
        Self { values: Vec::new(), left: SHOWN_TOTAL_BYTES_MAX }
    }

    pub(crate) fn add(&mut self, type_oid: u32, format: i16, bytes: Option<&[u8]>, plan: &MaskPlan) {
        if self.values.len() >= PARAMETERS_MAX {
            return;
        }
        let type_name = types::type_name(type_oid);
        let Some(bytes) = bytes else {
            let shown = Masked::default();
            self.values.push(ValueRecord { type_name, shown, null: true, bytes: 0, truncated: false });
            return;
        };
        let most = self.left.min(crate::note::SHOWN_BYTES_MAX);
        // Masked before it is cut or shown as hex: neither half a secret nor its digits look like one.
        let raw = Bytes::copy_from_slice(bytes);
        let raw = if format == 0 { plan.text(&raw) } else { plan.bytes(&raw) };
        let (text, cut) = value::shown(type_oid, format, raw.bytes(), most * 2);
        let masked = plan.text(&Bytes::from(text));
        let truncated = cut || masked.bytes().len() > most;
        let shown = masked.cut(most);
        self.left -= shown.bytes().len();
        self.values.push(ValueRecord { type_name, shown, null: false, bytes: bytes.len() as u64, truncated });
    }
}
