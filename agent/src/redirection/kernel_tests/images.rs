//! What the kernel's record says about a process, against what /proc says later.

use std::io::Write as _;
use std::time::Duration;

use super::super::{ProcessStat, cgroup_path};
use super::ground::{Ground, listen};

#[test]
fn a_process_that_goes_on_as_another_program_is_noticed() {
    let ground = Ground::new();
    let redirection = super::Redirection::attach(&ground.scope).unwrap();
    let v4 = listen("127.0.0.1:0");
    redirection.serve::<std::net::TcpListener>(&v4, None).unwrap();
    for (deed, same) in [("connect", true), ("connect_exec", false)] {
        let client = ground.client(&ground.governed, &[deed, "198.18.0.1", "80"]);
        let pid = client.pid();
        let going = std::thread::spawn(move || client.go());
        let (mut accepted, _) = v4.accept().unwrap();
        let flow = redirection.flow_of(&accepted).unwrap().unwrap();
        let stack = flow.stack.expect("this kernel tells where stacks are");
        let replaced =
            || std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "cat\n");
        for _ in 0..200 {
            if same || replaced() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(replaced(), !same, "{deed}");
        assert!(flow.still_runs(), "{deed}: it is the same process");
        assert_eq!(flow.same_image(), same, "{deed}");
        assert_eq!(ProcessStat::of(pid).unwrap().stack == stack, same, "{deed}");
        accepted.write_all(b"enough\n").unwrap();
        drop(accepted);
        assert!(going.join().unwrap().ends_with("enough"), "{deed}");
        assert!(!flow.same_image(), "{deed}: it has ended");
    }
}

#[test]
fn a_cgroup_is_found_by_its_number_alone() {
    let ground = Ground::new();
    let agent = ground.agent();
    // Of a process that is long gone.
    ground.ask(&["connect", "198.18.0.1", "80"]);
    let (_, flow) = agent.arrived().pop().unwrap();
    let path = cgroup_path(flow.unwrap().cgroup_id).unwrap();
    assert!(ground.governed.path().ends_with(path.trim_start_matches('/')), "{path}");
    assert!(path.starts_with("/weir-test-") && path.ends_with("/scope/governed"), "{path}");
    assert_eq!(cgroup_path(u64::MAX), None);
}
