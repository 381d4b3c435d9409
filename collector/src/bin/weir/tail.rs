//! `weir tail`: exchanges as they end. It outlives the collector: what ended meanwhile is told when it is back.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tonic::{Code, Status};
use weir_collector::clock;
use weir_collector::search::values::instant;
use weir_proto::v1;

use crate::How;
use crate::client::Client;
use crate::hits::Print;
use crate::search::{explained, help};

/// The collector says something at least every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// Between attempts to reach a collector that is away.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
#[command(after_help = help())]
pub(crate) struct Tail {
    /// Only what this query finds
    #[arg(value_name = "QUERY")]
    query: Vec<String>,
    /// Begin with what ended since: 10m, 1h, 7d before now, or a date and time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End when everything that is known was told
    #[arg(long)]
    no_follow: bool,
}

impl Tail {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let query = self.query.join(" ");
        let now_ns = clock::unix_ms().saturating_mul(1_000_000);
        let since_unix_ns = match &self.since {
            None if how.local.is_some() => 1,
            None => 0,
            Some(since) => {
                instant(since, now_ns)
                    .with_context(|| {
                        format!("--since takes 10m, 1h, 7d, today, or 2026-11-20T10:30, not {since:?}")
                    })?
                    .0
            }
        };
        // A folder that was read in gets no more.
        let no_follow = self.no_follow || how.local.is_some();
        let mut client = Client::connect(how).await?;
        let print = Print::new(how.json);
        let mut asked =
            v1::TailRequest { query: query.clone(), cursor: String::new(), since_unix_ns, no_follow };
        let mut retry = RETRY_MIN;
        let mut away = false;
        loop {
            let status = match follow(&mut client, &mut asked, &print, &mut away).await {
                Ok(()) if no_follow => return Ok(()),
                Ok(()) => Status::unavailable("the collector ended the tail"),
                Err(error) => match error.downcast::<Status>() {
                    Ok(status) => status,
                    Err(error) => return Err(error),
                },
            };
            // Before anything was told there is nothing to go on with: the mistake is the user's, or the collector's to fix.
            if !is_passing(&status) || asked.cursor.is_empty() {
                return Err(explained(&query, status));
            }
            if away {
                retry = (retry * 2).min(RETRY_MAX);
            } else {
                eprintln!(
                    "weir: the collector went away ({}): waiting for it",
                    crate::output::clean(status.message())
                );
                (away, retry) = (true, RETRY_MIN);
            }
            tokio::time::sleep(retry).await;
        }
    }
}

/// Until the stream ends. The cursor moves only over what was printed.
async fn follow(
    client: &mut Client,
    asked: &mut v1::TailRequest,
    print: &Print,
    away: &mut bool,
) -> Result<()> {
    let mut stream = client.query.tail(asked.clone()).await?.into_inner();
    loop {
        let Ok(item) = tokio::time::timeout(SILENCE_MAX, stream.message()).await else {
            bail!(Status::unavailable("it has said nothing for a while"));
        };
        let Some(item) = item? else { return Ok(()) };
        if std::mem::take(away) {
            eprintln!("weir: the collector is back");
        }
        for hit in &item.hits {
            print.hit(hit)?;
        }
        asked.cursor = item.cursor;
    }
}

/// Whether another attempt may succeed.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
    )
}
