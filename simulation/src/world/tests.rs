#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn plan(name: &str, settings: &[&str]) -> Plan {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    Plan::load(name, &settings).unwrap()
}

fn run(name: &str, settings: &[&str]) -> Report {
    World::new(&plan(name, settings)).unwrap().run()
}

/// Small enough for builds without optimisation.
const SMALL: &str = "layers=[\"24MiB\"]";

#[test]
fn a_rollout_costs_the_origin_one_copy_and_ends_close_to_the_bound() {
    let report = run("demo-8", &["layers=[\"32MiB\", \"16MiB\"]"]);
    assert_eq!(report.unmet, Vec::<String>::new());
    assert_eq!((report.origin_copies, report.origin_blob_gets), (1.0, 2));
    assert!(report.max_over_bound >= 1.0 && report.max_over_bound < 1.2, "{report}");
    assert!(report.p50_s <= report.p99_s && report.p99_s <= report.max_s);
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let (one, same, other) = (run("demo-8", &[SMALL]), run("demo-8", &[SMALL]), run("demo-8", &[SMALL, "seed=1"]));
    assert_eq!(one, same);
    assert_ne!(one.trace, other.trace);
}

#[test]
fn the_death_of_the_lease_holder_costs_neither_the_others_nor_the_origin_much() {
    let report = run("holder-killed", &[SMALL]);
    assert_eq!(report.unmet, Vec::<String>::new());
    assert_eq!(report.counts["deaths"], 1);
    assert!(report.origin_copies < 1.3, "{report}");
}

#[test]
fn late_nodes_take_nothing_from_the_origin() {
    let report = run("late-joiners", &[SMALL, "late=[{ nodes = 2, at = \"0.5s\" }, { nodes = 2, at = \"5s\" }]"]);
    assert_eq!(report.unmet, Vec::<String>::new());
    assert_eq!((report.origin_copies, report.origin_blob_gets), (1.0, 1));
}

#[test]
fn slow_links_do_not_make_pulls_fail() {
    let slow =
        ["link_up=200kB/s", "link_down=200kB/s", "origin_rate=200kB/s", "layers=[\"16MiB\", \"16MiB\"]", "limit=6000s"];
    let report = run("demo-8", &slow);
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.origin_copies < 1.01, "{report}");
}

#[test]
fn a_node_that_has_less_than_its_machine_says_is_noticed() {
    let mut world = World::new(&plan("demo-8", &[SMALL])).unwrap();
    while world.nodes[0].holdings[0].have.len() < 3 {
        assert!(world.step());
    }
    for at in 0..world.blobs[0].layout.count() {
        world.nodes[0].holdings[0].have.remove(ChunkIndex(at));
    }
    let report = world.run();
    assert!(report.unmet.iter().any(|breach| breach.starts_with("node 0 ")), "{report}");
}

#[test]
fn a_node_that_nobody_can_reach_is_reported_as_unmet() {
    let report = run("demo-8", &[SMALL, "limit=0.5s"]);
    assert!(report.unmet.iter().any(|unmet| unmet.contains("did not get its layers")), "{report}");
    assert!(!report.is_met());
}

#[test]
fn an_announcement_counts_once_and_only_of_what_is_there() {
    let mut checks = Checks::default();
    checks.announced(1, 0, true);
    assert_eq!(checks.count(), 0);
    checks.announced(1, 0, true);
    checks.announced(2, 0, false);
    assert_eq!(checks.count(), 2);
    assert_eq!(checks.breaches().len(), 2);
}
