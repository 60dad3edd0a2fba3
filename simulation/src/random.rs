//! Short plans drawn at random: sizes, rates, places, faults, liars and limits within valid ranges.
//!
//! A plan's seed is that of its drawing, so one number names the plan and the run. The plan comes as text, for people to read
//! and to cut down when its run fails.

use std::fmt::{Display, Write};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::chunk::Layout;

/// Chunks that all nodes of a plan take in together at most, so that a run is short.
const CHUNKS_MAX: u64 = 4000;
const KB: f64 = 1e3;
const MB: f64 = 1e6;

/// The text of the plan that a seed names.
#[must_use]
pub fn random_plan(seed: u64) -> String {
    let mut draw = Draw { rng: Pcg64Mcg::seed_from_u64(seed ^ 0x5eed), text: String::new() };
    draw.key("about", Quoted(format!("a plan drawn at random, seed {seed}")));
    draw.key("seed", seed);
    draw.key("limit", Quoted("600s"));
    let nodes = draw.basics();
    draw.arrivals(nodes);
    draw.troubles();
    draw.faults(nodes);
    draw.tables();
    draw.limits();
    draw.text
}

/// A plan in the making.
struct Draw {
    rng: Pcg64Mcg,
    text: String,
}

/// A text in TOML.
struct Quoted<T>(T);

impl<T: Display> Display for Quoted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl Draw {
    fn key(&mut self, key: &str, value: impl Display) {
        let written = writeln!(self.text, "{key} = {value}");
        debug_assert!(written.is_ok(), "texts take all");
    }

