//! From routes and rules to what a connect() to each prefix would meet.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weir_agent_ebpf::Address;

use super::message::{Action, Dump, Family, MAPPED_BITS, MAPPED_PREFIX, Prefix, Route, Rule, Verdict};

const UNREACHABLE: u32 = libc::ENETUNREACH.cast_unsigned();
/// `local`, `main` and `default`: where a kernel looks that has no rules.
const ORDINARY_TABLES: [u32; 3] = [255, 254, 253];
/// What TCP does not connect to, whatever the routes say: 224.0.0.0/4, 255.255.255.255 and ff00::/8.
const NOT_FOR_TCP: [Prefix; 3] = [
    (MAPPED_BITS + 4, [0, 0, MAPPED_PREFIX, 0xe000_0000_u32.to_be()]),
    (128, [0, 0, MAPPED_PREFIX, u32::MAX]),
    (8, [0xff00_0000_u32.to_be(), 0, 0, 0]),
];
/// All of IPv4, and all of IPv6.
const EVERYTHING: [Prefix; 2] = [(MAPPED_BITS, [0, 0, MAPPED_PREFIX, 0]), (0, [0; 4])];

/// Prefix -> errno of a connect() there, 0 = reachable. The longest prefix that covers a destination holds.
pub(super) type Table = BTreeMap<Prefix, u32>;

/// What a connect() to each prefix would meet, from a dump of routes and one of rules.
///
/// A rule or a route that depends on more than the destination (a mark, a source, a user) may hold or not: where it leads
/// somewhere, the destination is taken to be reachable; where it does not, the next one is asked.
pub(super) fn table(routes: Vec<Route>, rules: Vec<Rule>) -> Table {
    let mut prefixes: BTreeSet<Prefix> = routes.iter().map(|route| route.prefix).collect();
    prefixes.extend(rules.iter().filter_map(|rule| rule.destination));
    prefixes.extend(NOT_FOR_TCP);
    // An IPv6 default route must not cover IPv4.
    prefixes.extend(EVERYTHING);
    let mut tables: HashMap<(Family, u32), RouteTable> = HashMap::new();
    for route in routes {
        tables.entry((family(route.prefix), route.table)).or_default().insert(&route);
    }
    let chains = [Family::V4, Family::V6].map(|family| Chain::new(family, &rules));
    let answer = |prefix| {
        if NOT_FOR_TCP.iter().any(|never| covers(*never, prefix)) {
            return UNREACHABLE;
        }
        let [v4, v6] = &chains;
        match family(prefix) {
            Family::V4 => v4.answer(prefix, &tables),
            Family::V6 => v6.answer(prefix, &tables),
        }
    };
    prefixes.into_iter().map(|prefix| (prefix, answer(prefix))).collect()
}

fn family((bits, address): Prefix) -> Family {
    if bits >= MAPPED_BITS && address[..3] == [0, 0, MAPPED_PREFIX] { Family::V4 } else { Family::V6 }
}

/// Whether all destinations of the second are destinations of the first.
fn covers(wide: Prefix, narrow: Prefix) -> bool {
    wide.0 <= narrow.0 && cut(narrow.1, wide.0) == wide.1
}

/// The first bits of an address, the others zero.
fn cut(address: Address, bits: u32) -> Address {
    std::array::from_fn(|word| {
        let kept = bits.saturating_sub(32 * word as u32).min(32);
        let mask = u32::MAX.checked_shl(32 - kept).unwrap_or(0);
        address[word] & mask.to_be()
    })
}

/// One table of routes of one family.
#[derive(Default)]
struct RouteTable {
    routes: HashMap<Prefix, Best>,
    /// Lengths of the prefixes in it: there are few.
    bits: BTreeSet<u32>,
}

/// What the routes to one prefix come to.
#[derive(Default)]
struct Best {
    /// Of those that always hold, the one with the lowest metric.
    always: Option<(u32, Verdict)>,
    /// One that holds sometimes leads somewhere.
    sometimes: bool,
}

