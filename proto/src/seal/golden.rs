//! Recordings of earlier versions stay readable: `proto/golden/v1` holds one session, its node log, wrap and receipt.
//! After a wanted change of format, a new folder is made with `WEIR_UPDATE_GOLDEN=1`; an old one is never rewritten.

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::{Buf, Bytes};
use prost::Message;

use super::segment::TAG_BYTES;
use super::*;
use crate::ids::{GenerationId, KeyId, NodeId, RunId, SessionId};
use crate::v1::{self, event::Kind};

const NODE: NodeId = NodeId::from_bytes([0x11; 16]);
const SESSION: SessionId = SessionId::from_bytes([0x22; 16]);
const GENERATION: GenerationId = GenerationId::from_bytes([0x44; 16]);
const SEGMENTS: u64 = 3;

fn node_key() -> SigningKey {
    SigningKey::from_bytes(&[0x55; 32])
}

fn collector_key() -> SigningKey {
    SigningKey::from_bytes(&[0x66; 32])
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1").join(name)
}

fn read(name: &str) -> Bytes {
    std::fs::read(path(name)).unwrap_or_else(|e| panic!("golden file {name}: {e}")).into()
}

fn write(name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(path("")).unwrap();
    std::fs::write(path(name), bytes).unwrap();
}

#[test]
fn golden_recordings_stay_readable() {
    if std::env::var_os("WEIR_UPDATE_GOLDEN").is_some() {
        record();
    }
    let shown = show();
    if std::env::var_os("WEIR_UPDATE_GOLDEN").is_some() {
        write("shown.txt", shown.as_bytes());
    }
    let expected = read("shown.txt");
    assert_eq!(shown, String::from_utf8_lossy(&expected));
}

/// Reads the folder as the collector and `weir verify` would, and tells what it found.
fn show() -> String {
    let mut out = String::new();
    let private = read("wrap.private");
    let wrapped = v1::Wrap::decode(read("wrap.bin")).unwrap();
    let key = unwrap(&wrapped, &private).unwrap().session_key(&SESSION);
    let mut chain = Chain::start(SESSION, NODE);
    for seq in 0..SEGMENTS {
        let file = read(&format!("{seq:08}.seg"));
        let (bytes, signature) =
            (file.slice(..file.len() - SIGNATURE_BYTES), file.slice(file.len() - SIGNATURE_BYTES..));
        let segment = Segment::parse(bytes).unwrap();
        segment.verify(&node_key().verifying_key(), &signature).unwrap();
        chain.accept(&segment).unwrap();
        writeln!(out, "{:#?} hash {}", segment.header(), hex::encode(segment.hash())).unwrap();
        for event in events(segment.open(&key).unwrap()) {
            writeln!(out, "{:?}", event.unwrap()).unwrap();
        }
    }
    assert!(chain.closed);
    let mut log = NodeChain::start(NODE);
    let mut entries = read("node.log");
    while entries.has_remaining() {
        let signed = v1::SignedNodeEntry::decode_length_delimited(&mut entries).unwrap();
        writeln!(out, "{:?}", log.accept(&signed, &node_key().verifying_key()).unwrap()).unwrap();
    }
    let receipt = v1::Receipt::decode(read("receipt.bin")).unwrap();
    let said = verify_receipt(&collector_key().verifying_key(), &receipt).unwrap();
    assert_eq!((said.seq, said.hash), (SEGMENTS - 1, chain.head));
    let keys = v1::SignedKeySet::decode(read("keys.bin")).unwrap();
    let keys = verify_key_set(&collector_key().verifying_key(), &keys).unwrap();
    writeln!(out, "{said:?}\nkeys for days {:?}", keys.keys.iter().map(|k| k.day).collect::<Vec<_>>())
        .unwrap();
    out
}

