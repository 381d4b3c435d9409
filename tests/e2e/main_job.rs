//! The main job: unmodified clients, governed, talk to a real PostgreSQL; all of it is found again, and no secret is.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;
use weir_tests::planted::{self, value};
use weir_tests::process::{output, program, run};
use weir_tests::recorded::{Exchange, Run};
use weir_tests::{Agent, Collector, Echo, Peer, Postgres, Site};

/// What one agent does in a day's work.
const WORK: &str = r#"
set -eu
psql() { command psql -X -q -v ON_ERROR_STOP=1 "$@"; }
psql -c "CREATE TABLE orders (id int PRIMARY KEY, customer text, amount numeric(10,2))"
psql -c "INSERT INTO orders VALUES (1, 'Ada', 12.50), (2, 'Grace', 99.00), (3, 'Edsger', 7.25)"
psql -c "SELECT customer, amount FROM orders ORDER BY id"
psql -c "BEGIN; UPDATE orders SET amount = 0 WHERE id = 3; ROLLBACK"
pgbench -n -M prepared -t 3 -f "$WORK/lookup.sql" >/dev/null 2>&1
printf '4\tBarbara\t31.00\n5\tTony\t64.50\n' | psql -c "\copy orders FROM STDIN"
psql -c "\copy orders TO '$WORK/orders.tsv'"
! psql -c "SELECT * FROM no_such_table" 2>/dev/null
exec 3<>"/dev/tcp/127.0.0.1/$ECHO_PORT"
echo "SET build:17 done" >&3
head -n 1 <&3
exec 3>&-
! PGPORT=$DENIED_PORT psql -c "SELECT secret FROM vault" 2>"$WORK/denied"
"#;

struct Ground {
    agent: Agent,
    collector: Collector,
    postgres: Postgres,
    site: Site,
}

impl Ground {
    fn new(rules: impl FnOnce(&Postgres) -> String) -> Self {
        let site = Site::new(true).unwrap();
        let postgres = Postgres::start(&site, "postgres").unwrap();
        let collector = Collector::start(&site).unwrap();
        let agent = Agent::start(&site, &collector, &rules(&postgres)).unwrap();
        Self { agent, collector, postgres, site }
    }

    fn governed(&self, story: &str, command: &[&str]) -> Command {
        let label = format!("story={story}");
        let mut command = self.agent.exec(&[&label], command).unwrap();
        command.envs(self.postgres.environment()).env("PGAPPNAME", story);
        command
    }

    fn exchanges(&self, run: &Run) -> Vec<Exchange> {
        self.collector.exchanges(run).unwrap()
    }
}

/// The recorded text, where masked bytes are asterisks.
fn agrees(logged: &str, recorded: &str) -> bool {
    logged.len() == recorded.len() && logged.bytes().zip(recorded.bytes()).all(|(l, r)| l == r || r == b'*')
}

