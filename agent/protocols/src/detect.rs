//! Which protocol a connection speaks: whoever speaks first says so. Nothing is forwarded before that.
//!
//! A side that speaks is judged by its rules, pure functions over its first bytes. No rule knows them: opaque, at once. A
//! rule that wants more gets it, within [`DETECT_BYTES_MAX`] and [`DETECT_PARTIAL_MS_MAX`]. Mutual silence decides
//! nothing and costs nothing: both sides wait for each other as they would without us.

use bytes::{Bytes, BytesMut};

use crate::http::recognize as http;
use crate::kind::Kind;
use crate::operation::Opacity;
use crate::seam::{Cause, Conversation, Effect, Effects, Fault, Input, Instant, Side};

/// Most bytes of a side that a rule may want to see, bytes.
pub const DETECT_BYTES_MAX: usize = 4 * 1024;
/// Longest wait for the rest of a beginning that a rule half knows, milliseconds.
pub const DETECT_PARTIAL_MS_MAX: u64 = 2_000;

/// What a rule says about the first bytes of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognition {
    Match(Kind),
    /// These bytes cannot be the beginning of what the rule knows.
    No,
    /// They may be; more are needed to tell.
    NeedMore,
}

type Rule = fn(&[u8]) -> Recognition;

/// Protocols in which the client speaks first, in the order they are tried.
const CLIENT_FIRST: &[Rule] = &[tls, crate::postgres::recognize, http::request];
/// Protocols in which the server may speak first: HTTP does, to say that it will not wait. MySQL, SSH and the mail
/// protocols belong here and are not read yet.
const SERVER_FIRST: &[Rule] = &[http::response];

/// The first match; else more bytes if any rule wants them.
fn recognize(rules: &[Rule], bytes: &[u8]) -> Recognition {
    let mut answer = Recognition::No;
    for rule in rules {
        match rule(bytes) {
            Recognition::Match(kind) => return Recognition::Match(kind),
            Recognition::NeedMore => answer = Recognition::NeedMore,
            Recognition::No => {}
        }
    }
    answer
}

/// A TLS record (RFC 8446, 5.1) with the beginning of a ClientHello (4.1.2). The hello may be split over records.
fn tls(bytes: &[u8]) -> Recognition {
    const SHAPE: [fn(u8) -> bool; 6] = [
        |handshake| handshake == 0x16,
        |major| major == 3,
        |minor| minor <= 4,
        |length_high| length_high <= 0x40,
        |_length_low| true,
        |client_hello| client_hello == 1,
    ];
    if !bytes.iter().zip(SHAPE).all(|(byte, fits)| fits(*byte)) {
        return Recognition::No;
    }
    match bytes {
        [_, _, _, 0, 0, ..] => Recognition::No,
        [_, _, _, _, _, _, ..] => Recognition::Match(Kind::Opaque(Opacity::Tls)),
        _ => Recognition::NeedMore,
    }
}

/// The conversation before anybody knows what it is.
#[derive(Debug, Default)]
pub struct Detect {
    /// Heard, not forwarded; by side.
    heard: [BytesMut; 2],
    deadline: Option<Instant>,
    over: bool,
}

impl Detect {
    pub fn new() -> Self {
        Self::default()
    }

    fn hear(&mut self, side: Side, bytes: &Bytes, now: Instant, out: &mut Effects) {
        self.heard[side.index()].extend_from_slice(bytes);
        let [client, upstream] = &self.heard;
        let recognition = match side {
            Side::Client => recognize(CLIENT_FIRST, client),
            // The server answers a beginning that no rule knows yet: then no rule is going to.
            Side::Upstream if !client.is_empty() => return self.too_slow(out),
            Side::Upstream => recognize(SERVER_FIRST, upstream),
        };
        match recognition {
            Recognition::Match(kind) => self.become_kind(kind, out),
            Recognition::NeedMore if self.heard[side.index()].len() < DETECT_BYTES_MAX => {
                self.deadline.get_or_insert(now.after_ms(DETECT_PARTIAL_MS_MAX));
            }
            Recognition::NeedMore => self.too_slow(out),
            Recognition::No => self.give_up(out),
        }
    }

    /// Half a PostgreSQL startup is followed by a password sooner or later, and opaque bytes are recorded. Half a request
    /// line is taken for HTTP, or whoever stops in the middle of `GET` would pass by every rule about requests.
    fn too_slow(&mut self, out: &mut Effects) {
        let client = &self.heard[Side::Client.index()];
        let may_be = |rule: Rule| !client.is_empty() && rule(client) == Recognition::NeedMore;
        if may_be(crate::postgres::recognize) {
            self.become_kind(Kind::Postgres, out);
        } else if may_be(http::request) {
            self.become_kind(Kind::Http, out);
        } else {
            self.give_up(out);
        }
    }

