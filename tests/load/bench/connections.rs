//! `connections`: many connections at once, most of them idle. What one costs while it waits, whether anybody waits for
//! somebody else, and whether all of it is given back.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};
use weir_tests::process::{Dialogue, program, run};

use crate::cgroup::{Memory, open_files};
use crate::ground::Ground;
use crate::weir::{Expected, Setting, Weir};

/// Of a node agent's open files: both legs, and one for a moment; its own constants are these.
const FILES_PER_SESSION: u64 = 3;
const FILES_RESERVED: u64 = 256;
/// Where memory is looked at on the way, connections.
const SOME: usize = 1000;
/// After this long everything that can be given back of an idle connection has been: its segment is cut after 5 s.
const REST: Duration = Duration::from_secs(7);

const IDLE_KIB_MAX: f64 = 32.0;
const SOME_MIB_MAX: f64 = 64.0;
/// The slowest answer of all, seconds: more is a stall.
const STALL_SECS: f64 = 3.0;
/// Descriptors that may differ between before and after: the journal and the spool turn over.
const FILES_SLACK: usize = 8;

const PATH: &str = "/1k";

#[derive(clap::Args, Debug)]
pub(crate) struct Connections {
    /// Connections that are used once and kept
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Connections that ask all the time meanwhile
    #[arg(long, default_value_t = 2_000)]
    busy: usize,
    /// How long the busy ones ask
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

/// One node agent with its share of the connections.
struct Share {
    weir: Weir,
    idle: usize,
    busy: usize,
    keeper: Dialogue,
    before: Look,
    some: Look,
    rested: Look,
    slowest: Duration,
    busy_told: Value,
}

/// A node agent at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    memory: Memory,
    files: usize,
}

impl Look {
    fn at(weir: &Weir) -> anyhow::Result<Self> {
        Ok(Self { memory: weir.memory()?, files: open_files(weir.agent_pid()?)? })
    }
}

/// What was found, and what is wrong with it.
pub(crate) fn measure(flags: &Connections) -> anyhow::Result<(Value, Vec<String>)> {
    let mut ground = Ground::make()?;
    let to = format!("127.0.0.1:{}", ground.http_port()?);
    let agents = agents_for(flags.idle + flags.busy)?;
    let mut shares = Vec::new();
    for number in 0..agents {
        let part = |all: usize| all / agents + usize::from(number < all % agents);
        shares.push(Share::open(&mut ground, &to, part(flags.idle), part(flags.busy))?);
    }
    eprintln!("== {} connections rest", flags.idle);
    rest(&mut ground, &mut shares, REST)?;
    for share in &mut shares {
        share.rested = Look::at(&share.weir)?;
    }
    eprintln!("== {} connections ask", flags.busy);
    let mut running = Vec::new();
    for share in &shares {
        let command = share.ask_all_the_time(&to, flags.secs)?;
        running.push(std::thread::spawn(move || told(command)));
    }
    let mut told = Vec::new();
    while let Some(next) = running.pop() {
        while !next.is_finished() {
            rest(&mut ground, &mut shares, Duration::from_secs(1))?;
        }
        told.push(next.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))??);
    }
    for (share, told) in shares.iter_mut().zip(told.into_iter().rev()) {
        share.busy_told = told;
        // Those that rested meanwhile are all there, and answered.
        share.asked("ask")?;
    }
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for share in shares {
        ground.site.rearm()?;
        found.push(share.close(&mut wrong)?);
    }
    Ok((json!({ "agents": found, "wrong": wrong }), wrong))
}

/// How many node agents it takes, as many files as one process may open here.
fn agents_for(connections: usize) -> anyhow::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let each = usize::try_from(hard.saturating_sub(FILES_RESERVED) / FILES_PER_SESSION)?;
    ensure!(each > SOME, "at most {hard} files may be open: raise the hard limit (ulimit -Hn)");
    let agents = connections.div_ceil(each);
    if agents > 1 {
        eprintln!(
            "a process may open {hard} files here, enough for {each} connections: {agents} node agents share them"
        );
    }
    Ok(agents)
}

fn rest(ground: &mut Ground, shares: &mut [Share], time: Duration) -> anyhow::Result<()> {
    std::thread::sleep(time);
    ground.site.rearm()?;
    shares.iter_mut().try_for_each(|share| share.weir.rearm())
}

fn told(mut command: Command) -> anyhow::Result<Value> {
    serde_json::from_str(&run(&mut command)?).context("weir-load told no JSON")
}

impl Share {
    fn open(ground: &mut Ground, to: &str, idle: usize, busy: usize) -> anyhow::Result<Self> {
        let setting = Setting { name: "agent alone".to_owned(), with_collector: false, agent: None };
        let weir = Weir::start(&setting)?;
        let before = Look::at(&weir)?;
        let mut client = Command::new(program("weir-load")?);
        client.args(["idle", "--to", to, "--path", PATH]);
        let keeper = Dialogue::start(&mut weir.around("idle", &client)?)?;
        let mut share = Self {
            weir,
            idle,
            busy,
            keeper,
            before,
            some: before,
            rested: before,
            slowest: Duration::ZERO,
            busy_told: Value::Null,
        };
        eprintln!("== {idle} connections open");
        let some = idle.min(SOME);
        share.asked(&format!("open {some}"))?;
        rest(ground, std::slice::from_mut(&mut share), REST)?;
        share.some = Look::at(&share.weir)?;
        share.asked(&format!("open {}", idle - some))?;
        share.weir.rearm()?;
        ground.site.rearm()?;
        Ok(share)
    }

