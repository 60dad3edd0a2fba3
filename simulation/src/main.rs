//! `shoal-sim`: runs plans of the simulation.

use std::{io::Write, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use shoal_simulation::{Plan, PlanError, Report, World, live, plan};

/// Runs the machines of Shoal in a simulated world.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a plan and reports; fails if something that should have come about did not.
    Run {
        /// Name of a plan, or path of one that ends in .toml.
        plan: String,
        /// Seed in place of the plan's.
        #[arg(long)]
        seed: Option<u64>,
        /// Sets a key of the plan: `nodes=20`, `limits.pulls_max=8`.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Reports as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Runs a plan with real daemons on this machine too, and prints both results side by side.
    Live(live::Arguments),
    /// Lists the plans that come with the program.
    Plans,
}

fn run(name: &str, seed: Option<u64>, settings: &[String]) -> Result<Report, PlanError> {
    let mut plan = Plan::load(name, settings)?;
    plan.seed = seed.unwrap_or(plan.seed);
    #[expect(clippy::disallowed_methods, reason = "how long the run takes in real time is reported beside its result")]
    let start = Instant::now();
    let mut report = World::new(&plan)?.run();
    report.wall_s = start.elapsed().as_secs_f64();
    Ok(report)
}

fn plans() -> String {
    let about = |name: &str| Plan::load(name, &[]).map_or_else(|error| error.to_string(), |plan| plan.about);
    plan::PLANS.iter().map(|(name, _)| format!("{name:16} {}\n", about(name))).collect()
}

fn main() -> ExitCode {
    let (text, code) = match Arguments::parse().command {
        Command::Plans => (plans(), ExitCode::SUCCESS),
        Command::Live(arguments) => live::run(&arguments),
        Command::Run { plan, seed, settings, json } => match run(&plan, seed, &settings) {
            Err(error) => (format!("shoal-sim: {error}\n"), ExitCode::from(64)),
            Ok(report) => {
                let code = if report.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                let text =
                    if json { serde_json::to_string(&report).unwrap_or_default() + "\n" } else { report.to_string() };
                (text, code)
            }
        },
    };
    // A closed pipe is the reader's choice.
    let written = if code == ExitCode::from(64) {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
    drop(written);
    code
}
