//! Lower bounds: no scheme whatsoever can have a node done earlier.
//!
//! Bytes are a fluid here: no chunks, no round trips, no processing, no control. With `F` bytes of all layers, `N` nodes
//! with uplinks `u` and downlinks `d`, and an origin of rate `S`, nobody is done before the first node began and:
//!
//! | rule | bound | why |
//! |---|---|---|
//! | origin | `A / S` | what no node holds at first (`A`) leaves the origin once; outages do not count as time |
//! | link | `own start + missing / d` | a node takes in what it lacks, while it is up |
//! | swarm | `sum of missing / (S + sum u)` | somebody sends every byte that somebody takes in (Kumar and Ross) |
//! | seeds | `layer / (S + sum u of its holders)` | a layer comes out of those that have it at first |
//! | rack, zone | `A' / C` | what nobody inside holds (`A'`) comes in over the uplink (`C`), once |
//! | rack swarm | `sum of missing inside / (C + sum u inside)` | as for the swarm |
//! | uplinks | `sum of all A' / (S + sum C)` | as for the swarm, of racks and of zones |

use std::{fmt, time::Duration};

use shoal_proto::units::Rate;

use crate::plan::{Plan, Window};

/// What befell a node, as far as its bound depends on it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fate {
    /// When it began to want its layers.
    pub begins: Duration,
    /// When it was down, in order of time and without overlap.
    pub down: Vec<Window>,
    /// Until when it was down the last time that it lost its disk.
    pub lost: Option<Duration>,
    /// Whether it is left out of [`Bound::last`]: it died, lies, or was made slow.
    pub left_out: bool,
}

/// A rule that gives a bound; see the table of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The origin's rate.
    Origin,
    /// A node's own downlink.
    #[default]
    Link,
    /// All uplinks together.
    Swarm,
    /// The uplinks of those that hold a layer at first.
    Seeds,
    /// A rack's uplink, or the uplinks of all racks.
    Rack,
    /// A zone's uplink, or the uplinks of all zones.
    Zone,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Origin => "what the origin sends",
            Self::Link => "what a node takes in",
            Self::Swarm => "what all nodes send",
            Self::Seeds => "what the first holders send",
            Self::Rack => "what racks let in",
            Self::Zone => "what zones let in",
        })
    }
}

/// Lower bounds of a run, in seconds after its start.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// Before this, not all nodes that count can be done.
    pub last: f64,
    /// The rule that `last` comes from.
    pub rule: Rule,
    /// Before this, each node cannot be done.
    pub nodes: Vec<f64>,
}

/// What the rules are worked out from.
struct Facts<'a> {
    plan: &'a Plan,
    fates: &'a [Fate],
    /// For each layer and node, whether it holds it at first.
    held: Vec<Vec<bool>>,
    /// Bytes that each node lacks at first, or after it lost its disk.
    missing: Vec<f64>,
}

/// Nodes behind an uplink.
struct Part {
    members: Vec<usize>,
    /// Bytes per second.
    down: f64,
    up: f64,
    rule: Rule,
}

impl Fate {
    /// The fates of all nodes as far as a plan alone says them: arrivals and liars, but no faults.
    #[must_use]
    pub fn planned(plan: &Plan) -> Vec<Self> {
        let lies = plan.lies();
        let starts = plan.starts().into_iter().zip(lies);
        starts.map(|(begins, lie)| Self { begins, left_out: lie.is_some(), ..Self::default() }).collect()
    }

    /// When it can be done at the earliest if it takes in bytes for `work` seconds.
    fn earliest(&self, work: f64) -> f64 {
        let mut time = self.lost.unwrap_or(self.begins).max(self.begins).as_secs_f64();
        let mut work = work;
        for window in &self.down {
            let (from, to) = (window.from.seconds(), window.to.seconds());
            if to <= time {
                continue;
            }
            if time + work <= from {
                break;
            }
            work -= (from - time).max(0.0);
            time = to;
        }
        time + work
    }
}

