//! Exchanges that a query finds, page by page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weir_proto::{SessionId, v1};
use weir_protocols::seam::Side;
use weir_protocols::view::{self, Piece};

use super::reading::Reading;
use super::store_status;
use crate::access::new_secret;
use crate::clock;
use crate::search::cursor::BadCursor;
use crate::search::query::{Text, Within};
use crate::search::snippet::snippet;
use crate::search::{CursorKey, Position, Query, parse};
use crate::store::StoreError;
use crate::store::sqlite::{HitRow, SearchError, Seeking, Sought};

/// Hits of one page: the choice, and the most.
const HITS: usize = 100;
const HITS_MAX: usize = 1000;
/// How long one page may be searched for before it is answered with what there is.
const PAGE_TIME: Duration = Duration::from_secs(2);
/// Searches at the same time: other reads keep connections of their own.
const SEARCHES_MAX: usize = 2;
/// How long a search waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);
/// Hits of one page whose bodies are opened to show where the words are.
const BODIES_MAX: usize = 20;
/// Segments opened for one of them: the one it ended in and those before.
const BODY_SEGMENTS_MAX: u64 = 4;
/// Snippets of one hit.
const SNIPPETS_MAX: usize = 4;
const CURSOR_KEY: &str = "cursor_key";

/// What searches need. Cheap to clone.
#[derive(Clone)]
pub struct Searching {
    pub(super) reading: Reading,
    pub(super) key: Arc<CursorKey>,
    turns: Arc<Semaphore>,
    pub(super) tails: Arc<Semaphore>,
    /// What goes on for ever ends with it.
    pub(super) shutdown: CancellationToken,
}

impl Searching {
    /// Cursors stay valid over a restart: their key is kept.
    pub async fn open(reading: Reading, shutdown: CancellationToken) -> Result<Self, StoreError> {
        let drawn = new_secret().map_err(|_| StoreError::Damaged("the system's randomness"))?;
        let key = reading.store.index.meta_set_once(CURSOR_KEY, drawn.as_bytes()).await?;
        Ok(Self {
            reading,
            key: Arc::new(CursorKey::new(&key)),
            turns: Arc::new(Semaphore::new(SEARCHES_MAX)),
            tails: Arc::new(Semaphore::new(super::tail::TAILS_MAX)),
            shutdown,
        })
    }

    pub(super) async fn search(&self, asked: v1::SearchRequest) -> Result<v1::SearchResponse, Status> {
        let page = asked.page.unwrap_or_default();
        let newest_first = match v1::SearchOrder::try_from(asked.order) {
            Ok(v1::SearchOrder::Unspecified | v1::SearchOrder::NewestFirst) => true,
            Ok(v1::SearchOrder::OldestFirst) => false,
            Err(_) => return Err(Status::invalid_argument("this collector knows no such order")),
        };
        let question = ["search", &asked.query, if newest_first { "newest" } else { "oldest" }];
        let extent = self.reading.store.index.search_extent().await.map_err(store_status)?;
        let (position, after) = match page.cursor.as_str() {
            "" => (Position { now_ns: now_ns(), at: [0, extent.next, 0] }, None),
            cursor => {
                let position = self.key.read(cursor, &question).map_err(bad_cursor)?;
                (position, Some(position.at[0]))
            }
        };
        let query = read(&asked.query, position.now_ns)?;
        let rows = match page.limit {
            0 => HITS,
            limit => (limit as usize).min(HITS_MAX),
        };
        let seeking = Seeking {
            query: &query,
            newest_first,
            after,
            before: Some(position.at[1]),
            ended_from_ns: None,
            rows,
            until: Instant::now() + PAGE_TIME,
        };
        let found = self.seek(&seeking).await?;
        let full = found.ids.len() >= rows;
        let hits = self.hits(&found.ids, &query).await?;
        let next_cursor = match found.done {
            true => String::new(),
            false => self.key.show(&Position { at: [found.after, position.at[1], 0], ..position }, &question),
        };
        let searched_to_unix_ns = match found.done || full {
            true => 0,
            false => self.asked_at(found.after).await?,
        };
        Ok(v1::SearchResponse {
            incomplete: !found.done && !full,
            hits,
            next_cursor,
            searched_to_unix_ns,
            unindexed: u64::try_from(extent.next - extent.indexed).unwrap_or(0),
            indexed_to_unix_ms: extent.indexed_to_ms.unwrap_or_else(clock::unix_ms),
        })
    }

    /// When its turn comes.
    pub(super) async fn seek(&self, seeking: &Seeking<'_>) -> Result<Sought, Status> {
        let _turn = self.turn().await?;
        self.reading.store.index.search(seeking).await.map_err(search_status)
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        match tokio::time::timeout(TURN_TIMEOUT, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => {
                Err(Status::resource_exhausted("the collector is busy with other searches: try again later"))
            }
        }
    }

    async fn asked_at(&self, id: i64) -> Result<i64, Status> {
        let near = self.reading.store.index.asked_near(id).await.map_err(store_status)?;
        Ok(near.unwrap_or(0))
    }

