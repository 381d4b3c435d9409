//! What agents and collectors of the first version say to each other stays readable, and they skip what is newer:
//! `proto/golden/v1/hello.bin` and `welcome.bin` are the greetings as that version wrote them.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::{SigningKey, verify_key_set};
use weir_proto::v1::{self, to_agent, to_collector};

fn golden(name: &str) -> Bytes {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1").join(name);
    std::fs::read(path).unwrap().into()
}

fn hello() -> v1::ToCollector {
    let hello = v1::Hello {
        format_min: 1,
        format_max: 1,
        agent_version: "0.1.0".into(),
        node_id: vec![0x11; 16].into(),
        ..v1::Hello::default()
    };
    v1::ToCollector { message: Some(to_collector::Message::Hello(hello)) }
}

fn welcome() -> v1::ToAgent {
    let welcome = v1::Welcome {
        format_min: 1,
        format_max: 1,
        collector_version: "0.1.0".into(),
        keys: Some(v1::SignedKeySet::decode(golden("keys.bin")).unwrap()),
        node_entries: 3,
        node_head: vec![0x77; 32].into(),
        next_number: 9,
        ..v1::Welcome::default()
    };
    v1::ToAgent { message: Some(to_agent::Message::Welcome(welcome)) }
}

#[test]
fn the_first_versions_greetings_are_read_as_they_were_meant() {
    assert_eq!(v1::ToCollector::decode(golden("hello.bin")).unwrap(), hello());
    let read = v1::ToAgent::decode(golden("welcome.bin")).unwrap();
    assert_eq!(read, welcome());
    let Some(to_agent::Message::Welcome(read)) = read.message else { panic!("a welcome") };
    assert_eq!(read.stream_version, 0, "what was not said then");
    let key = SigningKey::from_bytes(&[0x66; 32]).verifying_key();
    assert!(!verify_key_set(&key, &read.keys.unwrap()).unwrap().keys.is_empty());
}

/// Field 999, a string: what a later version may add anywhere.
const LATER_FIELD: &[u8] = &[0xba, 0x3e, 3, b'n', b'e', b'w'];

#[test]
fn fields_and_kinds_of_a_later_version_are_skipped() {
    // Inside the greeting.
    let Some(to_collector::Message::Hello(said)) = hello().message else { panic!("a hello") };
    let later = Bytes::from([&said.encode_to_vec()[..], LATER_FIELD].concat());
    assert_eq!(v1::Hello::decode(later).unwrap(), said);
    let Some(to_agent::Message::Welcome(said)) = welcome().message else { panic!("a welcome") };
    let later = Bytes::from([&said.encode_to_vec()[..], LATER_FIELD].concat());
    assert_eq!(v1::Welcome::decode(later).unwrap(), said);
    // A kind of message that is not known here says nothing.
    assert_eq!(v1::ToAgent::decode(LATER_FIELD).unwrap(), v1::ToAgent::default());
    assert_eq!(v1::ToCollector::decode(LATER_FIELD).unwrap(), v1::ToCollector::default());
}
