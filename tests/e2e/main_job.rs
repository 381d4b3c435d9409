//! The main job, end to end.

use weir_tests::{Agent, Collector, Postgres, Site};

#[test]
fn a_governed_psql_is_recorded_and_found_again() {
    let site = Site::new(true).unwrap();
    let postgres = Postgres::start(&site, "postgres").unwrap();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    let mut psql = agent.exec(&[], &["psql", "-X", "-At", "-c", "SELECT 41 + 1"]).unwrap();
    let shown = weir_tests::process::run(psql.envs(postgres.environment())).unwrap();
    assert_eq!(shown, "42\n");
}