/// The bounds of a plan, given what befell its nodes (one fate each).
#[must_use]
pub fn bound(plan: &Plan, fates: &[Fate]) -> Bound {
    let facts = Facts::new(plan, fates);
    let mut bound = Bound { last: 0.0, rule: Rule::Link, nodes: facts.links() };
    let everybody: Vec<usize> = (0..fates.len()).filter(|node| facts.missing[*node] > 0.0).collect();
    let counted = |members: &[usize]| members.iter().any(|node| !fates[*node].left_out);
    for node in everybody.iter().filter(|node| !fates[**node].left_out) {
        bound.last = bound.last.max(bound.nodes[*node]);
    }
    let mut all = |members: &[usize], time: f64, rule: Rule| {
        for node in members {
            bound.nodes[*node] = bound.nodes[*node].max(time);
        }
        if counted(members) && time > bound.last {
            (bound.last, bound.rule) = (time, rule);
        }
    };
    all(&everybody, facts.origin(&everybody), Rule::Origin);
    for layer in 0..plan.layers.len() {
        let needy: Vec<usize> = everybody.iter().copied().filter(|node| !facts.held[layer][*node]).collect();
        all(&needy, facts.seeds(layer, &needy), Rule::Seeds);
    }
    let parts = facts.parts();
    for part in &parts {
        all(&part.members, facts.inflow(part), part.rule);
    }
    // The last ones only: of these rules it is not said who has to wait.
    let mut last = |time: f64, rule: Rule| {
        if time > bound.last {
            (bound.last, bound.rule) = (time, rule);
        }
    };
    last(facts.swarm(&everybody, fates.len(), facts.origin_rate()), Rule::Swarm);
    for part in &parts {
        last(facts.swarm(&part.members, part.members.len(), part.down), part.rule);
    }
    for rule in [Rule::Rack, Rule::Zone] {
        last(facts.uplinks(parts.iter().filter(|part| part.rule == rule)), rule);
    }
    bound
}

fn rate(rate: Rate) -> f64 {
    rate.bytes_per_second() as f64
}

impl<'a> Facts<'a> {
    fn new(plan: &'a Plan, fates: &'a [Fate]) -> Self {
        let mut held = plan.held();
        held.iter_mut().for_each(|held| held.resize(fates.len(), false));
        let all = plan.bytes() as f64;
        let missing = (0..fates.len()).map(|node| {
            let layers = plan.layers.iter().zip(&held).filter(|(_, held)| !held[node]);
            if fates[node].lost.is_some() { all } else { layers.map(|(layer, _)| layer.bytes() as f64).sum() }
        });
        let missing = missing.collect();
        Self { plan, fates, held, missing }
    }

    fn origin_rate(&self) -> f64 {
        rate(self.plan.origin_rate)
    }

    /// When the first of some nodes begins.
    fn first(&self, members: &[usize]) -> f64 {
        members.iter().map(|node| self.fates[*node].begins.as_secs_f64()).fold(f64::INFINITY, f64::min)
    }

    /// Each node by its own downlink.
    fn links(&self) -> Vec<f64> {
        let down = rate(self.plan.link_down);
        self.fates.iter().zip(&self.missing).map(|(fate, missing)| fate.earliest(missing / down)).collect()
    }

    /// Bytes of layers that none of some nodes holds at first.
    fn absent(&self, members: &[usize]) -> f64 {
        let layers = self.plan.layers.iter().zip(&self.held);
        let absent = layers.filter(|(_, held)| !members.iter().any(|node| held[*node]));
        absent.map(|(layer, _)| layer.bytes() as f64).sum()
    }

    /// When the origin can have sent once what nobody holds.
    fn origin(&self, everybody: &[usize]) -> f64 {
        if everybody.is_empty() {
            return 0.0;
        }
        let all: Vec<usize> = (0..self.fates.len()).collect();
        let mut time = self.first(everybody);
        let mut work = self.absent(&all) / self.origin_rate();
        let outages =
            self.plan.origin_trouble.iter().filter(|trouble| trouble.kind == crate::plan::TroubleKind::Outage);
        let mut outages: Vec<(f64, f64)> = outages.map(|out| (out.from.seconds(), out.to.seconds())).collect();
        outages.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
        for (from, to) in outages {
            if to <= time || work <= 0.0 {
                continue;
            }
            if time + work <= from {
                break;
            }
            work -= (from - time).max(0.0);
            time = to;
        }
        time + work
    }

