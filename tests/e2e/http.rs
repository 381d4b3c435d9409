//! HTTP/1.1: an unmodified curl cannot tell that it is governed, nginx's own log and the recording agree, and what could be
//! read in two ways is refused.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use weir_tests::planted::{self, Planted};
use weir_tests::process::{eventually, output, run};
use weir_tests::recorded::{Exchange, Run};
use weir_tests::{Agent, Collector, Nginx, Peer, Site};

struct Ground {
    agent: Agent,
    collector: Collector,
    nginx: Nginx,
    site: Site,
}

impl Ground {
    fn new(rules: impl FnOnce(&Nginx) -> String) -> Self {
        let site = Site::new(true).unwrap();
        let nginx = Nginx::start(&site, "nginx").unwrap();
        let collector = Collector::start(&site).unwrap();
        let agent = Agent::start(&site, &collector, &rules(&nginx)).unwrap();
        Self { agent, collector, nginx, site }
    }

    fn governed(&self, story: &str, command: &[&str]) -> Command {
        self.agent.exec(&[&format!("story={story}")], command).unwrap()
    }
}

/// What curl can do with a plain server; URLs begin at the server's root, `W` is a folder to work in.
const CURLS: &[&str] = &[
    "/hello",
    "/hello /files/page.txt /files/data.json /hello",
    "-I /files/page.txt",
    "-d a=1&b=2 /orders",
    "--data-binary @W/large /orders",
    "-F file=@W/page -F name=Ada /orders",
    "-T W/page /put/page.txt",
    "-T - /put/from-stdin.txt",
    "-T W/large /put/large.bin",
    "-H Expect:100-continue -T W/page /put/asked-first.txt",
    "-H Expect: -T W/large /put/not-asked.bin",
    "-H Transfer-Encoding:chunked -d @W/page /orders",
    "-X DELETE /put/page.txt",
    "-X OPTIONS /hello",
    "-X PATCH -d {} /orders",
    "--compressed /files/page.txt",
    "--compressed --raw /files/data.json",
    "-r 10-99 /files/page.txt",
    "-r 0-4,10-14 /files/page.txt",
    "-r 900000-999999 /files/page.txt",
    "-H If-Modified-Since:Fri,01Jan2100 /files/page.txt",
    "-z 2100-01-01 /files/page.txt",
    "-L /moved",
    "-f /no-such-page",
    "/empty",
    "/teapot",
    "/broken",
    "/closes",
    "-0 /hello",
    "-0 /files/page.txt",
    "--http2 /hello",
    "-H Connection:close /hello",
    "-H X-Long:LONG /hello",
    "/hello?q=%20a%2fb&c=%00",
    "--path-as-is /files/../hello",
    "/files/large.bin",
    "--limit-rate 4M /files/large.bin",
    "-u user:planted-basic-password /hello",
];

#[test]
fn curl_cannot_tell_that_it_is_governed() {
    let mut ground = Ground::new(|_| String::new());
    let work = ground.site.folder("work").unwrap();
    let page = "All work and no play makes Jack a dull boy.\n".repeat(500);
    std::fs::write(work.join("page"), &page).unwrap();
    let mut large = vec![0; 3 << 20];
    weir_tests::peer::Noise::new(7).fill(&mut large);
    std::fs::write(work.join("large"), &large).unwrap();
    let files = ground.nginx.files();
    std::fs::write(files.join("page.txt"), &page).unwrap();
    std::fs::write(files.join("data.json"), format!("[{}0]", "{\"a\": 1}, ".repeat(2000))).unwrap();
    std::fs::write(files.join("large.bin"), &large).unwrap();

    let mut answered = Vec::new();
    for (index, line) in CURLS.iter().enumerate() {
        let arguments = curl(line, &ground.nginx, &work);
        let before = ground.nginx.requests().len();
        as_before_uploads(&ground.nginx);
        let direct = outcome(Command::new("curl").args(&arguments), &work);
        // The server answers first and writes its log then.
        let between = logged(&ground.nginx, before + line.matches(" /").count().max(1));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        as_before_uploads(&ground.nginx);
        let governed = outcome(&mut ground.governed("curl", &[&["curl"], &arguments[..]].concat()), &work);
        assert_eq!(governed, direct, "curl {line}");
        logged(&ground.nginx, 2 * between - before);
        let log = ground.nginx.requests();
        assert_eq!(log[between..], log[before..between], "curl {line}: what the server saw");
        answered.extend_from_slice(&log[between..]);
        if index % 10 == 9 {
            ground.site.rearm().unwrap();
        }
    }

    // The server's own log is the truth about what was asked.
    let runs = ground.collector.all_settled("curl", CURLS.len() as u64).unwrap();
    let exchanges = exchanges(&ground.collector, &runs);
    let recorded = exchanges.iter().map(|exchange| as_logged(exchange, &ground.nginx));
    assert_eq!(counted(recorded), counted(answered.into_iter()), "{exchanges:#?}");
    assert!(runs.iter().all(|run| run.count("gaps") == 0), "{runs:?}");
    assert_eq!(
        planted::found_below(&ground.collector.data(), planted::ALL).unwrap(),
        Vec::<String>::new(),
        "at rest"
    );
}

