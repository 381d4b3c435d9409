//! One stream to the collector. What the collector says is checked before anything follows from it: a receipt by its
//! pinned key, a refusal against what was sent. Nothing it says makes the spool delete what it does not provably hold.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use weir_proto::seal::{FORMAT_VERSION, Hash, NO_HASH, STREAM_VERSION, verify_receipt};
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::refused::Why;
use weir_proto::v1::{self, NodeEntry, ToAgent, ToCollector, to_agent, to_collector};
use weir_proto::{GenerationId, SessionId};

use super::certificate::{Certificates, ClientCertificate, drop_next, promote_next};
use super::connection::{CONNECT_TIMEOUT, ShippingError, connect, shown};
use super::identity::{Enrolled, Identity, certificates};
use super::renewal::explained;
use super::start::Progress;
use crate::recording::{Counters, KeyRing, LogStanding, NodeLog, Numbering, clock};
use crate::spool::{SegmentRef, Spool};

/// Sent and not receipted: at most so many bytes, and segments.
const WINDOW_BYTES_MAX: usize = 16 << 20;
const WINDOW_SEGMENTS_MAX: usize = 2048;
/// Messages between the stream's task and the wire.
const OUTBOX_MESSAGES: usize = 8;
/// Encoded node entries in one message.
const NODE_MESSAGE_BYTES: usize = 512 * 1024;
/// How often the node log is looked at.
const NODE_INTERVAL: Duration = Duration::from_millis(250);
/// With segments on the way and no word for this long, the stream is given up.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(60);
/// After "full" or "later".
const PAUSE: Duration = Duration::from_secs(5);
/// What makes no sense is counted; after so many, the stream is given up.
const NONSENSE_MAX: u32 = 100;
/// Times that a session goes back without a receipt in between before it is left alone.
const SESSION_REWINDS_MAX: u32 = 20;
/// No node has opened so many sessions: a collector that says so is wrong.
const NUMBER_MAX: u64 = 1 << 53;
/// Nor so many since the oldest copy that its disk may have been restored from.
const NUMBER_JUMP_MAX: u64 = 1 << 32;

/// What a stream works with.
pub(super) struct Shipper {
    pub(super) identity: Identity,
    pub(super) enrolled: Enrolled,
    pub(super) spool: Arc<Spool>,
    pub(super) log: Arc<Mutex<NodeLog>>,
    pub(super) ring: Arc<KeyRing>,
    pub(super) numbering: Numbering,
    pub(super) counters: Arc<Counters>,
    pub(super) progress: Arc<Progress>,
    /// A renewed certificate was not welcomed the last time: the one before it is tried in between.
    pub(super) next_failed: AtomicBool,
}

/// How a stream ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// There is a new certificate to connect with.
    Renewed,
}

/// Asks for the key set and nothing else.
pub(super) async fn fetch_keys(
    enrolled: &Enrolled,
    identity: &Identity,
    ring: &KeyRing,
) -> Result<(), ShippingError> {
    let opened = open(enrolled, &enrolled.certificate, identity).await?;
    let keys = opened.welcome.keys.ok_or(ShippingError::Nonsense("a welcome without keys"))?;
    Ok(ring.update(&keys, clock::unix_seconds())?)
}

/// A stream whose greetings were exchanged.
struct Opened {
    client: IngestClient<Channel>,
    outbox: mpsc::Sender<ToCollector>,
    inbox: Streaming<ToAgent>,
    welcome: v1::Welcome,
}

async fn open(
    enrolled: &Enrolled,
    certificate: &ClientCertificate,
    identity: &Identity,
) -> Result<Opened, ShippingError> {
    greeted(enrolled, certificate, identity).await.map_err(|error| explained(error, certificate))
}