    /// When a layer can have left those that have it at first, once.
    fn seeds(&self, layer: usize, needy: &[usize]) -> f64 {
        let holders = self.held[layer].iter().filter(|held| **held).count();
        if needy.is_empty() || holders == 0 {
            return 0.0;
        }
        let rate = self.origin_rate() + holders as f64 * rate(self.plan.link_up);
        self.first(needy) + self.plan.layers[layer].bytes() as f64 / rate
    }

    /// When some nodes can have what they lack, if `senders` nodes and `rate` besides serve them.
    fn swarm(&self, members: &[usize], senders: usize, outside: f64) -> f64 {
        let needy = members.iter().filter(|node| !self.fates[**node].left_out);
        let missing: f64 = needy.map(|node| self.missing[*node]).sum();
        if missing == 0.0 {
            return 0.0;
        }
        self.first(members) + missing / (outside + senders as f64 * rate(self.plan.link_up))
    }

    /// When a part can have taken in what none of its members holds.
    fn inflow(&self, part: &Part) -> f64 {
        if part.members.is_empty() { 0.0 } else { self.first(&part.members) + self.absent(&part.members) / part.down }
    }

    /// When all parts together can have taken in what none of their members holds.
    fn uplinks<'b>(&self, parts: impl Iterator<Item = &'b Part>) -> f64 {
        let (mut bytes, mut rate, mut first) = (0.0, self.origin_rate(), f64::INFINITY);
        for part in parts.filter(|part| !part.members.is_empty()) {
            if part.members.iter().any(|node| !self.fates[*node].left_out && self.missing[*node] > 0.0) {
                bytes += self.absent(&part.members);
            }
            rate += part.up;
            first = first.min(self.first(&part.members));
        }
        if bytes == 0.0 { 0.0 } else { first + bytes / rate }
    }

    /// Racks and zones with an uplink of their own.
    fn parts(&self) -> Vec<Part> {
        let place = &self.plan.topology;
        let site = |node: &usize| place.site(*node);
        let nodes = 0..self.fates.len();
        let mut parts = Vec::new();
        if let Some((up, down)) = self.plan.rack_rates() {
            for rack in 0..place.all_racks() {
                let members = nodes.clone().filter(|node| site(node).rack == rack).collect();
                parts.push(Part { members, up: up as f64, down: down as f64, rule: Rule::Rack });
            }
        }
        if let Some(rate) = self.plan.zone_rate() {
            for zone in 0..place.zones {
                let members = nodes.clone().filter(|node| site(node).zone == zone).collect();
                parts.push(Part { members, up: rate as f64, down: rate as f64, rule: Rule::Zone });
            }
        }
        parts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::plan::Span;

    /// 10 nodes, 100 MB in one layer, 10 MB/s up and down, origin 10 MB/s, unless said otherwise.
    fn plan(text: &str) -> Plan {
        let base =
            "nodes = 10\nlayers = [\"100MB\"]\nlink_up = \"10MB/s\"\nlink_down = \"10MB/s\"\norigin_rate = \"10MB/s\"";
        let mut table: toml::Table = base.parse().unwrap();
        table.extend(text.parse::<toml::Table>().unwrap());
        Plan::parse(&table.to_string(), &[]).unwrap()
    }

    fn last(text: &str) -> (f64, Rule) {
        let plan = plan(text);
        let bound = bound(&plan, &Fate::planned(&plan));
        ((bound.last * 1e6).round() / 1e6, bound.rule)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_slowest_of_origin_link_and_swarm_sets_the_bound() {
        assert_eq!(last(""), (10.0, Rule::Link));
        assert_eq!(last("origin_rate = \"5MB/s\""), (20.0, Rule::Origin));
        assert_eq!(last("link_down = \"4MB/s\""), (25.0, Rule::Link));
        // 10 nodes take 1000 MB from an origin of 10 MB/s and 10 uplinks of 1 MB/s.
        assert_eq!(last("link_up = \"1MB/s\""), (50.0, Rule::Swarm));
    }

    #[test]
    fn what_is_held_at_first_need_not_come_from_the_origin() {
        let layers = "origin_rate = \"1MB/s\"\nlayers = [\"60MB\", \"40MB\"]\n";
        assert_eq!(last(layers), (100.0, Rule::Origin));
        assert_eq!(last(&format!("{layers}base = [{{ layer = 0 }}]")), (40.0, Rule::Origin));
        assert_eq!(last(&format!("{layers}base = [{{ layer = 0 }}, {{ layer = 1 }}]")), (0.0, Rule::Link));
        let one = "base = [{ layer = 0, share = 0.1 }]\nlink_down = \"100MB/s\"\norigin_rate = \"1MB/s\"";
        assert_eq!(last(one), (9.090909, Rule::Seeds));
    }

    #[test]
    fn time_in_which_the_origin_is_out_does_not_count() {
        let outage = "origin_rate = \"5MB/s\"\norigin_trouble = [{ from = \"5s\", to = \"35s\", kind = \"outage\" }]";
        assert_eq!(last(outage), (50.0, Rule::Origin));
        assert_eq!(last(&outage.replace("outage", "429")), (20.0, Rule::Origin));
        assert_eq!(last(&outage.replace("from = \"5s\"", "from = \"20s\"")), (20.0, Rule::Origin));
    }

    #[test]
    fn a_late_node_has_its_own_bound() {
        let plan = plan("late = [{ nodes = 1, at = \"60s\" }, { nodes = 1, at = \"3s\" }]\norigin_rate = \"8MB/s\"");
        let bound = bound(&plan, &Fate::planned(&plan));
        assert_eq!((bound.nodes[0], bound.nodes[8], bound.nodes[9]), (12.5, 13.0, 70.0));
        assert_eq!(bound.last, 70.0);
    }

    #[test]
    fn racks_and_zones_let_in_each_byte_once_at_least() {
        // 5 racks of 2 hosts, 20 MB/s / 8 each way.
        let racks = "topology = { racks = 5, hosts = 2, oversubscription = 8 }";
        assert_eq!(last(racks), (40.0, Rule::Rack));
        // 500 MB into 5 racks from an origin of 1 MB/s and 5 uplinks of 2.5 MB/s: 37 s; the origin alone takes 100 s.
        assert_eq!(last(&format!("{racks}\norigin_rate = \"1MB/s\"")), (100.0, Rule::Origin));
        assert_eq!(last("topology = { racks = 5, hosts = 2, oversubscription = 2 }"), (10.0, Rule::Link));
        assert_eq!(last("topology = { zones = 2, zone_rate = \"4MB/s\" }"), (25.0, Rule::Zone));
    }

    #[test]
    fn only_those_that_count_make_the_last_one() {
        let plan = plan("");
        let mut fates = Fate::planned(&plan);
        fates[3].down = vec![Window { from: Span(seconds(4)), to: Span(seconds(9)) }];
        fates[4].down = vec![Window { from: Span(seconds(20)), to: Span(seconds(29)) }];
        assert_eq!(bound(&plan, &fates).nodes[2..5], [10.0, 15.0, 10.0]);
        assert_eq!(bound(&plan, &fates).last, 15.0);
        fates[4].lost = Some(seconds(29));
        assert_eq!(bound(&plan, &fates).last, 39.0);
        fates[4].left_out = true;
        assert_eq!(bound(&plan, &fates).last, 15.0);
    }

    #[test]
    fn a_plan_in_which_nobody_counts_has_no_bound() {
        let plan = plan("liars = { share = 1.0 }");
        assert_eq!(bound(&plan, &Fate::planned(&plan)).last, 0.0);
    }
}