impl RouteTable {
    fn insert(&mut self, route: &Route) {
        self.bits.insert(route.prefix.0);
        let best = self.routes.entry(route.prefix).or_default();
        if route.conditional {
            best.sometimes |= route.verdict == Verdict::Reachable;
        } else if best.always.is_none_or(|(metric, _)| route.metric < metric) {
            best.always = Some((route.metric, route.verdict));
        }
    }

    /// The longest prefix that covers this one decides; its length goes with the answer.
    fn look_up(&self, (bits, address): Prefix) -> Option<(u32, Verdict)> {
        self.bits.range(..=bits).rev().find_map(|&bits| {
            let best = self.routes.get(&(bits, cut(address, bits)))?;
            let verdict = if best.sometimes { Some(Verdict::Reachable) } else { best.always.map(|(_, v)| v) };
            verdict.map(|verdict| (bits, verdict))
        })
    }
}

/// The rules of one family.
struct Chain<'a> {
    family: Family,
    rules: Vec<&'a Rule>,
    /// The kernel may or may not jump over rules: then none of them is certain to be asked.
    certain: bool,
}

impl<'a> Chain<'a> {
    fn new(family: Family, rules: &'a [Rule]) -> Self {
        let rules: Vec<&Rule> = rules.iter().filter(|rule| rule.family == family).collect();
        let certain = !rules.iter().any(|rule| {
            matches!(rule.action, Action::Goto(_)) && (rule.conditional || rule.destination.is_some())
        });
        Self { family, rules, certain }
    }

    fn answer(&self, prefix: Prefix, tables: &HashMap<(Family, u32), RouteTable>) -> u32 {
        let look_up = |table| tables.get(&(self.family, table)).and_then(|table| table.look_up(prefix));
        if self.rules.is_empty() {
            let found =
                ORDINARY_TABLES.iter().filter_map(|table| look_up(*table)).find_map(|(_, v)| v.answer());
            return found.unwrap_or(UNREACHABLE);
        }
        let mut goal = 0;
        for rule in &self.rules {
            if rule.priority < goal
                || rule.destination.is_some_and(|destination| !covers(destination, prefix))
            {
                continue;
            }
            let certain = self.certain && !rule.conditional;
            let answer = match rule.action {
                Action::Goto(priority) => {
                    if certain {
                        goal = priority;
                    }
                    None
                }
                Action::Nothing => None,
                Action::Errno(errno) => Some(errno),
                Action::Table { table, suppressed_bits } => look_up(table)
                    .filter(|(bits, verdict)| {
                        *verdict != Verdict::Reachable || suppressed_bits.is_none_or(|most| *bits > most)
                    })
                    .and_then(|(_, verdict)| verdict.answer()),
            };
            match answer {
                Some(errno) if certain || errno == 0 => return errno,
                Some(_) | None => {}
            }
        }
        UNREACHABLE
    }
}

impl Verdict {
    /// `None`: ask the next.
    fn answer(self) -> Option<u32> {
        match self {
            Self::Reachable => Some(0),
            Self::Errno(errno) => Some(errno),
            Self::Throw => None,
        }
    }
}