#[test]
fn a_days_work_is_recorded_and_found_again() {
    let echo = Echo::start("127.0.0.1").unwrap();
    let vault = Echo::start("127.0.0.1").unwrap();
    let ground = Ground::new(|postgres| {
        format!(
            "[[target]]\nname = \"orders-db\"\nports = [{}]\naccess = \"guarded\"\n\n\
             [[target]]\nname = \"vault\"\nports = [{}]\naccess = \"deny\"\nreason = \"ask the broker\"\n",
            postgres.port,
            vault.address.port()
        )
    });
    let work = ground.site.folder("work").unwrap();
    std::fs::write(
        work.join("lookup.sql"),
        "\\set id random(1, 3)\nSELECT customer FROM orders WHERE id = :id;\n",
    )
    .unwrap();
    let mut exec = ground.governed("work", &["bash", "-c", WORK]);
    exec.env("WORK", &work)
        .env("ECHO_PORT", echo.address.port().to_string())
        .env("DENIED_PORT", vault.address.port().to_string());
    let shown = run(&mut exec).unwrap();
    assert!(shown.contains("Grace") && shown.contains("echo: SET build:17 done"), "{shown}");
    let denied = std::fs::read_to_string(work.join("denied")).unwrap();
    assert!(denied.contains("ask the broker"), "{denied}");
    assert_eq!(vault.accepted(), 0, "the denied destination was reached");

    // 7 psql, 2 by pgbench, 1 opaque, 1 denied.
    let run = ground.collector.settled("work", 11).unwrap();
    assert_eq!((run.count("sessions"), run.count("denied"), run.count("gaps")), (11, 1, 0), "{run:?}");
    let sessions = ground.collector.sessions(&run).unwrap();
    for session in &sessions {
        let port = session.origin().unwrap().port();
        let wanted = if port == ground.postgres.port {
            ("postgres", "inspected", "orders-db")
        } else if port == echo.address.port() {
            ("opaque", "metadata-only", "")
        } else {
            ("", "refused", "vault")
        };
        assert_eq!(
            (session.word("protocol"), session.word("coverage"), session.word("target")),
            wanted,
            "{session:?}"
        );
    }

    let exchanges = ground.exchanges(&run);
    let of = |text: &str| {
        exchanges
            .iter()
            .find(|e| e.text().starts_with(text))
            .unwrap_or_else(|| panic!("{text}: {exchanges:#?}"))
    };
    let insert = of("INSERT INTO orders");
    assert_eq!((insert.rows(), insert.word("status"), insert.word("outcome")), (3, "INSERT 0 3", "ok"));
    assert_eq!(of("SELECT customer, amount").rows(), 3);
    let copies: Vec<_> =
        exchanges.iter().filter(|e| e.text().starts_with("COPY")).map(Exchange::rows).collect();
    assert_eq!(copies, [2, 5]);
    let failed = of("SELECT * FROM no_such_table");
    assert_eq!((failed.word("status"), failed.word("outcome")), ("42P01", "error"));
    assert!(failed.word("error").contains("no_such_table"), "{failed:?}");
    let executions: Vec<_> = exchanges.iter().filter(|e| e.word("verb") == "execute").collect();
    assert_eq!(executions.len(), 3);
    for execution in executions {
        assert_eq!(execution.text(), "SELECT customer FROM orders WHERE id = $1;");
        let parameter = &execution.json["parameters"][0];
        assert!(["1", "2", "3"].contains(&parameter["value"].as_str().unwrap()), "{execution:?}");
        assert_eq!(execution.rows(), 1);
        assert!(execution.json["defined_by"].as_u64().unwrap() > 0, "{execution:?}");
    }

    // The server's own log and the recording agree, statement by statement.
    let logged = ground.postgres.statements("work");
    let mut recorded: Vec<_> = exchanges
        .iter()
        .filter(|e| ["query", "execute"].contains(&e.word("verb")))
        .map(Exchange::text)
        .collect();
    for statement in &logged {
        let found = recorded.iter().position(|text| agrees(statement, text));
        recorded.remove(
            found.unwrap_or_else(|| panic!("executed and not recorded: {statement:?} in {recorded:#?}")),
        );
    }
    // pgbench names itself.
    recorded.retain(|text| {
        !ground.postgres.statements("pgbench").iter().any(|statement| agrees(statement, text))
    });
    assert_eq!(recorded, Vec::<&str>::new(), "recorded, and the server knows nothing of it");

    // People's words: the timeline, the rows, coverage, the proof.
    let shown = ground.collector.text(&["show", &run.id]).unwrap();
    assert!(shown.contains("no_such_table") && shown.contains("42P01") && shown.contains("vault"), "{shown}");
    let played = ground.collector.text(&["play", &run.id]).unwrap();
    for seen in ["Edsger", "99.00", "Barbara", "SET build:17 done"] {
        assert!(played.contains(seen), "{seen} is not in {played}");
    }
    let inspected = ground.collector.share(&run, "inspected").unwrap();
    let opaque = ground.collector.share(&run, "metadata-only").unwrap();
    assert!(inspected > 0.9 && opaque > 0.0, "{inspected} {opaque}");
    let verified = ground.collector.verify(&[&run.id]).unwrap();
    assert!(verified.holds(), "{verified:?}");
    let node = ground.collector.node().unwrap();
    let verified = ground.collector.verify(&["--node", &node]).unwrap();
    assert!(verified.holds(), "{verified:?}");

    // Every read above is on record, and without a credential there is none.
    let accesses = ground.collector.json(&["accesses"]).unwrap();
    assert!(accesses.as_array().is_some_and(|all| all.len() > 5), "{accesses}");
    let stranger = output(ground.collector.weir(&["runs"]).unwrap().env("WEIR_CREDENTIAL", "")).unwrap();
    assert!(!stranger.status.success(), "{stranger:?}");
}

