//! Short plans drawn at random, and the small ones that come with the program: nothing unsafe happens, every wish is met.
//!
//! `SHOAL_SIM_SEEDS=0..2000 cargo test --release -p shoal-simulation --test random_plans` runs other seeds than the fixed hundred.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    panic,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use shoal_simulation::{Plan, World, random::random_plan, seeds::Seeds};

/// Runs a plan; returns what went wrong.
fn failures(plan: &Plan) -> Option<String> {
    let run = panic::catch_unwind(|| World::new(plan).unwrap().run());
    match run {
        Ok(report) if report.is_met() => None,
        Ok(report) => Some(format!("{} unmet: {}", report.unmet_count, report.unmet.join("; "))),
        Err(_) => Some("it panicked".to_owned()),
    }
}

#[test]
fn short_plans_drawn_at_random_break_no_rule_and_leave_no_wish_unmet() {
    let range = std::env::var("SHOAL_SIM_SEEDS").unwrap_or_else(|_| "0..100".to_owned());
    let Seeds(seeds) = range.parse().unwrap();
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let text = random_plan(seed);
                    if let Some(what) = failures(&Plan::parse(&text, &[]).unwrap()) {
                        failed.lock().unwrap().push((seed, what, text));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    let (mut told, mut list) = (String::new(), String::new());
    for (seed, what, text) in &failed {
        told += &format!("seed {seed}: {what}\nReplay: shoal-sim run --random {seed}\n");
        if list.is_empty() {
            told += &format!("Its plan:\n{text}\n");
        }
        list += &format!(" {seed}");
    }
    assert!(failed.is_empty(), "{} of {} plans failed:{list}\n{told}", failed.len(), seeds.end - seeds.start);
}

#[test]
fn the_small_plans_that_come_with_the_program_break_no_rule_and_leave_no_wish_unmet() {
    for name in ["demo-8", "demo-12", "holder-killed", "late-joiners", "zones-small", "slow-parts", "troubled"] {
        // A tenth of each layer is enough here, and fast enough for builds without optimisation.
        let plan = Plan::load(name, &[]).unwrap();
        let layers = plan.layers.iter().map(|layer| shoal_proto::units::ByteSize(layer.bytes() / 10)).collect();
        let failure = failures(&Plan { layers, ..plan });
        assert_eq!(failure, None, "Replay: shoal-sim run {name}, with layers of a tenth");
    }
}
