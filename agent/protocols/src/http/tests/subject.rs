//! HTTP/1 in the property suite.

use bytes::Bytes;

use super::server::Small;
use crate::coding::tests::gzip;
use crate::http::{HEAD_BYTES_MAX, HELD_BYTES_MAX, Http1};
use crate::kind::Start;
use crate::mask::MaskPlan;
use crate::operation::Operation;
use crate::seam::ExchangeId;
use crate::seam::Side::{self, Client, Upstream};
use crate::suite::{self, Chunks, Driver, Judge, Step, Subject};

const SECRET: &[u8] = b"pl4nted-s3cret";

suite::properties!(SUBJECT);

const SUBJECT: Subject = Subject {
    name: "http",
    start: |start| Box::new(Http1::new(start)),
    captures,
    plays,
    server: || Box::new(Small::default()),
    denied: |operation| matches!(operation, Operation::Http(http) if http.path.starts_with(b"/FORBIDDEN")),
    forbidden: b"FORBIDDEN",
    secrets: &[SECRET, b"nted-s3cr", b"t0pS3cretBearerValue"],
    held_bytes_max: HELD_BYTES_MAX + HEAD_BYTES_MAX,
    bulk,
};

fn c(bytes: impl AsRef<[u8]>) -> Step {
    Step::Data(Client, Bytes::copy_from_slice(bytes.as_ref()))
}

fn s(bytes: impl AsRef<[u8]>) -> Step {
    Step::Data(Upstream, Bytes::copy_from_slice(bytes.as_ref()))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")
}

fn ok(fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}\r\n", body.as_ref().len());
    [head.as_bytes(), body.as_ref()].concat()
}

/// In chunks of this size.
fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for chunk in body.chunks(size) {
        wire.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    wire
}

fn captures() -> Vec<Vec<Step>> {
    // Of curl, and of a client that pipelines, with nginx.
    let real = [
        &include_bytes!("../../../captures/http/keep-alive")[..],
        include_bytes!("../../../captures/http/gzip"),
        include_bytes!("../../../captures/http/upload"),
        include_bytes!("../../../captures/http/form"),
        include_bytes!("../../../captures/http/pipeline"),
    ];
    let mut all = written();
    all.extend(real.into_iter().map(suite::captured));
    all
}

