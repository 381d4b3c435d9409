//! What must hold for all bytes: nothing panics, and no change goes unseen.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::segment::{Codec, HEADER_BYTES, SEGMENT_EVENTS_MAX, SEGMENT_PLAIN_MAX, fuzz_segment};
use super::*;
use crate::ids::{GenerationId, KeyId, NodeId, RunId, SessionId};
use crate::v1;

const NODE: NodeId = NodeId::from_bytes([1; 16]);
const SESSION: SessionId = SessionId::from_bytes([2; 16]);

fn signer() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn session_key() -> SessionKey {
    GenerationKey::from_bytes([5; 32]).session_key(&SESSION)
}

fn draft(seq: u64, prev_hash: Hash, last: bool) -> Draft {
    Draft {
        node: NODE,
        session: SESSION,
        number: 1,
        run: RunId::from_bytes([3; 16]),
        generation: GenerationId::from_bytes([4; 16]),
        seq,
        prev_hash,
        last,
        first_ns: 10,
        last_ns: 20,
        wall: Anchor { unix_ns: 1_800_000_000_000_000_000, boot_ns: 15, synchronized: true },
        events: 1,
        journal: JournalRange { journal: [6; 16], from: 100, to: 200 },
    }
}

fn plain(data: &[u8]) -> Vec<u8> {
    let event = v1::Event {
        at_ns: 11,
        kind: Some(v1::event::Kind::Data(v1::Data {
            bytes: Bytes::copy_from_slice(data),
            ..Default::default()
        })),
    };
    let mut plain = Vec::new();
    push_event(&mut plain, &event.encode_to_vec());
    plain
}

fn sealed(draft: &Draft, data: &[u8]) -> Sealed {
    Sealer::new(signer(), 3).seal(draft, &plain(data), &session_key()).unwrap()
}

