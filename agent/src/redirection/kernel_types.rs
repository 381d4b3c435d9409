//! Reads from the kernel's own type information (BTF) where it keeps what the programs need of a process.
//!
//! aya's reader answers questions about types, but not where a member is; this one answers only that.

use std::path::Path;

use weir_agent_ebpf::{OptionalOffsets, TaskOffsets};

use super::RedirectionError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES_MIN: usize = 24;
/// How deep anonymous structures within structures are followed.
const NESTING_MAX: u32 = 4;

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// What the programs are told about the kernel that loads them.
pub(super) struct Kernel {
    pub(super) task_offsets: TaskOffsets,
    pub(super) optional_offsets: OptionalOffsets,
    pub(super) has_mptcp: bool,
}

pub(super) fn read() -> Result<Kernel, RedirectionError> {
    // The kernel would refuse the programs without saying why. No such file: no lockdown.
    if std::fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]")) {
        return Err(RedirectionError::Lockdown);
    }
    let path = Path::new(VMLINUX);
    let bytes =
        std::fs::read(path).map_err(|source| RedirectionError::NoTypes { path: path.into(), source })?;
    let types = KernelTypes::parse(&bytes)?;
    Ok(Kernel {
        task_offsets: types.task_offsets()?,
        optional_offsets: types.optional_offsets(),
        has_mptcp: types.structure("mptcp_sock").is_ok(),
    })
}

struct KernelTypes<'a> {
    bytes: &'a [u8],
    names: usize,
    /// Where each type starts; type ids count from 1.
    types: Vec<usize>,
}

impl<'a> KernelTypes<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, RedirectionError> {
        let found = u16_at(bytes, 0)?;
        if found != MAGIC {
            return Err(bad(format!("it starts with {found:#06x} instead of {MAGIC:#06x}")));
        }
        let header = u32_at(bytes, 4)? as usize;
        if header < HEADER_BYTES_MIN {
            return Err(bad(format!("a header of {header} bytes")));
        }
        let types_at = header.saturating_add(u32_at(bytes, 8)? as usize);
        let types_end = types_at.saturating_add(u32_at(bytes, 12)? as usize);
        let names = header.saturating_add(u32_at(bytes, 16)? as usize);
        if types_end > bytes.len() || names > bytes.len() {
            return Err(bad("it is cut short".into()));
        }
        let mut types = Vec::new();
        let mut at = types_at;
        while at < types_end {
            types.push(at);
            at = at.saturating_add(type_bytes(u32_at(bytes, at.saturating_add(4))?)?);
        }
        Ok(Self { bytes, names, types })
    }

    fn task_offsets(&self) -> Result<TaskOffsets, RedirectionError> {
        let task = self.structure("task_struct")?;
        let signal = self.structure("signal_struct")?;
        let task = |member| self.member(task, "task_struct", member);
        Ok(TaskOffsets {
            flags: task("flags")?,
            tgid: task("tgid")?,
            pid: task("pid")?,
            group_leader: task("group_leader")?,
            start_boottime: task("start_boottime")?,
            self_exec_id: task("self_exec_id")?,
            signal: task("signal")?,
            signal_live: self.member(signal, "signal_struct", "live")?,
        })
    }

    fn optional_offsets(&self) -> OptionalOffsets {
        let offset = |of, name| self.structure(of).and_then(|at| self.member(at, of, name)).unwrap_or(0);
        OptionalOffsets {
            mm: offset("task_struct", "mm"),
            start_stack: offset("mm_struct", "start_stack"),
            call_address: offset("bpf_sock_addr_kern", "uaddr"),
            reserved: 0,
        }
    }

    fn structure(&self, name: &str) -> Result<usize, RedirectionError> {
        for &at in &self.types {
            if kind(u32_at(self.bytes, at + 4)?) == STRUCT
                && self.name(u32_at(self.bytes, at)?) == name.as_bytes()
            {
                return Ok(at);
            }
        }
        Err(bad(format!("no struct {name}")))
    }

    fn member(&self, structure: usize, of: &str, name: &str) -> Result<u32, RedirectionError> {
        self.find(structure, name.as_bytes(), NESTING_MAX)?.ok_or_else(|| bad(format!("no {of}.{name}")))
    }

    /// Byte offset of a member, also of one within an anonymous structure (a kernel with a randomised layout has those).
    fn find(&self, structure: usize, name: &[u8], depth: u32) -> Result<Option<u32>, RedirectionError> {
        let info = u32_at(self.bytes, structure + 4)?;
        for index in 0..(info & 0xffff) as usize {
            let member = structure + 12 + index * 12;
            let member_name = self.name(u32_at(self.bytes, member)?);
            // With the flag set, the upper byte is the width of a bit field.
            let bits = u32_at(self.bytes, member + 8)? & if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
            if member_name == name {
                return if bits.is_multiple_of(8) {
                    Ok(Some(bits / 8))
                } else {
                    Err(bad("a bit field".into()))
                };
            }
            if member_name.is_empty()
                && depth > 0
                && let Some(inner) = self.structure_by_id(u32_at(self.bytes, member + 4)?)?
                && let Some(offset) = self.find(inner, name, depth - 1)?
            {
                return Ok(Some(bits / 8 + offset));
            }
        }
        Ok(None)
    }

    fn structure_by_id(&self, id: u32) -> Result<Option<usize>, RedirectionError> {
        let Some(&at) = (id as usize).checked_sub(1).and_then(|index| self.types.get(index)) else {
            return Ok(None);
        };
        let found = kind(u32_at(self.bytes, at + 4)?);
        Ok((found == STRUCT || found == UNION).then_some(at))
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.bytes.get(self.names.saturating_add(offset as usize)..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// The length of a type: a head of 12 bytes and what its kind appends (Documentation/bpf/btf.rst, section 2).
fn type_bytes(info: u32) -> Result<usize, RedirectionError> {
    let count = (info & 0xffff) as usize;
    Ok(12
        + match kind(info) {
            1 | 14 | 17 => 4, // int, variable, declaration tag
            3 => 12,          // array
            STRUCT | UNION => 12 * count,
            6 | 13 => 8 * count,       // enum, function prototype
            15 | 19 => 12 * count,     // data section, 64-bit enum
            2 | 7..=12 | 16 | 18 => 0, // pointer, forward, typedef, qualifiers, function, float, type tag
            other => return Err(bad(format!("type kind {other}"))),
        })
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, RedirectionError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u16::from_ne_bytes(*chunk))
        .ok_or_else(short)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, RedirectionError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u32::from_ne_bytes(*chunk))
        .ok_or_else(short)
}