#[test]
fn a_target_is_recorded_as_far_as_its_rule_says() {
    let echo = Echo::start("127.0.0.1").unwrap();
    let ground = Ground::new(|postgres| {
        format!(
            "[[target]]\nname = \"asked\"\naddresses = [\"127.0.0.0/8\"]\nports = [{0}]\ncapture = \"statements\"\n\n\
             [[target]]\nname = \"counted\"\naddresses = [\"::1\"]\nports = [{0}]\ncapture = \"metadata\"\n\n\
             [[target]]\nname = \"private\"\nports = [\"{1}-{1}\"]\ncapture = \"none\"\n",
            postgres.port,
            echo.address.port()
        )
    });
    let script = format!(
        "psql -X -At -c \"SELECT 'statement seen', 6 * 7001\"; PGHOST=::1 psql -X -At -c \"SELECT 'statement unseen', 6 * 7003\"; \
         exec 3<>/dev/tcp/127.0.0.1/{}; echo bytes unseen >&3; head -n 1 <&3",
        echo.address.port()
    );
    let told = run(&mut ground.governed("captured", &["bash", "-c", &script])).unwrap();
    assert_eq!(told, "statement seen|42006\nstatement unseen|42018\necho: bytes unseen\n");
    let run = ground.collector.settled("captured", 2).unwrap();
    let mut said = String::new();
    for what in ["show", "play", "sessions"] {
        said += &ground.collector.text(&[what, &run.id, "--json"]).unwrap();
    }
    // The argument list of the run has the statements, too: it is not a target's.
    let argv = run.json["argv"].to_string();
    said = said.replace(&argv, "");
    assert!(said.contains("statement seen"), "{said}");
    for unseen in ["42006", "42018", "bytes unseen"] {
        assert!(!said.contains(unseen), "{unseen} is in {said}");
    }
    for exchange in ground.exchanges(&run).iter().filter(|exchange| exchange.word("kind") == "sql") {
        assert_eq!((exchange.rows(), exchange.word("outcome")), (1, "ok"));
        let text = if exchange.word("target") == "asked" { "SELECT 'statement seen', 6 * 7001" } else { "" };
        assert_eq!(exchange.text(), text, "{exchange:?}");
    }
    // What was left out is said.
    let story = ground.collector.json(&["show", &run.id]).unwrap();
    let gaps: Vec<_> =
        story["gaps"].as_array().unwrap().iter().filter_map(|gap| gap["reason"].as_str()).collect();
    assert!(gaps.contains(&"capture-statements") && gaps.contains(&"capture-metadata"), "{gaps:?}");
    assert!(ground.collector.verify(&[&run.id]).unwrap().holds());
}

/// What a careless agent does: every kind of secret, each where it usually is.
const CARELESS: &str = r#"
set -u
psql() { command psql -X -q "$@"; }
psql -c "CREATE ROLE planted LOGIN PASSWORD '$LITERAL'"
psql -c "CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink;
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1')"
psql -c "CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'planted', password '$MAPPING')"
psql -c "SELECT * FROM dblink('host=127.0.0.1 port=1 user=planted password=$DBLINK', 'SELECT 1') AS t (a int)"
PGPASSWORD=$CLEARTEXT psql -U cleartext -c "SELECT 'cleartext came in'"
psql "host=127.0.0.1 port=$PGPORT user=planted password=$DSN dbname=postgres" -c "SELECT 1"
psql "postgresql://planted:$URL@127.0.0.1:$PGPORT/postgres" -c "SELECT 1"
bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$HTTP_PORT"; cat "$REQUEST" >&3; cat <&3' tool --token "$TOKEN" --api-key="$API_KEY"
"$CLIENT" cancel-key "127.0.0.1:$PGPORT" trusted
"#;