async fn greeted(
    enrolled: &Enrolled,
    certificate: &ClientCertificate,
    identity: &Identity,
) -> Result<Opened, ShippingError> {
    let timeout = |_| ShippingError::Timeout { address: enrolled.address.clone() };
    let mut client = connect(enrolled, certificate).await?;
    let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
    let hello = v1::Hello {
        format_min: FORMAT_VERSION.into(),
        format_max: FORMAT_VERSION.into(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: identity.node.to_field(),
        stream_version: STREAM_VERSION,
    };
    // The channel is new: there is room.
    let _ = outbox.try_send(message(to_collector::Message::Hello(hello)));
    let mut inbox = tokio::time::timeout(CONNECT_TIMEOUT, client.ship(ReceiverStream::new(messages)))
        .await
        .map_err(timeout)??
        .into_inner();
    let first = tokio::time::timeout(CONNECT_TIMEOUT, inbox.message()).await.map_err(timeout)??;
    match first.and_then(|first| first.message) {
        Some(to_agent::Message::Welcome(welcome)) => Ok(Opened { client, outbox, inbox, welcome }),
        _ => Err(ShippingError::Nonsense("it did not begin with a welcome")),
    }
}

impl Shipper {
    /// Runs one stream to its end.
    pub(super) async fn run(&self) -> Result<Ended, ShippingError> {
        let (opened, certificate) = self.open().await?;
        let Opened { client, outbox, inbox, welcome } = opened;
        self.counters.connects.add(1);
        let mut stream = Stream::new(self, outbox);
        stream.welcome(&welcome)?;
        self.progress.connected(true);
        // Two things end a stream: itself, and a new certificate, which the next one is opened with. What is on its way then
        // is sent again.
        let ended = tokio::select! {
            ended = stream.go_on(inbox) => ended,
            () = self.renewed(client, &certificate) => Ok(Ended::Renewed),
        };
        self.progress.connected(false);
        ended
    }

    /// With a certificate that was renewed, if there is one; with the one before, if that was not welcomed the last time.
    async fn open(&self) -> Result<(Opened, ClientCertificate), ShippingError> {
        let Certificates { current, next } = certificates(&self.enrolled.state)?;
        let fall_back = self.next_failed.swap(false, Ordering::AcqRel);
        let Some(next) = next else {
            self.progress.certificate(&current);
            return Ok((open(&self.enrolled, &current, &self.identity).await?, current));
        };
        if fall_back {
            let opened = open(&self.enrolled, &current, &self.identity).await?;
            tracing::warn!(
                "the collector takes the old certificate and not the renewed one, which is dropped"
            );
            drop_next(&self.enrolled.state)?;
            self.progress.certificate(&current);
            return Ok((opened, current));
        }
        match open(&self.enrolled, &next, &self.identity).await {
            Ok(opened) => {
                promote_next(&self.enrolled.state)?;
                self.progress.certificate(&next);
                Ok((opened, next))
            }
            Err(error) => {
                self.next_failed.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    fn log(&self) -> MutexGuard<'_, NodeLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of one stream.
struct Stream<'a> {
    shipper: &'a Shipper,
    outbox: mpsc::Sender<ToCollector>,
    /// What goes to the outbox next: at most a wrap with its segment, and one message of node entries.
    outgoing: VecDeque<to_collector::Message>,
    /// What is on its way, by what it takes of the window.
    window: HashMap<SegmentRef, usize>,
    window_bytes: usize,
    wraps_sent: HashSet<GenerationId>,
    entries_sent: u64,
    rolled_back: bool,
    paused_until: Option<Instant>,
    heard_at: Instant,
    nonsense: u32,
    rewinds: HashMap<SessionId, Rewind>,
}

/// A session that is to be sent again from some segment on.
#[derive(Default)]
struct Rewind {
    to: Option<u64>,
    /// It is about what we send, not about how the collector is.
    ours: bool,
    /// How often without a receipt in between.
    times: u32,
}

impl<'a> Stream<'a> {
    fn new(shipper: &'a Shipper, outbox: mpsc::Sender<ToCollector>) -> Self {
        Self {
            shipper,
            outbox,
            outgoing: VecDeque::new(),
            window: HashMap::new(),
            window_bytes: 0,
            wraps_sent: HashSet::new(),
            entries_sent: 0,
            rolled_back: false,
            paused_until: None,
            heard_at: Instant::now(),
            nonsense: 0,
            rewinds: HashMap::new(),
        }
    }

    fn welcome(&mut self, welcome: &v1::Welcome) -> Result<(), ShippingError> {
        let ours = u32::from(FORMAT_VERSION);
        if !(welcome.format_min..=welcome.format_max).contains(&ours) {
            return Err(ShippingError::Format { min: welcome.format_min, max: welcome.format_max, ours });
        }
        let keys = welcome.keys.as_ref().ok_or(ShippingError::Nonsense("a welcome without keys"))?;
        self.shipper.ring.update(keys, clock::unix_seconds())?;
        self.compare_log(welcome.node_entries, &welcome.node_head, welcome.next_number)
    }

    /// Goes on from where the collector's copy of the node log ends; where that is not the beginning of ours, says so in
    /// the log and goes on from the collector's.
    fn compare_log(&mut self, entries: u64, head: &[u8], next_number: u64) -> Result<(), ShippingError> {
        let head = match head {
            [] if entries == 0 => NO_HASH,
            head => {
                head.try_into().map_err(|_| ShippingError::Nonsense("a node log head that is no hash"))?
            }
        };
        if entries > NUMBER_MAX || next_number > NUMBER_MAX {
            return Err(ShippingError::Nonsense("a node log longer than any"));
        }
        let mut log = self.shipper.log();
        match log.standing(entries, &head)? {
            LogStanding::Behind(from) => {
                self.entries_sent = from;
                log.receipted(from);
                self.shipper.progress.entries(from);
            }
            LogStanding::Diverged if self.rolled_back => {
                return Err(ShippingError::Nonsense("the node log diverged twice on one stream"));
            }
            LogStanding::Diverged => {
                self.rolled_back = true;
                self.shipper.counters.node_log_rolled_back.add(1);
                tracing::error!(
                    own = log.entries(),
                    collector = entries,
                    "the collector's copy of the node log is not the beginning of this one: was this disk restored from \
                     an old copy? The log goes on from the collector's, and says so"
                );
                let numbering = &self.shipper.numbering;
                let (own_next_number, opened, heartbeat) =
                    numbering.resume_at(next_number, NUMBER_JUMP_MAX).ok_or(ShippingError::Nonsense(
                        "a session number further on than this node can have come",
                    ))?;
                let last = NodeEntry {
                    at_ns: clock::now().0,
                    wall: Some(clock::wall()),
                    boot_id: clock::boot_id(),
                    opened: opened.clone(),
                    heartbeat: Some(heartbeat),
                    ..NodeEntry::default()
                };
                if let Err(error) = log.roll_back(entries, head, own_next_number, last) {
                    numbering.put_back(opened);
                    return Err(error.into());
                }
                self.entries_sent = entries;
            }
        }
        Ok(())
    }

    /// Sends while the window has room, and always hears what comes back: a collector that waits for us to read must not
    /// meet us waiting for it.
    async fn go_on(&mut self, mut inbox: Streaming<ToAgent>) -> Result<Ended, ShippingError> {
        let outbox = self.outbox.clone();
        let mut look = tokio::time::interval(NODE_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while self.outgoing.is_empty() && self.may_send() {
                match self.shipper.spool.next() {
                    // It counts as sent, and is sent again with what comes before it.
                    Some(at) if self.is_rewinding(at.session) => {}
                    Some(at) => self.prepare(at).await,
                    None => break,
                }
            }
            // Four things end the wait: the collector's word, room in the outbox, a new segment, the time to look around.
            tokio::select! {
                heard = inbox.message() => match heard? {
                    Some(heard) => self.hear(heard)?,
                    None => return Err(ShippingError::Closed),
                },
                room = outbox.reserve(), if !self.outgoing.is_empty() => {
                    let room = room.map_err(|_| ShippingError::Closed)?;
                    if let Some(next) = self.outgoing.pop_front() {
                        room.send(message(next));
                    }
                }
                () = self.shipper.spool.changed() => {}
                _ = look.tick() => {
                    self.prepare_entries()?;
                    let waiting = !self.window.is_empty() || !self.outgoing.is_empty();
                    if waiting && self.heard_at.elapsed() > RECEIPT_TIMEOUT {
                        return Err(ShippingError::Silent(RECEIPT_TIMEOUT));
                    }
                }
            }
        }
    }

    fn may_send(&mut self) -> bool {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.paused_until = None;
        self.window_bytes < WINDOW_BYTES_MAX && self.window.len() < WINDOW_SEGMENTS_MAX
    }

    async fn prepare(&mut self, at: SegmentRef) {
        let spool = self.shipper.spool.clone();
        let read = tokio::task::spawn_blocking(move || spool.read(at)).await;
        let (segment, signature) = match read {
            Ok(Ok(Some(read))) => read,
            // What is damaged was set aside, and the node log will say so.
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return self.try_again(at, &error),
            Err(error) => return self.try_again(at, &std::io::Error::other(error)),
        };
        let generation = segment.draft().generation;
        if !self.wraps_sent.contains(&generation) {
            let wrap = match self.shipper.spool.wrap(generation) {
                Ok(Some(wrap)) => wrap,
                Ok(None) => {
                    tracing::error!(%generation, session = %at.session, "the wrapped key of a spooled segment is lost");
                    self.shipper.spool.stick(at, "its wrapped key is lost");
                    return;
                }
                Err(error) => return self.try_again(at, &error),
            };
            self.outgoing.push_back(to_collector::Message::Wrap(wrap));
            self.wraps_sent.insert(generation);
        }
        let bytes = segment.bytes().clone();
        if self.window.is_empty() {
            self.heard_at = Instant::now();
        }
        self.window_bytes += bytes.len();
        self.window.insert(at, bytes.len());
        self.shipper.counters.shipped_segments.add(1);
        self.outgoing.push_back(to_collector::Message::Segment(v1::SealedSegment { bytes, signature }));
    }

    /// The disk, or this process's limit of open files, did not let us read: that is nobody's damage yet.
    fn try_again(&mut self, at: SegmentRef, error: &std::io::Error) {
        tracing::warn!(session = %at.session, seq = at.seq, %error, "a spooled segment cannot be read now");
        self.paused_until = Some(Instant::now() + PAUSE);
        self.shipper.spool.unread(at, error);
    }

    fn prepare_entries(&mut self) -> Result<(), ShippingError> {
        let waiting = self.outgoing.iter().any(|m| matches!(m, to_collector::Message::Node(_)));
        let log = self.shipper.log();
        if waiting || log.entries() <= self.entries_sent {
            return Ok(());
        }
        let signed = log.read_from(self.entries_sent, NODE_MESSAGE_BYTES)?;
        drop(log);
        if signed.is_empty() {
            // The disk has lost or changed what comes next. The next stream finds that too, and goes on from the
            // collector's log.
            return Err(ShippingError::NodeLogGone(self.entries_sent));
        }
        if self.window.is_empty() && self.outgoing.is_empty() {
            self.heard_at = Instant::now();
        }
        self.entries_sent += signed.len() as u64;
        let sent_unix_ns = clock::wall().unix_ns;
        self.outgoing.push_back(to_collector::Message::Node(v1::NodeEntries { signed, sent_unix_ns }));
        Ok(())
    }

    fn hear(&mut self, heard: ToAgent) -> Result<(), ShippingError> {
        self.heard_at = Instant::now();
        match heard.message {
            Some(to_agent::Message::Receipt(receipt)) => self.receipt(&receipt),
            Some(to_agent::Message::Refused(refused)) => self.refused(&refused),
            Some(to_agent::Message::Node(node)) => self.node_receipt(&node),
            Some(to_agent::Message::Keys(keys)) => {
                Ok(self.shipper.ring.update(&keys, clock::unix_seconds())?)
            }
            Some(to_agent::Message::Welcome(_)) => self.make_no_sense("a second welcome"),
            // A collector of a later version may say more than is known here; it was told our version.
            None => Ok(()),
        }
    }

    fn receipt(&mut self, receipt: &v1::Receipt) -> Result<(), ShippingError> {
        let Ok(said) = verify_receipt(&self.shipper.enrolled.receipt_key, receipt) else {
            self.shipper.counters.receipts_false.add(1);
            return self.make_no_sense("a receipt that is not signed by its key");
        };
        let at = SegmentRef { session: said.session, seq: said.seq };
        if !self.window.contains_key(&at) || !self.shipper.spool.receipt(at, &said.hash) {
            self.shipper.counters.receipts_false.add(1);
            return self.make_no_sense("a receipt for what was not sent");
        }
        self.leave_window(at);
        self.resend(at.session);
        if let Some(rewind) = self.rewinds.get_mut(&at.session) {
            rewind.times = 0;
            if rewind.to.is_none() {
                self.rewinds.remove(&at.session);
            }
        }
        self.shipper.counters.receipts.add(1);
        self.shipper.progress.receipted();
        Ok(())
    }

    fn refused(&mut self, refused: &v1::Refused) -> Result<(), ShippingError> {
        let Ok(session) = SessionId::try_from(&refused.session_id[..]) else {
            return self.make_no_sense("a refusal without a session");
        };
        let at = SegmentRef { session, seq: refused.seq };
        if !self.leave_window(at) {
            return self.make_no_sense("a refusal of what was not sent");
        }
        self.shipper.counters.refused.add(1);
        let spool = &self.shipper.spool;
        match Why::try_from(refused.why).unwrap_or_default() {
            Why::WantSeq if refused.wanted < refused.seq => {
                self.rewind(SegmentRef { seq: refused.wanted, ..at }, true)
            }
            Why::NoWrap => {
                self.wraps_sent.clear();
                self.rewind(at, true);
            }
            Why::Tamper => {
                self.shipper.counters.refused_tamper.add(1);
                tracing::error!(%session, seq = at.seq, detail = shown(&refused.detail),
                    "the collector refused a segment as tampered with; the session stays in the spool");
                spool.stick(at, "refused as tampered with");
            }
            Why::UnknownFormat => {
                tracing::error!(%session, seq = at.seq,
                    "the collector does not know this segment's format; it stays in the spool");
                spool.stick(at, "its format is unknown to the collector");
            }
            Why::Full | Why::TryLater | Why::WantSeq | Why::Unspecified => {
                self.paused_until = Some(Instant::now() + PAUSE);
                self.rewind(at, false);
            }
        }
        self.resend(session);
        Ok(())
    }

    /// The session goes back to this segment, once all that is on its way has been answered: what was sent after the
    /// refused one is refused too, and must not send us back again.
    fn rewind(&mut self, to: SegmentRef, ours: bool) {
        let rewind = self.rewinds.entry(to.session).or_default();
        rewind.to = Some(rewind.to.map_or(to.seq, |seq| seq.min(to.seq)));
        rewind.ours |= ours;
    }

    fn is_rewinding(&self, session: SessionId) -> bool {
        self.rewinds.get(&session).is_some_and(|rewind| rewind.to.is_some())
    }

    fn resend(&mut self, session: SessionId) {
        if self.window.keys().any(|at| at.session == session) {
            return;
        }
        let Some(rewind) = self.rewinds.get_mut(&session) else { return };
        let Some(seq) = rewind.to.take() else { return };
        let at = SegmentRef { session, seq };
        let spool = &self.shipper.spool;
        rewind.times += u32::from(std::mem::take(&mut rewind.ours));
        if rewind.times > SESSION_REWINDS_MAX {
            tracing::error!(%session, seq, "the collector wants the same segments again and again");
            spool.stick(at, "refused again and again");
        } else if !spool.resend_from(at) {
            tracing::error!(%session, wanted = seq, "the collector wants a segment that is not in the spool");
            spool.missing(at);
        }
    }

    fn node_receipt(&mut self, node: &v1::NodeReceipt) -> Result<(), ShippingError> {
        if node.diverged {
            // The next stream's welcome names the number to go on with.
            return self.compare_log(node.entries, &node.head, 0);
        }
        let Ok(head) = Hash::try_from(&node.head[..]) else {
            return self.make_no_sense("a node receipt without a hash");
        };
        let mut log = self.shipper.log();
        if log.standing(node.entries, &head)? != LogStanding::Behind(node.entries) {
            drop(log);
            return self.make_no_sense("a node receipt for another log");
        }
        log.receipted(node.entries);
        self.shipper.progress.entries(node.entries);
        Ok(())
    }

    fn leave_window(&mut self, at: SegmentRef) -> bool {
        let left = self.window.remove(&at);
        self.window_bytes -= left.unwrap_or(0);
        left.is_some()
    }

    fn make_no_sense(&mut self, what: &'static str) -> Result<(), ShippingError> {
        self.nonsense += 1;
        tracing::warn!(what, "the collector made no sense");
        if self.nonsense > NONSENSE_MAX { Err(ShippingError::Nonsense(what)) } else { Ok(()) }
    }
}

fn message(what: to_collector::Message) -> ToCollector {
    ToCollector { message: Some(what) }
}
