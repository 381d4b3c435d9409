//! The embedded eBPF object: loaded with this kernel's offsets, over the pinned maps if there are any.

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage};
use aya::programs::{Program, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use weir_agent_ebpf::{Entrance, FlowRecord, Membership, ProcessEntry, RouteTarget, Settings, TupleKey};

use super::RedirectionError;
use super::kernel_types::Kernel;
use super::pins::Pins;

/// Built by `cargo xtask ebpf`, named by the build script. Without a compiler for it the build script hands in an empty file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEIR_EBPF_OBJECT"));

/// Maps that belong to one agent.
const OWN_MAPS: [&str; 10] = [
    "ORIGINS",
    "TUPLES",
    "ACCEPTED",
    "PROCESSES",
    "CGROUPS",
    "ENTRANCES",
    "ROUTES",
    "SETTINGS",
    "COUNTERS",
    "BYPASS",
];
const SHARED_MAPS: [&str; 1] = ["LISTENERS"];

/// The programs, loaded but not attached.
pub(super) struct Object(Ebpf);

/// The records of accepted sockets. Apart from the other tables: it is read for every connection, without their lock.
pub(super) type Accepted = SkStorage<MapData, FlowRecord>;

/// Every table that user space fills, or reads now and then.
pub(super) struct Tables {
    pub(super) listeners: SkStorage<MapData, u64>,
    #[cfg_attr(
        not(all(test, feature = "kernel-tests")),
        expect(dead_code, reason = "the programs' own; only tests look into it")
    )]
    pub(super) tuples: HashMap<MapData, TupleKey, FlowRecord>,
    pub(super) processes: HashMap<MapData, u32, ProcessEntry>,
    pub(super) cgroups: HashMap<MapData, u64, Membership>,
    pub(super) entrances: HashMap<MapData, u64, Entrance>,
    pub(super) routes: LpmTrie<MapData, RouteTarget, u32>,
    pub(super) settings: Array<MapData, Settings>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) bypass: Array<MapData, u64>,
}

impl Object {
    /// `tuples_max` makes the table of connections under way smaller than it is built; only where it does not exist yet.
    pub(super) fn load(
        pins: &Pins,
        kernel: &Kernel,
        tuples_max: Option<u32>,
    ) -> Result<Self, RedirectionError> {
        if OBJECT.is_empty() {
            return Err(RedirectionError::NoObject);
        }
        let mut loader = EbpfLoader::new();
        let has_mptcp = u32::from(kernel.has_mptcp);
        loader.override_global("TASK_OFFSETS", &kernel.task_offsets, true);
        loader.override_global("OPTIONAL_OFFSETS", &kernel.optional_offsets, false);
        loader.override_global("HAS_MPTCP", &has_mptcp, true);
        for name in OWN_MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        for name in SHARED_MAPS {
            loader.map_pin_path(name, Pins::shared_map(name));
        }
        if let Some(entries) = tuples_max {
            loader.map_max_entries("TUPLES", entries);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| RedirectionError::Object(Box::new(error)))?;
        for (name, program) in ebpf.programs_mut() {
            load_program(program).map_err(|source| RedirectionError::Program {
                // The names of the object's programs are ours: see `links::ALL`.
                program: super::links::ALL
                    .iter()
                    .map(|link| link.program)
                    .find(|known| *known == name)
                    .unwrap_or("?"),
                source: Box::new(source),
            })?;
        }
        Ok(Self(ebpf))
    }

    pub(super) fn program(&self, name: &'static str) -> Result<&ProgramFd, RedirectionError> {
        let program = self.0.program(name).ok_or(RedirectionError::Missing { what: name })?;
        program.fd().map_err(|source| RedirectionError::Program { program: name, source: Box::new(source) })
    }

    pub(super) fn tables(&mut self) -> Result<(Tables, Accepted), RedirectionError> {
        let tables = Tables {
            listeners: self.take("LISTENERS")?,
            tuples: self.take("TUPLES")?,
            processes: self.take("PROCESSES")?,
            cgroups: self.take("CGROUPS")?,
            entrances: self.take("ENTRANCES")?,
            routes: self.take("ROUTES")?,
            settings: self.take("SETTINGS")?,
            counters: self.take("COUNTERS")?,
            bypass: self.take("BYPASS")?,
        };
        Ok((tables, self.take("ACCEPTED")?))
    }

    fn take<T: TryFrom<Map, Error = MapError>>(&mut self, name: &'static str) -> Result<T, RedirectionError> {
        let map = self.0.take_map(name).ok_or(RedirectionError::Missing { what: name })?;
        T::try_from(map).map_err(RedirectionError::table("open a table of the eBPF object"))
    }
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
