//! `soak`: steady work for a long time; the collector is taken away for its middle third. Memory and open files stay where
//! they are, nobody waits, and in the end all of it is with the collector.

use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use weir_tests::process::{program, run};

use crate::cgroup::{Memory, open_files};
use crate::ground::Ground;
use crate::weir::{Expected, Setting, Weir};

const TIME_MIN: Duration = Duration::from_secs(30);
const TIME_MAX: Duration = Duration::from_secs(8 * 3600);
/// How often it is looked at: so many times in all, and not more often than once a second.
const LOOKS: u32 = 240;
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The watchdogs' time is shorter than the time between looks of a long soak may be.
const REARM_INTERVAL: Duration = Duration::from_secs(30);
/// Until here memory may grow: pools and buffers find their size. Share of the whole time.
const WARM: f64 = 0.25;

/// What may be more at the end than when it was warm.
const GROWTH_MIB_MAX: f64 = 8.0;
const FILES_SLACK: usize = 16;
/// The slowest answer of all, seconds: more is a stall.
const STALL_SECS: f64 = 3.0;

/// Statements each second, and how many clients ask them.
const STATEMENTS_RATE: u64 = 400;
const STATEMENT_CLIENTS: u64 = 8;
/// Kept HTTP connections, and how long each rests after an answer, ms.
const HTTP: (u64, u64) = (16, 40);
/// The same with a new connection each time.
const HTTP_NEW: (u64, u64) = (2, 50);

#[derive(clap::Args, Debug)]
pub(crate) struct Soak {
    /// How long, as 90s, 10m or 1h
    #[arg(long = "for", default_value = "1h", value_parser = duration)]
    time: Duration,
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let say = || format!("{text:?} is no time: say 90s, 10m or 1h");
    let unit = text.chars().next_back().ok_or_else(say)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(say()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| say())?;
    let time = Duration::from_secs(number.saturating_mul(seconds));
    if time < TIME_MIN || time > TIME_MAX {
        return Err(format!("between {} s and {} h", TIME_MIN.as_secs(), TIME_MAX.as_secs() / 3600));
    }
    Ok(time)
}

/// Node agent and collector at one moment.
#[derive(Clone, Debug)]
struct Look {
    at: Duration,
    agent: Memory,
    agent_files: usize,
    /// None while it is away.
    collector: Option<(Memory, usize)>,
    journal_bytes: u64,
    spool_segments: u64,
    open_sessions: u64,
}

/// A client at work, and what it will have done.
struct Client {
    label: &'static str,
    running: JoinHandle<anyhow::Result<Work>>,
}

struct Work {
    sessions: u64,
    exchanges: u64,
    most: Duration,
}