    fn table(&mut self, name: &str) {
        self.text.push_str(name);
        self.text.push('\n');
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    /// Evenly on a logarithmic scale.
    fn log(&mut self, from: f64, to: f64) -> f64 {
        (from.ln() + self.rng.random::<f64>() * (to / from).ln()).exp()
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    fn millis(&mut self, from: f64, to: f64) -> Quoted<String> {
        Quoted(format!("{:.3}ms", self.log(from, to)))
    }

    fn rate(&mut self, from: f64, to: f64) -> Quoted<String> {
        Quoted(format!("{:.0}kB/s", self.log(from, to) / KB))
    }

    /// Nodes, layers, links, origin. Returns how many nodes.
    fn basics(&mut self) -> usize {
        let nodes = self.log(2.0, 60.9) as usize;
        let mut layers: Vec<u64> = Vec::new();
        let mut chunks = 0;
        for _ in 0..self.rng.random_range(1..=5) {
            let size = self.log(KB, 64.0 * MB) as u64;
            let count = Layout::new(size).map_or(0, |layout| u64::from(layout.count()));
            if layers.is_empty() || (chunks + count) * nodes as u64 <= CHUNKS_MAX {
                chunks += count;
                layers.push(size);
            }
        }
        if chunks * nodes as u64 > CHUNKS_MAX {
            layers[0] = CHUNKS_MAX / nodes as u64 * Layout::CHUNK_BYTES_MIN;
        }
        let layers: Vec<String> = layers.iter().map(|size| Quoted(format!("{size}B")).to_string()).collect();
        self.key("nodes", nodes);
        self.key("layers", format!("[{}]", layers.join(", ")));
        let (up, down, origin) = (self.rate(3.0 * MB, 1e9), self.rate(3.0 * MB, 1e9), self.rate(3.0 * MB, 1e9));
        self.key("link_up", up);
        self.key("link_down", down);
        self.key("origin_rate", origin);
        if self.chance(0.3) {
            let rate = self.rate(2.0 * MB, 100.0 * MB);
            self.key("origin_connection_rate", rate);
        }
        let (latency, rtt, detect) = (self.millis(1.0, 300.0), self.millis(0.05, 5.0), self.millis(300.0, 5000.0));
        self.key("origin_latency", latency);
        self.key("rtt", rtt);
        self.key("detect", detect);
        let retry = self.millis(500.0, 8000.0);
        self.key("retry", retry);
        let readers = self.chance(0.7);
        self.key("readers", readers);
        nodes
    }

    fn arrivals(&mut self, nodes: usize) {
        match self.rng.random_range(0..4) {
            0 => {
                let jitter = self.millis(1.0, 10_000.0);
                self.key("jitter", jitter);
            }
            1 => {
                let gap = self.millis(1.0, 500.0);
                self.key("poisson", format!("{{ gap = {gap} }}"));
            }
            _ => {}
        }
        if self.chance(0.3) {
            let (late, at) = (self.rng.random_range(1..=nodes / 2), self.millis(100.0, 20_000.0));
            self.key("late", format!("[{{ nodes = {late}, at = {at} }}]"));
        }
        if self.chance(0.2) {
            let share = self.log(0.02, 1.0);
            self.key("base", format!("[{{ layer = 0, share = {share:.3} }}]"));
        }
    }

    fn window(&mut self) -> String {
        let (from, lasts) = (self.log(1.0, 8000.0), self.log(50.0, 12_000.0));
        format!("from = \"{from:.0}ms\", to = \"{:.0}ms\"", from + lasts)
    }

    fn troubles(&mut self) {
        if !self.chance(0.3) {
            return;
        }
        let troubles: Vec<String> = (0..self.rng.random_range(1..=3))
            .map(|_| {
                let (window, kind) = (self.window(), self.pick(&["429", "5xx", "truncate", "outage"]));
                let wait = self.millis(50.0, 5000.0);
                let wait = if ["429", "5xx"].contains(&kind) && self.chance(0.5) {
                    format!(", retry_after = {wait}")
                } else {
                    String::new()
                };
                let share = self.log(0.1, 1.0);
                format!("{{ {window}, kind = \"{kind}\", share = {share:.3}{wait} }}")
            })
            .collect();
        self.key("origin_trouble", format!("[{}]", troubles.join(", ")));
    }

    fn faults(&mut self, nodes: usize) {
        if !self.chance(0.5) {
            return;
        }
        let faults: Vec<String> = (0..self.rng.random_range(1..=3)).map(|_| self.fault(nodes)).collect();
        self.key("faults", format!("[{}]", faults.join(", ")));
    }

    fn fault(&mut self, nodes: usize) -> String {
        let at = if self.chance(0.5) {
            format!("{:.3}", self.rng.random::<f64>())
        } else {
            self.millis(10.0, 10_000.0).to_string()
        };
        let who = match self.rng.random_range(0..7) {
            0 => self.rng.random_range(0..nodes).to_string(),
            1 | 2 => format!("{:.3}", self.log(0.05, 0.8)),
            3 | 4 => "\"lease-holder\"".to_owned(),
            5 => "\"tracker\"".to_owned(),
            _ => "\"trackers\"".to_owned(),
        };
        let kind = match self.rng.random_range(0..5) {
            0 => "kind = \"crash\"".to_owned(),
            1 | 2 => {
                let (after, disk) = (self.millis(10.0, 8000.0), self.pick(&["kept", "lost"]));
                format!("kind = \"restart\", after = {after}, disk = \"{disk}\"")
            }
            3 => format!("kind = \"partition\", for = {}", self.millis(100.0, 15_000.0)),
            _ => {
                let (factor, what) = (self.log(0.1, 0.9), self.pick(&["up", "down", "both", "disk"]));
                let lasts = self.millis(500.0, 20_000.0);
                format!("kind = \"slow\", factor = {factor:.3}, what = \"{what}\", for = {lasts}")
            }
        };
        let over = if !kind.contains("partition") && self.chance(0.3) {
            format!(", over = {}", self.millis(100.0, 10_000.0))
        } else {
            String::new()
        };
        format!("{{ at = {at}, who = {who}, {kind}{over} }}")
    }

    /// Liars, places and the DHT.
    fn tables(&mut self) {
        if self.chance(0.3) {
            let all = ["corrupt", "lying-availability", "silent", "forged-chain"];
            let mut kinds: Vec<String> =
                all.iter().filter(|_| self.rng.random_bool(0.5)).map(|kind| Quoted(kind).to_string()).collect();
            if kinds.is_empty() {
                kinds.push(Quoted(self.pick(&all)).to_string());
            }
            let (share, colluding) = (self.log(0.02, 0.39), self.chance(0.3));
            self.table("[liars]");
            self.key("share", format!("{share:.3}"));
            self.key("kinds", format!("[{}]", kinds.join(", ")));
            self.key("colluding", colluding);
        }
        if self.chance(0.3) {
            self.table("[topology]");
            let (zones, racks, over) = (self.rng.random_range(1..=3), self.rng.random_range(1..=4), self.log(1.0, 8.0));
            self.key("zones", zones);
            self.key("racks", racks);
            self.key("oversubscription", format!("{over:.2}"));
        }
        self.table("[dht]");
        let (locate, publish, staleness) =
            (self.millis(1.0, 300.0), self.millis(1.0, 500.0), self.millis(500.0, 20_000.0));
        self.key("locate", locate);
        self.key("publish", publish);
        self.key("staleness", staleness);
        let trackers = self.rng.random_range(1..=8);
        self.key("trackers", trackers);
        if self.chance(0.2) {
            let (window, table) = (self.window(), self.pick(&[0, 1, 3, 20]));
            self.key("outages", format!("[{{ {window} }}]"));
            self.key("table", table);
        }
    }

    /// Limits of the machines that fit together.
    fn limits(&mut self) {
        if !self.chance(0.6) {
            return;
        }
        self.table("[limits]");
        let neighbours = self.rng.random_range(2..=20);
        self.key("neighbours_max", neighbours);
        let remotes = neighbours + self.rng.random_range(0..=40);
        self.key("remotes_max", remotes);
        for (key, from, to) in [
            ("pulls_max", 1, 16),
            ("node_pulls_max", 2, 24),
            ("pulls_per_peer_max", 1, 4),
            ("uploads_max", 1, 16),
            ("asks_waiting_max", 0, 8),
            ("releases_max", 4, 32),
            ("releases_per_peer_max", 1, 4),
            ("release_chunks_min", 1, 16),
            ("urgent_chunks", 0, 8),
            ("urgent_pulls_max", 0, 4),
            ("endgame_chunks", 0, 12),
            ("sign_states", 2, 64),
            ("strikes_max", 2, 8),
            ("trackers_max", 1, 8),
            ("hints", 0, 8),
            ("origin_tries", 2, 6),
        ] {
            let value = self.rng.random_range(from..=to);
            self.key(key, value);
        }
        let heartbeat = self.log(200.0, 2000.0);
        let lease_heartbeat = self.log(100.0, 1000.0);
        let lease_timeout = lease_heartbeat * self.log(3.1, 8.0);
        let lease_stall = lease_timeout * self.log(1.1, 4.0);
        let trial = self.log(100.0, 1000.0);
        for (key, value) in [
            ("heartbeat", heartbeat),
            ("member_timeout", heartbeat * self.log(3.1, 10.0)),
            ("lease_heartbeat", lease_heartbeat),
            ("lease_timeout", lease_timeout),
            ("lease_stall", lease_stall),
            ("stall_timeout", lease_stall * self.log(1.1, 4.0)),
            ("lease_trial", trial),
            ("lease_trial_max", trial * self.log(1.1, 30.0)),
            ("lease_handover", lease_heartbeat * self.log(1.1, 5.0)),
            ("got_delay", self.log(0.5, 100.0)),
            ("sign_delay", self.log(1.0, 50.0)),
            ("release_timeout", self.log(300.0, 5000.0)),
            ("pull_timeout_min", self.log(100.0, 1500.0)),
            ("pull_timeout_first", self.log(500.0, 5000.0)),
            ("join_timeout", self.log(200.0, 2000.0)),
            ("holders_patience", self.log(50.0, 1000.0)),
            ("fallback_window", self.log(200.0, 5000.0)),
            ("origin_backoff", self.log(50.0, 1000.0)),
        ] {
            self.key(key, Quoted(format!("{value:.3}ms")));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn every_seed_names_a_plan_that_can_be_run_and_always_the_same() {
        for seed in 0..2000 {
            let text = random_plan(seed);
            let plan = Plan::parse(&text, &[]).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            assert!(plan.seed == seed && (2..=60).contains(&plan.nodes));
            assert_eq!(text, random_plan(seed));
        }
    }
}
