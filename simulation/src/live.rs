//! The model held against reality: a plan simulated, and the same plan run by real daemons on this machine.
//!
//! The daemons are those of `shoal demo`, started as a program: this crate knows nothing of them but the JSON that the
//! demo prints. A plan that asks for what a demo cannot do is refused, key by key. What describes the world rather than
//! the roll-out (`rtt`, `origin_latency`, `message_cost`, `verify_rate`, `dht.locate` and their like) is the model's
//! picture of the machine and goes to the model alone: the difference between the two sides is how good it is.

mod demo;
mod figures;

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use serde_json::json;

use crate::{Plan, PlanError, World};

pub use self::{
    demo::{Demo, Unfit},
    figures::Figures,
};

/// Nodes that are run live if the plan has more and nobody says otherwise: what two processors can carry.
const NODES: usize = 12;

/// The command line of `shoal-sim live`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Name of a plan, or path of one that ends in .toml
    plan: String,
    /// Nodes on both sides [default: the plan's, at most 12]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Sets a key of the plan, for both sides: `layers=["64MiB"]`, `link_up=10MB/s`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Seed of the simulation in place of the plan's
    #[arg(long)]
    seed: Option<u64>,
    /// The program to run live [default: `shoal` beside this one, else in the PATH]
    #[arg(long, value_name = "PATH")]
    shoal: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// No plan, or none that can be simulated.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A plan that real daemons on one machine cannot follow.
    #[error("the plan cannot be run live:{}", .0.iter().map(|unfit| format!("\n  {unfit}")).collect::<String>())]
    Unfit(Vec<Unfit>),
    /// The program cannot be started.
    #[error("cannot run {0}: {1}; build it with `cargo build --release -p shoal-cli`, or name it with --shoal")]
    Start(String, io::Error),
    /// It ended without a report.
    #[error("`{0}` ended with {1} and no report")]
    NoReport(String, std::process::ExitStatus),
    /// Its report is not what is expected: it is of another version.
    #[error("the report of `{0}` makes no sense: {1}")]
    Report(String, serde_json::Error),
}

/// Both sides.
#[derive(Debug)]
struct Comparison {
    command: String,
    simulated: Figures,
    live: Figures,
    unmet: Vec<String>,
    /// What broke, in the demo's words.
    broken: Option<String>,
    succeeded: bool,
}

