//! The events themselves. Those of a run come interleaved by time: its segments are merged as they begin, and only so
//! many of their events are held at a time as fit into a bound; the others are opened again when their turn comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weir_proto::{RunId, SessionId, v1};

use super::reading::Reading;
use super::store_status;
use crate::store::rows::{StoredSegment, unix_ns};
use crate::store::sqlite::Subject;

/// Events that wait for the reader.
const SENT_EVENTS_MAX: usize = 16;
/// Segments looked up at once.
const SEGMENT_ROWS: u64 = 100;
/// Encoded bytes of events held for the merge of a run.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

type Played = Result<v1::PlayedEvent, Status>;

pub fn play(reading: Reading, subject: Subject, exchange: Option<u64>) -> ReceiverStream<Played> {
    play_within(reading, subject, exchange, HELD_BYTES_MAX)
}

/// The same within another bound; with 0 every segment is opened again for each of its events.
pub fn play_within(
    reading: Reading,
    subject: Subject,
    exchange: Option<u64>,
    held_bytes_max: usize,
) -> ReceiverStream<Played> {
    let (to, stream) = mpsc::channel(SENT_EVENTS_MAX);
    tokio::spawn(async move {
        let mut player = Player { reading, exchange, held_bytes_max, to };
        let done = match subject {
            Subject::Session(session) => player.session(session).await,
            Subject::Run(run) => player.run(run).await,
        };
        if let Err(Stop::Failed(status)) = done {
            let _ = player.to.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

enum Stop {
    /// The reader went away.
    Unheard,
    Failed(Status),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

struct Player {
    reading: Reading,
    exchange: Option<u64>,
    held_bytes_max: usize,
    to: mpsc::Sender<Played>,
}

impl Player {
    async fn session(&mut self, session: SessionId) -> Result<(), Stop> {
        let mut next = 0;
        loop {
            let index = &self.reading.store.index;
            let segments = index.segment_list(&session, next, SEGMENT_ROWS).await.map_err(store_status)?;
            let Some(last) = segments.last() else { return Ok(()) };
            next = last.seq + 1;
            for stored in &segments {
                for event in self.reading.events(stored).await?.unwrap_or_default() {
                    self.send(stored, event).await?;
                }
            }
        }
    }

    async fn run(&mut self, run: RunId) -> Result<(), Stop> {
        let mut merge = Merge { held_bytes_max: self.held_bytes_max, ..Merge::default() };
        let mut after = None;
        let mut coming: VecDeque<StoredSegment> = VecDeque::new();
        let mut more = true;
        loop {
            if coming.is_empty() && more {
                let index = &self.reading.store.index;
                coming =
                    index.run_segment_list(&run, after, SEGMENT_ROWS).await.map_err(store_status)?.into();
                after = coming.back().map(|last| (last.first_boot_ns, last.session, last.seq));
                more = !coming.is_empty();
            }
            // All that begins before the next event must take part in choosing it.
            match (coming.front(), merge.next_ns()) {
                (Some(stored), next) if next.is_none_or(|next| stored.first_boot_ns <= next) => {
                    let Some(stored) = coming.pop_front() else { continue };
                    let events = self.reading.events(&stored).await?.unwrap_or_default();
                    merge.add(stored, events);
                }
                (_, Some(_)) => {
                    let Some((stored, event)) = merge.take(&self.reading).await? else { continue };
                    self.send(&stored, event).await?;
                }
                (_, None) => return Ok(()),
            }
        }
    }

    async fn send(&self, stored: &StoredSegment, event: v1::Event) -> Result<(), Stop> {
        if self.exchange.is_some_and(|wanted| exchange_of(&event) != Some(wanted)) {
            return Ok(());
        }
        let played = v1::PlayedEvent {
            session_id: stored.session.to_field(),
            unix_ns: unix_ns(&stored.wall, event.at_ns),
            event: Some(event),
        };
        self.to.send(Ok(played)).await.map_err(|_| Stop::Unheard)
    }
}

/// Segments that have begun, and where each stands.
#[derive(Default)]
struct Merge {
    /// (time of the next event, session, seq): the order of play. The same session's segments stay in sequence.
    order: BinaryHeap<Reverse<(u64, SessionId, u64)>>,
    open: BTreeMap<(SessionId, u64), Open>,
    held_bytes: usize,
    held_bytes_max: usize,
}

struct Open {
    stored: StoredSegment,
    /// Empty while it is not held.
    events: VecDeque<v1::Event>,
    bytes: usize,
    /// Played already.
    done: usize,
    held: bool,
}

impl Merge {
    fn next_ns(&self) -> Option<u64> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    fn add(&mut self, stored: StoredSegment, events: Vec<v1::Event>) {
        let Some(first) = events.first() else { return };
        self.order.push(Reverse((first.at_ns, stored.session, stored.seq)));
        let bytes = events.iter().map(Message::encoded_len).sum();
        let mut open = Open { stored, events: events.into(), bytes, done: 0, held: true };
        if self.held_bytes + bytes > self.held_bytes_max {
            open.let_go();
        } else {
            self.held_bytes += bytes;
        }
        self.open.insert((open.stored.session, open.stored.seq), open);
    }

    async fn take(&mut self, reading: &Reading) -> Result<Option<(StoredSegment, v1::Event)>, Status> {
        let Some(Reverse((_, session, seq))) = self.order.pop() else { return Ok(None) };
        let Some(open) = self.open.get_mut(&(session, seq)) else { return Ok(None) };
        if !open.held {
            // Its turn has come: it may stay over the bound for this one event, and goes again below.
            let events = reading.events(&open.stored).await?.unwrap_or_default();
            open.events = events.into_iter().skip(open.done).collect();
        }
        let event = open.events.pop_front();
        open.done += 1;
        let stored = open.stored.clone();
        match open.events.front() {
            Some(next) => {
                self.order.push(Reverse((next.at_ns, session, seq)));
                if !open.held && self.held_bytes + open.bytes <= self.held_bytes_max {
                    open.held = true;
                    self.held_bytes += open.bytes;
                } else if !open.held {
                    open.let_go();
                }
            }
            None => {
                if open.held {
                    self.held_bytes -= open.bytes;
                }
                self.open.remove(&(session, seq));
            }
        }
        Ok(event.map(|event| (stored, event)))
    }
}

impl Open {
    fn let_go(&mut self) {
        self.events = VecDeque::new();
        self.held = false;
    }
}

fn exchange_of(event: &v1::Event) -> Option<u64> {
    use v1::event::Kind;
    match event.kind.as_ref()? {
        Kind::Asked(asked) => Some(asked.exchange),
        Kind::Judged(judged) => Some(judged.exchange),
        Kind::Data(data) => Some(data.exchange),
        Kind::Finished(finished) => Some(finished.exchange),
        Kind::Gap(gap) => Some(gap.exchange),
        Kind::Opened(_) | Kind::Closed(_) | Kind::Facts(_) => None,
    }
}