impl Dump {
    /// With the rules of another dump.
    pub(super) fn into_table(self, rules: Self) -> Table {
        table(self.routes, rules.rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAIN: u32 = 254;
    const HOST: Verdict = Verdict::Errno(libc::EHOSTUNREACH as u32);
    const NO_HOST: u32 = libc::EHOSTUNREACH as u32;
    const DENIED: u32 = libc::EACCES as u32;

    /// "10.0.0.0/8", "2001:db8::/32"
    fn prefix(text: &str) -> Prefix {
        let net: ipnet::IpNet = text.parse().unwrap();
        let bits = u32::from(net.prefix_len());
        let (bits, octets) = match net.network() {
            std::net::IpAddr::V4(ip) => (MAPPED_BITS + bits, ip.to_ipv6_mapped().octets()),
            std::net::IpAddr::V6(ip) => (bits, ip.octets()),
        };
        (
            bits,
            std::array::from_fn(|word| {
                u32::from_ne_bytes(octets[word * 4..word * 4 + 4].try_into().unwrap())
            }),
        )
    }

    fn route(table: u32, to: &str, metric: u32, verdict: Verdict) -> Route {
        Route { table, prefix: prefix(to), metric, verdict, conditional: false }
    }

    fn rule(priority: u32, action: Action) -> Rule {
        Rule { family: Family::V4, priority, destination: None, conditional: false, action }
    }

    fn look(table: u32) -> Action {
        Action::Table { table, suppressed_bits: None }
    }

    /// As the kernel programs do it.
    fn ask(table: &Table, address: &str) -> u32 {
        let host = prefix(&format!("{address}/{}", if address.contains(':') { 128 } else { 32 }));
        let covering = table.iter().filter(|(prefix, _)| covers(**prefix, host));
        *covering.max_by_key(|(prefix, _)| prefix.0).unwrap().1
    }

    #[test]
    fn without_an_ipv4_route_the_ipv6_default_does_not_cover_ipv4() {
        let table = table(vec![route(MAIN, "::/0", 0, Verdict::Reachable)], Vec::new());
        assert_eq!((ask(&table, "2001:db8::1"), ask(&table, "10.0.0.1")), (0, UNREACHABLE));
    }

    #[test]
    fn a_default_and_an_unreachable_part_of_it() {
        let routes =
            vec![route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable), route(MAIN, "10.0.0.0/8", 0, HOST)];
        let table = table(routes, Vec::new());
        assert_eq!((ask(&table, "11.0.0.1"), ask(&table, "10.0.0.1")), (0, NO_HOST));
    }

    #[test]
    fn the_lowest_metric_decides_whatever_the_order() {
        let [near, far] =
            [route(MAIN, "10.0.0.0/8", 1, HOST), route(MAIN, "10.0.0.0/8", 2, Verdict::Reachable)];
        for routes in [vec![near.clone(), far.clone()], vec![far, near]] {
            assert_eq!(ask(&table(routes, Vec::new()), "10.0.0.1"), NO_HOST);
        }
    }

    #[test]
    fn rules_are_asked_in_order_until_one_has_an_answer() {
        let routes = vec![
            route(100, "10.0.0.0/8", 0, HOST),
            route(100, "10.1.0.0/16", 0, Verdict::Throw),
            route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable),
        ];
        let rules = vec![rule(1, look(100)), rule(2, look(MAIN))];
        let asked = table(routes.clone(), rules);
        assert_eq!(["10.0.0.1", "10.1.0.1", "11.0.0.1"].map(|ip| ask(&asked, ip)), [NO_HOST, 0, 0]);
        let rules = vec![rule(1, look(MAIN)), rule(2, look(100))];
        assert_eq!(ask(&table(routes, rules), "10.0.0.1"), 0, "a default route answers for everything");
    }

