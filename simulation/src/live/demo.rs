//! What of a plan a demo can do, and the command line that makes it do so.

use std::{fmt, time::Duration};

use shoal_proto::units::{ByteSize, Rate};

use crate::plan::{Fault, FaultKind, Moment, Plan, Span, Trouble, TroubleKind, Victims, What};

/// What the demo has built in: see `shoal demo --help`.
const PROGRESS: f64 = 0.4;
const SLOWNESS: f64 = 0.02;
const REFUSAL: Duration = Duration::from_secs(3);
const RETRY_AFTER: Span = Span::millis(1000);
const NODES_MAX: usize = 500;
const LAYERS_MAX: usize = 127;
const LAYER_MIN: ByteSize = ByteSize(4096);
/// An outage as short as this does nothing but break off what is on its way.
const BREAK_MAX: Duration = Duration::from_millis(100);
/// Share of the whole by which the time of the origin's trouble may miss the demo's moment.
const MISS: f64 = 0.02;

/// A plan as a demo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demo {
    nodes: usize,
    layers: Vec<ByteSize>,
    link_rate: Rate,
    origin_rate: Rate,
    fault: Option<&'static str>,
}

/// A key of a plan that a demo cannot follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    key: &'static str,
    why: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

impl Demo {
    /// The plan as a demo.
    ///
    /// # Errors
    /// Every key that a demo cannot follow.
    pub fn of(plan: &Plan) -> Result<Self, Vec<Unfit>> {
        let mut unfit = shape(plan);
        let mut faults = Vec::new();
        let found =
            [("faults", of_faults(plan)), ("origin_trouble", of_trouble(plan)), ("dht.outages", of_outages(plan))];
        for (key, found) in found {
            match found {
                Ok(fault) => faults.extend(fault),
                Err(why) => unfit.push(Unfit { key, why }),
            }
        }
        if faults.len() > 1 {
            let why = format!("a demo has one fault, not {}", faults.join(" and "));
            unfit.push(Unfit { key: "faults, origin_trouble, dht.outages", why });
        }
        if !unfit.is_empty() {
            return Err(unfit);
        }
        Ok(Self {
            nodes: plan.nodes,
            layers: plan.layers.clone(),
            link_rate: plan.link_up,
            origin_rate: plan.origin_rate,
            fault: faults.first().copied(),
        })
    }

    /// The arguments of `shoal`.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let layers: Vec<String> = self.layers.iter().map(|size| with_unit(*size)).collect();
        let mut arguments = vec!["demo".to_owned(), "--json".to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--nodes", self.nodes.to_string());
        option("--layers", layers.join(","));
        option("--link-rate", self.link_rate.to_string());
        option("--origin-rate", self.origin_rate.to_string());
        if let Some(fault) = self.fault {
            option("--fault", fault.to_owned());
        }
        arguments
    }
}

/// A size that cannot be taken for a number of layers.
fn with_unit(size: ByteSize) -> String {
    let text = size.to_string();
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text + "B" } else { text }
}

/// Keys other than faults.
fn shape(plan: &Plan) -> Vec<Unfit> {
    let place = &plan.topology;
    let rules = [
        ("nodes", plan.nodes <= NODES_MAX, "a demo has 500 at most"),
        ("layers", plan.layers.len() <= LAYERS_MAX, "an image has 127 at most"),
        ("layers", plan.layers.iter().all(|size| *size >= LAYER_MIN), "a layer has 4096 bytes at least"),
        ("link_down", plan.link_up == plan.link_down, "a demo caps both directions at one rate: set it to link_up"),
        ("origin_connection_rate", plan.origin_connection_rate.is_none(), "a demo caps all connections together only"),
        ("topology", place.all_racks() == 1 && place.zone_rate.is_none(), "all nodes are on this machine"),
        ("readers", plan.readers, "a demo's clients read from the first byte on"),
        ("jitter", plan.jitter == Span::default(), "a demo's clients begin at the same instant"),
        ("poisson", plan.poisson.is_none(), "a demo's clients begin at the same instant"),
        ("late", plan.late.is_empty(), "a demo's clients begin at the same instant"),
        ("base", plan.base.is_empty(), "a demo's nodes begin with nothing"),
        ("liars", plan.liars.is_none(), "real daemons do not lie"),
        ("limits", plan.limits.is_empty(), "daemons have the limits that they were built with"),
    ];
    let broken = rules.into_iter().filter(|(_, holds, _)| !holds);
    broken.map(|(key, _, why)| Unfit { key, why: why.to_owned() }).collect()
}

