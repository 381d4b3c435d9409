//! Direct and Weir in turn, round after round, so that a noisy machine touches all of them alike.

use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cgroup::Memory;
use crate::ground::Ground;
use crate::load::Done;
use crate::scenarios::Scenario;
use crate::weir::{Setting, Times, Weir};

/// Every way once before the rounds, so that no round pays for cold caches.
const WARM_UP_SECS: f64 = 0.5;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) secs: f64,
    pub(crate) settings: Vec<Setting>,
}

/// One way, once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) done: Done,
    pub(crate) times: Times,
    pub(crate) origin: Duration,
    pub(crate) memory: Memory,
}

/// One scenario, all ways and rounds.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// One more than rounds: before the first round, and after each.
    pub(crate) direct: Vec<Sample>,
    pub(crate) ways: Vec<Way>,
}

/// One setting of Weir.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) setting: Setting,
    pub(crate) samples: Vec<Sample>,
    /// Exchanges in the recording, equal to what was done; or what is wrong with it.
    pub(crate) recorded: Result<u64, String>,
}

impl Sample {
    fn us_each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.done.operations.max(1e-9)
    }

    /// The node agent's processor time for each operation.
    pub(crate) fn agent_us(&self) -> f64 {
        self.us_each(self.times.agent)
    }

    pub(crate) fn collector_us(&self) -> f64 {
        self.us_each(self.times.collector)
    }

    /// Client, Weir and origin together: what counts where all of them share the cores.
    pub(crate) fn all_us(&self) -> f64 {
        self.us_each(self.times.client + self.times.agent + self.times.collector + self.origin)
    }
}

impl Measured {
    /// The direct sample that round `round` is compared with: the mean of the ones around it.
    pub(crate) fn beside(&self, round: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        let around: Vec<f64> = self.direct.iter().skip(round).take(2).map(figure).collect();
        around.iter().sum::<f64>() / around.len().max(1) as f64
    }
}

pub(crate) fn measure(ground: &mut Ground, scenario: &Scenario, plan: &Plan) -> anyhow::Result<Measured> {
    eprintln!("== {}", scenario.name);
    let _one_core = scenario.one_core.then(|| OneCore::keep(ground)).transpose()?;
    let mut weirs = plan.settings.iter().map(Weir::start).collect::<anyhow::Result<Vec<_>>>()?;
    direct(ground, scenario, WARM_UP_SECS)?;
    for weir in &mut weirs {
        through(ground, weir, scenario, WARM_UP_SECS, "warm-up")?;
    }
    let mut measured = Measured { direct: vec![direct(ground, scenario, plan.secs)?], ways: Vec::new() };
    let mut samples = vec![Vec::new(); weirs.len()];
    for round in 0..plan.rounds {
        for (weir, samples) in weirs.iter_mut().zip(&mut samples) {
            let sample = through(ground, weir, scenario, plan.secs, &format!("round-{round}"))
                .with_context(|| weir.setting.name.clone())?;
            samples.push(sample);
        }
        measured.direct.push(direct(ground, scenario, plan.secs)?);
    }
    for (mut weir, samples) in weirs.into_iter().zip(samples) {
        ground.site.rearm()?;
        let recorded = weir.account().map_err(|error| format!("{error:#}"));
        measured.ways.push(Way { setting: weir.setting.clone(), samples, recorded });
    }
    Ok(measured)
}

fn direct(ground: &mut Ground, scenario: &Scenario, secs: f64) -> anyhow::Result<Sample> {
    ground.site.rearm()?;
    let (clients, origins) = (ground.clients.clone(), ground.origins.clone());
    let before = (clients.processor_time()?, origins.processor_time()?);
    let done = scenario.load.run(ground, secs, "direct", |command| Ok(clients.around(command)))?;
    let client = clients.processor_time()?.saturating_sub(before.0);
    Ok(Sample {
        done,
        times: Times { client, ..Times::default() },
        origin: origins.processor_time()?.saturating_sub(before.1),
        memory: Memory::default(),
    })
}

fn through(
    ground: &mut Ground,
    weir: &mut Weir,
    scenario: &Scenario,
    secs: f64,
    label: &str,
) -> anyhow::Result<Sample> {
    ground.site.rearm()?;
    weir.settle()?;
    let before = (weir.times()?, ground.origins.processor_time()?);
    let done = scenario.load.run(ground, secs, label, |command| weir.around(label, command))?;
    let memory = weir.memory()?;
    // What is sealed and shipped after the clock has stopped costs processor time all the same.
    weir.settle()?;
    let after = weir.times()?;
    weir.expect(done.expected.clone());
    Ok(Sample {
        done,
        times: Times {
            client: after.client.saturating_sub(before.0.client),
            agent: after.agent.saturating_sub(before.0.agent),
            collector: after.collector.saturating_sub(before.0.collector),
        },
        origin: ground.origins.processor_time()?.saturating_sub(before.1),
        memory,
    })
}

/// While it lives this process, all that it starts and the servers keep to the first core.
struct OneCore {
    before: Vec<(Pid, CpuSet)>,
}

impl OneCore {
    fn keep(ground: &mut Ground) -> anyhow::Result<Self> {
        // Servers are started now, so that they are kept, too.
        ground.postgres()?;
        ground.http_port()?;
        let pids = ground.servers()?.into_iter().map(|pid| Pid::from_raw(pid.cast_signed()));
        let mut first = CpuSet::new();
        first.set(0)?;
        let mut kept = Self { before: Vec::new() };
        for pid in std::iter::once(Pid::from_raw(0)).chain(pids) {
            let before = sched_getaffinity(pid)?;
            sched_setaffinity(pid, &first)?;
            kept.before.push((pid, before));
        }
        Ok(kept)
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        for (pid, before) in &self.before {
            if let Err(error) = sched_setaffinity(*pid, before) {
                eprintln!("the core of process {pid} could not be given back: {error}");
            }
        }
    }
}
