//! The table, the same as JSON, and whether the budgets hold. A budget that is missed is not hidden.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::rounds::{Measured, Plan, Sample, Way};
use crate::scenarios::{Budget, Scenario};

/// Every scenario with what came of it.
#[derive(Default)]
pub(crate) struct Report {
    results: Vec<(&'static str, Value)>,
    missed: Vec<String>,
    failed: Vec<String>,
}

/// Several rounds of one figure.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

/// A way's figures.
struct Figures {
    rate: f64,
    ratio: Spread,
    agent_us: f64,
    collector_us: f64,
    all_us: f64,
    all_ratio: f64,
    p50_us: f64,
    p99_us: f64,
    anonymous_mib: f64,
    resident_mib: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(0.0);
        let middle = values.len() / 2;
        let even = values.len().is_multiple_of(2) && middle > 0;
        Self {
            median: if even { f64::midpoint(at(middle - 1), at(middle)) } else { at(middle) },
            least: at(0),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

fn median(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    Spread::of(samples.iter().map(figure)).median
}

impl Figures {
    fn of(way: &Way, measured: &Measured) -> Self {
        let by_round = |figure: fn(&Sample) -> f64| {
            way.samples
                .iter()
                .enumerate()
                .map(move |(round, sample)| figure(sample) / measured.beside(round, figure))
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Self {
            rate: median(&way.samples, |sample| sample.done.rate),
            ratio: Spread::of(by_round(|sample| sample.done.rate)),
            agent_us: median(&way.samples, Sample::agent_us),
            collector_us: median(&way.samples, Sample::collector_us),
            all_us: median(&way.samples, Sample::all_us),
            all_ratio: Spread::of(by_round(Sample::all_us)).median,
            p50_us: median(&way.samples, |sample| sample.done.p50_us),
            p99_us: median(&way.samples, |sample| sample.done.p99_us),
            anonymous_mib: median(&way.samples, |sample| mib(sample.memory.anonymous)),
            resident_mib: median(&way.samples, |sample| mib(sample.memory.resident)),
        }
    }

    /// The words for each budget that is missed.
    fn missed(&self, budget: &Budget, with_collector: bool) -> Vec<String> {
        let mut missed = Vec::new();
        let ratio = if with_collector { budget.with_collector } else { budget.alone };
        if let Some(least) = ratio.filter(|least| self.ratio.median < *least) {
            missed.push(format!("ratio {:.2} of {least:.2}", self.ratio.median));
        }
        if let Some(most) = budget.agent_us.filter(|most| !with_collector && self.agent_us > *most) {
            missed.push(format!("agent {:.1} us of {most:.0}", self.agent_us));
        }
        missed
    }
}

/// What budget a way has, in words.
fn asked(budget: &Budget, with_collector: bool) -> String {
    let ratio = if with_collector { budget.with_collector } else { budget.alone };
    ratio.map_or_else(|| "none".to_owned(), |least| format!(">= {least:.2}"))
}

/// One scenario, for people.
pub(crate) fn table(scenario: &Scenario, result: &anyhow::Result<Measured>) -> String {
    let mut text = format!("\n{} (per {})\n", scenario.name, scenario.load.unit());
    let measured = match result {
        Ok(measured) => measured,
        Err(error) => {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "  FAILED: {error:#}");
            return text;
        }
    };
    let _ = writeln!(
        text,
        "  {:<24}{:>10} {:>19} {:>8} {:>9} {:>10} {:>14} {:>9} {:>9} {:>12}  verdict",
        "",
        "rate/s",
        "ratio (least-most)",
        "budget",
        "agent us",
        "coll. us",
        "all us (x)",
        "p50 us",
        "p99 us",
        "MiB own/res"
    );
    let direct = &measured.direct;
    let _ = writeln!(
        text,
        "  {:<24}{:>10.1} {:>19} {:>8} {:>9} {:>10} {:>14.1} {:>9.0} {:>9.0}",
        "direct",
        median(direct, |sample| sample.done.rate),
        "",
        "",
        "",
        "",
        median(direct, Sample::all_us),
        median(direct, |sample| sample.done.p50_us),
        median(direct, |sample| sample.done.p99_us),
    );
    for way in &measured.ways {
        let figures = Figures::of(way, measured);
        let with_collector = way.setting.with_collector;
        let verdict = match &way.recorded {
            Err(wrong) => format!("RECORDING WRONG: {wrong}"),
            Ok(exchanges) => {
                let missed = figures.missed(&scenario.budget, with_collector);
                let held = match missed.as_slice() {
                    [] if asked(&scenario.budget, with_collector) == "none" => "no budget".to_owned(),
                    [] => "holds".to_owned(),
                    missed => format!("MISSED: {}", missed.join(", ")),
                };
                format!("{held}; all recorded ({exchanges} exchanges)")
            }
        };
        let _ = writeln!(
            text,
            "  {:<24}{:>10.1} {:>19} {:>8} {:>9.1} {:>10.1} {:>14} {:>9.0} {:>9.0} {:>12}  {verdict}",
            shortened(&way.setting.name),
            figures.rate,
            format!("{:.2} ({:.2}-{:.2})", figures.ratio.median, figures.ratio.least, figures.ratio.most),
            asked(&scenario.budget, with_collector),
            figures.agent_us,
            figures.collector_us,
            format!("{:.1} ({:.2})", figures.all_us, figures.all_ratio),
            figures.p50_us,
            figures.p99_us,
            format!("{:.0}/{:.0}", figures.anonymous_mib, figures.resident_mib),
        );
    }
    text
}

/// The end of a name says more than its beginning.
fn shortened(name: &str) -> String {
    const CHARS_MAX: usize = 23;
    let chars: Vec<char> = name.chars().collect();
    chars[chars.len().saturating_sub(CHARS_MAX)..].iter().collect()
}

impl Report {
    pub(crate) fn add(&mut self, scenario: &'static Scenario, result: anyhow::Result<Measured>) {
        let value = match result {
            Err(error) => {
                self.failed.push(format!("{}: {error:#}", scenario.name));
                json!({ "failed": format!("{error:#}") })
            }
            Ok(measured) => self.judged(scenario, &measured),
        };
        self.results.push((scenario.name, value));
    }

    fn judged(&mut self, scenario: &Scenario, measured: &Measured) -> Value {
        let mut ways = Vec::new();
        for way in &measured.ways {
            let figures = Figures::of(way, measured);
            let missed = figures.missed(&scenario.budget, way.setting.with_collector);
            self.missed
                .extend(missed.iter().map(|what| format!("{}, {}: {what}", scenario.name, way.setting.name)));
            if let Err(wrong) = &way.recorded {
                self.failed.push(format!("{}, {}: {wrong}", scenario.name, way.setting.name));
            }
            ways.push(json!({
                "setting": way.setting.name,
                "with_collector": way.setting.with_collector,
                "rate": figures.rate,
                "ratio": figures.ratio.median,
                "ratio_least": figures.ratio.least,
                "ratio_most": figures.ratio.most,
                "agent_us": figures.agent_us,
                "collector_us": figures.collector_us,
                "all_us": figures.all_us,
                "all_ratio": figures.all_ratio,
                "p50_us": figures.p50_us,
                "p99_us": figures.p99_us,
                "agent_anonymous_mib": figures.anonymous_mib,
                "agent_resident_mib": figures.resident_mib,
                "operations": way.samples.iter().map(|sample| sample.done.operations).sum::<f64>(),
                "recorded_exchanges": way.recorded.as_ref().ok(),
                "recording_wrong": way.recorded.as_ref().err(),
                "missed": missed,
                "rounds": way.samples.iter().map(sample_json).collect::<Vec<_>>(),
            }));
        }
        json!({
            "unit": scenario.load.unit(),
            "one_core": scenario.one_core,
            "budget": {
                "alone": scenario.budget.alone,
                "with_collector": scenario.budget.with_collector,
                "agent_us": scenario.budget.agent_us,
            },
            "direct": {
                "rate": median(&measured.direct, |sample| sample.done.rate),
                "all_us": median(&measured.direct, Sample::all_us),
                "rounds": measured.direct.iter().map(sample_json).collect::<Vec<_>>(),
            },
            "ways": ways,
        })
    }

    /// What fell short, or that nothing did.
    pub(crate) fn summary(&self, plan: &Plan) -> String {
        let mut text = format!(
            "\n== summary: {}, Linux {}, {} cores, {} rounds of {} s\n",
            commit(),
            kernel(),
            cores(),
            plan.rounds,
            plan.secs
        );
        for failed in &self.failed {
            let _ = writeln!(text, "  FAILED  {failed}");
        }
        for missed in &self.missed {
            let _ = writeln!(text, "  missed  {missed}");
        }
        if self.failed.is_empty() && self.missed.is_empty() {
            text.push_str("  every recording is whole and every budget holds\n");
        }
        text
    }

    pub(crate) fn json(&self, plan: &Plan) -> Value {
        let scenarios: serde_json::Map<_, _> =
            self.results.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        json!({
            "commit": commit(),
            "kernel": kernel(),
            "rounds": plan.rounds,
            "secs": plan.secs,
            "cores": cores(),
            "scenarios": scenarios,
            "missed": self.missed,
            "failed": self.failed,
        })
    }

    /// A scenario did not run, or its recording is not whole.
    pub(crate) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(crate) fn misses_a_budget(&self) -> bool {
        !self.missed.is_empty()
    }
}

/// Of what: `cargo xtask bench` says it.
fn commit() -> String {
    std::env::var("WEIR_COMMIT").unwrap_or_else(|_| "commit not told".to_owned())
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

fn sample_json(sample: &Sample) -> Value {
    json!({
        "rate": sample.done.rate,
        "operations": sample.done.operations,
        "p50_us": sample.done.p50_us,
        "p99_us": sample.done.p99_us,
        "agent_us": sample.agent_us(),
        "collector_us": sample.collector_us(),
        "all_us": sample.all_us(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_between_its_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
    }
}