/// Everything that a reader checks, as one answer.
fn reads(bytes: &[u8], signature: &[u8]) -> Result<Vec<v1::Event>, String> {
    let segment = Segment::parse(Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
    segment.verify(&signer().verifying_key(), signature).map_err(|e| e.to_string())?;
    let plain = segment.open(&session_key()).map_err(|e| e.to_string())?;
    events(plain).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

proptest! {
    #[test]
    fn what_is_sealed_reads_back(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let sealed = sealed(&draft(0, NO_HASH, false), &data);
        let segment = Segment::parse(sealed.bytes.clone()).unwrap();
        prop_assert_eq!(segment.hash(), &sealed.hash);
        prop_assert_eq!(segment.draft(), &draft(0, NO_HASH, false));
        let read = reads(&sealed.bytes, &sealed.signature).unwrap();
        let Some(v1::event::Kind::Data(read)) = &read[0].kind else { panic!("{read:?}") };
        prop_assert_eq!(&read.bytes[..], &data[..]);
    }

    #[test]
    fn any_flipped_bit_is_seen(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let sealed = sealed(&draft(0, NO_HASH, true), &data);
        let mut bytes = sealed.bytes.to_vec();
        let mut signature = sealed.signature;
        let at = at.index(bytes.len() + signature.len());
        match at.checked_sub(bytes.len()) {
            None => bytes[at] ^= 1 << bit,
            Some(at) => signature[at] ^= 1 << bit,
        }
        prop_assert!(reads(&bytes, &signature).is_err());
    }

    #[test]
    fn a_shortened_or_extended_segment_is_refused(cut in any::<prop::sample::Index>(), more in 1..40usize) {
        let sealed = sealed(&draft(0, NO_HASH, true), b"some data that is long enough");
        let cut = cut.index(sealed.bytes.len());
        prop_assert!(Segment::parse(sealed.bytes.slice(..cut)).is_err());
        prop_assert!(Segment::parse([&sealed.bytes[..], &vec![0; more]].concat().into()).is_err());
    }

    #[test]
    fn random_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_segment(&data);
        node_log::fuzz_node_entry(&data);
        // Past the magic, the format and the flags too, where random bytes seldom come.
        let mut framed = b"WSEG\0\x01\0\0".to_vec();
        framed.extend_from_slice(&data);
        fuzz_segment(&framed);
    }

    #[test]
    fn hostile_headers_never_panic(at in 0..HEADER_BYTES, value in any::<u8>()) {
        let mut bytes = sealed(&draft(3, [1; 32], true), b"data").bytes.to_vec();
        bytes[at] = value;
        fuzz_segment(&bytes);
    }

    #[test]
    fn a_changed_node_entry_is_refused(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut chain = NodeChain::start(NODE);
        let signed = chain.append(v1::NodeEntry { at_ns: 5, boot_id: "boot".into(), ..Default::default() }, &signer());
        let mut changed = signed.clone();
        let mut entry = signed.entry.to_vec();
        let at = at.index(entry.len());
        entry[at] ^= 1 << bit;
        changed.entry = entry.into();
        prop_assert!(NodeChain::start(NODE).accept(&changed, &signer().verifying_key()).is_err());
        let mut reader = NodeChain::start(NODE);
        prop_assert!(reader.accept(&signed, &signer().verifying_key()).is_ok());
        prop_assert_eq!(reader, chain);
    }
}

#[test]
fn incompressible_events_are_stored_raw_and_text_shrinks() {
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(4096)
    .collect();
    let codec =
        |data: &[u8]| Segment::parse(sealed(&draft(0, NO_HASH, false), data).bytes).unwrap().header().codec;
    assert_eq!(codec(&noise), Codec::Raw);
    assert_eq!(codec(&[b'a'; 4096]), Codec::Zstd);
}

#[test]
fn a_segment_holds_no_more_events_than_it_may() {
    let header = |events| {
        let draft = Draft { events, ..draft(0, NO_HASH, false) };
        let plain_len = SEGMENT_PLAIN_MAX as u32;
        SegmentHeader { draft, codec: Codec::Zstd, plain_len, cipher_len: 100 }
    };
    assert!(SegmentHeader::parse(&header(SEGMENT_EVENTS_MAX).encode()).is_ok());
    assert!(SegmentHeader::parse(&header(SEGMENT_EVENTS_MAX + 1).encode()).is_err());
    let too_many = header(SEGMENT_EVENTS_MAX + 1).draft;
    let refused = Sealer::new(signer(), 3).seal(&too_many, &plain(b"x"), &session_key());
    assert_eq!(refused, Err(SealError::Events(SEGMENT_EVENTS_MAX + 1)));
}

#[test]
fn a_compression_bomb_is_stopped_at_the_declared_length() {
    // A sealer with the right key that lies about the length: the header is made by hand and sealed properly.
    let bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 19).unwrap();
    let header = SegmentHeader {
        draft: draft(0, NO_HASH, false),
        codec: Codec::Zstd,
        plain_len: SEGMENT_PLAIN_MAX as u32,
        cipher_len: (bomb.len() + segment::TAG_BYTES) as u32,
    };
    let head = header.encode();
    let mut bytes = [&head[..], &bomb].concat();
    let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key([0; 12]);
    let aad = aws_lc_rs::aead::Aad::from(&head);
    let tag = session_key()
        .cipher()
        .unwrap()
        .seal_in_place_separate_tag(nonce, aad, &mut bytes[HEADER_BYTES..])
        .unwrap();
    bytes.extend_from_slice(tag.as_ref());
    let segment = Segment::parse(bytes.into()).unwrap();
    assert_eq!(segment.open(&session_key()).unwrap_err(), SegmentError::Decompress);
}

#[test]
fn a_chain_takes_its_segments_in_order_only() {
    let first = sealed(&draft(0, NO_HASH, false), b"one");
    let second = sealed(&draft(1, first.hash, true), b"two");
    let forked = sealed(&draft(1, [8; 32], true), b"forked");
    let after = sealed(&draft(2, second.hash, false), b"after");
    let parse = |s: &Sealed| Segment::parse(s.bytes.clone()).unwrap();
    let mut chain = Chain::start(SESSION, NODE);
    assert_eq!(chain.accept(&parse(&second)), Err(ChainError::Seq { wanted: 0, got: 1 }));
    chain.accept(&parse(&first)).unwrap();
    assert_eq!(chain.accept(&parse(&first)), Err(ChainError::Seq { wanted: 1, got: 0 }));
    assert_eq!(chain.accept(&parse(&forked)), Err(ChainError::Broken { seq: 1 }));
    chain.accept(&parse(&second)).unwrap();
    assert_eq!(chain.accept(&parse(&after)), Err(ChainError::AfterEnd { seq: 2 }));
    let mut other = Chain::start(SessionId::from_bytes([99; 16]), NODE);
    assert_eq!(other.accept(&parse(&first)), Err(ChainError::Foreign { seq: 0 }));
}

