//! Plans: what a run is made of, as TOML. Unknown keys are errors.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};
use shoal_proto::{
    limits::Limits,
    units::{ByteSize, Rate},
};

/// The plans that come with the program: name and text.
pub const PLANS: [(&str, &str); 6] = [
    ("demo-8", include_str!("../plans/demo-8.toml")),
    ("demo-12", include_str!("../plans/demo-12.toml")),
    ("crowd-100", include_str!("../plans/crowd-100.toml")),
    ("crowd-1000", include_str!("../plans/crowd-1000.toml")),
    ("holder-killed", include_str!("../plans/holder-killed.toml")),
    ("late-joiners", include_str!("../plans/late-joiners.toml")),
];

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// One line for people.
    #[serde(default)]
    pub about: String,
    /// Nodes, each of which wants every layer.
    pub nodes: usize,
    /// Size of each layer.
    pub layers: Vec<ByteSize>,
    /// What a node sends at most.
    pub link_up: Rate,
    /// What a node takes in at most.
    pub link_down: Rate,
    /// What the origin sends at most, over all its connections.
    pub origin_rate: Rate,
    /// What the origin sends at most over one connection.
    #[serde(default)]
    pub origin_connection_rate: Option<Rate>,
    /// From a request to the origin to its answer's head.
    #[serde(default = "origin_latency")]
    pub origin_latency: Span,
    /// Round trip between any two nodes.
    pub rtt: Span,
    /// From a question to the DHT to its answer; also from an announcement until others can find it.
    #[serde(default = "locate")]
    pub locate: Span,
    /// Trackers that the DHT names for a digest.
    #[serde(default = "trackers")]
    pub trackers: usize,
    /// How long the other side of a connection takes to notice that a node died; also a vain dial.
    #[serde(default = "detect")]
    pub detect: Span,
    /// What a node hashes and writes in a second; nothing for infinitely much.
    #[serde(default)]
    pub verify_rate: Option<Rate>,
    /// Whether every wanted layer has a local reader that starts at its first byte and takes all that is there.
    #[serde(default = "yes")]
    pub readers: bool,
    /// The nodes' first wishes are spread evenly at random over this time.
    #[serde(default)]
    pub jitter: Span,
    /// Nodes that come later.
    #[serde(default)]
    pub late: Vec<Late>,
    /// Nodes that die.
    #[serde(default)]
    pub kill: Vec<Kill>,
    /// The run ends here at the latest.
    #[serde(default = "limit")]
    pub limit: Span,
    /// Seed of all chance.
    #[serde(default)]
    pub seed: u64,
    /// Limits of the machines that differ from their defaults.
    #[serde(default)]
    pub limits: toml::Table,
}

/// The last `nodes` nodes (before earlier such groups) begin at a later time.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Late {
    /// How many.
    pub nodes: usize,
    /// When.
    pub at: Span,
}

/// A node dies.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// Which.
    pub who: Who,
    /// When.
    pub at: Moment,
}

/// Which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By its number.
    Node(usize),
    /// Whoever streams the largest unfinished layer from the origin.
    LeaseHolder,
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// After the start.
    After(Span),
    /// When the origin has sent this share of all layers (0 to 1).
    Progress(f64),
}

/// A time span, written with its unit: `0.2ms`, `5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// Why a plan is not one.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No such plan and no such file.
    #[error("no plan named {0:?}: `shoal-sim plans` lists those that there are, and a path must end in .toml")]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read the plan {0}: {1}")]
    Read(String, std::io::Error),
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("not a plan: {0}")]
    Format(#[from] toml::de::Error),
    /// `--set` without `key=value`.
    #[error("{0:?} sets nothing: write key=value")]
    Setting(String),
    /// A value outside its limits.
    #[error("the plan cannot be run: {0}")]
    Value(String),
}

