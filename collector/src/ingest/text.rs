//! Full text follows ingest: from the segments as they are stored to the words that people search for, at its own pace,
//! from a cursor that is kept with the words. What is killed on the way goes on where it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use weir_proto::seal::{self, EventError, Segment, SegmentError, SessionKey};
use weir_proto::v1::{self, event::Kind};
use weir_proto::{GenerationId, SessionId};
use weir_protocols::Side;
use weir_protocols::view::{Piece, body_text};

use crate::clock;
use crate::keys::{Keys, KeysError, hpke};
use crate::metrics::Metrics;
use crate::store::rows::{ExchangeText, StoredSegment, TextSegment};
use crate::store::{Store, StoreError};

/// Of one step, which is one transaction: segments, their bytes as stored, and bytes of text after which it ends.
const STEP_SEGMENTS: i64 = 64;
const STEP_STORED_BYTES_MAX: u64 = 16 * 1024 * 1024;
const STEP_TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Commits are gathered for so long: many texts at once are written with less merging. Well below the lag promised.
const GATHER: Duration = Duration::from_millis(200);
/// After a failure of the store.
const RETRY: Duration = Duration::from_secs(5);
/// Of statement and parameters of one exchange.
const ASKED_BYTES_MAX: usize = 64 * 1024;
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// Recorded bytes of one direction of one exchange that its body's text is made from.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Text of all bodies of one segment: what a few compressed bytes may become.
const SEGMENT_BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Segments looked into for the beginning of an exchange that finishes in a later one.
const EARLIER_SEGMENTS_MAX: u64 = 8;
/// Such exchanges of one segment, more of them than any client leaves open: the others are found without their bodies.
const BEGUN_EARLIER_MAX: usize = 64;
/// Session keys kept open.
const KEYS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("reading a segment failed")]
    Reading(#[from] tokio::task::JoinError),
}