fn record() {
    let pair = WrapKeyPair::generate().unwrap();
    let generation = GenerationKey::from_bytes([0x77; 32]);
    let to = v1::HpkeKey {
        id: KeyId::from_bytes([0x88; 16]).to_field(),
        class: "default".into(),
        day: 20_777,
        public_key: pair.public.clone().into(),
    };
    write("wrap.private", &pair.private);
    write("wrap.bin", &wrap(&GENERATION, &generation, &NODE, &to).unwrap().encode_to_vec());
    let keys = v1::KeySet { keys: vec![to], issued_unix: 1_795_132_800 };
    write("keys.bin", &sign_key_set(&collector_key(), &keys).encode_to_vec());

    let mut sealer = Sealer::new(node_key(), 3);
    let key = generation.session_key(&SESSION);
    let mut prev_hash = NO_HASH;
    let mut journal = 0;
    for (seq, kinds) in story().into_iter().enumerate() {
        let seq = seq as u64;
        let mut plain = Vec::new();
        let count = kinds.len() as u32;
        for (at, kind) in kinds.into_iter().enumerate() {
            let event = v1::Event { at_ns: 1000 * (seq + 1) + at as u64, kind: Some(kind) };
            push_event(&mut plain, &event.encode_to_vec());
        }
        let to = journal + plain.len() as u64 + TAG_BYTES as u64;
        let draft = Draft {
            node: NODE,
            session: SESSION,
            number: 1,
            run: RunId::from_bytes([0x33; 16]),
            generation: GENERATION,
            seq,
            prev_hash,
            last: seq + 1 == SEGMENTS,
            first_ns: 1000 * (seq + 1),
            last_ns: 1000 * (seq + 1) + u64::from(count) - 1,
            wall: Anchor { unix_ns: 1_795_132_800_000_000_000, boot_ns: 900, synchronized: seq > 0 },
            events: count,
            journal: JournalRange { journal: [0x99; 16], from: journal, to },
        };
        journal = to;
        let sealed = sealer.seal(&draft, &plain, &key).unwrap();
        prev_hash = sealed.hash;
        write(&format!("{seq:08}.seg"), &[&sealed.bytes[..], &sealed.signature].concat());
    }
    let said = Receipted {
        session: SESSION,
        seq: SEGMENTS - 1,
        hash: prev_hash,
        received_unix_ms: 1_795_132_801_000,
    };
    write("receipt.bin", &sign_receipt(&collector_key(), &said).encode_to_vec());

    let mut log = NodeChain::start(NODE);
    let mut file = Vec::new();
    let started =
        v1::Started { generation_id: GENERATION.to_field(), after_crash: false, unreadable_journals: 0 };
    let opened = v1::SessionOpened { number: 1, session_id: SESSION.to_field() };
    let closed = v1::SessionClosed {
        number: 1,
        session_id: SESSION.to_field(),
        segments: SEGMENTS,
        head_hash: Bytes::copy_from_slice(&prev_hash),
    };
    for entry in [
        v1::NodeEntry { mark: Some(v1::node_entry::Mark::Started(started)), ..Default::default() },
        v1::NodeEntry { opened: vec![opened], closed: vec![closed], ..Default::default() },
    ] {
        file.extend(log.append(entry, &node_key()).encode_length_delimited_to_vec());
    }
    write("node.log", &file);
}

/// One short session: every kind of event, compressible and incompressible data.
fn story() -> Vec<Vec<Kind>> {
    let operation = v1::Operation {
        kind: "sql".into(),
        verb: "query".into(),
        text: "select * from rivers".into(),
        ..Default::default()
    };
    let data = |direction: v1::Direction, bytes: &[u8]| {
        Kind::Data(v1::Data {
            exchange: 1,
            direction: direction.into(),
            bytes: Bytes::copy_from_slice(bytes),
            masks: vec![],
        })
    };
    let noise: Vec<u8> = (0..512u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        vec![
            Kind::Opened(v1::Opened {
                session_id: SESSION.to_field(),
                node_id: NODE.to_field(),
                node_number: 1,
                origin: Some(v1::Address { ip: "10.9.8.7".into(), port: 5432 }),
                target: "rivers-db".into(),
                agent_version: "0.1.0".into(),
                ..Default::default()
            }),
            Kind::Facts(v1::Facts {
                protocol: "postgres".into(),
                protocol_version: "3.0".into(),
                ..Default::default()
            }),
            Kind::Asked(v1::Asked { exchange: 1, operation: Some(operation.clone()) }),
            Kind::Judged(v1::Judged {
                exchange: 1,
                allowed: true,
                rule: "default".into(),
                ..Default::default()
            }),
            data(v1::Direction::Request, b"select * from rivers"),
        ],
        vec![data(v1::Direction::Response, &noise)],
        vec![
            Kind::Finished(v1::Finished {
                exchange: 1,
                operation: Some(operation),
                outcome: v1::Outcome::Ok.into(),
                status: "SELECT 5".into(),
                rows: 5,
                ..Default::default()
            }),
            Kind::Gap(v1::Gap { reason: "record-none".into(), bytes: 12, ..Default::default() }),
            Kind::Closed(v1::Closed {
                coverage: v1::Coverage::Inspected.into(),
                cause: "client-end".into(),
                exchanges: 1,
                events: 9,
                ..Default::default()
            }),
        ],
    ]
}