/// The server tells a new file from one that was there.
fn as_before_uploads(nginx: &Nginx) {
    std::fs::remove_dir_all(nginx.uploads()).unwrap();
    std::fs::create_dir(nginx.uploads()).unwrap();
    std::fs::write(nginx.uploads().join("page.txt"), "an earlier page").unwrap();
}

/// Waits until the server has logged so many requests; how many it has.
fn logged(nginx: &Nginx, requests: usize) -> usize {
    eventually("the server logs its answers", || {
        let logged = nginx.requests().len();
        Ok((logged >= requests).then_some(logged))
    })
    .unwrap()
}

fn exchanges(collector: &Collector, runs: &[Run]) -> Vec<Exchange> {
    runs.iter().flat_map(|run| collector.exchanges(run).unwrap()).collect()
}

/// Arguments of one line of the table.
fn curl(line: &str, nginx: &Nginx, work: &Path) -> Vec<String> {
    let show = [
        "-sS",
        "--max-time",
        "60",
        "-D",
        "-",
        "-w",
        "\\n%{http_code} %{size_upload} %{num_redirects} %{num_connects}\\n",
    ];
    let words = line.split(' ').map(|word| match word {
        _ if word.starts_with('/') => nginx.url(word),
        _ => word.replace("W/", &format!("{}/", work.display())).replace("LONG", &"x".repeat(6000)),
    });
    show.into_iter().map(str::to_owned).chain(words).collect()
}

