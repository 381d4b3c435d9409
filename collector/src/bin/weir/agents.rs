//! `weir agents`: how each node agent stands, and one of them in full.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_collector::clock;
use weir_collector::heartbeats::{SILENCE_MAX, kind_text};
use weir_proto::v1::{self, gate_state::State};

use crate::How;
use crate::client::Client;
use crate::output::{self, bytes, duration, id, plural, time, time_json};

/// A clock that is further off than this makes times of different nodes hard to compare.
const OFFSET_MS_MAX: i64 = 1000;
/// With less left, renewal has failed for a while: it is due with a third of its life left, 30 days of 90.
const CERTIFICATE_LEFT_SECONDS_MIN: i64 = 7 * 24 * 3600;
const KEYS_LEFT_DAYS_MIN: i64 = 7;
const DAY_SECONDS: i64 = 24 * 3600;

#[derive(clap::Args)]
pub(crate) struct Agents {
    /// One of them, by id, part of an id, or name: with its gates, its configuration, its certificate and its gaps
    node: Option<String>,
}

impl Agents {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        if let Some(named) = &self.node {
            let node_id = client.node(named).await?.to_field();
            let asked = v1::NodesRequest { node_id, ..Default::default() };
            let found = client.query.nodes(asked).await?.into_inner().nodes;
            let node = found.first().context("the collector does not know that node any more")?;
            return if how.json { output::json(&agent_json(node)) } else { in_full(node) };
        }
        let nodes = client.nodes().await?;
        if how.json {
            return output::json(&Value::Array(nodes.iter().map(agent_json).collect()));
        }
        if nodes.is_empty() {
            return output::line("no node agents: make a join token with `weir join-token`");
        }
        let headings = [
            "NODE",
            "NAME",
            "STATE",
            "VERSION",
            "HEARTBEAT",
            "GATES",
            "SPOOLED",
            "CONFIG",
            "CLOCK",
            "CERTIFICATE",
            "GAPS",
            "ALERTS",
        ];
        output::table(&headings, nodes.iter().map(cells))
    }
}

fn cells(node: &v1::NodeSummary) -> Vec<String> {
    vec![
        id(&node.node_id),
        node.name.clone(),
        state(node),
        node.agent_version.clone(),
        heartbeat(node),
        gates(node),
        format!("{} ({})", node.spooled_segments, bytes(node.spooled_bytes)),
        config(node),
        clock_text(node),
        certificate(node),
        gaps(node),
        node.alerts.to_string(),
    ]
}

/// What an operator has to know first.
fn state(node: &v1::NodeSummary) -> String {
    let going_on = node.gaps.iter().filter(|gap| gap.to_unix_ns == 0);
    let kinds: Vec<&str> = going_on.map(|gap| kind_text(gap.kind())).collect();
    let quiet =
        node.heard_unix_ms != 0 && age_ms(node) > i64::try_from(SILENCE_MAX.as_millis()).unwrap_or(i64::MAX);
    match (node.revoked, node.connected) {
        (true, _) => "revoked".to_owned(),
        (_, true) if kinds.contains(&"bypassed") => "connected, BYPASSED".to_owned(),
        (_, true) if quiet => "connected, SILENT".to_owned(),
        (_, true) => "connected".to_owned(),
        _ if node.stopped => "stopped".to_owned(),
        _ if quiet || kinds.contains(&"silent") => "SILENT".to_owned(),
        _ => "away".to_owned(),
    }
}

fn age_ms(node: &v1::NodeSummary) -> i64 {
    clock::unix_ms().saturating_sub(node.heard_unix_ms).max(0)
}

fn heartbeat(node: &v1::NodeSummary) -> String {
    match node.heard_unix_ms {
        0 => "never".to_owned(),
        _ => format!("{} ago", duration(age_ms(node).unsigned_abs().saturating_mul(1_000_000))),
    }
}

/// How many hold, and which are weakened.
fn gates(node: &v1::NodeSummary) -> String {
    let Some(agent) = &node.agent else { return String::new() };
    let hold = agent.gates.iter().filter(|gate| gate.state() == State::Holds).count();
    let not: Vec<&str> = agent
        .gates
        .iter()
        .filter(|gate| gate.state() != State::Holds)
        .map(|gate| gate.name.as_str())
        .collect();
    let all = format!("{hold}/{}", agent.gates.len());
    if not.is_empty() { all } else { format!("{all}, not {}", not.join(" ")) }
}

fn config(node: &v1::NodeSummary) -> String {
    let Some(config) = node.agent.as_ref().and_then(|agent| agent.config.as_ref()) else {
        return String::new();
    };
    format!("{} #{}", hash(config), config.generation)
}

fn hash(config: &v1::ConfigState) -> String {
    let hex = hex::encode(&config.sha256);
    if hex.is_empty() { "defaults".to_owned() } else { hex[..hex.len().min(12)].to_owned() }
}

