//! Plans: what a run is made of, as TOML. Every key has a default; unknown keys are errors.
//!
//! Fields and their comments are the specification that the world follows. Whatever a plan leaves to chance (who arrives
//! when, who holds what, who lies) is a function of the plan and its seed, and is worked out here.

mod arrivals;
mod built_in;
mod dht;
mod fault;
mod liars;
mod limits;
mod settings;
#[cfg(test)]
mod tests;
mod topology;
mod trouble;
mod units;

use serde::Deserialize;
use shoal_proto::{
    limits::Limits,
    units::{ByteSize, Rate},
};

use crate::random::random_plan;

pub use arrivals::{Base, Late, Poisson};
pub use built_in::PLANS;
pub use dht::DhtPlan;
pub use fault::{Disk, Fault, FaultKind, Victims, What};
pub use liars::{Liars, Lie};
pub use topology::{Site, Topology};
pub use trouble::{Trouble, TroubleKind};
pub use units::{Moment, Share, Span, Window};

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// One line for people.
    pub about: String,
    /// Nodes, each of which wants every layer. Default: all hosts of the topology, or 100.
    pub nodes: usize,
    /// Size of each layer.
    pub layers: Vec<ByteSize>,
    /// What a node sends at most. Its transfers share it fairly, as flow-controlled streams do (max-min).
    pub link_up: Rate,
    /// What a node takes in at most, from nodes and the origin together.
    pub link_down: Rate,
    /// What the origin sends at most, over all its connections.
    pub origin_rate: Rate,
    /// What the origin sends at most over one connection. Each request has a connection of its own.
    pub origin_connection_rate: Option<Rate>,
    /// From a request to the origin to the first byte of its answer.
    pub origin_latency: Span,
    /// Times in which the origin misbehaves. Of several that hit one request, the first counts.
    pub origin_trouble: Vec<Trouble>,
    /// Zones and racks.
    pub topology: Topology,
    /// Round trip between nodes in one rack. A message takes half of it.
    pub rtt: Span,
    /// Round trip between racks of a zone. Default: `rtt`.
    pub zone_rtt: Option<Span>,
    /// Round trip between zones. Default: `zone_rtt`.
    pub far_rtt: Option<Span>,
    /// How long a node's processor works on each message that it takes in (asks included), one after another: a message is
    /// handled this long after it arrived and all before it were handled. Sending is counted in.
    pub message_cost: Span,
    /// Round trips until a new connection carries messages.
    pub connect_trips: f64,
    /// How long the processors of both ends work on a new connection, in the same queue as messages.
    pub connect_cost: Span,
    /// What a node verifies in a second; chunks wait for one another.
    pub verify_rate: Option<Rate>,
    /// What a node writes in a second, after it was verified; chunks wait for one another. A chunk counts as there when
    /// it is written. Default: no limit (the page cache takes it).
    pub write_rate: Option<Rate>,
    /// How long the other side of a connection takes to notice that a node died; also a vain dial.
    pub detect: Span,
    /// The DHT.
    pub dht: DhtPlan,
    /// Whether every wanted layer has a local reader that starts at its first byte and takes all that is there.
    pub readers: bool,
    /// The nodes' first wishes are spread evenly at random over this time.
    pub jitter: Span,
    /// The nodes' first wishes come one after another, at random.
    pub poisson: Option<Poisson>,
    /// Groups of nodes that come later.
    pub late: Vec<Late>,
    /// Layers that some nodes hold from the start.
    pub base: Vec<Base>,
    /// A wish that failed is made again after this time, as a kubelet does. It counts as unmet only if it is not met in the
    /// end.
    pub retry: Span,
    /// What befalls nodes. Faults of the same moment come in the order of this list.
    pub faults: Vec<Fault>,
    /// Nodes that lie.
    pub liars: Option<Liars>,
    /// The run ends here at the latest.
    pub limit: Span,
    /// Seed of all chance.
    pub seed: u64,
    /// Limits of the machines that differ from their defaults.
    pub limits: toml::Table,
}

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
    /// `--set` without `key=value`, or with a key that cannot be.
    #[error("cannot set {0:?}: write key=value, keys of tables as in dht.table=0, of lists as in faults.0.at=0.3")]
    Setting(String),
    /// A value outside its limits.
    #[error("the plan cannot be run: {0}")]
    Value(String),
}

