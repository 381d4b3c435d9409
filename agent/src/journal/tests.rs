//! What must hold for the journal: all that was appended is read back, also by another life, also from torn files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use weir_proto::SessionId;

use super::layout::PAGE_BYTES;
use super::{Append, Full, JOURNAL_BYTES_MIN, Journal, ScanEnd, scan};

fn session(n: u8) -> SessionId {
    SessionId::from_bytes([n; 16])
}

fn new_journal(folder: &tempfile::TempDir) -> Journal {
    Journal::create(&folder.path().join("test.journal"), JOURNAL_BYTES_MIN).unwrap()
}

fn append(journal: &Journal, of: u8, payload: &[u8]) -> Result<(), Full> {
    let what = Append { session: session(of), at_ns: 7, flags: 0, payload: payload.len(), closing: false };
    journal.append(&what, |room| room.copy_from_slice(payload))
}

/// What another life of the agent would find in the file.
fn found(journal: &Journal) -> (Vec<(u64, u8, Vec<u8>)>, ScanEnd) {
    let file = std::fs::read(journal.path()).unwrap();
    let mut records = Vec::new();
    let (_, end) = scan(&file, |r| records.push((r.from, r.session.as_bytes()[0], r.payload.to_vec())));
    (records, end)
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, usize),
    /// Reclaim up to the record with this share of those held.
    Reclaim(f64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = prop_oneof![1..200usize, 1000..9000usize, 100_000..190_000usize];
    let step = prop_oneof![
        4 => (any::<u8>(), lengths).prop_map(|(of, len)| Step::Append(of, len)),
        1 => (0.0..1.0f64).prop_map(Step::Reclaim),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a plain queue, over several laps of the ring.
    #[test]
    fn what_is_appended_is_read_back_here_and_by_another_life(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let journal = new_journal(&folder);
        let mut held: VecDeque<(u64, u8, Vec<u8>)> = VecDeque::new();
        let mut cursor = 0;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(of, len) => {
                    let payload: Vec<u8> = (0..len).map(|i| (i + n) as u8).collect();
                    if append(&journal, of, &payload).is_ok() {
                        let record = journal.record(cursor).unwrap();
                        prop_assert_eq!((record.session, record.payload), (session(of), &payload[..]));
                        cursor = record.to;
                        held.push_back((record.from, of, payload));
                    } else {
                        // Full may only be said when it is: with nothing held, everything fits.
                        prop_assert!(!held.is_empty());
                    }
                }
                Step::Reclaim(share) => {
                    let keep = (held.len() as f64 * share) as usize;
                    let mark = held.get(keep).map_or(cursor, |(from, ..)| *from);
                    journal.reclaim(mark).unwrap();
                    held.drain(..keep.min(held.len()));
                }
            }
        }
        prop_assert_eq!(found(&journal), (Vec::from(held), ScanEnd::Clean));
    }

    /// Cut anywhere, or with any byte changed: only true records come out, in order, and nothing panics.
    #[test]
    fn a_torn_file_gives_true_records_only(
        lengths in proptest::collection::vec(1..3000usize, 1..60),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
        cut in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let journal = new_journal(&folder);
        for (n, len) in lengths.iter().enumerate() {
            append(&journal, n as u8, &vec![n as u8; *len]).unwrap();
        }
        let (whole, _) = found(&journal);
        let mut file = std::fs::read(journal.path()).unwrap();
        // Where the records are, and a little beyond.
        let at = at.index(PAGE_BYTES + journal.published() as usize + 100);
        if cut {
            file.truncate(at);
        } else {
            file[at] ^= 1 << bit;
        }
        let mut records = Vec::new();
        scan(&file, |r| records.push((r.from, r.session.as_bytes()[0], r.payload.to_vec())));
        let begins = records.first().map_or(0, |(from, ..)| whole.partition_point(|w| w.0 < *from));
        prop_assert_eq!(&records[..], &whole[begins..begins + records.len()]);
        if !cut && at >= PAGE_BYTES {
            prop_assert_eq!(begins, 0, "outside of the header page, all before the damage is read");
            let before = whole.partition_point(|w| PAGE_BYTES as u64 + w.0 + 48 + w.2.len() as u64 <= at as u64);
            prop_assert!(records.len() >= before);
        }
    }

    #[test]
    fn any_bytes_scan_without_panic(mut file in proptest::collection::vec(any::<u8>(), 0..20_000), real in any::<bool>()) {
        if real && file.len() > PAGE_BYTES {
            file.truncate(file.len() / PAGE_BYTES * PAGE_BYTES);
            file[..4].copy_from_slice(b"WJRN");
            file[4..6].copy_from_slice(&1u16.to_le_bytes());
            let ring = (file.len() - PAGE_BYTES) as u64;
            file[24..32].copy_from_slice(&ring.to_le_bytes());
            file[64] &= 0xf8;
        }
        let mut records = 0;
        scan(&file, |_| records += 1);
        prop_assert_eq!(records, 0, "random bytes do not carry checksums");
    }
}