#[test]
fn of_every_kind_of_secret_that_goes_through_nothing_is_kept() {
    let web = Peer::start("127.0.0.1", answer_http).unwrap();
    let ground = Ground::new(|_| String::new());
    for (user, method, password) in
        [("cleartext", "password", value("clear-text password message")), ("trusted", "trust", "x")]
    {
        ground.postgres.sql(&format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).unwrap();
        ground.postgres.let_in(user, method).unwrap();
    }
    let request = ground.site.path().join("request");
    std::fs::write(&request, http_request()).unwrap();
    let token = ground.site.path().join("token");
    std::fs::write(&token, value("token file")).unwrap();
    let mut exec = Command::new(program("weir-agent").unwrap());
    exec.args(["exec", "--config"])
        .arg(ground.agent.config())
        .args(["--label", "story=careless", "--token-file"])
        .arg(token);
    exec.args(["--", "bash", "-c", CARELESS, "tool", "--token", value("--token argument")])
        .envs(ground.postgres.environment())
        .env("CLIENT", program("weir-test-client").unwrap())
        .env("HTTP_PORT", web.address.port().to_string())
        .env("REQUEST", &request);
    for (variable, kind) in [
        ("LITERAL", "PASSWORD literal"),
        ("MAPPING", "user mapping option"),
        ("DBLINK", "dblink string"),
        ("CLEARTEXT", "clear-text password message"),
        ("DSN", "password in a DSN"),
        ("URL", "password in a URL"),
        ("TOKEN", "--token argument"),
        ("API_KEY", "--api-key argument"),
    ] {
        exec.env(variable, value(kind));
    }
    let done = output(&mut exec).unwrap();
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{done:?}");
    // All of it really went through.
    assert!(shown.contains("cleartext came in"), "{done:?}");
    assert!(shown.contains(value("set-cookie")), "{done:?}");
    let truth = ground.postgres.log();
    for kind in ["PASSWORD literal", "user mapping option", "dblink string"] {
        assert!(truth.contains(value(kind)), "{kind} did not reach the server: {truth}");
    }
    let cancel_key = shown.lines().last().unwrap();
    assert_eq!(cancel_key.len(), 8, "{shown}");

    // 7 psql, the HTTP talk, the trusted login and its cancel.
    let run = ground.collector.settled("careless", 10).unwrap();
    let mut said = String::new();
    for arguments in [
        &["runs"][..],
        &["sessions", &run.id],
        &["show", &run.id],
        &["play", &run.id],
        &["coverage", &run.id],
        &["accesses"],
        &["nodes"],
    ] {
        said += &ground.collector.text(arguments).unwrap();
        let json = ground.collector.text(&[arguments, &["--json"]].concat()).unwrap();
        said += &bytes_in(&json);
        said += &json;
    }
    // The scan sees what is there: names around the secrets, and the rest of the talk.
    for seen in [
        "CREATE USER MAPPING FOR postgres",
        "cleartext came in",
        "POST /upload",
        "x-vault-token",
        "--api-key",
    ] {
        assert!(said.to_lowercase().contains(&seen.to_lowercase()), "{seen} is not in the recording: {said}");
    }
    assert_eq!(kinds(said.as_bytes()), Vec::<&str>::new(), "{said}");
    let key: Vec<u8> =
        (0..8).step_by(2).map(|at| u8::from_str_radix(&cancel_key[at..at + 2], 16).unwrap()).collect();
    assert!(
        !said.contains(cancel_key) && !planted::contains(said.as_bytes(), &key),
        "the cancel key is in the recording"
    );

    for text in [
        ground.agent.log(),
        ground.collector.log(),
        ground.agent.metrics().unwrap(),
        ground.collector.metrics().unwrap(),
        ground.agent.status().unwrap().to_string(),
    ] {
        assert_eq!(kinds(text.as_bytes()), Vec::<&str>::new(), "{text}");
    }
    // The identity token is kept as long as the run lives.
    ground.agent.wait_until_idle().unwrap();
    for place in [ground.agent.state(), ground.collector.data()] {
        let found = planted::found_below(&place, planted::ALL).unwrap();
        assert_eq!(found, Vec::<String>::new(), "at rest");
    }
}

fn kinds(bytes: &[u8]) -> Vec<&'static str> {
    planted::found(bytes, planted::ALL).iter().map(|planted| planted.kind).collect()
}

/// Every header and query field that authenticates, in one request.
fn http_request() -> String {
    let headers = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
        "x-vault-token",
        "private-token",
    ];
    let fields = ["key=", "access_token=", "sig=", "X-Amz-Signature="];
    let query: Vec<_> = fields.iter().map(|field| format!("{field}{}", value(field))).collect();
    let head: String = headers.iter().map(|name| format!("{name}: {}\r\n", value(name))).collect();
    format!("POST /upload?{} HTTP/1.1\r\nHost: store\r\n{head}Content-Length: 0\r\n\r\n", query.join("&"))
}

fn answer_http(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    let _told = write!(
        stream,
        "HTTP/1.1 200 OK\r\nSet-Cookie: session={}; HttpOnly\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n",
        value("set-cookie")
    );
}

/// The bytes that JSON carries as text, unescaped, and those it carries as base64 or hex.
fn bytes_in(json: &str) -> String {
    let mut all = String::new();
    for line in json.lines().chain([json]) {
        if let Ok(value) = serde_json::from_str::<Value>(line) {
            strings(&value, &mut all);
        }
    }
    all
}

fn strings(value: &Value, all: &mut String) {
    match value {
        Value::String(text) => {
            all.push_str(text);
            all.push('\n');
            for bytes in [unbase64(text), unhex(text)].into_iter().flatten() {
                all.push_str(&String::from_utf8_lossy(&bytes));
                all.push('\n');
            }
        }
        Value::Array(values) => values.iter().for_each(|value| strings(value, all)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            all.push_str(name);
            all.push('\n');
            strings(value, all);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bits = 0u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for digit in text.trim_end_matches('=').bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}
