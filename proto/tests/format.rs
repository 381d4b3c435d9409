//! The table of the segment header in docs/format.md says where the fields of the golden segment are.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use bytes::Bytes;
use weir_proto::seal::{SIGNATURE_BYTES, Segment};

/// (offset, size, field) of the rows of section 2.
fn rows() -> Vec<(usize, usize, String)> {
    let page = include_str!("../../docs/format.md");
    let section = page.split("\n## ").find(|section| section.starts_with("2. Segment")).unwrap();
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let of = |line: &str| {
        let cells = cells(line);
        Some((cells.get(1)?.parse().ok()?, cells.get(2)?.parse().ok()?, cells.get(3)?.clone()))
    };
    section.lines().filter_map(of).collect()
}

#[test]
fn the_documented_offsets_are_those_of_the_golden_segment() {
    let file = Bytes::from_static(include_bytes!("../golden/v1/00000001.seg"));
    let segment = Segment::parse(file.slice(..file.len() - SIGNATURE_BYTES)).unwrap();
    let header = segment.header();
    let draft = &header.draft;
    let be = |value: u64| value.to_be_bytes().to_vec();
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let expected = [
        ("magic", b"WSEG".to_vec()),
        ("format", vec![0, 1]),
        ("codec", vec![0]),
        ("flags", vec![2]),
        ("node id", draft.node.as_bytes().to_vec()),
        ("session id", draft.session.as_bytes().to_vec()),
        ("run id", draft.run.as_bytes().to_vec()),
        ("generation id", draft.generation.as_bytes().to_vec()),
        ("number", be(draft.number)),
        ("seq", be(draft.seq)),
        ("previous hash", draft.prev_hash.to_vec()),
        ("first_ns", be(draft.first_ns)),
        ("last_ns", be(draft.last_ns)),
        ("wall", draft.wall.unix_ns.to_be_bytes().to_vec()),
        ("wall_boot_ns", be(draft.wall.boot_ns)),
        ("plaintext length", be32(header.plain_len)),
        ("ciphertext length", be32(header.cipher_len)),
        ("events", be32(draft.events)),
        ("reserved", be32(0)),
        ("journal id", draft.journal.journal.to_vec()),
        ("journal from", be(draft.journal.from)),
        ("journal to", be(draft.journal.to)),
    ];
    let rows = rows();
    assert_eq!(rows.len(), expected.len(), "{rows:?}");
    let mut end = 0;
    for ((offset, size, field), (name, value)) in rows.iter().zip(expected) {
        assert_eq!((field.as_str(), *offset), (name, end), "a field out of place");
        end = offset + size;
        if name != "codec" {
            assert_eq!(file[*offset..end], value, "{name}");
        }
    }
    assert_eq!(end, weir_proto::seal::segment::HEADER_BYTES);
}