    #[test]
    fn a_rule_about_a_destination_holds_there_only() {
        let to = |priority, to, action| Rule { destination: Some(prefix(to)), ..rule(priority, action) };
        let rules = vec![
            to(1, "10.2.0.0/16", look(MAIN)),
            to(2, "10.0.0.0/8", Action::Errno(DENIED)),
            rule(3, look(MAIN)),
        ];
        let table = table(vec![route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable)], rules);
        assert_eq!(["10.0.0.1", "10.2.0.1", "11.0.0.1"].map(|ip| ask(&table, ip)), [DENIED, 0, 0]);
    }

    #[test]
    fn what_may_lead_somewhere_is_reachable_and_what_may_not_is_passed_over() {
        let sometimes = |priority, action| Rule { conditional: true, ..rule(priority, action) };
        let routes =
            vec![route(100, "10.0.0.0/8", 0, Verdict::Reachable), route(100, "10.1.0.0/16", 0, HOST)];
        let rules = vec![sometimes(1, look(100)), sometimes(2, Action::Errno(DENIED)), rule(3, look(MAIN))];
        let asked = table(routes, rules);
        let answers = ["10.0.0.1", "10.1.0.1", "11.0.0.1"].map(|ip| ask(&asked, ip));
        assert_eq!(answers, [0, UNREACHABLE, UNREACHABLE]);
        let of_source = Route { conditional: true, ..route(MAIN, "10.0.0.0/8", 0, Verdict::Reachable) };
        let asked = table(vec![of_source, route(MAIN, "10.0.0.0/8", 0, HOST)], Vec::new());
        assert_eq!(ask(&asked, "10.0.0.1"), 0);
    }

    #[test]
    fn a_suppressed_default_leaves_the_answer_to_the_next_rule() {
        let suppressing = Action::Table { table: MAIN, suppressed_bits: Some(MAPPED_BITS) };
        let routes = vec![
            route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable),
            route(MAIN, "10.0.0.0/8", 0, Verdict::Reachable),
        ];
        let rules = vec![rule(1, suppressing), rule(2, Action::Errno(DENIED))];
        let table = table(routes, rules);
        assert_eq!(["10.0.0.1", "11.0.0.1"].map(|ip| ask(&table, ip)), [0, DENIED]);
    }

    #[test]
    fn a_jump_is_followed_and_one_that_may_not_be_makes_everything_uncertain() {
        let routes = vec![route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable)];
        let rules = vec![rule(1, Action::Goto(3)), rule(2, Action::Errno(DENIED)), rule(3, look(MAIN))];
        assert_eq!(ask(&table(routes.clone(), rules.clone()), "10.0.0.1"), 0);
        let mut uncertain = rules;
        uncertain[0].conditional = true;
        assert_eq!(ask(&table(routes, uncertain), "10.0.0.1"), 0);
    }

    #[test]
    fn tcp_connects_to_no_group() {
        let routes =
            vec![route(MAIN, "0.0.0.0/0", 0, Verdict::Reachable), route(MAIN, "::/0", 0, Verdict::Reachable)];
        let routes = [routes, vec![route(255, "ff02::1/128", 0, Verdict::Reachable)]].concat();
        let table = table(routes, Vec::new());
        for group in ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff00::"] {
            assert_eq!(ask(&table, group), UNREACHABLE, "{group}");
        }
        for host in ["223.255.255.255", "255.255.255.254", "240.0.0.1", "fe00::1"] {
            assert_eq!(ask(&table, host), 0, "{host}");
        }
    }

    proptest! {
        /// The merged table says of every address what asking rule by rule, table by table says of it.
        #[test]
        fn merging_changes_no_answer(
            routes in proptest::collection::vec((100_u32..103, 0_u8..=8, any::<u8>(), 0_u32..3, 0..3_u8), 0..12),
            order in proptest::collection::vec(100_u32..103, 1..4),
            asked in any::<u8>(),
        ) {
            // Addresses 10.0.0.0/24 stand for all; the first 24 bits are always given.
            let routes: Vec<Route> = routes
                .into_iter()
                .map(|(table, bits, last, metric, verdict)| {
                    let verdict = [Verdict::Reachable, HOST, Verdict::Throw][usize::from(verdict)];
                    route(table, &format!("10.0.0.{last}/{}", 24 + bits), metric, verdict)
                })
                .collect();
            let rules: Vec<Rule> =
                order.iter().enumerate().map(|(at, table)| rule(at as u32, look(*table))).collect();
            let address = format!("10.0.0.{asked}");
            let host = prefix(&format!("{address}/32"));
            let plainly = order.iter().find_map(|table| {
                let mut matching: Vec<&Route> =
                    routes.iter().filter(|route| route.table == *table && covers(route.prefix, host)).collect();
                matching.sort_by_key(|route| (std::cmp::Reverse(route.prefix.0), route.metric));
                matching.first().and_then(|route| route.verdict.answer())
            });
            let merged = table(routes, rules);
            prop_assert_eq!(ask(&merged, &address), plainly.unwrap_or(UNREACHABLE));
        }
    }
}