fn short() -> RedirectionError {
    bad("it is cut short".into())
}

fn bad(what: String) -> RedirectionError {
    RedirectionError::BadTypes { what }
}

#[cfg(test)]
mod tests {
    use super::KernelTypes;
    use proptest::prelude::*;

    /// `struct task_struct { u32 flags; struct { u32 tgid; }; }` with an integer type before it.
    fn sample() -> Vec<u8> {
        let names = b"\0u32\0task_struct\0flags\0tgid\0";
        let types: Vec<u32> = vec![
            1,
            1 << 24,
            4,
            32, // [1] int u32
            0,
            (4 << 24) | 1,
            4,
            23,
            1,
            0, // [2] anonymous struct: tgid at bit 0
            5,
            (4 << 24) | 2,
            8,
            17,
            1,
            0,
            0,
            2,
            32, // [3] task_struct: flags at bit 0, [2] at bit 32
        ];
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = super::MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, names.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn finds_members_also_within_anonymous_structures() {
        let bytes = sample();
        let types = KernelTypes::parse(&bytes).unwrap();
        let task = types.structure("task_struct").unwrap();
        assert_eq!(types.member(task, "task_struct", "flags").unwrap(), 0);
        assert_eq!(types.member(task, "task_struct", "tgid").unwrap(), 4);
        let error = types.member(task, "task_struct", "pid").unwrap_err();
        assert!(error.to_string().contains("no task_struct.pid"), "{error}");
    }

    #[test]
    fn a_cut_short_file_is_an_error() {
        let bytes = sample();
        for length in 0..bytes.len() - 30 {
            assert!(KernelTypes::parse(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..200), keep in 0_usize..120) {
            let sample = sample();
            let keep = keep.min(sample.len());
            noise.splice(0..0, sample[..keep].iter().copied());
            if let Ok(types) = KernelTypes::parse(&noise) {
                let _ = types.task_offsets();
            }
        }
    }
}
