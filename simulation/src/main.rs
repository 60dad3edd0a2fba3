//! `shoal-sim`: runs plans of the simulation and shows what came of them.

use std::{fmt, io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use shoal_simulation::{
    Plan, Report,
    compare::compare,
    live,
    page::page,
    plan,
    random::random_plan,
    results::{Line, Results},
    seeds::{Seeds, Work, tell_of_panics},
};

/// Simulates rollouts of container layers over thousands of nodes. The nodes decide by the very code that the daemon runs; the
/// network, the origin registry, the DHT and everything that goes wrong are simulated.
///
/// What a run is made of stands in a plan: one of those that come with the program (`shoal-sim plans`), or a file of yours.
/// simulation/README.md shows how to write one.
///
/// Exit codes: 0 all is well; 1 a node did not get its layers, or something happened that never must; 64 a plan, a file or an
/// option that makes no sense.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a plan and report how long it took against the physical bound, what the origin paid, what went wrong
    Run(Run),
    /// List the plans that come with the program
    Plans {
        /// Print the text of this plan, as a pattern for your own.
        plan: Option<String>,
    },
    /// Show two result files in one table, with the differences
    ///
    /// Files are what `run --json` prints; several results may stand in one file, one after another. Plans are matched by
    /// name and settings; one plan on each side is compared whatever its name. A + is worse but for what is not a figure of
    /// quality; figures of quality that got worse are marked with !.
    Compare {
        /// Results before.
        a: String,
        /// Results after.
        b: String,
    },
    /// Make a self-contained HTML page with plots from a result file
    ///
    /// It shows completion against the bound, what the origin sent, how busy links were, bytes between zones, and all
    /// figures. It needs no network and no scripts.
    Report {
        /// What `run --json` printed; several results may stand in one file, one after another.
        result: String,
        /// Where the page goes.
        #[arg(short, long, default_value = "report.html")]
        output: String,
    },
    /// Run a plan with real daemons on this machine too, and print both results side by side
    ///
    /// The daemons are those of `shoal demo`. A plan that asks for what a demo cannot do is refused, key by key.
    Live(live::Arguments),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Name of a plan, or path of one that ends in .toml.
    #[arg(required_unless_present = "random")]
    plan: Option<String>,
    /// Run the short plan drawn at random from this seed, in place of a named one.
    #[arg(long, value_name = "SEED", conflicts_with = "plan")]
    random: Option<u64>,
    /// Seed of all chance, in place of the plan's. The same seed gives the same run, event by event.
    #[arg(long)]
    seed: Option<u64>,
    /// Run many seeds, and report each as it ends and the worst of each figure: 0..20 are the twenty seeds 0 to 19.
    #[arg(long, value_name = "A..B", conflicts_with = "seed")]
    seeds: Option<Seeds>,
    /// Set a key of the plan: `nodes=20`, `limits.pulls_max=8`, `faults.0.at=0.3`. May be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print the result as JSON, for `compare`, `report` and programs.
    #[arg(long)]
    json: bool,
    /// With --seeds: how many runs at a time. Each takes one core, and the memory of its nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
}

const BAD: u8 = 64;

/// Prints to one of the two outputs. A closed pipe is the reader's choice.
fn print(to: &mut impl Write, text: impl fmt::Display) {
    let written = writeln!(to, "{text}").and_then(|()| to.flush());
    drop(written);
}

fn out(text: impl fmt::Display) {
    print(&mut std::io::stdout(), text);
}

fn err(text: impl fmt::Display) {
    print(&mut std::io::stderr(), text);
}

fn failed(report: &Report) {
    let Report { plan, seed, unmet_count, replay, .. } = report;
    err(format_args!("FAILED: plan {plan}, seed {seed}: {unmet_count} unmet. Replay: {replay}"));
}

/// With so many nodes a run waits for the memory most of its time.
const CROWD: usize = 1000;

/// Starts this program anew with memory in large pages, which cost a crowd a fifth less time. Where that cannot be had, all
/// goes on as it is.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn take_large_pages() {
    use std::{env, os::unix::process::CommandExt, process};
    const TUNABLES: &str = "GLIBC_TUNABLES";
    if env::var_os(TUNABLES).is_none()
        && let Ok(program) = env::current_exe()
    {
        let arguments = env::args_os().skip(1);
        // It returns only if it failed.
        drop(process::Command::new(program).args(arguments).env(TUNABLES, "glibc.malloc.hugetlb=1").exec());
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn take_large_pages() {}

fn run(run: &Run) -> Result<ExitCode, String> {
    let drawn = run.random.map(|seed| format!("random-{seed}"));
    let name = run.plan.clone().or(drawn).unwrap_or_default();
    let plan = Plan::load(&name, &run.settings).map_err(|error| error.to_string())?;
    if plan.nodes >= CROWD {
        take_large_pages();
    }
    let (seed, about) = (run.seed.unwrap_or(plan.seed), plan.about.clone());
    let work = Work { name: &name, settings: &run.settings, plan };
    let Some(seeds) = &run.seeds else {
        let report = work.run(seed).map_err(|error| error.to_string())?;
        out(if run.json { json(&report)? } else { report.to_string().trim_end().to_owned() });
        if report.is_met() {
            return Ok(ExitCode::SUCCESS);
        }
        failed(&report);
        return Ok(ExitCode::FAILURE);
    };
    let each = |report: &Report| {
        if run.json {
            err(Line(report))
        } else {
            out(Line(report))
        }
        if !report.is_met() {
            failed(report);
        }
    };
    let reports = work.run_all(seeds, usize::from(run.jobs), each).map_err(|error| error.to_string())?;
    let results = Results::new(&name, &about, &run.settings, reports);
    out(if run.json { json(&results)? } else { results.to_string().trim_end().to_owned() });
    Ok(if results.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn json(value: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| format!("cannot write the result: {error}"))
}

fn plans(plan: Option<&str>) -> Result<String, String> {
    let Some(name) = plan else {
        let about = |name: &str| Plan::load(name, &[]).map_or_else(|error| error.to_string(), |plan| plan.about);
        let lines: Vec<String> = plan::PLANS.iter().map(|(name, _)| format!("{name:15} {}", about(name))).collect();
        return Ok(lines.join("\n"));
    };
    let drawn = name.strip_prefix("random-").and_then(|seed| seed.parse().ok()).map(random_plan);
    let text = plan::PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| text.trim_end().to_owned());
    text.or(drawn).ok_or_else(|| plan::PlanError::Unknown(name.to_owned()).to_string())
}

fn read(path: &str) -> Result<Vec<Results>, String> {
    Results::read(path).map_err(|error| error.to_string())
}

fn obey(command: &Command) -> Result<ExitCode, String> {
    match command {
        Command::Run(options) => return run(options),
        Command::Live(arguments) => {
            let (text, code) = live::run(arguments).map_err(|error| error.to_string())?;
            out(text.trim_end());
            return Ok(code);
        }
        Command::Plans { plan } => out(plans(plan.as_deref())?),
        Command::Compare { a, b } => out(compare(&read(a)?, &read(b)?).trim_end()),
        Command::Report { result, output } => {
            let text = page(&read(result)?);
            std::fs::write(output, text).map_err(|error| format!("cannot write {output}: {error}"))?;
            out(output);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    tell_of_panics();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(BAD) } else { ExitCode::SUCCESS };
        }
    };
    obey(&arguments.command).unwrap_or_else(|error| {
        err(format_args!("shoal-sim: {error}"));
        ExitCode::from(BAD)
    })
}
