//! Routing messages (rtnetlink(7)): routes and the rules that choose between tables of them.

use std::io;

use weir_agent_ebpf::Address;

const HEADER_BYTES: usize = 16;
/// `struct rtmsg`, and `struct fib_rule_hdr`, which lies alike.
const BODY_BYTES: usize = 12;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
const DUMP_INTERRUPTED: u16 = 0x10;
const INET: u8 = 2;
const INET6: u8 = 10;
/// An entry of the route cache, not a route.
const CLONED: u32 = 0x200;
/// Its interface is down.
const DEAD: u32 = 1;
/// A rule that holds where its conditions do not.
const INVERTED: u32 = 2;
/// Most rules that are taken; whoever has more is told that they are not understood.
const RULES_MAX: usize = 4096;

pub(super) const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();
/// IPv4 within the IPv6 form.
pub(super) const MAPPED_BITS: u32 = 96;

/// A destination: bits that count, and the address.
pub(super) type Prefix = (u32, Address);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

/// What a route says of its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Reachable,
    /// A connect() is told this.
    Errno(u32),
    /// This table has nothing to say: the next is asked.
    Throw,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) prefix: Prefix,
    /// Of routes to one prefix the one with the lowest is taken.
    pub(super) metric: u32,
    pub(super) verdict: Verdict,
    /// It holds for some sources or kinds of service only.
    pub(super) conditional: bool,
}

/// Rules are asked in the order in which they are listed, until one has an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) destination: Option<Prefix>,
    /// It depends on more than the destination: a mark, a user, a source, ...
    pub(super) conditional: bool,
    pub(super) action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Routes to prefixes of no more than so many bits do not count.
    Table {
        table: u32,
        suppressed_bits: Option<u32>,
    },
    Errno(u32),
    /// To the rule of this priority.
    Goto(u32),
    Nothing,
}

/// A dump of all routes, or of all rules, as far as it has arrived.
#[derive(Default)]
pub(super) struct Dump {
    pub(super) routes: Vec<Route>,
    pub(super) rules: Vec<Rule>,
    done: bool,
    interrupted: bool,
}

impl Dump {
    pub(super) fn done(&self) -> bool {
        self.done
    }