/// Why a segment has no text. It is damaged at rest or was shredded: the next one is no worse for it.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("the session's key was deleted")]
    Shredded,
    #[error(transparent)]
    Key(#[from] KeysError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the stored bytes are not there")]
    Bytes(#[source] StoreError),
}

/// Makes full text.
pub struct TextFollower {
    store: Store,
    keys: Arc<Keys>,
    metrics: Metrics,
    session_keys: HashMap<(SessionId, GenerationId), SessionKey>,
}

impl TextFollower {
    pub fn new(store: Store, keys: Arc<Keys>, metrics: Metrics) -> Self {
        Self { store, keys, metrics, session_keys: HashMap::new() }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.catch_up(&shutdown).await {
                // The index was closed under it.
                if shutdown.is_cancelled() {
                    return;
                }
                tracing::error!(error = %crate::chain(&error), "full text does not follow: it is tried again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            // New segments, or the end.
            tokio::select! {
                () = self.store.index.text_waits() => tokio::time::sleep(GATHER).await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Until everything that is committed is in.
    pub async fn catch_up(&mut self, shutdown: &CancellationToken) -> Result<(), TextError> {
        while !shutdown.is_cancelled() {
            let more = self.step().await?;
            let progress = self.store.index.text_progress().await?;
            let lag_ms = progress.waiting_since_ms.map_or(0, |since| clock::unix_ms().saturating_sub(since));
            self.metrics.text_lag_ms.set(lag_ms.max(0));
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Answers whether there was something to do.
    async fn step(&mut self) -> Result<bool, TextError> {
        let index = self.store.index.clone();
        let turn = index.text_turn().await;
        let next = index.text_progress().await?.next_segment;
        let mut segments = index.text_segment_list(next, STEP_SEGMENTS).await?;
        let mut stored_bytes = 0_u64;
        let fit = segments.iter().take_while(|segment| {
            stored_bytes = stored_bytes.saturating_add(segment.stored.len);
            stored_bytes <= STEP_STORED_BYTES_MAX
        });
        let fit = fit.count().max(1);
        segments.truncate(fit);
        if segments.is_empty() {
            return Ok(false);
        }
        let (mut next, mut count) = (next, 0);
        let mut texts = Vec::new();
        let mut text_bytes = 0;
        let mut all_bytes = self.bytes(&segments).await.into_iter();
        for segment in segments {
            let (session, seq) = (segment.stored.session, segment.stored.seq);
            (next, count) = (segment.id + 1, count + 1);
            let bytes = all_bytes.next().unwrap_or(Err(StoreError::Damaged("bundle")));
            match self.texts(segment, bytes).await? {
                Ok(of_segment) => {
                    text_bytes += of_segment.iter().map(size).sum::<usize>();
                    texts.extend(of_segment);
                }
                Err(unreadable) => {
                    self.metrics.text_unreadable.inc();
                    tracing::warn!(%session, seq, error = %crate::chain(&unreadable), "a segment's text cannot be found: it does not open");
                }
            }
            if text_bytes >= STEP_TEXT_BYTES_MAX {
                break;
            }
        }
        index.text_add(&turn, &texts, next).await?;
        self.metrics.text_segments.inc_by(count);
        Ok(true)
    }

    /// As stored. Segments of a batch lie in one bundle one after the other: they are read at once.
    async fn bytes(&self, segments: &[TextSegment]) -> Vec<Result<Bytes, StoreError>> {
        let mut all = Vec::with_capacity(segments.len());
        for bundle in segments
            .chunk_by(|a, b| a.stored.bundle == b.stored.bundle && a.stored.at + a.stored.len == b.stored.at)
        {
            let Some(first) = bundle.first().map(|segment| &segment.stored) else { continue };
            let len = bundle.iter().map(|segment| segment.stored.len).sum();
            match self.store.bundles.part(&first.bundle, first.at, len).await {
                Ok(bytes) if bytes.len() as u64 == len => {
                    let mut rest = bytes;
                    all.extend(bundle.iter().map(|segment| Ok(rest.split_to(segment.stored.len as usize))));
                }
                // One of them may be whole still.
                _ => {
                    for segment in bundle {
                        all.push(self.stored_bytes(&segment.stored).await);
                    }
                }
            }
        }
        all
    }

    async fn stored_bytes(&self, stored: &StoredSegment) -> Result<Bytes, StoreError> {
        self.store.bundles.part(&stored.bundle, stored.at, stored.len).await
    }

    /// Opens a segment and draws the texts of its exchanges.
    async fn texts(
        &mut self,
        segment: TextSegment,
        bytes: Result<Bytes, StoreError>,
    ) -> Result<Result<Vec<ExchangeText>, Unreadable>, TextError> {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(Unreadable::Bytes(error))),
        };
        let key = match self.session_key(&segment.stored).await? {
            Ok(key) => key,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let (session, seq) = (segment.stored.session, segment.stored.seq);
        let drawn = tokio::task::spawn_blocking(move || draw(&segment, open(bytes, &key)?)).await?;
        let mut drawn = match drawn {
            Ok(drawn) => drawn,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        for begun in std::mem::take(&mut drawn.begun_earlier) {
            let body = self.body_of(session, seq, begun).await?;
            if let Some((place, body)) = body
                && let Some(text) = drawn.texts.get_mut(place)
            {
                text.body = body;
            }
        }
        Ok(Ok(drawn.texts))
    }

    /// The body of an exchange whose beginning lies in earlier segments.
    async fn body_of(
        &mut self,
        session: SessionId,
        seq: u64,
        begun: BegunEarlier,
    ) -> Result<Option<(usize, String)>, TextError> {
        let index = self.store.index.clone();
        let earlier = index.segment_list_within(&session, begun.asked_ns, seq, EARLIER_SEGMENTS_MAX).await?;
        let mut pieces = Pieces::default();
        for stored in earlier {
            let Ok(key) = self.session_key(&stored).await? else { continue };
            let Ok(bytes) = self.stored_bytes(&stored).await else { continue };
            let ordinal = begun.ordinal;
            pieces = tokio::task::spawn_blocking(move || {
                // What does not open was told of when it was this segment's turn.
                let events = open(bytes, &key).into_iter().flat_map(seal::events).map_while(Result::ok);
                for event in events {
                    match event.kind {
                        Some(Kind::Data(data)) if data.exchange == ordinal => pieces.push(data),
                        _ => {}
                    }
                }
                pieces
            })
            .await?;
        }
        for piece in begun.pieces.list {
            pieces.add(piece);
        }
        let body = tokio::task::spawn_blocking(move || pieces.text(&begun.protocol)).await?;
        Ok(Some((begun.place, body)))
    }

    async fn session_key(
        &mut self,
        stored: &StoredSegment,
    ) -> Result<Result<SessionKey, Unreadable>, StoreError> {
        let id = (stored.session, stored.generation);
        if let Some(key) = self.session_keys.get(&id) {
            return Ok(Ok(key.clone()));
        }
        let Some(wrapped) = self.store.index.session_key(&stored.session, &stored.generation).await? else {
            return Ok(Err(Unreadable::Shredded));
        };
        let key =
            match hpke::session_key_unwrap(&self.keys.kek, &stored.session, &stored.generation, &wrapped) {
                Ok(key) => key,
                Err(error) => return Ok(Err(error.into())),
            };
        if self.session_keys.len() >= KEYS_MAX {
            self.session_keys.clear();
        }
        self.session_keys.insert(id, key.clone());
        Ok(Ok(key))
    }
}

fn size(text: &ExchangeText) -> usize {
    text.asked.len() + text.error.len() + text.body.len()
}

fn open(bytes: Bytes, key: &SessionKey) -> Result<Bytes, Unreadable> {
    Ok(Segment::parse(bytes)?.open(key)?)
}

/// What one segment gave.
#[derive(Default)]
struct Drawn {
    texts: Vec<ExchangeText>,
    begun_earlier: Vec<BegunEarlier>,
}

/// An exchange that finished here and began in an earlier segment, with its bodies' pieces that are here.
struct BegunEarlier {
    /// Among the texts.
    place: usize,
    ordinal: u64,
    asked_ns: u64,
    protocol: String,
    pieces: Pieces,
}

/// Recorded bytes of one exchange, as many as are looked at.
#[derive(Default)]
struct Pieces {
    list: Vec<Piece>,
    /// Of the request, of the response.
    bytes: [usize; 2],
}

impl Pieces {
    fn push(&mut self, data: v1::Data) {
        let from = match data.direction() {
            v1::Direction::Request => Side::Client,
            v1::Direction::Response => Side::Upstream,
            v1::Direction::Unspecified => return,
        };
        self.add(Piece { from, bytes: data.bytes });
    }

    fn add(&mut self, mut piece: Piece) {
        let held = &mut self.bytes[usize::from(piece.from == Side::Upstream)];
        piece.bytes.truncate(BODY_BYTES_MAX.saturating_sub(*held));
        *held += piece.bytes.len();
        if !piece.bytes.is_empty() {
            self.list.push(piece);
        }
    }

    fn text(self, protocol: &str) -> String {
        let text = body_text(protocol, self.list.into_iter());
        joined(text.request, &text.response, usize::MAX)
    }
}

/// Texts of the exchanges that have a row in this segment.
fn draw(segment: &TextSegment, plain: Bytes) -> Result<Drawn, Unreadable> {
    let mut drawn = Drawn::default();
    // Asked here and not finished yet: place of the text, and its pieces.
    let mut running: HashMap<u64, (Option<usize>, Pieces)> = HashMap::new();
    let mut continued: HashMap<u64, Pieces> = HashMap::new();
    let mut bodies_bytes = 0;
    for event in seal::events(plain) {
        match event?.kind {
            Some(Kind::Asked(asked)) => {
                // Its row went to the segment it finished in, unless it still runs.
                let row = segment.exchanges.get(&asked.exchange);
                let place = row.map(|row| {
                    drawn.texts.push(text(row.id, asked.operation.as_ref(), ""));
                    drawn.texts.len() - 1
                });
                running.insert(asked.exchange, (place, Pieces::default()));
            }
            Some(Kind::Data(data)) if has_bodies(segment, data.exchange) => {
                match running.get_mut(&data.exchange) {
                    Some((_, pieces)) => pieces.push(data),
                    None => continued.entry(data.exchange).or_default().push(data),
                }
            }
            Some(Kind::Finished(finished)) => {
                let Some(row) = segment.exchanges.get(&finished.exchange) else { continue };
                let mut text = text(row.id, finished.operation.as_ref(), &finished.error);
                let protocol = row.protocol.as_ref().unwrap_or(&segment.protocol);
                let begun = running.remove(&finished.exchange);
                let place = match begun {
                    Some((Some(place), pieces)) => {
                        if bodies_bytes < SEGMENT_BODIES_BYTES_MAX {
                            text.body = pieces.text(protocol);
                            bodies_bytes += text.body.len();
                        }
                        drawn.texts[place] = text;
                        continue;
                    }
                    _ => drawn.texts.len(),
                };
                drawn.texts.push(text);
                if has_bodies(segment, finished.exchange) && drawn.begun_earlier.len() < BEGUN_EARLIER_MAX {
                    drawn.begun_earlier.push(BegunEarlier {
                        place,
                        ordinal: finished.exchange,
                        asked_ns: finished.asked_at_ns,
                        protocol: protocol.clone(),
                        pieces: continued.remove(&finished.exchange).unwrap_or_default(),
                    });
                }
            }
            _ => {}
        }
    }
    // Told twice by a strange node: the last counts, as it does in the rows.
    let mut last: HashMap<i64, usize> = HashMap::new();
    for (place, text) in drawn.texts.iter().enumerate() {
        last.insert(text.exchange, place);
    }
    if last.len() < drawn.texts.len() {
        drawn.begun_earlier.clear();
        let mut place = 0;
        drawn.texts.retain(|text| {
            place += 1;
            last.get(&text.exchange) == Some(&(place - 1))
        });
    }
    Ok(drawn)
}

/// Bodies are text in some protocols only; in the others nothing is kept for them.
fn has_bodies(segment: &TextSegment, ordinal: u64) -> bool {
    let own = segment.exchanges.get(&ordinal).and_then(|row| row.protocol.as_ref());
    !matches!(own.unwrap_or(&segment.protocol).as_str(), "postgres" | "opaque" | "")
}

fn text(exchange: i64, operation: Option<&v1::Operation>, error: &str) -> ExchangeText {
    let mut asked = String::new();
    if let Some(operation) = operation {
        asked = joined(asked, &operation.text, ASKED_BYTES_MAX);
        for parameter in &operation.parameters {
            asked = joined(asked, &parameter.shown, ASKED_BYTES_MAX);
        }
    }
    ExchangeText {
        exchange,
        asked,
        error: joined(String::new(), error, ERROR_BYTES_MAX),
        body: String::new(),
    }
}

/// One after the other, a line each.
fn joined(mut text: String, more: &str, bytes_max: usize) -> String {
    if !text.is_empty() && !more.is_empty() {
        text.push('\n');
    }
    let room = bytes_max.saturating_sub(text.len());
    text.push_str(&more[..more.floor_char_boundary(room)]);
    text
}
