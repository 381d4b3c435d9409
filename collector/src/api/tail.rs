//! Exchanges as they end. The ids of exchanges count what was committed, so a tail is a search that goes on: its cursor
//! is all it needs to be resumed, by this process or the next.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weir_proto::v1;

use super::search::{Searching, bad_cursor, now_ns, read};
use super::store_status;
use crate::search::{Position, Query};
use crate::store::sqlite::Seeking;

/// Tails at the same time.
pub(super) const TAILS_MAX: usize = 64;
/// How often the index is asked whether there is more.
const POLL: Duration = Duration::from_millis(250);
/// Hits of one item, and items that wait for a slow reader. The index keeps the rest.
const HITS: usize = 200;
const ITEMS_MAX: usize = 2;
/// How long one item is searched for.
const ITEM_TIME: Duration = Duration::from_secs(1);
/// How often an item without hits tells how far it is, so that a resumed tail need not look at the same again.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);

type Item = Result<v1::TailItem, Status>;

pub async fn tail(searching: &Searching, asked: v1::TailRequest) -> Result<ReceiverStream<Item>, Status> {
    let permit =
        searching.tails.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{TAILS_MAX} tails are running: end one of them"))
        })?;
    let index = &searching.reading.store.index;
    let position = match asked.cursor.as_str() {
        "" => {
            let extent = index.search_extent().await.map_err(store_status)?;
            let (first, since) = match asked.since_unix_ns {
                0 => (extent.next, i64::MIN),
                since => {
                    (index.received_from(since).await.map_err(store_status)?.unwrap_or(extent.next), since)
                }
            };
            Position { now_ns: now_ns(), at: [first.saturating_sub(1), since, 0] }
        }
        cursor => searching.key.read(cursor, &["tail", &asked.query]).map_err(bad_cursor)?,
    };
    let query = read(&asked.query, position.now_ns)?;
    let (to, stream) = mpsc::channel(ITEMS_MAX);
    let mut tail = Tail { searching: searching.clone(), query, text: asked.query, position, to };
    let follow = !asked.no_follow;
    tokio::spawn(async move {
        let _permit = permit;
        // The reader or the collector may go away at any time, also while nothing ends.
        let to = tail.to.clone();
        let shutdown = tail.searching.shutdown.clone();
        let done = tokio::select! {
            done = tail.run(follow) => done,
            () = to.closed() => Ok(()),
            () = shutdown.cancelled() => Err(Status::unavailable("the collector is stopping")),
        };
        if let Err(status) = done {
            let _ = tail.to.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

struct Tail {
    searching: Searching,
    query: Query,
    text: String,
    position: Position,
    to: mpsc::Sender<Item>,
}

impl Tail {
    async fn run(&mut self, follow: bool) -> Result<(), Status> {
        let mut told: Option<Instant> = None;
        let mut known = None;
        loop {
            let extent = self.searching.reading.store.index.search_extent().await.map_err(store_status)?;
            let end = if self.query.asks_text() { extent.indexed } else { extent.next };
            if known == Some(end) && told.is_some_and(|at| at.elapsed() < QUIET_INTERVAL) {
                tokio::time::sleep(POLL).await;
                continue;
            }
            let (item, live) = self.next().await?;
            known = live.then_some(end);
            let quiet = item.hits.is_empty() && told.is_some_and(|at| at.elapsed() < QUIET_INTERVAL);
            if !quiet {
                told = Some(Instant::now());
                if self.to.send(Ok(item)).await.is_err() {
                    return Ok(());
                }
            }
            // What waits only for full text is not told yet either.
            if live && !follow && end >= extent.next {
                return Ok(());
            }
        }
    }

    /// What is there after the position, which moves.
    async fn next(&mut self) -> Result<(v1::TailItem, bool), Status> {
        let seeking = Seeking {
            query: &self.query,
            newest_first: false,
            after: Some(self.position.at[0]),
            before: None,
            ended_from_ns: Some(self.position.at[1]),
            rows: HITS,
            until: Instant::now() + ITEM_TIME,
        };
        let found = self.searching.seek(&seeking).await?;
        let hits = self.searching.hits(&found.ids, &self.query).await?;
        self.position.at[0] = found.after;
        let cursor = self.searching.key.show(&self.position, &["tail", &self.text]);
        Ok((v1::TailItem { hits, cursor, live: found.done }, found.done))
    }
}