    /// Something changed under the dump: what it says may never have been true.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Takes one datagram of the kernel's answer.
    pub(super) fn take(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut rest = datagram;
        while let Some(length) = u32_at(rest, 0) {
            let length = length as usize;
            let (Some(kind), Some(flags)) = (u16_at(rest, 4), u16_at(rest, 6)) else {
                return Err(malformed());
            };
            let Some(body) = rest.get(HEADER_BYTES..length) else { return Err(malformed()) };
            self.interrupted |= flags & DUMP_INTERRUPTED != 0;
            match kind {
                DONE => self.done = true,
                ERROR => match u32_at(body, 0).map(u32::cast_signed) {
                    Some(0) => {}
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                    None => return Err(malformed()),
                },
                NEW_ROUTE => self.routes.extend(Route::parse(body)),
                NEW_RULE => self.rules.extend(Rule::parse(body)),
                _ => {}
            }
            if self.rules.len() > RULES_MAX {
                return Err(io::Error::other(format!("more than {RULES_MAX} routing rules")));
            }
            rest = rest.get(aligned(length)..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Route {
    /// `None` for what is no destination of a connect(): other families, cache entries, routes of interfaces that are down.
    fn parse(body: &[u8]) -> Option<Self> {
        const DESTINATION: u16 = 1;
        const PRIORITY: u16 = 6;
        const TABLE: u16 = 15;
        let (family, bits) = (*body.first()?, *body.get(1)?);
        let (source_bits, service, table, kind) =
            (*body.get(2)?, *body.get(3)?, u32::from(*body.get(4)?), *body.get(7)?);
        if u32_at(body, 8)? & (CLONED | DEAD) != 0 {
            return None;
        }
        let attributes = Attributes::of(body);
        let number = |kind| attributes.value(kind).and_then(|value| u32_at(value, 0));
        let verdict = match kind {
            1 | 2 | 4 => Verdict::Reachable,   // unicast, local, anycast
            3 | 5 => errno(libc::ENETUNREACH), // broadcast, multicast: not for TCP
            6 => errno(libc::EINVAL),          // blackhole
            7 => errno(libc::EHOSTUNREACH),    // unreachable
            8 => errno(libc::EACCES),          // prohibit
            9 => Verdict::Throw,
            _ => return None,
        };
        Some(Self {
            table: number(TABLE).unwrap_or(table),
            prefix: prefix(family, bits, attributes.value(DESTINATION).unwrap_or_default())?.1,
            metric: number(PRIORITY).unwrap_or(0),
            verdict,
            conditional: source_bits != 0 || service != 0,
        })
    }
}

impl Rule {
    /// `None` for rules of other families, and for those that hold for no connection that is made on this host by a socket of no
    /// interface.
    fn parse(body: &[u8]) -> Option<Self> {
        const DESTINATION: u16 = 1;
        const FROM_INTERFACE: u16 = 3;
        const GOTO: u16 = 4;
        const PRIORITY: u16 = 6;
        const SUPPRESSED_BITS: u16 = 14;
        const TABLE: u16 = 15;
        const MASTER_DEVICE: u16 = 19;
        /// Attributes that say nothing about when the rule holds, or are looked at: destination, interface, goto, priority, realm,
        /// suppressed bits, table, padding, master device, who made it. Any other is a condition, also one that is unknown here.
        const UNCONDITIONAL: [u16; 10] = [1, 3, 4, 6, 11, 14, 15, 18, 19, 21];
        let (family, destination_bits) = (*body.first()?, *body.get(1)?);
        let (source_bits, service, table, action) =
            (*body.get(2)?, *body.get(3)?, u32::from(*body.get(4)?), *body.get(7)?);
        let inverted = u32_at(body, 8)? & INVERTED != 0;
        let attributes = Attributes::of(body);
        let number = |kind| attributes.value(kind).and_then(|value| u32_at(value, 0));
        let from_elsewhere = attributes.value(FROM_INTERFACE).is_some_and(|name| name != b"lo\0");
        let of_master = attributes.value(MASTER_DEVICE).is_some_and(|value| value != [0]);
        if (from_elsewhere || of_master) && !inverted {
            return None;
        }
        let (family, destination) =
            prefix(family, destination_bits, attributes.value(DESTINATION).unwrap_or_default())?;
        let conditional = source_bits != 0
            || service != 0
            || inverted
            || attributes
                .clone()
                .any(|(kind, value)| !UNCONDITIONAL.contains(&kind) && value.iter().any(|byte| *byte != 0));
        let suppressed_bits = number(SUPPRESSED_BITS).filter(|bits| *bits <= 128).map(|bits| match family {
            Family::V4 => MAPPED_BITS + bits.min(32),
            Family::V6 => bits,
        });
        let action = match action {
            1 => Action::Table { table: number(TABLE).unwrap_or(table), suppressed_bits },
            2 => Action::Goto(number(GOTO)?),
            3 => Action::Nothing,
            7 => Action::Errno(libc::ENETUNREACH.cast_unsigned()), // unreachable
            8 => Action::Errno(libc::EACCES.cast_unsigned()),      // prohibit
            _ => Action::Errno(libc::EINVAL.cast_unsigned()), // blackhole, and what the kernel takes for it
        };
        Some(Self {
            family,
            priority: number(PRIORITY).unwrap_or(0),
            destination: (destination_bits != 0).then_some(destination),
            conditional,
            action,
        })
    }
}

fn errno(errno: i32) -> Verdict {
    Verdict::Errno(errno.cast_unsigned())
}

/// An address as a message gives it, in our form; one of no bits is not given.
fn prefix(family: u8, bits: u8, address: &[u8]) -> Option<(Family, Prefix)> {
    let bits = u32::from(bits);
    match family {
        INET if bits <= 32 => {
            Some((Family::V4, (MAPPED_BITS + bits, [0, 0, MAPPED_PREFIX, words::<1>(address)?[0]])))
        }
        INET6 if bits <= 128 => Some((Family::V6, (bits, words::<4>(address)?))),
        _ => None,
    }
}

/// Type and value of each attribute.
#[derive(Clone)]
struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    fn of(body: &'a [u8]) -> Self {
        Self(body.get(BODY_BYTES..).unwrap_or_default())
    }

    fn value(&self, wanted: u16) -> Option<&'a [u8]> {
        self.clone().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, kind) = (usize::from(u16_at(self.0, 0)?), u16_at(self.0, 2)?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// An address in network order as words in memory; a route to everything has none, which is zero.
fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    if !bytes.is_empty() && bytes.len() != N * 4 {
        return None;
    }
    for (index, word) in words.iter_mut().enumerate() {
        *word = u32_at(bytes, index * 4).unwrap_or(0);
    }
    Some(words)
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a routing message is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn body(head: [u8; 8], flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = head.to_vec();
        body.extend(flags.to_ne_bytes());
        body.extend(attributes.iter().flat_map(|(kind, value)| attribute(*kind, value)));
        body
    }

    #[test]
    fn a_route_is_read_with_its_metric_and_its_table() {
        let body = body(
            [INET, 8, 0, 0, 254, 0, 0, 1],
            0,
            &[(1, &[10, 0, 0, 0]), (6, &7_u32.to_ne_bytes()), (15, &100_u32.to_ne_bytes())],
        );
        let mut dump = Dump::default();
        dump.take(&message(NEW_ROUTE, &body)).unwrap();
        let prefix = (MAPPED_BITS + 8, [0, 0, MAPPED_PREFIX, u32::from_ne_bytes([10, 0, 0, 0])]);
        let expected =
            Route { table: 100, prefix, metric: 7, verdict: Verdict::Reachable, conditional: false };
        assert_eq!(dump.routes, [expected]);
    }

    #[test]
    fn what_is_no_route_of_ours_is_passed_over() {
        for (head, flags) in [
            ([7, 0, 0, 0, 254, 0, 0, 1], 0),
            ([INET, 33, 0, 0, 254, 0, 0, 1], 0),
            ([INET, 0, 0, 0, 254, 0, 0, 1], CLONED),
            ([INET6, 0, 0, 0, 254, 0, 0, 1], DEAD),
            ([INET, 0, 0, 0, 254, 0, 0, 99], 0),
        ] {
            assert_eq!(Route::parse(&body(head, flags, &[])), None, "{head:?}");
        }
    }

    #[test]
    fn a_rule_is_read_with_what_it_depends_on() {
        let plain: &[(u16, &[u8])] = &[
            (15, &100_u32.to_ne_bytes()),
            (14, &u32::MAX.to_ne_bytes()),
            (6, &5_u32.to_ne_bytes()),
            (21, &[2]),
        ];
        let head = [INET, 0, 0, 0, 0, 0, 0, 1];
        let rule =
            |head, flags, more: &[(u16, &[u8])]| Rule::parse(&body(head, flags, &[plain, more].concat()));
        let expected = Rule {
            family: Family::V4,
            priority: 5,
            destination: None,
            conditional: false,
            action: Action::Table { table: 100, suppressed_bits: None },
        };
        assert_eq!(rule(head, 0, &[]), Some(expected.clone()));
        assert_eq!(rule(head, 0, &[(3, b"lo\0")]), Some(expected.clone()), "made on this host");
        let conditional = Some(Rule { conditional: true, ..expected.clone() });
        for (kind, value) in [(10, 7_u32.to_ne_bytes()), (20, [1; 4]), (17, *b"eth0"), (99, [1; 4])] {
            assert_eq!(rule(head, 0, &[(kind, &value)]), conditional, "{kind}");
        }
        assert_eq!(rule(head, INVERTED, &[(3, b"eth0\0")]), conditional);
        assert_eq!(rule([INET, 0, 8, 0, 0, 0, 0, 1], 0, &[(2, &[10, 0, 0, 0])]), conditional);
        assert_eq!(rule(head, 0, &[(3, b"eth0\0")]), None, "for what is forwarded only");
        assert_eq!(rule(head, 0, &[(19, &[1])]), None, "for sockets of an interface only");
        let to = rule([INET, 8, 0, 0, 0, 0, 0, 8], 0, &[(1, &[10, 0, 0, 0])]).unwrap();
        assert_eq!(to.destination.unwrap().0, MAPPED_BITS + 8);
        assert_eq!((to.action, to.conditional), (Action::Errno(libc::EACCES as u32), false));
        let suppressing = body(head, 0, &[(15, &254_u32.to_ne_bytes()), (14, &0_u32.to_ne_bytes())]);
        let suppressed_bits = Some(MAPPED_BITS);
        assert_eq!(Rule::parse(&suppressing).unwrap().action, Action::Table { table: 254, suppressed_bits });
    }

    #[test]
    fn errors_and_the_end_are_seen() {
        let mut dump = Dump::default();
        dump.take(&message(DONE, &[0; 4])).unwrap();
        assert!(dump.done() && !dump.interrupted());
        let error = dump.take(&message(ERROR, &(-1_i32).to_ne_bytes())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
        let whole = message(NEW_ROUTE, &body([INET, 8, 0, 0, 254, 0, 0, 1], 0, &[(1, &[10, 0, 0, 0])]));
        assert!(Dump::default().take(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn rules_have_a_bound() {
        let rule = message(NEW_RULE, &body([INET, 0, 0, 0, 254, 0, 0, 1], 0, &[]));
        let mut dump = Dump::default();
        dump.take(&rule.repeat(RULES_MAX)).unwrap();
        assert!(dump.take(&rule).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_hang(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            keep in 0_usize..60,
            kind in prop_oneof![Just(NEW_ROUTE), Just(NEW_RULE)],
        ) {
            let mut bytes = message(kind, &body([INET6, 64, 0, 0, 254, 0, 0, 1], 0, &[(1, &[7; 16])]));
            bytes.truncate(keep);
            bytes.extend(noise);
            let _ = Dump::default().take(&bytes);
        }
    }
}
