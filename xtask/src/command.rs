//! Running other programs: quietly with a log, for an answer, or in full view.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, anyhow, bail};

/// How much of a failed step's log is shown at once; the rest is in the file.
const LOG_TAIL_LINES: usize = 40;

/// What `cargo run` sets for us and must not reach a compiler that is another version than ours.
const TOOLCHAIN_VARIABLES: [&str; 9] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Removes the traces of the toolchain that built xtask.
pub(crate) fn forget_toolchain(command: &mut Command) -> &mut Command {
    for name in TOOLCHAIN_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Runs for the answer on stdout.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| starting(command))?;
    if !output.status.success() {
        bail!("{} ended with {}: {}", describe(command), output.status, last_line(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs with both outputs in `log`; `on_line` sees each line as it comes. A failure shows the end of the log.
pub(crate) fn run_logged(
    command: &mut Command,
    log: &Path,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    let mut log_file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let both = writer.try_clone().context("making a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(both)
        .stderr(writer)
        .spawn()
        .with_context(|| starting(command))?;
    // The command keeps our ends of the pipe until it is given others: without this the reader never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = std::collections::VecDeque::with_capacity(LOG_TAIL_LINES);
    each_line(reader, |line| {
        writeln!(log_file, "{line}").with_context(|| format!("writing {}", log.display()))?;
        if tail.len() == LOG_TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
        on_line(line);
        Ok(())
    })?;

    let status = child.wait().with_context(|| format!("waiting for {}", describe(command)))?;
    if status.success() {
        return Ok(());
    }
    let tail = Vec::from(tail).join("\n  ");
    Err(anyhow!("{} ended with {status}; all it said is in {}\n  {tail}", describe(command), log.display()))
}

/// Runs in full view: stderr is ours, stdout is passed on line by line and shown to `on_line`.
pub(crate) fn run_watched(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<ExitStatus> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| starting(command))?;
    if let Some(stdout) = child.stdout.take() {
        each_line(stdout, |line| {
            writeln!(std::io::stdout(), "{line}").context("writing to stdout")?;
            on_line(line);
            Ok(())
        })?;
    }
    child.wait().with_context(|| format!("waiting for {}", describe(command)))
}

/// The command as a person would type it, without its environment.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    format!("`{line}`")
}

fn starting(command: &Command) -> String {
    format!("starting {}", describe(command))
}

/// Compilers may print what is not UTF-8: shown as well as can be, never a reason to stop.
fn each_line(
    from: impl std::io::Read,
    mut act: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("reading a program's output")? > 0 {
        act(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']))?;
        line.clear();
    }
    Ok(())
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_logged_failure_shows_both_outputs_and_where_the_log_is() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/step.log");
        let mut seen = Vec::new();
        let failed =
            run_logged(&mut shell("echo out; echo err >&2; exit 3"), &log, |line| seen.push(line.to_owned()));
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("exit status: 3") && message.contains("step.log"), "{message}");
        assert!(message.contains("out") && message.contains("err"), "{message}");
        assert_eq!(seen, ["out", "err"]);
        assert_eq!(fs::read_to_string(log).unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_capture_names_the_command_and_its_last_words() {
        assert_eq!(capture(&mut shell("printf yes")).unwrap(), "yes");
        let message = capture(&mut shell("echo why >&2; exit 1")).unwrap_err().to_string();
        assert!(message.contains("why") && message.contains("sh -c"), "{message}");
    }

    #[test]
    fn output_that_is_not_text_is_passed_on() {
        let mut lines = Vec::new();
        let status = run_watched(&mut shell(r"printf 'a\377b\nlast'"), |line| lines.push(line.to_owned()));
        assert!(status.unwrap().success());
        assert_eq!(lines, ["a\u{fffd}b", "last"]);
    }
}