/// Exit code and all that came, without what changes with time.
fn outcome(command: &mut Command, work: &Path) -> (Option<i32>, String, String) {
    let stdin = std::fs::File::open(work.join("page")).unwrap();
    let output = command.stdin(stdin).output().unwrap();
    let mut told: Vec<u8> = Vec::new();
    for line in output.stdout.split_inclusive(|byte| *byte == b'\n') {
        let varies = [&b"Date: "[..], b"Content-Type: multipart/byteranges", b"--0000"];
        if !varies.iter().any(|start| line.starts_with(start)) {
            told.extend_from_slice(line);
        }
    }
    // Latin-1: every byte shows.
    let told = told.into_iter().map(char::from).collect();
    (output.status.code(), told, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// An exchange as nginx logs it. It answers 499 or 444 where there is no answer.
fn as_logged(exchange: &Exchange, nginx: &Nginx) -> String {
    let url = exchange.text();
    let origin = format!("http://127.0.0.1:{}", nginx.port);
    let target = url.strip_prefix(&origin).unwrap_or(url);
    let status = if exchange.word("outcome") == "aborted" { "444" } else { exchange.word("status") };
    format!("{} {target} {status}", exchange.word("verb"))
}

fn counted(lines: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        *counts.entry(line).or_default() += 1;
    }
    counts
}

/// Requests that two readers may read in two ways, and ones without end: each is refused and never reaches the server.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "CL and TE",
        "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        "400",
    ),
    (
        "two lengths",
        "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "400",
    ),
    ("a list of lengths", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nab", "400"),
    ("a signed length", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", "400"),
    (
        "TE twice",
        "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "chunked is not last",
        "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "400",
    ),
    ("xchunked", "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400"),
    (
        "space before the colon",
        "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    ("obs-fold", "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "400"),
    ("bare LF", "GET /smuggled HTTP/1.1\nHost: a\n\n", "400"),
    ("bare CR", "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "400"),
    ("two hosts", "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
    ("no host", "GET /smuggled HTTP/1.1\r\n\r\n", "400"),
    ("another host in the target", "GET http://b/smuggled HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    (
        "a chunk size that overflows",
        "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "",
    ),
    (
        "a chunk size that is none",
        "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        "",
    ),
    ("a NUL in a field", "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", "400"),
];

#[test]
fn what_can_be_read_in_two_ways_is_refused_and_recorded() {
    let mut ground = Ground::new(|_| String::new());
    for (name, request, status) in REFUSED {
        let hex: String = request.bytes().map(|byte| format!("{byte:02x}")).collect();
        let script = format!(
            "import socket, sys\ns = socket.create_connection(('127.0.0.1', {}), 30)\n\
             s.sendall(bytes.fromhex('{hex}'))\nsys.stdout.buffer.write(b''.join(iter(lambda: s.recv(65536), b'')))",
            ground.nginx.port
        );
        let answer = run(&mut ground.governed("smuggling", &["python3", "-c", &script])).unwrap();
        if !status.is_empty() {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer:?}");
        }
        ground.site.rearm().unwrap();
    }
    let many = "import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 30)\n\
                try: s.sendall(b'GET /smuggled HTTP/1.1\\r\\nHost: a\\r\\n' + b'X: y\\r\\n' * 10000 + b'\\r\\n')\n\
                except OSError: pass\n\
                print(s.recv(65536).decode())";
    let port = ground.nginx.port.to_string();
    let answer = run(&mut ground.governed("smuggling", &["python3", "-c", many, &port])).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");

    let reached: Vec<_> =
        ground.nginx.requests().into_iter().filter(|request| request.contains("smuggled")).collect();
    assert_eq!(reached, Vec::<String>::new(), "refused requests reached the server");
    let runs = ground.collector.all_settled("smuggling", REFUSED.len() as u64 + 1).unwrap();
    let exchanges = exchanges(&ground.collector, &runs);
    assert_eq!(exchanges.len(), REFUSED.len() + 1, "each is on record: {exchanges:#?}");
    assert!(exchanges.iter().all(|exchange| exchange.word("outcome") != "ok"), "{exchanges:#?}");
}

#[test]
fn a_denied_path_is_answered_in_its_turn() {
    let ground = Ground::new(|nginx| {
        format!(
            "[[target]]\nname = 'shop'\nports = [{}]\n[[target.http]]\nhosts = ['shop.internal']\npaths = ['/admin/**']\n\
             access = 'deny'\nreason = 'agents do not administer the shop'\n",
            nginx.port
        )
    });
    let requests =
        ["/hello", "/admin/users", "/%61dmin/users", "/orders/../admin/users", "//admin/users", "/orders"];
    let written: String =
        requests.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: shop.internal\r\n\r\n")).collect();
    let script = format!(
        "import socket, sys\ns = socket.create_connection(('127.0.0.1', {}), 30)\ns.sendall(bytes.fromhex('{}'))\n\
         got = b''\nwhile got.count(b'HTTP/1.1 ') < {} or not got.endswith(b']}}'): got += s.recv(65536)\n\
         sys.stdout.buffer.write(got)",
        ground.nginx.port,
        written.bytes().map(|byte| format!("{byte:02x}")).collect::<String>(),
        requests.len()
    );
    let answers = run(&mut ground.governed("denied", &["python3", "-c", &script])).unwrap();
    let statuses: Vec<&str> =
        answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|line| &line[..3]).collect();
    assert_eq!(statuses, ["200", "403", "403", "403", "403", "200"], "{answers}");
    assert!(answers.contains("agents do not administer the shop"), "{answers}");
    assert_eq!(ground.nginx.requests(), ["GET /hello 200", "GET /orders 200"]);
    let run = ground.collector.settled("denied", 1).unwrap();
    assert_eq!((run.count("exchanges"), run.count("denied"), run.count("gaps")), (6, 4, 0));
}

const SECRETS: &[Planted] = &[
    Planted { kind: "bearer token", value: "plantedBearer51plantedBearer51" },
    Planted { kind: "cookie", value: "plantedCookie52" },
    Planted { kind: "query", value: "plantedQuery53" },
    Planted { kind: "form", value: "plantedForm54" },
    Planted { kind: "JSON", value: "plantedJson55" },
    Planted { kind: "multipart", value: "plantedPart56" },
    Planted { kind: "token answer", value: "plantedAccess57" },
    Planted { kind: "refresh token answer", value: "plantedRefresh58" },
    Planted { kind: "metadata service", value: "plantedMetadata59" },
    Planted { kind: "set-cookie", value: "plantedSetCookie60" },
    Planted { kind: "location", value: "plantedLocation61" },
    Planted { kind: "basic", value: "cGxhbnRlZEJhc2ljNjI6cGxhbnRlZEJhc2ljNjI=" },
    Planted { kind: "chunked JSON", value: "plantedChunks63" },
];

/// Answers as a token endpoint and as a cloud's metadata service do, in small chunks.
fn token_server() -> Peer {
    Peer::start("127.0.0.1", |mut stream: TcpStream| {
        let mut heard = Vec::new();
        let mut buffer = [0; 65536];
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..length]);
        }
        let body = r#"{"access_token": "plantedAccess57", "refresh_token": "plantedRefresh58", "Code": "Success",
            "SecretAccessKey" : "plantedMetadata59", "seen": "answered in chunks"}"#;
        let mut answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
            Set-Cookie: session=plantedSetCookie60; Path=/\r\nLocation: /next?access_token=plantedLocation61\r\n\
            Connection: close\r\n\r\n"
            .to_owned();
        for piece in body.as_bytes().chunks(7) {
            answer += &format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece));
        }
        answer += "0\r\n\r\n";
        // The client may be gone.
        let _sent = stream.write_all(answer.as_bytes());
    })
    .unwrap()
}