impl Plan {
    /// A plan by its name or by a path that ends in `.toml`, with settings `key=value` in place of what it says.
    /// Keys of tables are written with a dot (`limits.pulls_max=8`); values are TOML, or texts without quotes.
    ///
    /// # Errors
    /// Whatever [`PlanError`] says.
    pub fn load(name: &str, settings: &[String]) -> Result<Self, PlanError> {
        let known = PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        let text = match known {
            Some(text) => text,
            None if name.ends_with(".toml") => {
                std::fs::read_to_string(name).map_err(|error| PlanError::Read(name.to_owned(), error))?
            }
            None => return Err(PlanError::Unknown(name.to_owned())),
        };
        Self::parse(&text, settings)
    }

    /// A plan from its text.
    ///
    /// # Errors
    /// Whatever [`PlanError`] says.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self, PlanError> {
        let mut table: toml::Table = text.parse()?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        let plan: Self = table.try_into()?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), PlanError> {
        let late: usize = self.late.iter().map(|late| late.nodes).sum();
        let rules = [
            (self.nodes >= 1 && self.nodes <= 100_000, "nodes: 1 to 100000"),
            (!self.layers.is_empty(), "layers: at least one"),
            (self.trackers >= 1, "trackers: at least one"),
            (late <= self.nodes, "late: more nodes than there are"),
            (self.kill.iter().all(|kill| kill.at.is_sound()), "kill.at: a time, or a share of 0 to 1"),
            (self.kill.iter().all(|kill| kill.who.is_below(self.nodes)), "kill.who: no such node"),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(PlanError::Value((*rule).to_owned()));
        }
        self.limits()?.check().map_err(|rule| PlanError::Value(format!("limits: {rule} does not hold")))
    }

    /// The machines' limits: their defaults but for what the plan says.
    ///
    /// # Errors
    /// An unknown name or a value of the wrong kind.
    pub fn limits(&self) -> Result<Limits, PlanError> {
        let mut limits = Limits::default();
        for (name, value) in &self.limits {
            set_limit(&mut limits, name, value).map_err(|what| PlanError::Value(format!("limits.{name}: {what}")))?;
        }
        Ok(limits)
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }
}

fn set(table: &mut toml::Table, setting: &str) -> Result<(), PlanError> {
    let malformed = || PlanError::Setting(setting.to_owned());
    let (key, value) = setting.split_once('=').ok_or_else(malformed)?;
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut table = table;
    let mut key = key;
    while let Some((outer, inner)) = key.split_once('.') {
        let entry = table.entry(outer).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry.as_table_mut().ok_or_else(malformed)?;
        key = inner;
    }
    table.insert(key.to_owned(), value);
    Ok(())
}

/// Something a limit can be set from.
trait Setting: Sized {
    fn from_toml(value: &toml::Value) -> Option<Self>;
}

macro_rules! setting_by_integer {
    ($($kind:ty),*) => {
        $(impl Setting for $kind {
            fn from_toml(value: &toml::Value) -> Option<Self> {
                value.as_integer().and_then(|value| value.try_into().ok())
            }
        })*
    };
}

setting_by_integer!(usize, u64, u32, u8);

impl Setting for Duration {
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(|value| value.parse().ok()).map(|Span(span)| span)
    }
}

