//! Bytes that nobody reads, in the property suite.

use bytes::Bytes;

use super::{HELD_BYTES_MAX, Opaque};
use crate::operation::Opacity;
use crate::seam::Side::{Client, Upstream};
use crate::suite::{self, Server, Step, Subject};

const SUBJECT: Subject = Subject {
    name: "opaque",
    start: |start| Box::new(Opaque::new(Opacity::Unrecognized, start)),
    captures,
    plays,
    server: || Box::new(Echo),
    denied: |_| true,
    forbidden: b"FORBIDDEN",
    secrets: &[b"pl4nted-passw0rd"],
    held_bytes_max: HELD_BYTES_MAX,
    bulk: |size| (0..size).flat_map(|_| [client(&[b'x'; 500]), server(&[b'y'; 500])]).collect(),
};

suite::properties!(SUBJECT);

struct Echo;

impl Server for Echo {
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}

fn client(bytes: &[u8]) -> Step {
    Step::Data(Client, Bytes::copy_from_slice(bytes))
}

fn server(bytes: &[u8]) -> Step {
    Step::Data(Upstream, Bytes::copy_from_slice(bytes))
}

fn captures() -> Vec<Vec<Step>> {
    vec![
        vec![
            client(b"hello host=db password=pl4nted-passw0rd user=ada\r\n"),
            server(b"\x00\x01\xff welcome, postgres://ada:pl4nted-passw0rd@db/shop\n"),
            client(b"bye"),
            Step::End(Client),
            server(b"bye, too"),
            Step::End(Upstream),
        ],
        vec![server(b"220 mail ready\r\n"), client(b"QUIT\r\n"), Step::End(Upstream), Step::End(Client)],
    ]
}

fn plays() -> Vec<Vec<Bytes>> {
    vec![
        vec![
            Bytes::from_static(b"FORBIDDEN one "),
            Bytes::from_static(b"password=pl4nted-passw0rd FORBIDDEN"),
        ],
        vec![Bytes::from([&b"FORBIDDEN"[..], &vec![b'x'; 600_000]].concat())],
    ]
}
