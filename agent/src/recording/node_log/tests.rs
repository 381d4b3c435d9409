//! The log as files: kept whole through interruptions, rot and restarts.

use weir_proto::v1::{Heartbeat, SegmentsLost, SessionClosed, SessionOpened};

use super::files::{self, abandon, file_name, list};
use super::*;
use bytes::Bytes;
use prost::Message;
use std::path::Path;
use weir_proto::seal::{NodeChain, SigningKey};
use weir_proto::v1::{NodeEntry, SignedNodeEntry, node_entry::Mark};
use weir_proto::{NodeId, SessionId};

const NODE: NodeId = NodeId::from_bytes([1; 16]);

fn key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn open(folder: &Path) -> (NodeLog, Recovered) {
    NodeLog::open(folder, NODE, key()).unwrap()
}

fn session(n: u8) -> SessionId {
    SessionId::from_bytes([n; 16])
}

fn opened(n: u8) -> NodeEntry {
    let opened = vec![SessionOpened { number: n.into(), session_id: session(n).to_field() }];
    NodeEntry { opened, ..NodeEntry::default() }
}

fn closed(n: u8) -> NodeEntry {
    let closed = SessionClosed { number: n.into(), session_id: session(n).to_field(), ..Default::default() };
    NodeEntry { closed: vec![closed], ..NodeEntry::default() }
}

/// Fills files: an entry of some 200 kB.
fn long() -> NodeEntry {
    NodeEntry { boot_id: "x".repeat(200_000), ..NodeEntry::default() }
}

/// All that the folder's files hold, checked from where they begin.
fn read_back(log: &NodeLog, from: u64) -> Vec<NodeEntry> {
    let read = log.read_from(from, usize::MAX).unwrap();
    read.into_iter()
        .map(|entry| NodeEntry::decode(SignedNodeEntry::decode(entry).unwrap().entry).unwrap())
        .collect()
}

#[test]
fn the_heartbeat_comes_with_the_last_of_what_it_vouches_for() {
    let many: Vec<_> = (0..4500u64).map(|n| SessionOpened { number: n, ..Default::default() }).collect();
    let parts = split(NodeEntry {
        opened: many.clone(),
        lost: vec![SegmentsLost::default()],
        heartbeat: Some(Heartbeat { next_number: 4500, ..Default::default() }),
        mark: Some(Mark::Started(Default::default())),
        ..NodeEntry::default()
    });
    assert_eq!(parts.iter().map(|p| p.mark.is_some()).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(parts.iter().map(|p| p.heartbeat.is_some()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(parts.iter().map(|p| p.lost.len()).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(parts.into_iter().flat_map(|p| p.opened).collect::<Vec<_>>(), many);
}

#[test]
fn what_is_open_is_known_though_the_files_that_opened_it_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, recovered) = open(folder.path());
    assert!(recovered.open.is_empty());
    for entry in [opened(1), opened(2), opened(3), closed(2)] {
        log.append(entry).unwrap();
    }
    for _ in 0..12 {
        log.append(long()).unwrap();
    }
    log.append(closed(3)).unwrap();
    assert!(list(folder.path()).unwrap().len() > 2);
    log.receipted(log.entries());
    assert_eq!(list(folder.path()).unwrap().len(), 1);
    log.append(opened(4)).unwrap();
    drop(log);
    let (mut log, recovered) = open(folder.path());
    assert_eq!(recovered.open.into_iter().collect::<Vec<_>>(), [(session(1), 1), (session(4), 4)]);
    let lost = SegmentsLost { session_id: session(1).to_field(), ..Default::default() };
    log.append(NodeEntry { lost: vec![lost], ..closed(4) }).unwrap();
    drop(log);
    assert!(open(folder.path()).1.open.is_empty());
}

#[test]
fn an_entry_that_rots_is_not_sent_and_one_that_cannot_be_read_now_is_no_divergence() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    for n in 1..=3 {
        log.append(opened(n)).unwrap();
    }
    let whole = log.read_from(0, usize::MAX).unwrap();
    assert_eq!(whole.len(), 3);
    let heads: Vec<_> = read_back(&log, 0).iter().map(|e| e.prev_hash[..].try_into().unwrap()).collect();
    assert_eq!(log.standing(1, &heads[1]).unwrap(), LogStanding::Behind(1));

    let path = folder.path().join(file_name(0));
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    // In the session's id of the second entry: everything still decodes.
    let at = bad.windows(16).position(|w| w == session(2).as_bytes()).unwrap();
    bad[at] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert_eq!(log.read_from(0, usize::MAX).unwrap(), whole[..1]);
    assert!(log.read_from(1, usize::MAX).unwrap().is_empty());
    assert_eq!(log.standing(1, &heads[1]).unwrap(), LogStanding::Diverged);

    // A folder in its place opens and does not read: an error of the disk, not of the content.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(log.standing(1, &heads[1]).is_err());
    assert!(log.read_from(0, usize::MAX).is_err());
    assert!(log.roll_back(7, [7; 32], 4, opened(4)).is_err(), "nothing is given up that may still be there");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &good).unwrap();
    assert_eq!(log.entries(), 3);
    assert_eq!(log.standing(1, &heads[1]).unwrap(), LogStanding::Behind(1));
    assert_eq!(log.read_from(0, usize::MAX).unwrap(), whole);
}

