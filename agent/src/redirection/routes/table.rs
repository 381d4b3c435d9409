//! Routing messages to prefixes and the errno of a connect() there.

use std::collections::BTreeMap;
use std::io;

use weir_agent_ebpf::Address;

const HEADER_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_ROUTE: u16 = 24;
const DUMP_INTERRUPTED: u16 = 0x10;
const INET: u8 = 2;
const INET6: u8 = 10;
const DESTINATION: u16 = 1;
const TABLE: u16 = 15;
/// An entry of the route cache, not a route.
const CLONED: u32 = 0x200;
/// Its interface is down.
const DEAD: u32 = 1;
/// `default`, `main` and `local`: those that every destination is looked up in when nobody has written other rules.
const ORDINARY_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();
/// IPv4 within the IPv6 form.
const MAPPED_BITS: u32 = 96;

/// A destination: bits that count, and the address.
pub(super) type Prefix = (u32, Address);

/// Prefix -> errno of a connect() there, 0 = reachable.
pub(super) type Table = BTreeMap<Prefix, u32>;

/// A dump of all routes, as far as it has arrived.
#[derive(Default)]
pub(super) struct Dump {
    routes: Vec<Route>,
    done: bool,
    interrupted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    prefix: Prefix,
    errno: u32,
    ordinary: bool,
}

impl Dump {
    pub(super) fn done(&self) -> bool {
        self.done
    }

    /// The routes changed under the dump: what it says may never have been true.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupted
    }

    pub(super) fn len(&self) -> usize {
        self.routes.len()
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
                _ => {}
            }
            rest = rest.get(aligned(length)..).unwrap_or_default();
        }
        Ok(())
    }

    /// What a connect() to each prefix would meet. Where other tables than the ordinary ones are in use, which one holds for a
    /// destination depends on rules that are not looked at: then only what is reachable by any of them is kept.
    pub(super) fn into_table(self) -> Table {
        let ordinary = self.routes.iter().all(|route| route.ordinary);
        // An IPv6 default route must not cover IPv4.
        let mut table =
            Table::from([((MAPPED_BITS, [0, 0, MAPPED_PREFIX, 0]), libc::ENETUNREACH.cast_unsigned())]);
        for Route { prefix, errno, .. } in self.routes {
            if errno == 0 {
                table.insert(prefix, 0);
            } else if ordinary {
                table.entry(prefix).or_insert(errno);
            }
        }
        table
    }
}

impl Route {
    /// `None` for what is no destination of a connect(): other families, cache entries, routes of interfaces that are down.
    fn parse(body: &[u8]) -> Option<Self> {
        let (family, bits) = (*body.first()?, u32::from(*body.get(1)?));
        let (of_source, table, kind) = (*body.get(2)?, u32::from(*body.get(4)?), *body.get(7)?);
        let flags = u32_at(body, 8)?;
        if flags & (CLONED | DEAD) != 0 {
            return None;
        }
        let attributes = || Attributes(body.get(ROUTE_BYTES..).unwrap_or_default());
        let destination =
            attributes().find(|(kind, _)| *kind == DESTINATION).map_or(&[][..], |(_, value)| value);
        let table = attributes()
            .find(|(kind, _)| *kind == TABLE)
            .and_then(|(_, value)| u32_at(value, 0))
            .unwrap_or(table);
        let prefix = match family {
            INET if bits <= 32 => (MAPPED_BITS + bits, [0, 0, MAPPED_PREFIX, words::<1>(destination)?[0]]),
            INET6 if bits <= 128 => (bits, words::<4>(destination)?),
            _ => return None,
        };
        let errno = match kind {
            1 | 2 | 4 => 0,             // unicast, local, anycast
            3 | 5 => libc::ENETUNREACH, // broadcast, multicast: not for TCP
            6 => libc::EINVAL,          // blackhole
            7 => libc::EHOSTUNREACH,    // unreachable
            8 => libc::EACCES,          // prohibit
            _ => return None,           // throw: as if it were not there
        };
        // A route for some sources only: for those at least it is one.
        if of_source != 0 && errno != 0 {
            return None;
        }
        Some(Self { prefix, errno: errno.cast_unsigned(), ordinary: ORDINARY_TABLES.contains(&table) })
    }
}

