//! What befalls nodes.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::{Moment, Plan, Share, Span};

/// Something that befalls nodes.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub at: Moment,
    /// Whom. Shares are drawn at `at` from the nodes that are up then.
    pub who: Victims,
    /// What.
    #[serde(default)]
    pub kind: FaultKind,
    /// The victims are hit one after another, evenly over this time from `at` on, each unless it is down by then.
    #[serde(default)]
    pub over: Span,
    /// `restart`: how long the node is down. Default 2s.
    #[serde(default)]
    pub after: Option<Span>,
    /// `restart`: what it finds on its disk when it is back. Default kept.
    #[serde(default)]
    pub disk: Option<Disk>,
    /// `slow`: what the rates are multiplied by. Default 0.02.
    #[serde(default)]
    pub factor: Option<f64>,
    /// `slow`: what is slow. Default both.
    #[serde(default)]
    pub what: Option<What>,
    /// `slow` and `partition`: how long it lasts. Default: to the end for `slow`, 10s for `partition`.
    #[serde(default, rename = "for")]
    pub lasts: Option<Span>,
}

/// What befalls a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// It is gone for good. Its transfers break off; who was connected to it notices after `detect`, as does who dials it.
    #[default]
    Crash,
    /// It is gone as by a crash, and is back after `after`: new machines, the same name and place, none of its
    /// connections. It wishes for its layers again, at once; its local readers begin anew.
    Restart,
    /// The nodes of `who` and the others cannot reach one another for the time `for`: what is on the way between them is
    /// lost, transfers stop, connections end after `detect`, new ones are in vain. The origin and the DHT stay reachable
    /// for all, and the DHT names nodes of both sides to both.
    Partition,
    /// Its rates are multiplied by `factor`.
    Slow,
}

/// What a restarted node finds on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// All chunks that it had verified and written, and whole layers.
    #[default]
    Kept,
    /// Nothing.
    Lost,
}

/// What of a node is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Uplink and downlink.
    #[default]
    Both,
    /// The uplink.
    Up,
    /// The downlink.
    Down,
    /// Verifying and writing: `factor` times `write_rate`, or times `link_down` where that is not given.
    Disk,
}

/// Which nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Victims {
    /// One, by its number from 0: `7`.
    Node(usize),
    /// A share of all nodes, drawn at random: `0.2`.
    Share(Share),
    /// `"lease-holder"`: the node that streams the largest unfinished layer from the origin. If none does, the next one to
    /// begin.
    LeaseHolder,
    /// `"tracker"`: the first tracker that the DHT names for the largest layer.
    Tracker,
    /// `"trackers"`: all trackers that the DHT names for the largest layer.
    Trackers,
    /// `"rack"`, drawn at random, or `"rack:3"`: all nodes of a rack. Racks are counted over all zones, from 0.
    Rack(Option<usize>),
    /// `"zone"`, drawn at random, or `"zone:1"`: all nodes of a zone.
    Zone(Option<usize>),
}

impl Fault {
    /// A restarted node is down for so long.
    #[must_use]
    pub fn down(&self) -> Span {
        self.after.unwrap_or(Span::millis(2000))
    }

    /// What a restarted node finds.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.disk.unwrap_or_default()
    }

    /// What a slow node's rates are multiplied by.
    #[must_use]
    pub fn factor(&self) -> f64 {
        self.factor.unwrap_or(0.02)
    }

    /// What of a slow node is slow.
    #[must_use]
    pub fn what(&self) -> What {
        self.what.unwrap_or_default()
    }

    /// How long a slow time or a partition lasts; None to the end of the run.
    #[must_use]
    pub fn lasts(&self) -> Option<Span> {
        self.lasts.or((self.kind == FaultKind::Partition).then_some(Span::millis(10_000)))
    }

    pub(super) fn check(&self, plan: &Plan) -> Result<(), &'static str> {
        let kind = self.kind;
        let goes_with = |given: bool, kinds: &[FaultKind]| !given || kinds.contains(&kind);
        let rules = [
            (goes_with(self.after.is_some(), &[FaultKind::Restart]), "`after` goes with the kind \"restart\" only"),
            (goes_with(self.disk.is_some(), &[FaultKind::Restart]), "`disk` goes with the kind \"restart\" only"),
            (goes_with(self.factor.is_some(), &[FaultKind::Slow]), "`factor` goes with the kind \"slow\" only"),
            (goes_with(self.what.is_some(), &[FaultKind::Slow]), "`what` goes with the kind \"slow\" only"),
            (
                goes_with(self.lasts.is_some(), &[FaultKind::Slow, FaultKind::Partition]),
                "`for` goes with the kinds \"slow\" and \"partition\" only",
            ),
            (self.factor() > 0.0 && self.factor() <= 1.0, "`factor` must be more than 0, and 1 at most"),
            (kind != FaultKind::Partition || self.over == Span::default(), "a partition has no `over`"),
            (self.who.exists(plan), "`who`: no such node, rack or zone"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(*rule))
    }
}

impl Victims {
    fn exists(self, plan: &Plan) -> bool {
        match self {
            Self::Node(node) => node < plan.nodes,
            Self::Rack(rack) => rack.is_none_or(|rack| rack < plan.topology.all_racks()),
            Self::Zone(zone) => zone.is_none_or(|zone| zone < plan.topology.zones),
            Self::Share(_) | Self::LeaseHolder | Self::Tracker | Self::Trackers => true,
        }
    }

    /// How many of the plan's nodes are meant at most.
    #[must_use]
    pub fn count(self, plan: &Plan) -> usize {
        let in_each = |parts: usize| plan.nodes.div_ceil(parts);
        match self {
            Self::Node(_) | Self::LeaseHolder | Self::Tracker => 1,
            Self::Share(share) => share.of(plan.nodes),
            Self::Trackers => plan.dht.trackers.min(plan.nodes),
            Self::Rack(_) => in_each(plan.topology.all_racks()),
            Self::Zone(_) => in_each(plan.topology.zones),
        }
    }
}

impl<'de> Deserialize<'de> for Victims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Victims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a node's number, a share of the nodes like 0.2, or one of \"lease-holder\", \"tracker\", \
                     \"trackers\", \"rack\", \"rack:3\", \"zone\", \"zone:1\"",
                )
            }

            fn visit_i64<E: de::Error>(self, node: i64) -> Result<Victims, E> {
                usize::try_from(node)
                    .map(Victims::Node)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(node), &self))
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Victims, E> {
                let unfit = || E::invalid_value(de::Unexpected::Float(share), &self);
                (share > 0.0 && share <= 1.0).then_some(Victims::Share(Share(share))).ok_or_else(unfit)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Victims, E> {
                let unfit = || E::invalid_value(de::Unexpected::Str(text), &self);
                let (word, number) = match text.split_once(':') {
                    Some((word, number)) => (word, Some(number.parse::<usize>().map_err(|_| unfit())?)),
                    None => (text, None),
                };
                match (word, number) {
                    ("lease-holder", None) => Ok(Victims::LeaseHolder),
                    ("tracker", None) => Ok(Victims::Tracker),
                    ("trackers", None) => Ok(Victims::Trackers),
                    ("rack", number) => Ok(Victims::Rack(number)),
                    ("zone", number) => Ok(Victims::Zone(number)),
                    _ => Err(unfit()),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