    /// As they are shown: with the places where the words stand.
    pub(super) async fn hits(&self, ids: &[i64], query: &Query) -> Result<Vec<v1::SearchHit>, Status> {
        let rows = self.reading.store.index.hit_list(ids).await.map_err(store_status)?;
        let texts = query.texts();
        let mut hits = Vec::with_capacity(rows.len());
        let mut bodies = 0;
        for mut row in rows {
            if !texts.is_empty() {
                row.hit.snippets = in_row(&row.hit, &texts);
                let anywhere = |text: &&Text| matches!(text.within, Within::Everything | Within::Body);
                let unseen = row.hit.snippets.len() < SNIPPETS_MAX && texts.iter().any(anywhere);
                if unseen && bodies < BODIES_MAX && has_body(&row.hit) {
                    bodies += 1;
                    // What cannot be opened any more is shown without its place.
                    row.hit.snippets.extend(self.in_body(&row, &texts).await.unwrap_or_default());
                    row.hit.snippets.truncate(SNIPPETS_MAX);
                }
            }
            hits.push(row.hit);
        }
        Ok(hits)
    }

    async fn in_body(&self, row: &HitRow, texts: &[&Text]) -> Result<Vec<v1::Snippet>, Status> {
        let Some(exchange) = &row.hit.exchange else { return Ok(Vec::new()) };
        let Ok(session) = SessionId::try_from(&exchange.session_id[..]) else { return Ok(Vec::new()) };
        let from = row.seq.saturating_sub(BODY_SEGMENTS_MAX - 1);
        let index = &self.reading.store.index;
        let segments = index.segment_list(&session, from, row.seq - from + 1).await.map_err(store_status)?;
        let mut pieces: Vec<Piece> = Vec::new();
        for stored in &segments {
            for event in self.reading.events(stored).await?.unwrap_or_default() {
                pieces.extend(piece(event, exchange.ordinal));
            }
        }
        let body = view::body_text(&exchange.protocol, pieces.into_iter());
        let wanted: Vec<&Text> = of(texts, Within::Body);
        Ok([body.request, body.response].iter().filter_map(|text| shown("body", text, &wanted)).collect())
    }
}

fn piece(event: v1::Event, ordinal: u64) -> Option<Piece> {
    match event.kind? {
        v1::event::Kind::Data(data) if data.exchange == ordinal => {
            let from = match data.direction() {
                v1::Direction::Request => Side::Client,
                v1::Direction::Response => Side::Upstream,
                v1::Direction::Unspecified => return None,
            };
            Some(Piece { from, bytes: data.bytes })
        }
        _ => None,
    }
}

/// Texts of PostgreSQL are all in the row.
fn has_body(hit: &v1::SearchHit) -> bool {
    hit.exchange.as_ref().is_some_and(|exchange| exchange.protocol != "postgres")
}

/// Places in what the row itself says.
fn in_row(hit: &v1::SearchHit, texts: &[&Text]) -> Vec<v1::Snippet> {
    let finished = hit.exchange.as_ref().and_then(|exchange| exchange.finished.as_ref());
    let Some(finished) = finished else { return Vec::new() };
    let mut snippets = Vec::new();
    let asked = of(texts, Within::Statement);
    if let Some(operation) = &finished.operation {
        snippets.extend(shown("statement", &operation.text, &asked));
        let parameters = operation.parameters.iter();
        snippets.extend(parameters.filter_map(|value| shown("parameter", &value.shown, &asked)));
    }
    snippets.extend(shown("error", &finished.error, &of(texts, Within::Error)));
    snippets.truncate(SNIPPETS_MAX);
    snippets
}

fn of<'t>(texts: &[&'t Text], within: Within) -> Vec<&'t Text> {
    texts.iter().copied().filter(|text| text.within == within || text.within == Within::Everything).collect()
}

fn shown(of: &str, text: &str, sought: &[&Text]) -> Option<v1::Snippet> {
    let found = snippet(text, sought)?;
    let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Some(v1::Snippet {
        of: of.to_owned(),
        text: found.text,
        highlights: found
            .hits
            .iter()
            .map(|(start, length)| v1::Highlight { start: number(*start), length: number(*length) })
            .collect(),
        cut_before: found.cut.0,
        cut_after: found.cut.1,
    })
}

pub(super) fn read(query: &str, now_ns: i64) -> Result<Query, Status> {
    parse(query, now_ns).map_err(|mistake| Status::invalid_argument(mistake.to_string()))
}

pub(super) fn now_ns() -> i64 {
    clock::unix_ms().saturating_mul(1_000_000)
}

pub(super) fn bad_cursor(error: BadCursor) -> Status {
    Status::invalid_argument(error.to_string())
}

/// As the access log names it.
pub(super) fn subject_text(query: &str) -> String {
    if query.is_empty() { String::new() } else { format!("query {query}") }
}

fn search_status(error: SearchError) -> Status {
    let said = error.to_string();
    match error {
        SearchError::NoSuch { .. } | SearchError::NoRuns => Status::not_found(said),
        SearchError::Ambiguous { .. } => Status::invalid_argument(said),
        SearchError::TooSlow => Status::deadline_exceeded(said),
        SearchError::Store(error) => store_status(error),
    }
}