fn clock_text(node: &v1::NodeSummary) -> String {
    let synchronized = if node.clock_synchronized { "synchronized" } else { "unsynchronized" };
    match node.clock_known {
        true if node.clock_offset_ms.saturating_abs() > OFFSET_MS_MAX => {
            format!("{synchronized}, OFF by {:+} ms", node.clock_offset_ms)
        }
        true => format!("{synchronized}, {:+} ms", node.clock_offset_ms),
        false => synchronized.to_owned(),
    }
}

/// As given out here; of a node that an earlier version enrolled, as it says itself. 0 = not known.
fn not_after_unix(node: &v1::NodeSummary) -> i64 {
    match (node.certificate_not_after_unix, &node.agent) {
        (0, Some(agent)) => agent.certificate_not_after_unix,
        (known, _) => known,
    }
}

fn certificate(node: &v1::NodeSummary) -> String {
    let not_after = not_after_unix(node);
    let left = not_after.saturating_sub(clock::unix_ms() / 1000);
    match not_after {
        0 => String::new(),
        _ if left <= 0 => "EXPIRED".to_owned(),
        _ if left >= 2 * DAY_SECONDS => format!("{} days", left / DAY_SECONDS),
        _ => duration(left.unsigned_abs().saturating_mul(1_000_000_000)),
    }
}

fn gaps(node: &v1::NodeSummary) -> String {
    match node.gaps.first() {
        None => "0".to_owned(),
        Some(last) => format!("{}, last {}", node.gap_count, kind_text(last.kind())),
    }
}

/// What needs somebody's attention, in words.
fn warnings(node: &v1::NodeSummary) -> Vec<String> {
    let mut warnings = Vec::new();
    if node.revoked {
        return warnings;
    }
    let now = clock::unix_ms() / 1000;
    let left = not_after_unix(node).saturating_sub(now);
    if not_after_unix(node) != 0 && left <= 0 {
        warnings.push(
            "its certificate has ended: `weir join-token`, then `weir-agent join --again` there".to_owned(),
        );
    } else if not_after_unix(node) != 0 && left < CERTIFICATE_LEFT_SECONDS_MIN && !node.connected {
        warnings.push("it is away, and its certificate ends soon".to_owned());
    }
    if let Some(agent) = &node.agent {
        let days = i64::from(agent.keys_until_day) - now / DAY_SECONDS;
        if agent.keys_until_day != 0 && days < KEYS_LEFT_DAYS_MIN {
            warnings.push(format!(
                "the sealing keys that it holds reach {days} days ahead; it must reach the collector"
            ));
        }
    }
    if node.clock_known && node.clock_offset_ms.saturating_abs() > OFFSET_MS_MAX {
        warnings.push(format!("its clock is off by {:+} ms against the collector's", node.clock_offset_ms));
    }
    if node.alerts > 0 {
        warnings.push(format!("{}: `weir verify --node` tells them", plural(node.alerts, "alert")));
    }
    warnings
}

fn in_full(node: &v1::NodeSummary) -> Result<()> {
    let say = |name: &str, value: String| output::line(output::clean(&format!("{name:<14}{value}")));
    say("node", format!("{} ({})", id(&node.node_id), node.name))?;
    say("state", state(node))?;
    say("heartbeat", heartbeat(node))?;
    say("enrolled", format!("{} UTC", time(node.enrolled_unix_ms.saturating_mul(1_000_000))))?;
    if node.revoked {
        say("revoked", format!("{} UTC", time(node.revoked_unix_ms.saturating_mul(1_000_000))))?;
    }
    say("sessions", format!("{} begun, {} open", node.next_number.saturating_sub(1), node.open_sessions))?;
    say(
        "connections",
        format!("{} redirected, {} refused, {} unobserved", node.redirected, node.refused, node.unobserved),
    )?;
    say(
        "spool",
        format!("{} on their way, {}", plural(node.spooled_segments, "segment"), bytes(node.spooled_bytes)),
    )?;
    say("log", plural(node.node_entries, "entry").replace("entrys", "entries"))?;
    say("clock", clock_text(node))?;
    if not_after_unix(node) != 0 {
        say(
            "certificate",
            format!("until {} UTC", time(not_after_unix(node).saturating_mul(1_000_000_000))),
        )?;
    }
    if let Some(agent) = &node.agent {
        say("agent", format!("weir-agent {}, kernel {}", agent.agent_version, agent.kernel_release))?;
        if let Some(config) = &agent.config {
            let loaded = time(config.loaded_unix_ns);
            say(
                "config",
                format!("{}, generation {}, loaded {loaded} UTC", hash(config), config.generation),
            )?;
        }
        if agent.keys_until_day != 0 {
            let until = time(i64::from(agent.keys_until_day).saturating_mul(DAY_SECONDS * 1_000_000_000));
            say("sealing keys", format!("until {}", until.split(' ').next().unwrap_or_default()))?;
        }
        for (at, gate) in agent.gates.iter().enumerate() {
            let name = if at == 0 { "gates" } else { "" };
            say(name, format!("{:<18} {}", gate.name, gate_text(gate)))?;
        }
    }
    for (at, gap) in node.gaps.iter().enumerate() {
        say(if at == 0 { "gaps" } else { "" }, gap_text(gap))?;
    }
    if node.gap_count > node.gaps.len() as u64 {
        say("", format!("and {} earlier", node.gap_count - node.gaps.len() as u64))?;
    }
    for warning in warnings(node) {
        say("ATTENTION", warning)?;
    }
    Ok(())
}