#[test]
fn a_full_journal_keeps_room_for_closings_and_goes_on_when_space_is_given_free() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Arc::new(new_journal(&folder));
    while append(&journal, 1, &[1; 4000]).is_ok() {}
    assert_eq!(append(&journal, 1, &[1; 4000]), Err(Full));
    let closing =
        Append { session: session(1), at_ns: 0, flags: super::FLAG_CLOSED, payload: 100, closing: true };
    journal.append(&closing, |room| room.fill(2)).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let waiting = tokio::spawn({
            let journal = journal.clone();
            async move { journal.room(100_000).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        journal.reclaim(journal.published()).unwrap();
        waiting.await.unwrap();
    });
    append(&journal, 1, &[1; 100_000]).unwrap();
    journal.shut();
    assert_eq!(append(&journal, 1, &[1]), Err(Full));
    runtime.block_on(async {
        tokio::time::timeout(std::time::Duration::from_secs(30), journal.room(1)).await.unwrap();
    });
}

#[test]
fn many_writers_and_a_reader_agree() {
    const WRITERS: u8 = 4;
    const EACH: u32 = 3000;
    let folder = tempfile::tempdir().unwrap();
    let journal = new_journal(&folder);
    let done = AtomicBool::new(false);
    let mut seen = [0u32; WRITERS as usize];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|of| {
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..EACH {
                        let payload = [&n.to_le_bytes()[..], &vec![of; (n % 700) as usize]].concat();
                        while append(journal, of, &payload).is_err() {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            writers.into_iter().for_each(|w| w.join().unwrap());
            done.store(true, Ordering::Release);
        });
        let mut cursor = 0;
        loop {
            let finished = done.load(Ordering::Acquire);
            while let Some(record) = journal.record(cursor) {
                let of = record.session.as_bytes()[0];
                let (n, rest) = record.payload.split_first_chunk().unwrap();
                let n = u32::from_le_bytes(*n);
                assert_eq!(n, seen[of as usize], "each writer's records come in its order");
                assert!(rest.len() == (n % 700) as usize && rest.iter().all(|b| *b == of));
                seen[of as usize] += 1;
                cursor = record.to;
            }
            journal.reclaim(cursor).unwrap();
            if finished {
                break;
            }
            std::thread::yield_now();
        }
    });
    assert_eq!(seen, [EACH; WRITERS as usize]);
    assert_eq!(found(&journal), (Vec::new(), ScanEnd::Clean));
}

#[test]
fn the_file_is_its_owners_alone_and_sizes_are_bounded() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let journal = new_journal(&folder);
    assert_eq!(std::fs::metadata(journal.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Journal::create(&folder.path().join("small"), 10).is_err());
    assert!(Journal::create(&folder.path().join("large"), u64::MAX).is_err());
    assert!(
        Journal::create(journal.path(), JOURNAL_BYTES_MIN).is_err(),
        "an existing file is never taken over"
    );
}