/// `kill-holder` or `slow-node`.
fn of_faults(plan: &Plan) -> Result<Option<&'static str>, String> {
    let fault = match plan.faults[..] {
        [] => return Ok(None),
        [fault] => fault,
        _ => return Err("a demo has one fault".into()),
    };
    let Fault { at, who, kind, .. } = fault;
    match kind {
        FaultKind::Crash if who == Victims::LeaseHolder => {
            if at != Moment::Progress(PROGRESS) {
                return Err("a demo kills the holder at 0.4: add --set faults.0.at=0.4".into());
            }
            Ok(Some("kill-holder"))
        }
        FaultKind::Slow => {
            let rules = [
                (matches!(at, Moment::After(Span(Duration::ZERO))), "from the beginning on: at = \"0s\""),
                (matches!(who, Victims::Node(_)), "one node, by its number: who = 11"),
                (fault.factor() == SLOWNESS, "factor = 0.02"),
                (fault.what() == What::Both, "what = \"both\""),
                (fault.lasts().is_none(), "to the end, without `for`"),
            ];
            let broken: Vec<&str> = rules.iter().filter(|(holds, _)| !holds).map(|(_, rule)| *rule).collect();
            if broken.is_empty() {
                Ok(Some("slow-node"))
            } else {
                Err(format!("a demo's slow node is {}", broken.join(", ")))
            }
        }
        FaultKind::Crash | FaultKind::Restart | FaultKind::Partition => {
            Err("a demo can kill the lease holder or have a slow node, nothing else".into())
        }
    }
}

/// `origin-429`.
fn of_trouble(plan: &Plan) -> Result<Option<&'static str>, String> {
    if plan.origin_trouble.is_empty() {
        return Ok(None);
    }
    let at = moment(plan);
    let near = |from: Span| (from.seconds() - at).abs() <= MISS * at / PROGRESS;
    let is_break = |trouble: &Trouble| {
        trouble.kind == TroubleKind::Outage && near(trouble.from) && trouble.to.0 - trouble.from.0 <= BREAK_MAX
    };
    let is_refusal = |trouble: &Trouble| {
        let lasts = trouble.to.0 - trouble.from.0;
        trouble.kind == TroubleKind::TooMany
            && near(trouble.from)
            && trouble.share.0 == 1.0
            && trouble.retry_after == Some(RETRY_AFTER)
            && lasts.abs_diff(REFUSAL) <= BREAK_MAX
    };
    match &plan.origin_trouble[..] {
        [first, second] if is_break(first) && is_refusal(second) => Ok(Some("origin-429")),
        _ => {
            let (from, broken, to) = (at, at + 0.01, at + REFUSAL.as_secs_f64());
            Err(format!(
                "a demo's origin breaks off its streams when 40 % has left it, and refuses for 3 s; for this plan that is \
                 [{{ from = \"{from:.2}s\", to = \"{broken:.2}s\", kind = \"outage\" }}, \
                 {{ from = \"{from:.2}s\", to = \"{to:.2}s\", kind = \"429\", retry_after = \"1s\" }}]"
            ))
        }
    }
}

/// Seconds until the demo's share of all layers has left the origin, if nothing is in the way.
fn moment(plan: &Plan) -> f64 {
    let rate =
        plan.origin_rate.bytes_per_second().min(plan.link_down.bytes_per_second().saturating_mul(plan.nodes as u64));
    PROGRESS * plan.bytes() as f64 / rate as f64
}