fn set_limit(limits: &mut Limits, name: &str, value: &toml::Value) -> Result<(), &'static str> {
    macro_rules! by_name {
        ($($field:ident),* $(,)?) => {
            match name {
                $(stringify!($field) => {
                    limits.$field = Setting::from_toml(value).ok_or("a whole number, or a time like \"5ms\"")?;
                    Ok(())
                })*
                _ => Err("no such limit"),
            }
        };
    }
    by_name!(
        neighbours_max,
        remotes_max,
        pulls_max,
        node_pulls_max,
        pull_bytes_max,
        pulls_per_peer_max,
        uploads_max,
        asks_waiting_max,
        releases_max,
        releases_per_peer_max,
        release_timeout,
        release_chunks_min,
        urgent_chunks,
        urgent_pulls_max,
        endgame_chunks,
        pull_timeout_min,
        got_delay,
        got_delay_common,
        sign_delay,
        sign_states,
        pull_timeout_first,
        retry_after_max,
        starved_patience,
        strikes_max,
        join_timeout,
        trackers_max,
        heartbeat,
        lease_heartbeat,
        lease_timeout,
        lease_stall,
        lease_trial,
        lease_trial_max,
        lease_handover,
        holders_patience,
        fallback_window,
        stall_timeout,
        origin_tries,
        origin_backoff,
        held_idle,
        fetches_max,
        sample,
        sample_more,
        members_max,
        tracked_max,
        joins_per_peer_max,
        zones_max,
        member_timeout,
        complete_timeout,
    )
}

impl Moment {
    fn is_sound(self) -> bool {
        match self {
            Self::After(_) => true,
            Self::Progress(share) => (0.0..=1.0).contains(&share),
        }
    }
}

impl Who {
    const fn is_below(self, nodes: usize) -> bool {
        match self {
            Self::Node(node) => node < nodes,
            Self::LeaseHolder => true,
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, f64); 5] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("min", 60.0), ("s", 1.0)];
        let malformed = || format!("{text:?} is not a time: write a number with one of ns, us, ms, s, min");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| text.trim().strip_suffix(name).map(|number| (number, unit)))
            .ok_or_else(malformed)?;
        let number: f64 = number.trim().parse().map_err(|_| malformed())?;
        Duration::try_from_secs_f64(number * unit).map(Self).map_err(|_| malformed())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like \"3s\", or a share like 0.5")
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Moment, E> {
                Ok(Moment::Progress(share))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
                text.parse().map(Moment::After).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Who;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node's number, or \"lease-holder\"")
            }

            fn visit_i64<E: de::Error>(self, node: i64) -> Result<Who, E> {
                usize::try_from(node).map(Who::Node).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Who, E> {
                if text == "lease-holder" {
                    Ok(Who::LeaseHolder)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

const fn origin_latency() -> Span {
    Span(Duration::from_millis(10))
}

const fn locate() -> Span {
    Span(Duration::from_millis(2))
}

const fn trackers() -> usize {
    8
}

const fn detect() -> Span {
    Span(Duration::from_secs(3))
}

const fn yes() -> bool {
    true
}

const fn limit() -> Span {
    Span(Duration::from_secs(600))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn every_plan_of_the_program_can_be_run() {
        for (name, _) in PLANS {
            let plan = Plan::load(name, &[]).unwrap();
            assert!(!plan.about.is_empty(), "{name}");
        }
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused() {
        for setting in [
            "link_upp=1MB/s",
            "link_up=fast",
            "rtt=5",
            "nodes=0",
            "layers=[]",
            "limits.pulls=3",
            "limits.pulls_max=many",
            "limits.lease_timeout=1ms",
            "kill=[{ who = 99, at = \"1s\" }]",
            "kill=[{ who = \"nobody\", at = \"1s\" }]",
            "kill=[{ who = 1, at = 1.5 }]",
            "nodes",
        ] {
            assert!(Plan::load("demo-8", &[setting.to_owned()]).is_err(), "{setting}");
        }
        assert!(matches!(Plan::load("nothing", &[]), Err(PlanError::Unknown(_))));
    }

    #[test]
    fn settings_take_the_place_of_what_the_plan_says() {
        let settings =
            ["nodes=3", "rtt=7ms", "limits.pulls_max=9", "limits.got_delay=1ms", "seed=5"].map(str::to_owned);
        let plan = Plan::load("demo-8", &settings).unwrap();
        assert_eq!((plan.nodes, plan.rtt.0, plan.seed), (3, Duration::from_millis(7), 5));
        let limits = plan.limits().unwrap();
        assert_eq!((limits.pulls_max, limits.got_delay), (9, Duration::from_millis(1)));
    }
}