/// Type and value of each attribute.
struct Attributes<'a>(&'a [u8]);

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

    const MAIN: u8 = 254;
    const UNICAST: u8 = 1;
    const UNREACHABLE: u8 = 7;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn route(family: u8, bits: u8, table: u8, kind: u8, destination: &[u8]) -> Vec<u8> {
        let mut body = vec![family, bits, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
        if !destination.is_empty() {
            body.extend(((4 + destination.len()) as u16).to_ne_bytes());
            body.extend(DESTINATION.to_ne_bytes());
            body.extend(destination);
        }
        message(NEW_ROUTE, &body)
    }

    fn table(messages: &[Vec<u8>]) -> Table {
        let mut dump = Dump::default();
        dump.take(&messages.concat()).unwrap();
        dump.into_table()
    }

    fn v4(bits: u32, address: [u8; 4]) -> Prefix {
        (MAPPED_BITS + bits, [0, 0, MAPPED_PREFIX, u32::from_ne_bytes(address)])
    }

    #[test]
    fn without_an_ipv4_route_the_ipv6_default_does_not_cover_ipv4() {
        let table = table(&[route(INET6, 0, MAIN, UNICAST, &[])]);
        assert_eq!(table.get(&(0, [0; 4])), Some(&0));
        assert_eq!(table.get(&v4(0, [0; 4])), Some(&(libc::ENETUNREACH as u32)));
    }

    #[test]
    fn a_default_and_an_unreachable_part_of_it() {
        let table =
            table(&[route(INET, 0, MAIN, UNICAST, &[]), route(INET, 8, MAIN, UNREACHABLE, &[10, 0, 0, 0])]);
        assert_eq!(table.get(&v4(0, [0; 4])), Some(&0));
        assert_eq!(table.get(&v4(8, [10, 0, 0, 0])), Some(&(libc::EHOSTUNREACH as u32)));
    }

    #[test]
    fn with_tables_of_ones_own_only_the_reachable_is_believed() {
        let own = route(INET, 0, 100, UNICAST, &[]);
        let table = table(&[own, route(INET, 8, MAIN, UNREACHABLE, &[10, 0, 0, 0])]);
        assert_eq!(table.get(&v4(8, [10, 0, 0, 0])), None);
        assert_eq!(table.get(&v4(0, [0; 4])), Some(&0));
    }

    #[test]
    fn reachable_wins_over_unreachable_for_the_same_prefix() {
        let routes = [
            route(INET, 8, MAIN, UNREACHABLE, &[10, 0, 0, 0]),
            route(INET, 8, MAIN, UNICAST, &[10, 0, 0, 0]),
        ];
        assert_eq!(table(&routes).get(&v4(8, [10, 0, 0, 0])), Some(&0));
        let [first, second] = routes;
        assert_eq!(table(&[second, first]).get(&v4(8, [10, 0, 0, 0])), Some(&0));
    }

    #[test]
    fn errors_and_the_end_are_seen() {
        let mut dump = Dump::default();
        dump.take(&message(DONE, &[0; 4])).unwrap();
        assert!(dump.done() && !dump.interrupted());
        let error = dump.take(&message(ERROR, &(-1_i32).to_ne_bytes())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
        let whole = route(INET, 8, MAIN, UNICAST, &[10, 0, 0, 0]);
        assert!(Dump::default().take(&whole[..whole.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_hang(noise in proptest::collection::vec(any::<u8>(), 0..300), keep in 0_usize..60) {
            let mut bytes = route(INET6, 64, MAIN, UNICAST, &[7; 16]);
            bytes.truncate(keep);
            bytes.extend(noise);
            let mut dump = Dump::default();
            let _ = dump.take(&bytes);
            let _ = dump.into_table();
        }
    }
}
