//! Samples, medians, and how they are shown.

use std::{collections::BTreeMap, io::Write as _};

use serde::Serialize;
use tempfile::TempDir;

use crate::{Failure, nginx, options::Options};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    /// From the origin through one node.
    Origin,
    /// A sealed blob to a local client.
    Local,
    /// From one node to another, through the second.
    Peer,
}

impl Subject {
    const fn title(self) -> &'static str {
        match self {
            Self::Origin => "from the origin, through a node",
            Self::Local => "local hit",
            Self::Peer => "node to node",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    seconds: f64,
    gigabytes_per_second: f64,
    /// Processor seconds per gigabyte of each watched process.
    cpu: Vec<Option<f64>>,
}

impl Sample {
    /// `spent` has the processor seconds of each process before and after `times` passes of `bytes`, each of which took
    /// `seconds`.
    pub(crate) fn new(bytes: u64, seconds: f64, spent: &[(Option<f64>, Option<f64>)], times: usize) -> Self {
        let gigabytes = bytes as f64 / 1e9;
        let cpu =
            spent.iter().map(|(before, after)| Some((after.as_ref()? - before.as_ref()?) / (gigabytes * times as f64)));
        Self { seconds, gigabytes_per_second: gigabytes / seconds, cpu: cpu.collect() }
    }
}

/// Resident bytes of the two nodes of a round: idle, and at most.
type Memory = ([Option<u64>; 2], [Option<u64>; 2]);

/// All samples.
#[derive(Debug)]
pub(crate) struct Results {
    samples: BTreeMap<(Subject, String), Vec<Sample>>,
    memory: BTreeMap<String, Vec<Memory>>,
    size: u64,
    rounds: usize,
    nginx: Option<String>,
    load_before: Option<String>,
}

impl Results {
    pub(crate) fn new(options: &Options, nginx: Option<String>) -> Self {
        Self {
            samples: BTreeMap::new(),
            memory: BTreeMap::new(),
            size: options.size.0,
            rounds: options.rounds,
            nginx,
            load_before: load(),
        }
    }

    pub(crate) fn add(&mut self, who: &str, subject: Subject, sample: Sample) {
        self.samples.entry((subject, who.to_owned())).or_default().push(sample);
    }

    pub(crate) fn memory(&mut self, who: &str, idle: [Option<u64>; 2], peak: [Option<u64>; 2]) {
        self.memory.entry(who.to_owned()).or_default().push((idle, peak));
    }

    /// The medians. Takes the scratch directory to remove it before anything is printed.
    pub(crate) fn finish(self, scratch: TempDir) -> Report {
        if let Err(error) = scratch.close() {
            eprintln!("figures: cannot remove the temporary directory: {error}");
        }
        let figures = self.samples.iter().map(|((subject, who), samples)| Figure::of(*subject, who, samples)).collect();
        let memory = self.memory.iter().map(|(who, rounds)| {
            let most = |pick: fn(&Memory) -> [Option<u64>; 2]| rounds.iter().flat_map(pick).flatten().max();
            let kept = Kept { rss_idle_bytes: most(|memory| memory.0), rss_peak_bytes: most(|memory| memory.1) };
            (who.clone(), kept)
        });
        Report {
            blob_bytes: self.size,
            rounds: self.rounds,
            memory: memory.collect(),
            nginx: self.nginx,
            congestion_nginx: format!("{}, on the listening socket that nginx was given", nginx::CONGESTION),
            congestion_shoal: "reno, set by the daemon on each loopback connection",
            load_before: self.load_before,
            load_after: load(),
            figures,
        }
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    blob_bytes: u64,
    rounds: usize,
    figures: Vec<Figure>,
    memory: BTreeMap<String, Kept>,
    nginx: Option<String>,
    congestion_nginx: String,
    congestion_shoal: &'static str,
    /// `/proc/loadavg` at the start: what else the machine did.
    load_before: Option<String>,
    load_after: Option<String>,
}

/// The most that any daemon kept in memory.
#[derive(Debug, Serialize)]
struct Kept {
    rss_idle_bytes: Option<u64>,
    rss_peak_bytes: Option<u64>,
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
struct Figure {
    subject: Subject,
    who: String,
    seconds: f64,
    gigabytes_per_second: f64,
    /// Slowest and fastest.
    gigabytes_per_second_range: [f64; 2],
    /// Of each watched process: the sender first.
    cpu_seconds_per_gigabyte: Vec<Option<f64>>,
}

impl Figure {
    fn of(subject: Subject, who: &str, samples: &[Sample]) -> Self {
        let all = |pick: fn(&Sample) -> f64| samples.iter().map(pick).collect::<Vec<_>>();
        let speeds = all(|sample| sample.gigabytes_per_second);
        let processes = samples.first().map_or(0, |sample| sample.cpu.len());
        let cpu = (0..processes).map(|at| {
            let values: Option<Vec<f64>> = samples.iter().map(|sample| sample.cpu[at]).collect();
            values.map(median)
        });
        Self {
            subject,
            who: who.to_owned(),
            seconds: median(all(|sample| sample.seconds)),
            gigabytes_per_second_range: [
                speeds.iter().copied().fold(f64::INFINITY, f64::min),
                speeds.iter().copied().fold(0.0, f64::max),
            ],
            gigabytes_per_second: median(speeds),
            cpu_seconds_per_gigabyte: cpu.collect(),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

fn load() -> Option<String> {
    std::fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned())
}

impl Report {
    pub(crate) fn print(&self, json: bool) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            writeln!(out)?;
            return Ok(());
        }
        let mib = self.blob_bytes >> 20;
        writeln!(out, "{mib} MiB, medians of {} rounds; GB = 10^9 bytes\n", self.rounds)?;
        writeln!(out, "{:32} {:14} {:>6} {:>6} {:>13}  CPU s/GB (sender, receiver)", "", "", "s", "GB/s", "range")?;
        for figure in &self.figures {
            let [slowest, fastest] = figure.gigabytes_per_second_range;
            let cpu = figure.cpu_seconds_per_gigabyte.iter();
            let cpu: Vec<_> = cpu.map(|cpu| cpu.map_or_else(|| "?".to_owned(), |cpu| format!("{cpu:.2}"))).collect();
            writeln!(
                out,
                "{:32} {:14} {:6.2} {:6.2} {:>13}  {}",
                figure.subject.title(),
                figure.who,
                figure.seconds,
                figure.gigabytes_per_second,
                format!("{slowest:.2}-{fastest:.2}"),
                cpu.join(", ")
            )?;
        }
        writeln!(out)?;
        for (who, kept) in &self.memory {
            let mib = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 20).to_string());
            let (idle, peak) = (mib(kept.rss_idle_bytes), mib(kept.rss_peak_bytes));
            writeln!(out, "memory of {who}: {idle} MiB idle, {peak} MiB at most")?;
        }
        match &self.nginx {
            Some(version) => writeln!(out, "{version}: congestion control {}", self.congestion_nginx)?,
            None => writeln!(out, "nginx is not installed: nothing to compare a local hit with")?,
        }
        writeln!(out, "shoal: congestion control {}", self.congestion_shoal)?;
        let unknown = || "?".to_owned();
        let before = self.load_before.clone().unwrap_or_else(unknown);
        let after = self.load_after.clone().unwrap_or_else(unknown);
        writeln!(out, "load before: {before}; after: {after}")?;
        Ok(())
    }
}
