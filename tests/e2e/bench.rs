//! The bench runs, and what it calls done is what was recorded. How fast is the bench's own business.

use std::process::Command;

use serde_json::Value;
use weir_tests::process::{output, program};

const SCENARIOS: [&str; 2] = ["pg simple c16", "http 1k new connection c8"];

#[test]
fn the_bench_compares_what_was_done_with_what_was_recorded() {
    let mut bench = Command::new(program("weir-bench").unwrap());
    bench.args(["--json", "--rounds", "1", "--secs", "0.3"]);
    bench.args(SCENARIOS.iter().flat_map(|name| ["--only", name]));
    let output = output(&mut bench).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stdout));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["failed"], serde_json::json!([]));
    for name in SCENARIOS {
        let scenario = &found["scenarios"][name];
        let done = scenario["ways"][0]["operations"].as_f64().unwrap();
        assert!(done >= 1.0, "{name}: {scenario}");
        // The warm-up is recorded, too.
        let recorded = scenario["ways"][0]["recorded_exchanges"].as_f64().unwrap();
        assert!(recorded > done, "{name}: {scenario}");
    }
}
