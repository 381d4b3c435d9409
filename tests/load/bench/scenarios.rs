//! What is measured, and what it may cost: one table.

/// One load, run directly and under Weir.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    /// Client, node agent and origin share one core: the pure cost, without wake-ups of another core.
    pub(crate) one_core: bool,
    pub(crate) budget: Budget,
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// One row by its key.
    Pgbench {
        mode: Mode,
        clients: u64,
        connect_each: bool,
    },
    /// One statement with a long answer, `units` of `unit` in it; `before` is done once, and not measured.
    Psql {
        before: &'static str,
        statement: &'static str,
        units: u64,
        unit: &'static str,
    },
    Http {
        path: &'static str,
        connections: u64,
        connect_each: bool,
    },
    PingPong {
        connections: u64,
    },
    Bulk {
        megabytes: u64,
    },
}

/// How pgbench sends its statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Extended,
    Prepared,
}

/// Rates as shares of the direct rate of the same run; none: measured, and nothing is asked of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    /// The node agent alone, recording sealed to its spool.
    pub(crate) alone: Option<f64>,
    /// Node agent, collector and index on the same machine.
    pub(crate) with_collector: Option<f64>,
    /// Processor time of the node agent for each operation, microseconds, when it is alone.
    pub(crate) agent_us: Option<f64>,
}

const NO_BUDGET: Budget = Budget { alone: None, with_collector: None, agent_us: None };
/// A statement, an HTTP exchange, microseconds of the node agent's.
const STATEMENT_US: f64 = 20.0;
const HTTP_EXCHANGE_US: f64 = 25.0;

const fn budget(alone: f64, with_collector: f64) -> Budget {
    Budget { alone: Some(alone), with_collector: Some(with_collector), agent_us: None }
}

const fn alone(ratio: f64) -> Budget {
    Budget { alone: Some(ratio), with_collector: None, agent_us: None }
}

impl Budget {
    const fn and_agent_us(self, limit: f64) -> Self {
        Self { agent_us: Some(limit), ..self }
    }
}

impl Mode {
    /// As pgbench's `-M` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    pgbench("pg simple c16", Mode::Simple, 16, budget(0.70, 0.50).and_agent_us(STATEMENT_US)),
    pgbench("pg prepared c16", Mode::Prepared, 16, budget(0.58, 0.40).and_agent_us(STATEMENT_US)),
    pgbench("pg extended c16", Mode::Extended, 16, NO_BUDGET),
    Scenario {
        one_core: true,
        ..pgbench("pg simple c1 pinned", Mode::Simple, 1, alone(0.62).and_agent_us(STATEMENT_US))
    },
    Scenario {
        name: "pg rows 1e6",
        load: Load::Psql {
            before: "",
            statement: "SELECT generate_series(1,1000000)",
            units: 1_000_000,
            unit: "row",
        },
        one_core: false,
        budget: budget(0.92, 0.80),
    },
    copy_out(
        "pg copy out 200MB",
        200,
        "",
        "COPY (SELECT repeat('x',999) FROM generate_series(1,200000)) TO STDOUT",
        budget(0.75, 0.55),
    ),
    copy_out(
        "pg copy out 100MB json",
        100,
        "CREATE TABLE IF NOT EXISTS orders AS SELECT (SELECT string_agg(json_build_object('id', n * 8 + k, 'customer', \
         md5((n % 5000)::text), 'amount', (n * 37 + k) % 100000 / 100.0, 'status', 'shipped')::text, ',') \
         FROM generate_series(1, 9) k) AS line FROM generate_series(1, 100000) n",
        "COPY orders TO STDOUT",
        NO_BUDGET,
    ),
    copy_out(
        "pg copy out 100MB random",
        100,
        "CREATE TABLE IF NOT EXISTS noise AS SELECT (SELECT string_agg(md5((n * 40 + k)::text), '') \
         FROM generate_series(1, 31) k) AS line FROM generate_series(1, 100000) n",
        "COPY noise TO STDOUT",
        NO_BUDGET,
    ),
    Scenario {
        name: "pg connect c1",
        load: Load::Pgbench { mode: Mode::Simple, clients: 1, connect_each: true },
        one_core: false,
        budget: alone(0.50),
    },
    http("http 1k c64", "/1k", budget(0.50, 0.35).and_agent_us(HTTP_EXCHANGE_US)),
    http("http 64k c64", "/64k", budget(0.38, 0.25)),
    http("http 1k json c64", "/1k.json", NO_BUDGET),
    http("http 64k json c64", "/64k.json", NO_BUDGET),
    http("http 1k random c64", "/1k.random", NO_BUDGET),
    http("http 64k random c64", "/64k.random", NO_BUDGET),
    Scenario {
        name: "http 1k new connection c8",
        load: Load::Http { path: "/1k", connections: 8, connect_each: true },
        one_core: false,
        budget: alone(0.50),
    },
    Scenario { one_core: true, ..http_on("http 1k c1 pinned", "/1k", 1, NO_BUDGET) },
    Scenario {
        name: "tcp ping-pong 64B c16",
        load: Load::PingPong { connections: 16 },
        one_core: false,
        budget: NO_BUDGET,
    },
    Scenario {
        name: "tcp bulk 512MB",
        load: Load::Bulk { megabytes: 512 },
        one_core: false,
        budget: NO_BUDGET,
    },
];

const fn pgbench(name: &'static str, mode: Mode, clients: u64, budget: Budget) -> Scenario {
    Scenario { name, load: Load::Pgbench { mode, clients, connect_each: false }, one_core: false, budget }
}

const fn copy_out(
    name: &'static str,
    megabytes: u64,
    before: &'static str,
    statement: &'static str,
    budget: Budget,
) -> Scenario {
    let load = Load::Psql { before, statement, units: megabytes, unit: "MB" };
    Scenario { name, load, one_core: false, budget }
}

const fn http(name: &'static str, path: &'static str, budget: Budget) -> Scenario {
    http_on(name, path, 64, budget)
}

const fn http_on(name: &'static str, path: &'static str, connections: u64, budget: Budget) -> Scenario {
    Scenario { name, load: Load::Http { path, connections, connect_each: false }, one_core: false, budget }
}

impl Load {
    /// What one operation is called.
    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Pgbench { connect_each: true, .. } => "connection",
            Self::Pgbench { .. } => "statement",
            Self::Psql { unit, .. } => unit,
            Self::Http { .. } => "exchange",
            Self::PingPong { .. } => "round trip",
            Self::Bulk { .. } => "MB",
        }
    }
}