/// What was found, and what is wrong with it.
pub(crate) fn measure(flags: &Soak) -> anyhow::Result<(Value, Vec<String>)> {
    let mut ground = Ground::make()?;
    let setting = Setting { name: "with collector".to_owned(), with_collector: true, agent: None };
    let mut weir = Weir::start(&setting)?;
    let clients = clients(&mut ground, &weir, flags.time)?;
    let looks = watch(&mut ground, &mut weir, flags.time, &clients)?;
    let mut wrong = Vec::new();
    let mut most = Duration::ZERO;
    for Client { label, running } in clients {
        let work = running.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))?;
        match work.with_context(|| format!("the client {label}")) {
            Ok(work) => {
                most = most.max(work.most);
                weir.expect(Expected::exchanges(label, work.sessions, work.exchanges));
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ground.site.rearm()?;
    let caught_up = Instant::now();
    let recorded = weir.account();
    let caught_up = caught_up.elapsed();
    let recorded = recorded.map_err(|error| wrong.push(format!("the recording: {error:#}"))).ok();
    let last = look(&weir, true, flags.time)?;
    judge(&looks, &last, most, &mut wrong)?;
    let found = json!({
        "secs": flags.time.as_secs(),
        "looks": looks.iter().chain([&last]).map(look_json).collect::<Vec<_>>(),
        "slowest_secs": most.as_secs_f64(),
        "caught_up_secs": caught_up.as_secs_f64(),
        "recorded_exchanges": recorded,
        "wrong": wrong,
    });
    Ok((found, wrong))
}

fn clients(ground: &mut Ground, weir: &Weir, time: Duration) -> anyhow::Result<Vec<Client>> {
    let secs = time.as_secs().to_string();
    let to = format!("127.0.0.1:{}", ground.http_port()?);
    let script = ground.select_script();
    let mut statements = ground.postgres()?.client("pgbench");
    statements
        .args(["-n", "-M", "simple", "-j", "1", "-T", &secs, "-R", &STATEMENTS_RATE.to_string()])
        .args(["-c", &STATEMENT_CLIENTS.to_string(), "-f"])
        .arg(script);
    let http = |(connections, pause_ms): (u64, u64), close: Option<&str>| {
        let mut command = Command::new(program("weir-load")?);
        command.args(["http", "--to", &to, "--path", "/1k", "--secs", &secs]);
        command.args(["--connections", &connections.to_string(), "--pause-ms", &pause_ms.to_string()]);
        command.args(close);
        anyhow::Ok(command)
    };
    Ok(vec![
        start("statements", weir.around("statements", &statements)?, statements_done),
        start("http", weir.around("http", &http(HTTP, None)?)?, http_done),
        start("http-new", weir.around("http-new", &http(HTTP_NEW, Some("--close"))?)?, http_done),
    ])
}

fn start(label: &'static str, mut command: Command, done: fn(&str) -> anyhow::Result<Work>) -> Client {
    Client { label, running: std::thread::spawn(move || done(&run(&mut command)?)) }
}

fn statements_done(said: &str) -> anyhow::Result<Work> {
    let number = |before: &str| -> anyhow::Result<f64> {
        let rest =
            said.split_once(before).with_context(|| format!("pgbench does not say {before:?}: {said}"))?.1;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        Ok(rest[..end].parse()?)
    };
    // It says by how much a statement came late: that is how long somebody waited.
    let lag = said.split_once("schedule lag").map_or("", |(_, rest)| rest);
    let most = lag.split_once("(max ").and_then(|(_, rest)| rest.split_once(')')?.0.parse::<f64>().ok());
    Ok(Work {
        // It connects once more before it begins, to look.
        sessions: STATEMENT_CLIENTS + 1,
        exchanges: number("number of transactions actually processed: ")? as u64,
        most: Duration::from_secs_f64(most.context("pgbench tells no schedule lag")? / 1e3),
    })
}

fn http_done(said: &str) -> anyhow::Result<Work> {
    let told: Value = serde_json::from_str(said)?;
    let number = |name: &str| told[name].as_u64().with_context(|| format!("no {name} in {told}"));
    Ok(Work {
        sessions: number("connections")?,
        exchanges: number("ops")?,
        most: Duration::from_secs_f64(told["most_us"].as_f64().unwrap_or(0.0) / 1e6),
    })
}

/// Looks again and again until the clients are done; meanwhile the collector goes and comes back.
fn watch(
    ground: &mut Ground,
    weir: &mut Weir,
    time: Duration,
    clients: &[Client],
) -> anyhow::Result<Vec<Look>> {
    let start = Instant::now();
    let interval = (time / LOOKS).max(LOOK_INTERVAL_MIN);
    let (away_from, away_to) = (time / 3, time / 3 * 2);
    let (mut is_there, mut was_away) = (true, false);
    let mut looks = Vec::new();
    let mut armed = start;
    while clients.iter().any(|client| !client.running.is_finished()) {
        let now = start.elapsed();
        if now > time + TIME_MIN {
            bail!("the clients do not come to their end");
        }
        if is_there && !was_away && now >= away_from {
            eprintln!("== {} s: the collector goes away", now.as_secs());
            weir.take_collector_away()?;
            (is_there, was_away) = (false, true);
        }
        if !is_there && now >= away_to {
            eprintln!("== {} s: the collector is back", now.as_secs());
            weir.bring_collector_back()?;
            is_there = true;
        }
        looks.push(look(weir, is_there, now)?);
        let next = start.elapsed() + interval;
        while start.elapsed() < next && clients.iter().any(|client| !client.running.is_finished()) {
            if armed.elapsed() >= REARM_INTERVAL {
                ground.site.rearm()?;
                weir.rearm()?;
                armed = Instant::now();
            }
            std::thread::sleep(LOOK_INTERVAL_MIN.min(next.saturating_sub(start.elapsed())));
        }
    }
    ensure!(is_there && was_away, "the collector was not taken away and brought back");
    Ok(looks)
}

fn look(weir: &Weir, is_there: bool, at: Duration) -> anyhow::Result<Look> {
    let status = weir.status()?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let collector = if is_there {
        let pid = weir.collector_pid()?;
        Some((Memory::of(pid)?, open_files(pid)?))
    } else {
        None
    };
    Ok(Look {
        at,
        agent: weir.memory()?,
        agent_files: open_files(weir.agent_pid()?)?,
        collector,
        journal_bytes: number(&status["recording"]["journal_used_bytes"]),
        spool_segments: number(&status["recording"]["spool_segments"]),
        open_sessions: number(&status["open_sessions"]),
    })
}

fn mib(memory: Memory) -> f64 {
    memory.anonymous as f64 / f64::from(1 << 20)
}

fn judge(looks: &[Look], last: &Look, most: Duration, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let end = looks.last().context("nothing was looked at")?;
    let warm = looks.iter().find(|look| look.at.as_secs_f64() >= end.at.as_secs_f64() * WARM);
    let warm = warm.context("nothing was looked at when it was warm")?;
    let mut check = |held: bool, words: String| {
        if !held {
            wrong.push(words);
        }
    };
    let grown = mib(end.agent) - mib(warm.agent);
    check(
        grown <= GROWTH_MIB_MAX,
        format!("the node agent has grown by {grown:.1} MiB, of {GROWTH_MIB_MAX:.0}"),
    );
    check(
        end.agent_files <= warm.agent_files + FILES_SLACK,
        format!("the node agent has {} files open, {} when it was warm", end.agent_files, warm.agent_files),
    );
    check(last.journal_bytes == 0, format!("{} bytes stay in the journal", last.journal_bytes));
    check(last.spool_segments == 0, format!("{} segments stay in the spool", last.spool_segments));
    check(last.open_sessions == 0, format!("{} sessions stay open", last.open_sessions));
    let most = most.as_secs_f64();
    check(most <= STALL_SECS, format!("the slowest answer took {most:.2} s, of {STALL_SECS:.1}"));
    Ok(())
}

fn look_json(look: &Look) -> Value {
    json!({
        "at_secs": look.at.as_secs_f64(),
        "agent_mib": mib(look.agent),
        "agent_files": look.agent_files,
        "collector_mib": look.collector.map(|(memory, _)| mib(memory)),
        "collector_files": look.collector.map(|(_, files)| files),
        "journal_bytes": look.journal_bytes,
        "spool_segments": look.spool_segments,
        "open_sessions": look.open_sessions,
    })
}

/// For people: a dozen of the looks.
pub(crate) fn table(found: &Value) -> String {
    const SHOWN: usize = 12;
    let none = Vec::new();
    let looks = found["looks"].as_array().unwrap_or(&none);
    let mut text = format!(
        "\n{:>8} {:>10} {:>6} {:>14} {:>6} {:>12} {:>15} {:>8}\n",
        "second", "agent MiB", "files", "collector MiB", "files", "journal KiB", "spool segments", "sessions"
    );
    let step = looks.len().div_ceil(SHOWN).max(1);
    for (place, look) in looks.iter().enumerate() {
        if !place.is_multiple_of(step) && place + 1 != looks.len() {
            continue;
        }
        let decimal =
            |name: &str| look[name].as_f64().map_or("away".to_owned(), |value| format!("{value:.1}"));
        let whole = |name: &str| look[name].as_u64().map_or("away".to_owned(), |value| value.to_string());
        text.push_str(&format!(
            "{:>8} {:>10} {:>6} {:>14} {:>6} {:>12} {:>15} {:>8}\n",
            look["at_secs"].as_f64().unwrap_or(0.0).round(),
            decimal("agent_mib"),
            whole("agent_files"),
            decimal("collector_mib"),
            whole("collector_files"),
            look["journal_bytes"].as_u64().unwrap_or(0) / 1024,
            whole("spool_segments"),
            whole("open_sessions"),
        ));
    }
    text.push_str(&format!(
        "slowest answer {:.3} s; all shipped {:.1} s after the end; {} exchanges recorded, as many as were done\n",
        found["slowest_secs"].as_f64().unwrap_or(0.0),
        found["caught_up_secs"].as_f64().unwrap_or(0.0),
        found["recorded_exchanges"],
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_with_its_unit() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1h").unwrap(), Duration::from_secs(3600));
        for wrong in ["", "h", "1", "1d", "1s", "9h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_pgbench_says_of_lateness_is_read() {
        let said = "number of transactions actually processed: 1234\n\
                    rate limit schedule lag: avg 0.1 (max 12.500) ms\n";
        let work = statements_done(said).unwrap();
        assert_eq!((work.exchanges, work.most), (1234, Duration::from_micros(12_500)));
    }
}