impl Default for Plan {
    fn default() -> Self {
        const TEN_GBIT: Rate = Rate(1_250_000_000);
        Self {
            about: String::new(),
            nodes: 100,
            layers: vec![ByteSize(1 << 30)],
            link_up: TEN_GBIT,
            link_down: TEN_GBIT,
            origin_rate: TEN_GBIT,
            origin_connection_rate: None,
            origin_latency: Span::millis(10),
            origin_trouble: Vec::new(),
            topology: Topology::default(),
            rtt: Span(std::time::Duration::from_micros(200)),
            zone_rtt: None,
            far_rtt: None,
            message_cost: Span(std::time::Duration::from_micros(2)),
            connect_trips: 1.5,
            // About 400 us of work, spread over the eight cores of a small server.
            connect_cost: Span(std::time::Duration::from_micros(50)),
            verify_rate: Some(Rate(4_000_000_000)),
            write_rate: None,
            detect: Span::millis(3000),
            dht: DhtPlan::default(),
            readers: true,
            jitter: Span::default(),
            poisson: None,
            late: Vec::new(),
            base: Vec::new(),
            retry: Span::millis(5000),
            faults: Vec::new(),
            liars: None,
            limit: Span::millis(600_000),
            seed: 0,
            limits: toml::Table::new(),
        }
    }
}

impl Plan {
    /// A plan by its name (`random-7`: the one drawn at random from 7) or by a path that ends in `.toml`, with settings `key=value` in place of what it says.
    /// Keys of tables are written with a dot (`limits.pulls_max=8`); values are TOML, or texts without quotes.
    ///
    /// # Errors
    /// Whatever [`PlanError`] says.
    pub fn load(name: &str, settings: &[String]) -> Result<Self, PlanError> {
        if let Some(seed) = name.strip_prefix("random-").and_then(|seed| seed.parse().ok()) {
            return Self::parse(&random_plan(seed), settings);
        }
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
        // From the text itself, so that an error shows the line.
        let mut plan: Self = toml::from_str(text)?;
        let mut table: toml::Table = text.parse()?;
        if !settings.is_empty() {
            for setting in settings {
                settings::set(&mut table, setting)?;
            }
            plan = table.clone().try_into()?;
        }
        if let Some(hosts) = plan.topology.all_hosts().filter(|_| !table.contains_key("nodes")) {
            plan.nodes = hosts;
        }
        plan.check()?;
        Ok(plan)
    }

    /// Whether the plan can be run. A plan that was parsed was checked.
    ///
    /// # Errors
    /// [`PlanError::Value`] names the key and says what must hold.
    pub fn check(&self) -> Result<(), PlanError> {
        let late: usize = self.late.iter().map(|late| late.nodes).sum();
        let place = &self.topology;
        let rules = [
            (self.nodes >= 1 && self.nodes <= 100_000, "nodes: 1 to 100000"),
            (!self.layers.is_empty() && self.layers.len() <= 1000, "layers: 1 to 1000"),
            (self.dht.trackers >= 1, "dht.trackers: at least one"),
            (self.dht.outages.iter().all(Window::is_sound), "dht.outages: `to` must come after `from`"),
            (late <= self.nodes, "late: more nodes than there are"),
            (self.base.iter().all(|base| base.layer < self.layers.len()), "base.layer: no such layer (the first is 0)"),
            (place.zones >= 1 && place.racks >= 1, "topology: at least one zone and one rack"),
            (place.zones.saturating_mul(place.racks) <= 100_000, "topology: 100000 racks at most"),
            (
                place.oversubscription.is_finite() && place.oversubscription >= 1.0,
                "topology.oversubscription: at least 1",
            ),
            (place.all_hosts().is_none_or(|hosts| self.nodes <= hosts), "nodes: more than the topology has hosts"),
            (self.poisson.is_none() || self.jitter == Span::default(), "jitter and poisson: only one of them"),
            (self.connect_trips >= 0.0 && self.connect_trips <= 10.0, "connect_trips: 0 to 10"),
            (self.retry > Span::default(), "retry: more than 0"),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(PlanError::Value((*rule).to_owned()));
        }
        let parts = self.faults.iter().enumerate().map(|(at, fault)| (format!("faults.{at}"), fault.check(self)));
        let parts = parts.chain(
            self.origin_trouble
                .iter()
                .enumerate()
                .map(|(at, trouble)| (format!("origin_trouble.{at}"), trouble.check())),
        );
        let parts = parts.chain(self.liars.iter().map(|liars| ("liars".to_owned(), liars.check())));
        let mut parts = parts.chain(self.poisson.iter().map(|poisson| ("poisson".to_owned(), poisson.check())));
        if let Some((key, Err(rule))) = parts.find(|(_, result)| result.is_err()) {
            return Err(PlanError::Value(format!("{key}: {rule}")));
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
            limits::set_limit(&mut limits, name, value)
                .map_err(|what| PlanError::Value(format!("limits.{name}: {what}")))?;
        }
        Ok(limits)
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }
}