#[test]
fn what_stands_behind_a_damaged_entry_is_known_and_to_be_said_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    for entry in [opened(1), opened(2), closed(1), opened(3)].into_iter().chain((0..7).map(|_| long())) {
        log.append(entry).unwrap();
    }
    log.append(opened(4)).unwrap();
    let files = list(folder.path()).unwrap();
    assert_eq!(files.len(), 2);
    drop(log);
    let path = folder.path().join(file_name(0));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(16).position(|w| w == session(2).as_bytes()).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let (mut log, recovered) = open(folder.path());
    assert_eq!(log.entries(), 1);
    assert_eq!(recovered.again.opened.iter().map(|o| o.number).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(recovered.again.closed.iter().map(|c| c.number).collect::<Vec<_>>(), [1]);
    assert_eq!(recovered.next_number, 5);
    assert_eq!(recovered.open.into_values().collect::<Vec<_>>(), [3, 4]);
    log.append(recovered.again).unwrap();
    drop(log);
    let (_, recovered) = open(folder.path());
    assert_eq!(recovered.open.into_values().collect::<Vec<_>>(), [3, 4]);
    assert!(recovered.again.opened.is_empty());
}

/// The log after its beginning at the collector's head: what the files had said, then what is new.
fn assert_rolled_back(log: &NodeLog) {
    let entries = read_back(log, 2);
    assert!(matches!(&entries[0].mark, Some(Mark::RolledBack(said)) if said.own_next_number == 5));
    assert!(entries[0].heartbeat.is_none());
    let numbers: Vec<u64> = entries.iter().flat_map(|e| &e.opened).map(|o| o.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let closed: Vec<u64> = entries.iter().flat_map(|e| &e.closed).map(|c| c.number).collect();
    assert_eq!(closed[0], 1, "{closed:?}");
    let vouching: Vec<_> = entries.iter().filter(|e| e.heartbeat.is_some()).collect();
    assert_eq!(vouching.len(), 1);
    assert_eq!(vouching[0].opened[0].number, 3);
}

#[test]
fn going_on_from_the_collectors_log_survives_an_interruption_at_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let fill = |log: &mut NodeLog| {
        for entry in [opened(1), opened(2), closed(1)].into_iter().chain(std::iter::repeat_n(long(), 7)) {
            log.append(entry).unwrap();
        }
    };
    let mut last = opened(3);
    last.heartbeat = Some(Heartbeat { next_number: 4, ..Default::default() });

    let (mut log, _) = open(here);
    fill(&mut log);
    let before = list(here).unwrap();
    assert!(before.len() > 1);
    // The same step as in a crash before the new log was whole: it never was.
    let writing = files::begin_replacement(here).unwrap();
    std::fs::write(writing.join(file_name(2)), b"half").unwrap();
    drop(log);
    let (mut log, recovered) = open(here);
    assert_eq!((log.entries(), recovered.open.len()), (10, 1));
    assert!(!writing.exists());

    log.roll_back(2, [7; 32], 5, last.clone()).unwrap();
    assert_rolled_back(&log);
    log.append(closed(3)).unwrap();
    let after = log.entries();
    drop(log);
    let (log, recovered) = open(here);
    assert_eq!(log.entries(), after);
    assert_eq!(recovered.open.into_keys().collect::<Vec<_>>(), [session(2)]);
    drop(log);

    // The new log's files, whole, while the old ones are still there, are half away, and are away.
    let new: Vec<(u64, Vec<u8>)> = list(here)
        .unwrap()
        .into_iter()
        .map(|first| (first, std::fs::read(here.join(file_name(first))).unwrap()))
        .collect();
    for step in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let (mut log, _) = open(here);
        fill(&mut log);
        drop(log);
        let old = list(here).unwrap();
        let incoming = here.join(if step < 2 { "next" } else { "joining" });
        std::fs::create_dir(&incoming).unwrap();
        for (first, bytes) in &new {
            std::fs::write(incoming.join(file_name(*first)), bytes).unwrap();
        }
        match step {
            0 => {}
            1 => abandon(here, &old[..1]).unwrap(),
            _ => abandon(here, &old).unwrap(),
        }
        if step == 3 {
            let (first, _) = new[0];
            std::fs::rename(incoming.join(file_name(first)), here.join(file_name(first))).unwrap();
        }
        let (log, _) = open(here);
        assert_eq!(log.entries(), after, "step {step}");
        assert_eq!(list(here).unwrap(), new.iter().map(|(first, _)| *first).collect::<Vec<_>>());
        assert_rolled_back(&log);
        assert!(!incoming.exists());
    }
}

#[test]
fn a_collector_that_denies_the_log_again_and_again_does_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    log.append(opened(1)).unwrap();
    for n in 0..files::ABANDONED_MAX as u64 {
        log.roll_back(n, [7; 32], 2, NodeEntry::default()).unwrap();
    }
    let entries = log.entries();
    let error = log.roll_back(7, [7; 32], 2, NodeEntry::default()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("move them away"), "{error}");
    log.append(opened(2)).unwrap();
    assert_eq!(log.entries(), entries + 1);
    assert_eq!(list(folder.path()).unwrap().len(), 1);
}

#[test]
fn a_log_begun_elsewhere_reads_from_its_own_beginning_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut chain = NodeChain { node: NODE, next_index: 5, head: [3; 32] };
    let entry = chain.append(opened(1), &key()).encode_length_delimited_to_vec();
    std::fs::write(folder.path().join(file_name(5)), entry).unwrap();
    let (log, recovered) = open(folder.path());
    assert_eq!((log.entries(), recovered.next_number), (6, 2));
    assert_eq!(log.read_from(3, usize::MAX).unwrap(), Vec::<Bytes>::new());
    assert_eq!(log.standing(5, &[3; 32]).unwrap(), LogStanding::Behind(5));
    assert_eq!(log.standing(3, &[3; 32]).unwrap(), LogStanding::Diverged);
}