fn written() -> Vec<Vec<Step>> {
    let secret = "pl4nted-s3cret";
    let json = format!(
        "{{\"user\": \"ada\", \"password\": \"{secret}\", \"list\": [1, 2, 3], \"access_token\":\"{secret}\"}}"
    );
    let form = format!("user=ada&p%61ssword={secret}&next=%2Fcb%3Ftoken%3D{secret}&x=1");
    let multipart = format!(
        "--bo\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n--bo\r\nContent-Disposition: form-data; \
         name=\"password\"\r\n\r\n{secret}\r\n--bo--\r\n"
    );
    let closing = |mut steps: Vec<Step>| {
        steps.extend([Step::End(Client), Step::End(Upstream)]);
        steps
    };
    vec![
        closing(vec![
            c(format!(
                "GET /a?api_key={secret}&b=c HTTP/1.1\r\nhOST: shop\r\nAUTHORIZATION: Bearer t0pS3cretBearerValue\r\n\
                 Cookie: id={secret}\r\nX-Custom-Token: {secret}\r\nReferer: http://u:{secret}@a/b?sig={secret}\r\n\r\n"
            )),
            s(ok(&format!("Set-Cookie: id={secret}; Path=/\r\nLocation: /x?code={secret}\r\n"), &json)),
            c(get("/2") + &get("/3")),
            s(ok("", "two")),
            s("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"),
            s(chunked(json.as_bytes(), 7)),
        ]),
        closing(vec![
            c(format!(
                "POST /login HTTP/1.1\r\nHost: shop\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\n\r\n{form}",
                form.len()
            )),
            s("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
            s(ok("", "fine")),
            c("POST /up HTTP/1.1\r\nHost: shop\r\nContent-Type: multipart/form-data; boundary=\"bo\"\r\n\
               Transfer-Encoding: chunked\r\n\r\n"),
            c(chunked(multipart.as_bytes(), 11)),
            s(ok("", "fine")),
            c("POST /oauth/token HTTP/1.1\r\nHost: shop\r\nContent-Length: 14\r\n\r\npl4nted-s3cret"),
            s(ok("", "whatever pl4nted-s3cret is")),
        ]),
        closing(vec![
            c(get("/gzip")),
            s([
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                chunked(&gzip(json.repeat(200).as_bytes()), 100),
            ]
            .concat()),
            c("GET /latest/meta-data/iam/security-credentials/x HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"),
            s(ok("", "anything that is pl4nted-s3cret")),
            c("HEAD /4 HTTP/1.1\r\nHost: shop\r\n\r\n"),
            s("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ]),
        vec![
            c("GET /old HTTP/1.0\r\n\r\n"),
            s("HTTP/1.0 200 OK\r\n\r\n"),
            s(json.clone()),
            Step::End(Upstream),
            Step::End(Client),
        ],
        vec![
            c("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n"),
            s("HTTP/1.1 200 Connection established\r\n\r\n"),
            c("\x01 some other protocol, password=pl4nted-s3cret "),
            s("\x02 whatever"),
            Step::End(Client),
            Step::End(Upstream),
        ],
    ]
}

fn plays() -> Vec<Vec<Bytes>> {
    let post = |path: &str, body: &[u8]| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let stream = |path: &str, body: &[u8]| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n");
        [head.as_bytes(), &chunked(body, 1000)].concat()
    };
    let play = |requests: Vec<Vec<u8>>| requests.into_iter().map(Bytes::from).collect::<Vec<_>>();
    vec![
        play(vec![
            get("/1").into(),
            (get("/FORBIDDEN") + &get("/2") + &get("/chunked") + &get("/FORBIDDEN/2") + &get("/interim"))
                .into(),
            get("/3").into(),
        ]),
        play(vec![
            post("/FORBIDDEN", b"FORBIDDEN body"),
            [post("/a", b"body"), post("/FORBIDDEN", &b"FORBIDDEN".repeat(9000)), get("/4").into()].concat(),
            stream("/chunked", &b"some text ".repeat(3000)),
            b"HEAD /5 HTTP/1.1\r\nHost: shop\r\n\r\n".to_vec(),
        ]),
        play(vec![get("/1").into(), stream("/FORBIDDEN", &b"FORBIDDEN ".repeat(300))]),
        play(vec![post("/big", &vec![b'x'; 600_000]), get("/2").into(), post("/big", &vec![b'y'; 300_000])]),
        play(vec![get("/1").repeat(100).into()]),
        play(vec![(get("/1") + &get("/close")).into()]),
    ]
}

fn bulk(size: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..size {
        let body = format!("number {n} ").repeat(20);
        let head = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
        steps.push(c([head.as_bytes(), &chunked(body.as_bytes(), 30)].concat()));
        steps.push(s(ok("X: y\r\n", &body)));
    }
    steps
}

/// What clients and servers say, sound for itself and in no order.
const CLIENT_PIECES: [&[u8]; 12] = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"password=x",
    b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
];
const SERVER_PIECES: [&[u8]; 12] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"token=x&y",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
    b"\r\n",
];

fn piece(which: usize) -> (Side, &'static [u8]) {
    if which < 12 {
        (Side::Client, CLIENT_PIECES[which])
    } else {
        (Side::Upstream, SERVER_PIECES[which - 12])
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Sound pieces in any order reach deeper than random bytes.
    #[test]
    fn no_pieces_panic(
        manner in proptest::num::u8::ANY,
        pieces in proptest::collection::vec((0_usize..24, 1_usize..100), 0..60),
    ) {
        let mut data = vec![manner];
        for (which, cut) in pieces {
            let (from, piece) = piece(which);
            for chunk in piece.chunks(cut) {
                data.push((chunk.len() as u8) << 1 | from.index() as u8);
                data.extend_from_slice(chunk);
            }
        }
        crate::http::fuzz(&data);
    }

    /// Whatever is said: what leaves is what came, from its beginning; nothing is left out in the middle, nothing is added
    /// but one last answer of ours.
    #[test]
    fn what_leaves_is_what_came(pieces in proptest::collection::vec((0_usize..24, 1_usize..100), 0..60)) {
        let (mut steps, mut said) = (Vec::new(), [Vec::new(), Vec::new()]);
        for (which, cut) in pieces {
            let (from, piece) = piece(which);
            said[from.index()].extend_from_slice(piece);
            steps.extend(piece.chunks(cut).map(|part| Step::Data(from, Bytes::copy_from_slice(part))));
        }
        let start = Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() };
        let outcome = Driver::new(Box::new(Http1::new(start)), Judge::allowing(), Chunks::whole()).replay(&steps);
        let [client, server] = said;
        proptest::prop_assert!(client.starts_with(&outcome.upstream));
        let same = server.iter().zip(&outcome.client).take_while(|(one, other)| one == other).count();
        let ours = String::from_utf8_lossy(&outcome.client[same..]).into_owned();
        proptest::prop_assert!(ours.is_empty() || ours.contains("\r\nCache-Control: no-store\r\n"), "{ours:?}");
    }
}