    fn give_up(&mut self, out: &mut Effects) {
        self.become_kind(Kind::Opaque(Opacity::Unrecognized), out);
    }

    fn become_kind(&mut self, kind: Kind, out: &mut Effects) {
        self.over = true;
        self.deadline = None;
        out.push(Effect::Become(kind, std::mem::take(&mut self.heard).map(BytesMut::freeze)));
    }
}

impl Conversation for Detect {
    fn handle(&mut self, input: Input, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        if self.over {
            return Ok(());
        }
        match input {
            Input::Data(side, bytes) => self.hear(side, &bytes, now, out),
            // A side that ends says nothing more about its protocol; the other one may still speak.
            Input::End(_) => self.give_up(out),
            Input::Tick if self.deadline.is_some_and(|deadline| deadline <= now) => self.too_slow(out),
            Input::Tick => {}
            Input::Reset(side) => {
                self.over = true;
                self.deadline = None;
                out.push(Effect::Abort(Cause::Reset(side)));
            }
            Input::Verdict(..) => {
                return Err(Fault { protocol: "detect", what: "a verdict came, and nothing was asked" });
            }
        }
        Ok(())
    }

    fn wants_read(&self, _: Side) -> bool {
        !self.over
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// The entry for fuzzers.
#[cfg(any(test, feature = "suite"))]
pub fn fuzz(data: &[u8]) {
    crate::suite::fuzz(|_| Box::new(Detect::new()), data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    const UNRECOGNIZED: Kind = Kind::Opaque(Opacity::Unrecognized);
    const TLS: Kind = Kind::Opaque(Opacity::Tls);

    fn data(side: Side, bytes: &'static [u8]) -> Input {
        Input::Data(side, Bytes::from_static(bytes))
    }

    /// What the last of these inputs, a second apart, turns the conversation into.
    fn becomes(inputs: Vec<Input>) -> Option<(Kind, Bytes, Bytes)> {
        let (mut detect, mut out) = (Detect::new(), Effects::default());
        for (second, input) in inputs.into_iter().enumerate() {
            assert!(out.is_empty(), "decided before the last input");
            detect.handle(input, Instant::default().after_ms(1000 * second as u64), &mut out).unwrap();
        }
        match out.next() {
            Some(Effect::Become(kind, [client, upstream])) => Some((kind, client, upstream)),
            None => None,
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_client_speaks_first() {
        let (kind, client, upstream) = becomes(vec![data(Side::Client, HELLO)]).unwrap();
        assert_eq!((kind, &client[..], upstream.is_empty()), (TLS, HELLO, true));
        let (kind, client, _) = becomes(vec![data(Side::Client, b"GET / HTTP/1.1\r\n")]).unwrap();
        assert_eq!((kind, &client[..]), (Kind::Http, &b"GET / HTTP/1.1\r\n"[..]));
        let (kind, client, _) = becomes(vec![data(Side::Client, b"EHLO here\r\n")]).unwrap();
        assert_eq!((kind, &client[..]), (UNRECOGNIZED, &b"EHLO here\r\n"[..]));
        let startup = b"\0\0\0\x17\0\x03\0\0user\0someone\0\0";
        assert_eq!(becomes(vec![data(Side::Client, startup)]).unwrap().0, Kind::Postgres);
    }

    #[test]
    fn the_server_speaks_first() {
        let (kind, client, upstream) = becomes(vec![data(Side::Upstream, b"SSH-2.0-x\r\n")]).unwrap();
        assert_eq!((kind, client.is_empty(), &upstream[..]), (UNRECOGNIZED, true, &b"SSH-2.0-x\r\n"[..]));
    }

    #[test]
    fn the_server_answers_half_a_beginning() {
        let (kind, client, upstream) =
            becomes(vec![data(Side::Client, b"\x16\x03"), data(Side::Upstream, b"?")]).unwrap();
        assert_eq!((kind, &client[..], &upstream[..]), (UNRECOGNIZED, &b"\x16\x03"[..], &b"?"[..]));
    }

    #[test]
    fn a_beginning_in_pieces_is_waited_for_but_not_forever() {
        let whole = vec![data(Side::Client, &HELLO[..3]), data(Side::Client, &HELLO[3..])];
        assert_eq!(becomes(whole).unwrap().0, TLS);
        let slow = vec![data(Side::Client, &HELLO[..3]), Input::Tick, Input::Tick];
        let (kind, client, _) = becomes(slow).unwrap();
        assert_eq!((kind, &client[..]), (UNRECOGNIZED, &HELLO[..3]));
    }

    #[test]
    fn half_a_postgres_startup_is_postgres() {
        let half = || data(Side::Client, b"\0\0\0\x17\0");
        assert_eq!(becomes(vec![half(), Input::Tick, Input::Tick]).unwrap().0, Kind::Postgres);
        assert_eq!(becomes(vec![half(), data(Side::Upstream, b"?")]).unwrap().0, Kind::Postgres);
    }

    #[test]
    fn half_a_request_line_is_http() {
        let half = || data(Side::Client, b"GE");
        assert_eq!(becomes(vec![half(), Input::Tick, Input::Tick]).unwrap().0, Kind::Http);
        assert_eq!(becomes(vec![half(), data(Side::Upstream, b"?")]).unwrap().0, Kind::Http);
        let mut long = b"GET http://".to_vec();
        long.resize(DETECT_BYTES_MAX, b'a');
        assert_eq!(becomes(vec![Input::Data(Side::Client, long.into())]).unwrap().0, Kind::Http);
    }

    #[test]
    fn a_server_that_does_not_wait_is_http() {
        let (kind, _, upstream) = becomes(vec![data(Side::Upstream, b"HTTP/1.1 408 Too Slow\r\n")]).unwrap();
        assert_eq!((kind, &upstream[..]), (Kind::Http, &b"HTTP/1.1 408 Too Slow\r\n"[..]));
    }

    #[test]
    fn silence_decides_nothing() {
        let mut detect = Detect::new();
        let mut out = Effects::default();
        detect.handle(Input::Tick, Instant(u64::MAX), &mut out).unwrap();
        assert!(out.is_empty() && detect.next_deadline().is_none());
        assert!(detect.wants_read(Side::Client) && detect.wants_read(Side::Upstream));
    }

    #[test]
    fn an_end_passes_on_what_is_there() {
        for side in [Side::Client, Side::Upstream] {
            assert_eq!(becomes(vec![Input::End(side)]).unwrap().0, UNRECOGNIZED);
        }
        let cut = vec![data(Side::Client, &HELLO[..2]), Input::End(Side::Client)];
        assert_eq!(becomes(cut).unwrap(), (UNRECOGNIZED, Bytes::from_static(&HELLO[..2]), Bytes::new()));
    }

    #[test]
    fn a_reset_ends_it() {
        for side in [Side::Client, Side::Upstream] {
            let (mut detect, mut out) = (Detect::new(), Effects::default());
            detect.handle(Input::Reset(side), Instant::default(), &mut out).unwrap();
            assert!(matches!(out.next(), Some(Effect::Abort(Cause::Reset(reset))) if reset == side));
            detect.handle(data(Side::Client, HELLO), Instant::default(), &mut out).unwrap();
            assert!(out.is_empty() && !detect.wants_read(Side::Client));
        }
    }

    #[test]
    fn a_record_that_holds_no_hello_is_not_tls() {
        for not_tls in [
            &b"\x16\x03\x01\0\0\x01"[..],
            b"\x16\x03\x01\x01\0\x02",
            b"\x16\x03\x09",
            b"\x16\x03\x01\x41",
            b"\x17",
        ] {
            assert_eq!(tls(not_tls), Recognition::No, "{not_tls:?}");
        }
    }

    proptest! {
        /// However the beginning is cut, the same kind follows, and no byte is lost.
        #[test]
        fn chunks_do_not_matter(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 1..6000),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(|tail| [HELLO, &tail].concat()),
                proptest::collection::vec(any::<u8>(), 0..9).prop_map(|tail| [b"\0\0\0", &tail[..]].concat()),
            ],
            cut in 1_usize..64,
        ) {
            let run = |size: usize| {
                let (mut detect, mut out, mut rest) = (Detect::new(), Effects::default(), &bytes[..]);
                while out.is_empty() && !rest.is_empty() {
                    let (chunk, later) = rest.split_at(size.min(rest.len()));
                    rest = later;
                    let input = Input::Data(Side::Client, Bytes::copy_from_slice(chunk));
                    detect.handle(input, Instant::default(), &mut out).unwrap();
                }
                if out.is_empty() {
                    detect.handle(Input::End(Side::Client), Instant::default(), &mut out).unwrap();
                }
                let Some(Effect::Become(kind, [client, _])) = out.next() else { panic!("undecided") };
                prop_assert_eq!([&client[..], rest].concat(), bytes.clone());
                Ok(kind)
            };
            prop_assert_eq!(run(bytes.len())?, run(cut)?);
        }
    }
}
