//! Groups what all streams bring into batches: one bundle and one transaction for many segments.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use weir_proto::NodeId;

use super::acceptance::{Acceptance, Answer, Offer};

/// A batch is closed this long after its first offer,
const WINDOW: Duration = Duration::from_millis(20);
/// or when nothing came for so long: an agent that waits for its receipts has nothing to add,
const LULL: Duration = Duration::from_millis(4);
/// or with so many bytes,
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// or with so many offers.
const BATCH_OFFERS_MAX: usize = 1024;
/// Offers that wait for the batch under way. Their bytes are bounded by [`Budget`].
const QUEUE_OFFERS_MAX: usize = 2048;

/// One offer on its way: what to answer to, and what it holds of the budgets until it is answered.
pub struct Work {
    pub node: NodeId,
    pub offer: Offer,
    pub bytes: usize,
    /// A place in the stream's answers, taken before the offer was read: answering never waits for a slow agent.
    pub answer: mpsc::OwnedPermit<Answer>,
    pub held: Held,
}

/// Bytes in flight: of this agent and of all.
pub struct Held {
    pub agent: OwnedSemaphorePermit,
    pub all: OwnedSemaphorePermit,
}

/// Counts bytes in flight.
#[derive(Clone)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    max: u32,
}

impl Budget {
    pub fn new(max: u32) -> Self {
        Self { bytes: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// Waits for room. One message larger than the whole budget takes all of it instead of waiting forever.
    pub async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.max);
        self.bytes.clone().acquire_many_owned(bytes).await.ok()
    }

    pub fn held(&self) -> u64 {
        u64::from(self.max).saturating_sub(self.bytes.available_permits() as u64)
    }
}

/// Where streams bring their offers.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Work>,
}

impl Committer {
    /// The task ends when the last stream has gone and everything is answered.
    pub fn start(acceptance: Acceptance) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, offers) = mpsc::channel(QUEUE_OFFERS_MAX);
        (Self { queue }, tokio::spawn(run(acceptance, offers)))
    }

    /// Waits while the queue is full. `Err`: the collector is shutting down.
    pub async fn offer(&self, work: Work) -> Result<(), tonic::Status> {
        self.queue.send(work).await.map_err(|_| tonic::Status::unavailable("the collector is shutting down"))
    }
}

async fn run(acceptance: Acceptance, mut offers: mpsc::Receiver<Work>) {
    while let Some(first) = offers.recv().await {
        let batch = gather(first, &mut offers).await;
        let (offers, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|work| ((work.node, work.offer), (work.answer, work.held))).unzip();
        for (answer, (place, _held)) in acceptance.accept(offers).await.into_iter().zip(answers) {
            place.send(answer);
        }
    }
}

async fn gather(first: Work, offers: &mut mpsc::Receiver<Work>) -> Vec<Work> {
    let closes = Instant::now() + WINDOW;
    let mut bytes = first.bytes;
    let mut batch = vec![first];
    while bytes < BATCH_BYTES_MAX && batch.len() < BATCH_OFFERS_MAX {
        match tokio::time::timeout_at(closes.min(Instant::now() + LULL), offers.recv()).await {
            Ok(Some(work)) => {
                bytes += work.bytes;
                batch.push(work);
            }
            Ok(None) | Err(_) => break,
        }
    }
    batch
}
