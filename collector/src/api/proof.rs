//! What a verifier needs, as stored. Nothing is checked here: the verifier does that on its own side.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weir_proto::v1::{self, event::Kind, node_proof_item, proof_item};
use weir_proto::{NodeId, SessionId};

use super::reading::Reading;
use super::store_status;
use crate::store::rows::StoredSegment;
use crate::store::sqlite::Subject;

/// Items that wait for the verifier.
const SENT_ITEMS_MAX: usize = 16;
/// Rows looked up at once.
const ROWS: u64 = 200;

type Item = Result<v1::ProofItem, Status>;
type NodeItem = Result<v1::NodeProofItem, Status>;

pub fn proof(reading: Reading, subject: Subject) -> ReceiverStream<Item> {
    let (to, stream) = mpsc::channel(SENT_ITEMS_MAX);
    tokio::spawn(async move {
        if let Err(status) = prove(&reading, subject, &to).await {
            let _ = to.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn prove(reading: &Reading, subject: Subject, to: &mpsc::Sender<Item>) -> Result<(), Status> {
    let index = &reading.store.index;
    let key = reading.keys.receipts.verifying_key().to_bytes().to_vec();
    send(to, proof_item::Item::ReceiptKey(v1::ProofReceiptKey { key: key.into() })).await?;
    let mut told = None;
    match subject {
        Subject::Session(session) => {
            if !session_proof(reading, &session, &mut told, to).await? {
                return Err(Status::not_found("no such session"));
            }
        }
        Subject::Run(run) => {
            let mut after = None;
            loop {
                let sessions = index.session_ids(&run, after, ROWS).await.map_err(store_status)?;
                if sessions.is_empty() {
                    break;
                }
                after = sessions.last().copied();
                for session in sessions {
                    session_proof(reading, &session, &mut told, to).await?;
                }
            }
            if after.is_none() {
                return Err(Status::not_found("no such run"));
            }
        }
    }
    Ok(())
}

/// Answers whether there is such a session.
async fn session_proof(
    reading: &Reading,
    session: &SessionId,
    told: &mut Option<NodeId>,
    to: &mpsc::Sender<Item>,
) -> Result<bool, Status> {
    let index = &reading.store.index;
    let Some(claim) = index.session_claim(session).await.map_err(store_status)? else { return Ok(false) };
    let node =
        NodeId::try_from(&claim.node_id[..]).map_err(|_| Status::data_loss("a session without a node"))?;
    if *told != Some(node) {
        send(to, proof_item::Item::Node(node_item(reading, &node).await?)).await?;
        *told = Some(node);
    }
    let mut next = claim.expired_segments;
    send(to, proof_item::Item::Session(claim)).await?;
    loop {
        let segments = index.segment_list(session, next, ROWS).await.map_err(store_status)?;
        let Some(last) = segments.last() else { break };
        next = last.seq + 1;
        for stored in &segments {
            send(to, proof_item::Item::Segment(segment_item(reading, stored).await?)).await?;
        }
    }
    for alert in index.alert_list(&node, Some(session)).await.map_err(store_status)? {
        send(to, proof_item::Item::Alert(alert)).await?;
    }
    Ok(true)
}

async fn segment_item(reading: &Reading, stored: &StoredSegment) -> Result<v1::ProofSegment, Status> {
    // Bytes that are gone or changed are for the verifier to find, not for us to fail on.
    let bytes = reading.bytes(stored).await.unwrap_or_default();
    let marks = reading.events(stored).await.ok().flatten().unwrap_or_default();
    let is_mark =
        |event: &v1::Event| matches!(event.kind, Some(Kind::Opened(_) | Kind::Gap(_) | Kind::Closed(_)));
    Ok(v1::ProofSegment {
        segment: Some(v1::SealedSegment { bytes, signature: stored.signature.clone().into() }),
        receipt: Some(v1::Receipt {
            session_id: stored.session.to_field(),
            seq: stored.seq,
            segment_hash: stored.hash.to_vec().into(),
            received_unix_ms: stored.received_ms,
            signature: stored.receipt.clone().into(),
        }),
        plaintext_marks: marks.into_iter().filter(is_mark).collect(),
    })
}

async fn node_item(reading: &Reading, node: &NodeId) -> Result<v1::ProofNode, Status> {
    let row = reading.store.index.node(node).await.map_err(store_status)?;
    let row = row.ok_or_else(|| Status::not_found("no such node"))?;
    Ok(v1::ProofNode {
        node_id: node.to_field(),
        signing_key: row.signing_key.to_vec().into(),
        name: row.name,
    })
}

async fn send(to: &mpsc::Sender<Item>, item: proof_item::Item) -> Result<(), Status> {
    to.send(Ok(v1::ProofItem { item: Some(item) }))
        .await
        .map_err(|_| Status::cancelled("the verifier went away"))
}

pub fn node_proof(reading: Reading, node: NodeId) -> ReceiverStream<NodeItem> {
    let (to, stream) = mpsc::channel(SENT_ITEMS_MAX);
    tokio::spawn(async move {
        if let Err(status) = prove_node(&reading, &node, &to).await {
            let _ = to.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn prove_node(reading: &Reading, node: &NodeId, to: &mpsc::Sender<NodeItem>) -> Result<(), Status> {
    let index = &reading.store.index;
    send_node(to, node_proof_item::Item::Node(node_item(reading, node).await?)).await?;
    let mut next = 0;
    loop {
        let entries = index.node_entry_list(node, next, ROWS).await.map_err(store_status)?;
        let Some((last, _)) = entries.last() else { break };
        next = last + 1;
        for (_, signed) in entries {
            send_node(to, node_proof_item::Item::SignedEntry(signed.into())).await?;
        }
    }
    // After the log: what arrives meanwhile is held and not yet logged, never logged and not yet told.
    let mut after = (0, Vec::new());
    loop {
        let held = index.held_list(node, after, ROWS).await.map_err(store_status)?;
        let Some(last) = held.last() else { break };
        after = (last.number, last.session_id.to_vec());
        for mut session in held {
            session.last = last_segment(reading, &session).await?;
            send_node(to, node_proof_item::Item::Session(session)).await?;
        }
    }
    for alert in index.alert_list(node, None).await.map_err(store_status)? {
        send_node(to, node_proof_item::Item::Alert(alert)).await?;
    }
    Ok(())
}

/// Of a session that is closed and not wholly expired.
async fn last_segment(
    reading: &Reading,
    held: &v1::HeldSession,
) -> Result<Option<v1::SealedSegment>, Status> {
    let (Some(seq), true) = (held.segments.checked_sub(1), held.closed) else { return Ok(None) };
    let Ok(session) = SessionId::try_from(&held.session_id[..]) else { return Ok(None) };
    let found = reading.store.index.segment_list(&session, seq, 1).await.map_err(store_status)?;
    let Some(stored) = found.first() else { return Ok(None) };
    // As above: what is gone or changed is for the verifier to find.
    let bytes = reading.bytes(stored).await.unwrap_or_default();
    Ok(Some(v1::SealedSegment { bytes, signature: stored.signature.clone().into() }))
}

async fn send_node(to: &mpsc::Sender<NodeItem>, item: node_proof_item::Item) -> Result<(), Status> {
    to.send(Ok(v1::NodeProofItem { item: Some(item) }))
        .await
        .map_err(|_| Status::cancelled("the verifier went away"))
}
