//! What this host offers and what it lacks, each with what to do about it; and the status for people.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::Config;
use crate::control;
use crate::redirection::find_cgroup2_mount;

struct Finding {
    what: &'static str,
    ok: bool,
    detail: String,
}

/// Checks everything that the node agent needs. Exit code 1 when something is missing.
pub(crate) fn report(config: &Config, as_json: bool) -> ExitCode {
    let findings = [root(), kernel(), btf(), cgroup2(), bpffs(&config.pins_dir), enrolled(&config.state_dir)];
    let ok = findings.iter().all(|finding| finding.ok);
    let gates = running_gates(config);
    if as_json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|finding| json!({ "what": finding.what, "ok": finding.ok, "detail": finding.detail }))
            .collect();
        println!("{}", json!({ "ok": ok, "findings": findings, "gates": gates }));
    } else {
        for finding in &findings {
            println!("{:4} {:<10} {}", if finding.ok { "ok" } else { "FAIL" }, finding.what, finding.detail);
        }
        match gates {
            Some(gates) => show_gates(&gates),
            None => println!("\nno node agent runs here: which gates hold shows once it does"),
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The gates of the node agent that runs on this host; only an attached hook can be said to hold.
fn running_gates(config: &Config) -> Option<Value> {
    match control::ask(&config.socket, &control::Request::Status) {
        Ok(control::Answer::Status(status)) => Some(status["gates"].clone()),
        Ok(_) | Err(_) => None,
    }
}

fn root() -> Finding {
    let ok = nix::unistd::geteuid().is_root();
    let detail = if ok { "running as root" } else { "attaching kernel hooks needs root: run with sudo" };
    Finding { what: "root", ok, detail: detail.to_owned() }
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let ok = version >= (6, 1);
    let detail =
        if ok { release } else { format!("{release}: Weir is proven from 6.1 on; boot a newer kernel") };
    Finding { what: "kernel", ok, detail }
}

fn btf() -> Finding {
    let ok = Path::new("/sys/kernel/btf/vmlinux").exists();
    let detail =
        if ok { "/sys/kernel/btf/vmlinux" } else { "no BTF: boot a kernel built with CONFIG_DEBUG_INFO_BTF" };
    Finding { what: "btf", ok, detail: detail.to_owned() }
}

fn cgroup2() -> Finding {
    match find_cgroup2_mount() {
        Ok(mount) => Finding { what: "cgroup2", ok: true, detail: mount.display().to_string() },
        Err(error) => Finding {
            what: "cgroup2",
            ok: false,
            detail: format!("{error}: mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`"),
        },
    }
}

fn bpffs(pins: &Path) -> Finding {
    let mounted = fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ');
            let point = fields.nth(4).unwrap_or_default();
            line.contains(" - bpf ") && pins.starts_with(point)
        })
    });
    let detail = match mounted {
        true => "mounted",
        false => "not mounted; the node agent mounts it at its start",
    };
    Finding { what: "bpffs", ok: true, detail: detail.to_owned() }
}

fn enrolled(state: &Path) -> Finding {
    let ok = crate::shipping::is_enrolled(state);
    let detail = match ok {
        true => format!("joined ({})", state.display()),
        false => "not joined to a collector: `weir-agent join`, or record locally with `exec --local DIR`"
            .to_owned(),
    };
    Finding { what: "collector", ok: true, detail }
}

/// The status for people.
pub(crate) fn show_status(status: &Value) {
    let bypass = &status["bypass"];
    if bypass.is_object() {
        println!(
            "BYPASS: governed connections pass directly and UNRECORDED for {} s more\n        {} passed so far; asked for by uid \
             {} (pid {}): {}\n        `weir-agent bypass --end` ends it\n",
            bypass["seconds_left"],
            bypass["passed"],
            bypass["uid"],
            bypass["pid"],
            text(&bypass["reason"])
        );
    }
    println!("version   {}", text(&status["version"]));
    println!("ready     {}", text(&status["ready"]));
    println!("scope     {}", text(&status["scope"]));
    println!("sessions  {} open", text(&status["open_sessions"]));
    show_collector(&status["recording"]["collector"]);
    show_policy(&status["policy"]);
    for section in ["recording", "kernel"] {
        println!("\n{section}");
        let told = |name: &String| name != "collector";
        let values = status[section].as_object().into_iter().flatten();
        for (name, value) in values.filter(|(name, _)| told(name)) {
            println!("  {name:<28} {}", text(value));
        }
    }
    println!("\nruns");
    for run in status["runs"].as_array().into_iter().flatten() {
        let argv: Vec<String> = run["argv"].as_array().into_iter().flatten().map(text).collect();
        println!(
            "  {}  {}  {} processes  {}",
            text(&run["run"]),
            text(&run["initiator"]),
            run["processes"],
            argv.join(" ")
        );
    }
    show_gates(&status["gates"]);
}

fn show_collector(collector: &Value) {
    if !collector.is_object() {
        return;
    }
    let state = if collector["connected"] == true { "connected" } else { "AWAY: the spool keeps everything" };
    println!("collector {} {state}", text(&collector["address"]));
    if let Some(error) = collector["error"].as_str() {
        println!("          {error}");
    }
    let ends = collector["certificate_not_after_unix"].as_i64().and_then(|unix| {
        let time = time::OffsetDateTime::from_unix_timestamp(unix).ok()?;
        time.format(&time::format_description::well_known::Rfc3339).ok()
    });
    println!("          certificate until {}", ends.unwrap_or_else(|| "?".to_owned()));
    if let Some(error) = collector["renewal_error"].as_str() {
        println!("          NOT renewed: {error}");
    }
}

fn show_policy(policy: &Value) {
    println!("rules     generation {}, mode {}", policy["generation"], text(&policy["mode"]));
    if let Some(error) = policy["reload_error"].as_str() {
        println!("          NOT taken over: {error}");
    }
    let waits: Vec<String> = policy["restart_for"].as_array().into_iter().flatten().map(text).collect();
    if !waits.is_empty() {
        println!("          wait for the next start: {}", waits.join(", "));
    }
    for (rule, count) in policy["would_refuse"].as_object().into_iter().flatten() {
        println!("          {rule} would have refused {count}");
    }
}

fn show_gates(gates: &Value) {
    println!("\ngates");
    for gate in gates.as_array().into_iter().flatten() {
        println!("  {:<28} {}", text(&gate["name"]), text(&gate["state"]));
    }
}

/// A JSON value as a person reads it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