#[test]
fn another_key_another_session_another_generation_do_not_open() {
    let segment = Segment::parse(sealed(&draft(0, NO_HASH, true), b"secret").bytes).unwrap();
    let other_session = GenerationKey::from_bytes([5; 32]).session_key(&SessionId::from_bytes([7; 16]));
    let other_generation = GenerationKey::from_bytes([6; 32]).session_key(&SESSION);
    assert_eq!(segment.open(&other_session).unwrap_err(), SegmentError::Decrypt);
    assert_eq!(segment.open(&other_generation).unwrap_err(), SegmentError::Decrypt);
    assert!(segment.verify(&SigningKey::from_bytes(&[8; 32]).verifying_key(), &[0; 64]).is_err());
}

#[test]
fn a_wrap_opens_with_its_own_key_only_and_only_unchanged() {
    let pair = WrapKeyPair::generate().unwrap();
    let key = GenerationKey::draw().unwrap();
    let to = v1::HpkeKey {
        id: KeyId::generate().to_field(),
        class: "default".into(),
        day: 20_000,
        public_key: pair.public.clone().into(),
    };
    let wrapped = wrap(&GenerationId::from_bytes([4; 16]), &key, &NODE, &to).unwrap();
    let opened = unwrap(&wrapped, &pair.private).unwrap();
    assert_eq!(opened.session_key(&SESSION).as_bytes(), key.session_key(&SESSION).as_bytes());

    let stranger = WrapKeyPair::generate().unwrap();
    assert_eq!(unwrap(&wrapped, &stranger.private).err(), Some(KeyError::Unwrap));
    let mut other_node = wrapped.clone();
    other_node.node_id = NodeId::from_bytes([77; 16]).to_field();
    assert_eq!(unwrap(&other_node, &pair.private).err(), Some(KeyError::Unwrap));
    for nonsense in [&b""[..], b"x", &[0; 32], &[0xff; 32]] {
        let mut changed = wrapped.clone();
        changed.enc = Bytes::copy_from_slice(nonsense);
        assert!(unwrap(&changed, &pair.private).is_err());
        assert!(unwrap(&wrapped, nonsense).is_err());
        let bad = v1::HpkeKey { public_key: Bytes::copy_from_slice(nonsense), ..to.clone() };
        // Any 32 bytes are some point of X25519 except the low-order ones; other lengths are refused.
        if nonsense.len() != 32 {
            assert_eq!(wrap(&GenerationId::generate(), &key, &NODE, &bad), Err(KeyError::Wrap));
        }
    }
}

#[test]
fn promises_hold_only_as_signed() {
    let collector = SigningKey::from_bytes(&[42; 32]);
    let said = Receipted { session: SESSION, seq: 7, hash: [3; 32], received_unix_ms: 1_800_000_000_000 };
    let receipt = sign_receipt(&collector, &said);
    assert_eq!(verify_receipt(&collector.verifying_key(), &receipt), Ok(said));
    assert!(verify_receipt(&signer().verifying_key(), &receipt).is_err());
    assert!(verify_receipt(&collector.verifying_key(), &v1::Receipt { seq: 8, ..receipt.clone() }).is_err());
    assert!(verify_receipt(&collector.verifying_key(), &v1::Receipt::default()).is_err());

    let keys = v1::KeySet { keys: vec![v1::HpkeKey { day: 3, ..Default::default() }], issued_unix: 5 };
    let signed = sign_key_set(&collector, &keys);
    assert_eq!(verify_key_set(&collector.verifying_key(), &signed), Ok(keys));
    let longer = v1::SignedKeySet { key_set: [&signed.key_set[..], &[0x10, 0x01]].concat().into(), ..signed };
    assert_eq!(verify_key_set(&collector.verifying_key(), &longer), Err(PromiseError::Signature("key set")));

    let proof = enrol_proof(&signer(), b"csr");
    assert_eq!(verify_enrol_proof(&signer().verifying_key(), b"csr", &proof), Ok(()));
    assert_eq!(verify_enrol_proof(&signer().verifying_key(), b"another", &proof), Err(PromiseError::Enrol));
}