const CARELESS: &str = r#"
set -eu
curl -sS -H 'Authorization: Bearer plantedBearer51plantedBearer51' -H 'cookie: sid=plantedCookie52' "$URL/a?x=1&access_token=plantedQuery53"
curl -sS -u plantedBasic62:plantedBasic62 "$URL/b"
curl -sS -d 'grant_type=password&username=ada&password=plantedForm54' "$URL/oauth/token"
curl -sS -H 'Content-Type: application/json' -d '{"user": "ada", "password": "plantedJson55"}' "$URL/login"
curl -sS -F user=ada -F password=plantedPart56 "$URL/login"
printf '{"user": "ada", "client_secret": "plantedChunks63"}' | curl -sS -H 'Content-Type: application/json' -T - -X POST "$URL/in-chunks"
"#;

#[test]
fn nothing_that_authenticates_is_recorded() {
    let ground = Ground::new(|_| String::new());
    let server = token_server();
    let mut exec = ground.governed("careless", &["bash", "-c", CARELESS]);
    let heard = output(exec.env("URL", format!("http://{}", server.address))).unwrap();
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    assert_eq!(heard.matches("plantedAccess57").count(), 6, "the client gets all of it: {heard}");
    let run = ground.collector.settled("careless", 6).unwrap();
    let mut said = String::new();
    for arguments in [&["show", &run.id][..], &["play", &run.id], &["search", "story"], &["touched", &run.id]]
    {
        said += &ground.collector.text(arguments).unwrap();
        said += &ground.collector.text(&[arguments, &["--json"]].concat()).unwrap();
    }
    for seen in ["grant_type", "answered in chunks", "SecretAccessKey", "/login"] {
        assert!(said.contains(seen), "{seen} is not in the recording: {said}");
    }
    let found = |bytes: &[u8]| planted::found(bytes, SECRETS).iter().map(|p| p.kind).collect::<Vec<_>>();
    assert_eq!(found(said.as_bytes()), Vec::<&str>::new(), "{said}");
    for text in [ground.agent.log(), ground.collector.log(), ground.agent.metrics().unwrap()] {
        assert_eq!(found(text.as_bytes()), Vec::<&str>::new(), "{text}");
    }
    ground.agent.wait_until_idle().unwrap();
    for place in [ground.agent.state(), ground.collector.data()] {
        assert_eq!(planted::found_below(&place, SECRETS).unwrap(), Vec::<String>::new(), "at rest");
    }
}