    /// Says a line to the one that keeps the idle connections.
    fn asked(&mut self, line: &str) -> anyhow::Result<()> {
        let answer = self.keeper.ask(line)?;
        let slowest = answer.split(' ').nth(3).and_then(|us| us.parse().ok());
        let slowest = slowest.with_context(|| format!("{line}: the client says {answer:?}"))?;
        self.slowest = self.slowest.max(Duration::from_micros(slowest));
        Ok(())
    }

    fn ask_all_the_time(&self, to: &str, secs: f64) -> anyhow::Result<Command> {
        let mut client = Command::new(program("weir-load")?);
        client.args(["http", "--to", to, "--path", PATH, "--secs", &secs.to_string()]);
        client.args(["--connections", &self.busy.to_string()]);
        self.weir.around("busy", &client)
    }

    /// Closes everything and says what it was like.
    fn close(mut self, wrong: &mut Vec<String>) -> anyhow::Result<Value> {
        let busy = Look::at(&self.weir)?;
        let idle = self.idle as u64;
        self.keeper.end()?;
        self.weir.settle()?;
        std::thread::sleep(Duration::from_secs(1));
        let after = Look::at(&self.weir)?;
        let kib = (self.rested.memory.anonymous.saturating_sub(self.before.memory.anonymous)) as f64
            / 1024.0
            / self.idle.max(1) as f64;
        let mib = |look: Look| look.memory.anonymous as f64 / f64::from(1 << 20);
        let some_mib = mib(self.some);
        let busy_secs = self.busy_told["most_us"].as_f64().unwrap_or(0.0) / 1e6;
        let slowest = self.slowest.as_secs_f64().max(busy_secs);
        let mut check = |held: bool, words: String| {
            if !held {
                wrong.push(words);
            }
        };
        check(kib <= IDLE_KIB_MAX, format!("{kib:.1} KiB for each idle connection, of {IDLE_KIB_MAX:.0}"));
        check(
            some_mib <= SOME_MIB_MAX,
            format!("{some_mib:.1} MiB at {SOME} connections, of {SOME_MIB_MAX:.0}"),
        );
        check(slowest <= STALL_SECS, format!("the slowest answer took {slowest:.2} s, of {STALL_SECS:.1}"));
        check(
            after.files <= self.before.files + FILES_SLACK,
            format!("{} files are open after all, {} were before", after.files, self.before.files),
        );
        let number = |name: &str| self.busy_told[name].as_u64().unwrap_or(0);
        let (operations, connections) = (number("ops"), number("connections"));
        // Each kept one was used when it was opened, and once after the others had been busy.
        self.weir.expect(Expected::exchanges("idle", idle, 2 * idle));
        self.weir.expect(Expected::exchanges("busy", connections, operations));
        let recorded = self.weir.account();
        let recorded = recorded.map_err(|error| wrong.push(format!("the recording: {error:#}"))).ok();
        Ok(json!({
            "idle": self.idle,
            "busy": self.busy,
            "kib_per_idle_connection": kib,
            "mib_at_1000": some_mib,
            "mib": { "before": mib(self.before), "idle": mib(self.rested), "busy": mib(busy), "after": mib(after) },
            "resident_mib_idle": self.rested.memory.resident as f64 / f64::from(1 << 20),
            "files": {
                "before": self.before.files, "idle": self.rested.files, "busy": busy.files, "after": after.files,
            },
            "busy_rate": self.busy_told["ops"].as_f64().unwrap_or(0.0)
                / self.busy_told["seconds"].as_f64().unwrap_or(1.0),
            "busy_p99_us": self.busy_told["p99_us"],
            "slowest_secs": slowest,
            "recorded_exchanges": recorded,
        }))
    }
}

/// For people.
pub(crate) fn table(found: &Value) -> String {
    let mut text = String::new();
    for (number, agent) in found["agents"].as_array().into_iter().flatten().enumerate() {
        let f = |value: &Value| value.as_f64().unwrap_or(0.0);
        let (mib, files) = (&agent["mib"], &agent["files"]);
        text.push_str(&format!(
            "\nnode agent {}: {} idle, {} busy connections\n  \
             memory of its own: {:.1} MiB before, {:.1} at 1000, {:.1} with all idle ones, {:.1} while busy, {:.1} after\n  \
             {:.1} KiB for each idle connection (budget {IDLE_KIB_MAX:.0}); at 1000 connections {:.1} MiB (budget {SOME_MIB_MAX:.0})\n  \
             open files: {} before, {} idle, {} after\n  \
             busy: {:.0} requests/s, p99 {:.0} us; slowest answer of all {:.3} s; recorded {} exchanges\n",
            number + 1,
            agent["idle"],
            agent["busy"],
            f(&mib["before"]),
            f(&agent["mib_at_1000"]),
            f(&mib["idle"]),
            f(&mib["busy"]),
            f(&mib["after"]),
            f(&agent["kib_per_idle_connection"]),
            f(&agent["mib_at_1000"]),
            files["before"],
            files["idle"],
            files["after"],
            f(&agent["busy_rate"]),
            f(&agent["busy_p99_us"]),
            f(&agent["slowest_secs"]),
            agent["recorded_exchanges"],
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_is_enough_for_few_connections() {
        assert_eq!(agents_for(10).unwrap(), 1);
    }
}
