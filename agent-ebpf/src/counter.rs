//! What the programs count, per CPU, in the `COUNTERS` map.

/// One event worth counting. The discriminant is the index in the map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Sent to the proxy.
    Redirected = 0,
    /// Refused: no agent is serving this network namespace, or its listener is gone.
    RefusedNotReady = 1,
    /// Refused: a destination on this host that nothing listens on.
    RefusedNoListener = 2,
    /// The table of connections under way was full: the connection reaches the proxy without a record and is reset there.
    RefusedFull = 3,
    /// Left alone: an exempt process, or an undecided one where the scope leaves those alone.
    PassedExempt = 4,
    /// Left alone: a kernel thread.
    PassedKernel = 5,
    /// Left alone: the destination is the listener of an agent.
    PassedProxyPort = 6,
    /// Arrived at the proxy without a record: somebody connected to it directly.
    NoRecord = 7,
    /// Refused: a socket that is not the agent's listens on the agent's port.
    StrangerPort = 8,
    /// A child could not be entered in the full process table: undecided from here on.
    ProcessesFull = 9,
    /// A device binding could not be undone: the connection is refused, because it would hang.
    RefusedDevice = 10,
    /// Refused: this network namespace has no route to the destination.
    RefusedNoRoute = 11,
    /// Let through unredirected, because a bypass is under way: unobserved.
    PassedBypass = 12,
}

impl Counter {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Every counter with the name it has in metrics and status.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::Redirected, "redirected"),
        (Self::RefusedNotReady, "refused_not_ready"),
        (Self::RefusedNoListener, "refused_no_listener"),
        (Self::RefusedFull, "refused_full"),
        (Self::PassedExempt, "passed_exempt"),
        (Self::PassedKernel, "passed_kernel"),
        (Self::PassedProxyPort, "passed_proxy_port"),
        (Self::NoRecord, "no_record"),
        (Self::StrangerPort, "stranger_port"),
        (Self::ProcessesFull, "processes_full"),
        (Self::RefusedDevice, "refused_device"),
        (Self::RefusedNoRoute, "refused_no_route"),
        (Self::PassedBypass, "passed_bypass"),
    ];
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn index_is_position() {
        for (position, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, position);
        }
    }
}