/// Runs both sides. What to print, and the exit code: 1 if a side failed.
///
/// # Errors
/// See [`LiveError`]: there is nothing to compare.
pub fn run(arguments: &Arguments) -> Result<(String, ExitCode), LiveError> {
    let comparison = compare(arguments)?;
    let good = comparison.unmet.is_empty() && comparison.succeeded;
    let text = if arguments.json { comparison.json() } else { comparison.text() };
    Ok((text, if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

fn compare(arguments: &Arguments) -> Result<Comparison, LiveError> {
    let plan = load(arguments)?;
    let demo = Demo::of(&plan).map_err(LiveError::Unfit)?;
    let report = World::new(&plan)?.run();
    let mut command = Command::new(program(arguments.shoal.as_deref()));
    command.args(demo.arguments()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let shown = shown(&command);
    // The demo ends by itself: each of its waits has a deadline. On ctrl-c it ends as this does.
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| LiveError::Start(name, error))?;
    if output.stdout.is_empty() {
        return Err(LiveError::NoReport(shown, output.status));
    }
    let live = figures::DemoReport::parse(&output.stdout).map_err(|error| LiveError::Report(shown.clone(), error))?;
    Ok(Comparison {
        command: shown,
        simulated: Figures::simulated(&report),
        live: live.figures(),
        unmet: report.unmet,
        broken: live.broken,
        succeeded: output.status.success(),
    })
}

/// The plan with the number of nodes of both sides.
fn load(arguments: &Arguments) -> Result<Plan, PlanError> {
    let mut settings = arguments.settings.clone();
    let plan = Plan::load(&arguments.plan, &settings)?;
    let nodes = arguments.nodes.unwrap_or_else(|| plan.nodes.min(NODES));
    settings.push(format!("nodes={nodes}"));
    let mut plan = Plan::load(&arguments.plan, &settings)?;
    plan.seed = arguments.seed.unwrap_or(plan.seed);
    Ok(plan)
}

fn program(given: Option<&Path>) -> PathBuf {
    let beside = || {
        let here = std::env::current_exe().ok()?;
        Some(here.with_file_name("shoal")).filter(|path| path.is_file())
    };
    given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PathBuf::from("shoal"))
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

impl Comparison {
    fn json(&self) -> String {
        let Self { command, simulated, live, unmet, broken, succeeded } = self;
        let difference = live.minus(simulated);
        json!({
            "command": command,
            "simulated": simulated,
            "live": live,
            "difference": difference,
            "unmet": unmet,
            "broken": broken,
            "succeeded": succeeded,
        })
        .to_string()
            + "\n"
    }

    fn text(&self) -> String {
        let mut text = format!("live: {}\n", self.command);
        if let Some(broken) = &self.broken {
            text += &format!("broken: {broken}\n");
        }
        text += &figures::table(&self.simulated, &self.live);
        for unmet in &self.unmet {
            text += &format!("UNMET in the simulation: {unmet}\n");
        }
        if !self.succeeded {
            text += "FAILED live: `shoal` says why above; without --json its own report is complete\n";
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Arguments {
        CommandLine::parse_from(std::iter::once("live").chain(line.split_whitespace())).arguments
    }

    #[test]
    fn both_sides_have_as_many_nodes_as_this_machine_can_carry_unless_told_otherwise() {
        for (line, nodes) in
            [("demo-8", 8), ("crowd-1000", 12), ("crowd-1000 --nodes 20", 20), ("demo-8 --set nodes=5", 5)]
        {
            assert_eq!(load(&arguments(line)).unwrap().nodes, nodes, "{line}");
        }
    }

    /// A stand-in for `shoal`.
    fn fake(dir: &Path, body: &str) -> String {
        let path = dir.join("fake-shoal");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path.display().to_string()
    }

    const SMALL: &str = r#"--nodes 2 --set layers=["1MiB"]"#;

    #[test]
    fn the_demo_is_told_the_plan_and_its_report_stands_beside_the_simulated_one() {
        let dir = std::env::temp_dir().join(format!("shoal-live-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let report = json!({
            "image_bytes": 1000, "bound_seconds": 2.0, "max_over_bound": 1.5, "copies": 1.0,
            "broken": null, "slow": [], "origin": { "blob_gets": 2 },
            "nodes": [
                { "name": "node1", "seconds": 3.0, "from_origin": 1000, "from_peers": 0, "verified": true },
                { "name": "node2", "seconds": 1.0, "from_origin": 0, "from_peers": 1100, "verified": true },
            ],
        });
        let shoal = fake(&dir, &format!("echo \"$@\" > {}/arguments; echo '{report}'", dir.display()));
        let (text, _) = run(&arguments(&format!("demo-12 {SMALL} --json --shoal {shoal}"))).unwrap();
        let told = std::fs::read_to_string(dir.join("arguments")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(told.trim(), "demo --json --nodes 2 --layers 1MiB --link-rate 10MB/s --origin-rate 10MB/s");
        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["live"]["max_s"], 3.0);
        assert_eq!(result["live"]["duplicate_ratio"], 0.05);
        assert_eq!(result["live"]["origin_blob_gets"], 1.0);
        assert_eq!(result["succeeded"], true);
        let (live, simulated) = (&result["live"]["max_over_bound"], &result["simulated"]["max_over_bound"]);
        let difference = live.as_f64().unwrap() - simulated.as_f64().unwrap();
        assert!((result["difference"]["max_over_bound"].as_f64().unwrap() - difference).abs() < 1e-9);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = compare(&arguments(&format!("demo-12 {SMALL} --shoal /nonexistent/shoal"))).unwrap_err();
        assert!(error.to_string().starts_with("cannot run /nonexistent/shoal: "), "{error}");
    }

    #[test]
    fn a_program_without_a_report_is_an_error() {
        let error = compare(&arguments(&format!("demo-12 {SMALL} --shoal /bin/false"))).unwrap_err();
        assert!(matches!(error, LiveError::NoReport(..)), "{error}");
        let error = compare(&arguments(&format!("demo-12 {SMALL} --shoal /bin/echo"))).unwrap_err();
        assert!(matches!(error, LiveError::Report(..)), "{error}");
    }
}