fn gate_text(gate: &v1::GateState) -> String {
    let state = match gate.state() {
        State::Holds => return "holds".to_owned(),
        State::NotOnThisKernel => "not on this kernel",
        State::Weakened => "weakened",
        State::Unspecified => "unknown",
    };
    format!("{state}: {}", gate.detail)
}

pub(crate) fn gap_text(gap: &v1::NodeGap) -> String {
    let means = match gap.kind() {
        v1::node_gap::Kind::Silent => "no heartbeat until now; why is not known yet",
        v1::node_gap::Kind::Unreachable => "not heard of; its log says that it was at work",
        v1::node_gap::Kind::Stopped => "it stopped in order; governed connections were refused",
        v1::node_gap::Kind::Died => "it ended without a word; governed connections were refused",
        v1::node_gap::Kind::Rebooted => "the machine was down",
        v1::node_gap::Kind::Stalled => "it was suspended, or could not write its log",
        v1::node_gap::Kind::Bypassed => "governed connections went through UNRECORDED",
        v1::node_gap::Kind::Unspecified => "",
    };
    let (until, lasted) = match gap.to_unix_ns {
        0 => ("now".to_owned(), String::new()),
        to => {
            let ns = u64::try_from(to.saturating_sub(gap.from_unix_ns)).unwrap_or(0);
            (time(to), format!(" ({})", duration(ns)))
        }
    };
    format!("{:<11} {} to {until} UTC{lasted}: {means}", kind_text(gap.kind()), time(gap.from_unix_ns))
}

pub(crate) fn gap_json(gap: &v1::NodeGap) -> Value {
    json!({
        "kind": kind_text(gap.kind()),
        "from": time_json(gap.from_unix_ns),
        "to": time_json(gap.to_unix_ns),
        "before_entry": gap.before_entry,
    })
}

fn agent_json(node: &v1::NodeSummary) -> Value {
    let seconds = |unix: i64| time_json(unix.saturating_mul(1_000_000_000));
    let ms = |unix: i64| time_json(unix.saturating_mul(1_000_000));
    let agent = node.agent.as_ref().map(|agent| {
        json!({
            "version": agent.agent_version,
            "kernel": agent.kernel_release,
            "keys_until_day": agent.keys_until_day,
            "gates": agent.gates.iter().map(|gate| json!({
                "name": gate.name, "holds": gate.state() == State::Holds, "state": gate_text(gate),
            })).collect::<Vec<_>>(),
            "config": agent.config.as_ref().map(|config| json!({
                "sha256": hex::encode(&config.sha256), "generation": config.generation,
                "loaded": time_json(config.loaded_unix_ns),
            })),
        })
    });
    json!({
        "id": id(&node.node_id),
        "name": node.name,
        "state": state(node),
        "agent_version": node.agent_version,
        "last_seen": ms(node.last_seen_unix_ms),
        "heartbeat": ms(node.heard_unix_ms),
        "heartbeat_age_ms": (node.heard_unix_ms != 0).then(|| age_ms(node)),
        "connected": node.connected,
        "stopped": node.stopped,
        "revoked": node.revoked,
        "enrolled": ms(node.enrolled_unix_ms),
        "log_entries": node.node_entries,
        "next_number": node.next_number,
        "open_sessions": node.open_sessions,
        "redirected": node.redirected,
        "refused": node.refused,
        "unobserved": node.unobserved,
        "spooled_segments": node.spooled_segments,
        "spooled_bytes": node.spooled_bytes,
        "alerts": node.alerts,
        "clock_synchronized": node.clock_synchronized,
        "clock_offset_ms": node.clock_known.then_some(node.clock_offset_ms),
        "certificate_not_after": seconds(not_after_unix(node)),
        "signing_key": hex::encode(&node.signing_key),
        "agent": agent,
        "gap_count": node.gap_count,
        "gaps": node.gaps.iter().map(gap_json).collect::<Vec<_>>(),
        "warnings": warnings(node),
    })
}
