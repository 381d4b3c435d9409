//! Progress of a ritual: one numbered line per step with what came of it and how long it took. A terminal sees
//! the running program's latest line meanwhile. All of it on stderr: stdout belongs to results.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Longest piece of a program's output shown beside the spinner, in characters.
const LATEST_LINE_CHARS_MAX: usize = 90;

pub(crate) struct Steps {
    total: usize,
    begun: usize,
    terminal: bool,
}

/// Handed to a running step to say what is going on.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Steps {
    pub(crate) fn new(total: usize) -> Self {
        Self { total, begun: 0, terminal: std::io::stderr().is_terminal() }
    }

    /// Runs one step. Its result carries the words that end its line, such as "3 installed".
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Progress) -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        self.begun += 1;
        let number = if self.total > 1 { format!("[{}/{}] ", self.begun, self.total) } else { String::new() };
        let title = format!("{number}{name} ...");
        let progress = if self.terminal { Progress::spinning(&title) } else { Progress::quiet(&title) };
        let start = Instant::now();
        let outcome = work(&progress);
        progress.bar.finish_and_clear();
        let lead = if self.terminal { title.as_str() } else { "" };
        match outcome {
            Ok((value, words)) => {
                eprintln!("{lead} {words} ({})", seconds(start.elapsed()));
                Ok(value)
            }
            Err(error) => {
                eprintln!("{lead} failed ({})", seconds(start.elapsed()));
                Err(error)
            }
        }
    }
}

impl Progress {
    fn spinning(title: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(title.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed} {prefix:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    fn quiet(title: &str) -> Self {
        eprint!("{title}");
        // A failed flush of a progress line loses nothing but the line.
        let _ = std::io::stderr().flush();
        Self { bar: ProgressBar::hidden() }
    }

    pub(crate) fn latest(&self, line: &str) {
        let line = line.trim();
        if !line.is_empty() {
            self.bar.set_prefix(line.chars().take(LATEST_LINE_CHARS_MAX).collect::<String>());
        }
    }
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 05 s`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        secs @ 10..60 => format!("{secs} s"),
        secs => format!("{} min {:02} s", secs / 60, secs % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(seconds(Duration::from_millis(440)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(12)), "12 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