/// `no-dht`.
fn of_outages(plan: &Plan) -> Result<Option<&'static str>, String> {
    match plan.dht.outages[..] {
        [] => Ok(None),
        [outage] if outage.from == Span::default() && outage.to >= plan.limit => Ok(Some("no-dht")),
        _ => Err(format!(
            "a demo has no DHT at all: one outage, to = \"{}s\" (the plan's limit) or later",
            plan.limit.seconds()
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn demo(text: &str) -> Result<Vec<String>, String> {
        let plan = Plan::parse(&format!("nodes = 12\nlink_up = \"10MB/s\"\nlink_down = \"10MB/s\"\norigin_rate = \"10MB/s\"\nlayers = [\"200MB\"]\n{text}"), &[]).unwrap();
        let join = |unfit: Vec<Unfit>| unfit.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        Demo::of(&plan).map(|demo| demo.arguments()).map_err(join)
    }

    fn fault(text: &str) -> Result<Option<String>, String> {
        let arguments = demo(text)?;
        let at = arguments.iter().position(|argument| argument == "--fault");
        Ok(at.map(|at| arguments[at + 1].clone()))
    }

    #[test]
    fn a_plan_becomes_the_options_of_a_demo() {
        let options = "--nodes 12 --layers 200MB --link-rate 10MB/s --origin-rate 10MB/s";
        assert_eq!(demo("").unwrap().join(" "), format!("demo --json {options}"));
    }

    #[test]
    fn sizes_of_layers_are_not_taken_for_their_number() {
        assert_eq!(with_unit(ByteSize(5001)), "5001B");
        let bytes = ByteSize(123_456_789);
        assert_eq!(with_unit(bytes).parse(), Ok(bytes));
    }

    #[test]
    fn faults_of_plans_are_faults_of_demos() {
        for (text, expected) in [
            ("", None),
            ("faults = [{ at = 0.4, who = \"lease-holder\" }]", Some("kill-holder")),
            ("faults = [{ at = \"0s\", who = 11, kind = \"slow\" }]", Some("slow-node")),
            (
                "origin_trouble = [{ from = \"8s\", to = \"8.01s\", kind = \"outage\" }, \
                 { from = \"8s\", to = \"11s\", kind = \"429\", retry_after = \"1s\" }]",
                Some("origin-429"),
            ),
            ("dht.outages = [{ to = \"600s\" }]", Some("no-dht")),
        ] {
            assert_eq!(fault(text), Ok(expected.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn what_a_demo_cannot_do_is_named_with_what_it_can() {
        for (text, told) in [
            ("faults = [{ at = 0.5, who = \"lease-holder\" }]", "faults: a demo kills the holder at 0.4"),
            ("faults = [{ at = 0.4, who = 3 }]", "faults: a demo can kill the lease holder"),
            ("faults = [{ at = \"1s\", who = 0.2, kind = \"slow\" }]", "at = \"0s\", one node"),
            ("origin_trouble = [{ to = \"3s\", kind = \"429\" }]", "from = \"8.00s\", to = \"11.00s\", kind = \"429\""),
            ("dht.outages = [{ to = \"60s\" }]", "to = \"600s\""),
            ("jitter = \"1s\"", "jitter: "),
            ("liars = { share = 0.5 }", "liars: "),
            ("limits = { pulls_max = 6 }", "limits: "),
            ("topology = { racks = 2 }", "topology: "),
            ("origin_connection_rate = \"1MB/s\"", "origin_connection_rate: "),
            (
                "faults = [{ at = 0.4, who = \"lease-holder\" }]\ndht.outages = [{ to = \"600s\" }]",
                "one fault, not kill-holder and no-dht",
            ),
        ] {
            let refused = demo(text).unwrap_err();
            assert!(refused.contains(told), "{text}: {refused}");
        }
        let both = demo("readers = false\nlate = [{ nodes = 1, at = \"1s\" }]").unwrap_err();
        assert!(both.contains("readers: ") && both.contains("late: "), "all are named: {both}");
    }

    #[test]
    fn plans_made_for_it_can_be_run_live() {
        for (name, fault) in [
            ("demo-8", None),
            ("demo-12", None),
            ("demo-12-kill-holder", Some("kill-holder")),
            ("demo-12-slow-node", Some("slow-node")),
            ("demo-12-origin-429", Some("origin-429")),
            ("demo-12-no-dht", Some("no-dht")),
        ] {
            assert_eq!(Demo::of(&Plan::load(name, &[]).unwrap()).unwrap().fault, fault, "{name}");
        }
    }
}
