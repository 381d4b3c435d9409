//! Container ids in the paths of cgroups: the only name of a container that the kernel itself keeps.
//!
//! Runtimes make one cgroup per container and put its id, 64 hex digits, in the name:
//!
//! ```text
//! /system.slice/docker-<id>.scope                              docker, systemd driver
//! /docker/<id>                                                 docker, cgroupfs driver
//! /kubepods.slice/.../cri-containerd-<id>.scope                kubernetes: also crio-<id>.scope
//! /kubepods/burstable/pod<uid>/<id>                            kubernetes, cgroupfs driver
//! /system.slice/kubepods-...-pod<uid>.slice:cri-containerd:<id>
//! /machine.slice/libpod-<id>.scope                             podman
//! ```

use serde::{Deserialize, Serialize};

/// What runtimes name containers with: SHA-256 or as many random bytes.
const ID_DIGITS: usize = 64;
/// The shortest part of an id that a rule may give: fewer digits would match by accident.
const PREFIX_DIGITS_MIN: usize = 8;

/// A container within the path of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Container<'a> {
    pub(super) id: &'a str,
    /// The container's own cgroup: everything in it and below it is in the container.
    pub(super) cgroup: &'a str,
}

/// All containers that a cgroup lies in, the outermost first: containers are run in containers.
pub(super) fn containers(cgroup: &str) -> impl DoubleEndedIterator<Item = Container<'_>> {
    let starts = cgroup.char_indices().filter(|(_, character)| *character == '/').map(|(at, _)| at + 1);
    starts.filter_map(|start| {
        let rest = cgroup.get(start..)?;
        let component = rest.split('/').next()?;
        let id = id_of(component)?;
        Some(Container { id, cgroup: cgroup.get(..start + component.len())? })
    })
}

/// The id in one component of a path.
fn id_of(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (runtime, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    // The monitor that a runtime starts beside a container has the container's id in its cgroup's name too.
    let is_monitor = runtime.split(['-', ':']).any(|word| word == "conmon");
    (!is_monitor && id.len() == ID_DIGITS && is_hex(id)).then_some(id)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A container id as a rule gives it: whole, or its first digits as `docker ps` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ContainerPrefix(String);

impl ContainerPrefix {
    pub(super) fn matches(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }
}

impl TryFrom<String> for ContainerPrefix {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if !(PREFIX_DIGITS_MIN..=ID_DIGITS).contains(&text.len()) || !is_hex(&text) {
            return Err(format!(
                "{text:?} is not a container id: {PREFIX_DIGITS_MIN} to {ID_DIGITS} lower-case hex digits"
            ));
        }
        Ok(Self(text))
    }
}

impl From<ContainerPrefix> for String {
    fn from(prefix: ContainerPrefix) -> Self {
        prefix.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0f3a1cde9b7e4b1d8a6f5c4d3e2b1a0f9e8d7c6b5a4938271605f4e3d2c1b0a9";
    const INNER: &str = "aa3a1cde9b7e4b1d8a6f5c4d3e2b1a0f9e8d7c6b5a4938271605f4e3d2c1b0aa";

    #[test]
    fn every_runtimes_path_is_read() {
        for (path, cgroup) in [
            ("/system.slice/docker-ID.scope", "/system.slice/docker-ID.scope"),
            ("/system.slice/docker-ID.scope/app/worker", "/system.slice/docker-ID.scope"),
            ("/docker/ID", "/docker/ID"),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f.slice/cri-containerd-ID.scope",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f.slice/cri-containerd-ID.scope",
            ),
            (
                "/kubepods.slice/kubepods-pod1f.slice/crio-ID.scope",
                "/kubepods.slice/kubepods-pod1f.slice/crio-ID.scope",
            ),
            (
                "/kubepods/burstable/pod1f2e3d4c-0000-1111-2222-333344445555/ID/x",
                "/kubepods/burstable/pod1f2e3d4c-0000-1111-2222-333344445555/ID",
            ),
            (
                "/system.slice/kubepods-burstable-pod1f.slice:cri-containerd:ID",
                "/system.slice/kubepods-burstable-pod1f.slice:cri-containerd:ID",
            ),
            ("/machine.slice/libpod-ID.scope/container", "/machine.slice/libpod-ID.scope"),
            ("/libpod_parent/libpod-ID", "/libpod_parent/libpod-ID"),
            ("/system.slice/nerdctl-ID.scope", "/system.slice/nerdctl-ID.scope"),
        ] {
            let (path, cgroup) = (path.replace("ID", ID), cgroup.replace("ID", ID));
            let found: Vec<_> = containers(&path).collect();
            assert_eq!(found, [Container { id: ID, cgroup: &cgroup }], "{path}");
        }
    }

    #[test]
    fn containers_within_containers_are_all_seen() {
        let path = format!("/docker/{ID}/kubepods/pod1/{INNER}/x");
        let ids: Vec<_> = containers(&path).map(|container| container.id).collect();
        assert_eq!(ids, [ID, INNER]);
    }

    #[test]
    fn what_is_no_container_has_none() {
        let upper = ID.to_uppercase();
        for path in [
            "",
            "/",
            "/user.slice/user-1000.slice/session-3.scope",
            "/system.slice/docker.service",
            &format!("/machine.slice/libpod-conmon-{ID}.scope"),
            &format!("/kubepods.slice/crio-conmon-{ID}.scope"),
            &format!("/docker/{upper}"),
            &format!("/docker/{}", &ID[1..]),
            &format!("/docker/{ID}0"),
        ] {
            assert_eq!(containers(path).count(), 0, "{path}");
        }
    }

    #[test]
    fn a_rule_gives_an_id_or_its_first_digits() {
        let prefix = |text: &str| ContainerPrefix::try_from(text.to_owned());
        assert!(prefix(&ID[..12]).unwrap().matches(ID));
        assert!(prefix(ID).unwrap().matches(ID));
        assert!(!prefix(&INNER[..12]).unwrap().matches(ID));
        for wrong in ["0f3a1cd", "web-frontend", "0F3A1CDE9B7E", ""] {
            assert!(prefix(wrong).unwrap_err().contains("hex digits"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "[/a-f0-9:.äscope-]{0,200}") {
            for container in containers(&path) {
                prop_assert!(path.starts_with(container.cgroup) && container.cgroup.contains(container.id));
            }
        }
    }
}
