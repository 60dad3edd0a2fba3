#![allow(clippy::unwrap_used, reason = "tests")]

use shoal_proto::{chain::LinkEnd, peer::PeerId};

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
    // The lease of one layer may go to the node that streams the other, with what is left of the chunk on its way.
    assert!(report.origin_copies < 1.001 && report.origin_blob_gets <= 3, "{report}");
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

/// Ten nodes, 16 MiB at 20 MB/s, so that all are done after about a second.
pub(super) fn small(text: &str) -> Plan {
    let base =
        "nodes = 10\nlayers = [\"16MiB\"]\nlink_up = \"20MB/s\"\nlink_down = \"20MB/s\"\norigin_rate = \"20MB/s\"";
    let mut table: toml::Table = base.parse().unwrap();
    table.extend(text.parse::<toml::Table>().unwrap());
    Plan::parse(&table.to_string(), &[]).unwrap()
}

pub(super) fn ended(text: &str) -> Report {
    World::new(&small(text)).unwrap().run()
}

#[test]
fn survivors_of_a_crash_of_half_of_all_nodes_get_their_layers() {
    let report = ended(
        "faults = [{ at = 0.5, who = \"lease-holder\" }, { at = 0.5, who = \"trackers\" }, { at = 0.5, who = 0.5 }]\n\
         dht = { trackers = 2 }",
    );
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.counts["deaths"] >= 5 && report.counts["deaths"] <= 8, "{report}");
}

#[test]
fn a_restarted_node_goes_on_with_what_its_disk_keeps() {
    let restarted = |disk: &str| {
        let text = format!("faults = [{{ at = 0.7, who = 3, kind = \"restart\", after = \"1s\", disk = \"{disk}\" }}]");
        let mut world = World::new(&small(&text)).unwrap();
        while world.generations[3] == 0 {
            assert!(world.step());
        }
        assert!(!world.nodes[3].alive);
        while !world.nodes[3].alive {
            assert!(world.step());
        }
        let kept = world.nodes[3].holdings[0].have.len();
        let report = world.run();
        assert_eq!(report.unmet, Vec::<String>::new());
        assert_eq!(report.counts["restarts"], 1);
        (kept, report)
    };
    let ((kept, with), (lost, without)) = (restarted("kept"), restarted("lost"));
    assert!(kept > 0 && lost == 0, "{kept} {lost}");
    assert!(with.max_s < without.max_s, "{} {}", with.max_s, without.max_s);
    assert!(with.max_over_bound >= 1.0 && without.max_over_bound >= 1.0, "{with}\n{without}");
}

#[test]
fn a_complete_node_that_lost_its_disk_fetches_all_anew_from_its_peers() {
    let report = ended(
        "faults = [{ at = \"1.5s\", who = 3, kind = \"restart\", after = \"1s\", disk = \"lost\" }]\n\
         late = [{ nodes = 1, at = \"6s\" }]",
    );
    assert_eq!(report.unmet, Vec::<String>::new());
    assert_eq!((report.counts["restarts"], report.origin_blob_gets), (1, 1));
}

#[test]
fn every_node_can_be_restarted_one_after_another() {
    let report = ended("faults = [{ at = \"0.2s\", over = \"8s\", who = 1.0, kind = \"restart\", after = \"0.5s\" }]");
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.counts["restarts"] >= 2, "{report}");
}

#[test]
fn racks_and_zones_go_down_together() {
    let place = "topology = { zones = 2, racks = 2 }\n";
    let dead = |who: &str| ended(&format!("{place}faults = [{{ at = 0.3, who = \"{who}\" }}]")).counts["deaths"];
    assert_eq!((dead("rack:0"), dead("rack:3"), dead("zone:1")), (3, 2, 5));
    assert!([2, 3].contains(&dead("rack")));
}

#[test]
fn a_fault_of_the_lease_holder_waits_until_there_is_one() {
    let report = ended("faults = [{ at = \"0s\", who = \"lease-holder\" }]");
    assert_eq!((report.counts["deaths"], report.unmet), (1, Vec::<String>::new()));
}

#[test]
fn nobody_asks_an_origin_that_said_when_to_come_back_before_that() {
    let report = ended("origin_trouble = [{ to = \"1s\", kind = \"429\", retry_after = \"2s\" }]");
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.max_s >= 2.0 + report.bound_s && report.origin_blob_gets <= 4, "{report}");
}

#[test]
fn bodies_that_are_cut_short_are_asked_for_again_from_there() {
    let report = ended("origin_trouble = [{ to = \"5s\", kind = \"truncate\", share = 0.7 }]");
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.origin_blob_gets >= 2 && report.origin_copies < 1.5, "{report}");
}

#[test]
fn an_outage_breaks_off_what_is_on_its_way_and_the_rest_comes_after_it() {
    let report = ended("origin_trouble = [{ from = \"0.4s\", to = \"3s\", kind = \"outage\" }]");
    assert_eq!(report.unmet, Vec::<String>::new());
    assert!(report.max_s > 3.0 && report.origin_blob_gets >= 3, "{report}");
    assert!(report.origin_copies > 1.0 && report.origin_copies < 1.5, "{report}");
}

/// 20 nodes of which `share` lie.
fn lied_to(kinds: &str, share: f64, colluding: bool, seed: u64) -> Report {
    ended(&format!(
        "seed = {seed}\nnodes = 20\nlayers = [\"16MiB\", \"200kB\"]\nlink_up = \"40MB/s\"\nlink_down = \"40MB/s\"\n\
         liars = {{ share = {share:?}, kinds = [{kinds}], colluding = {colluding} }}"
    ))
}

fn without_layers(report: &Report) -> usize {
    report.unmet.iter().filter(|unmet| unmet.contains("did not get")).count()
}

#[test]
fn chunks_of_a_corrupt_node_are_taken_by_nobody() {
    let report = lied_to("\"corrupt\"", 0.2, false, 1);
    assert_eq!((without_layers(&report), report.wrong_bytes), (0, 0), "{report}");
    assert!(report.counts["corrupt chunks"] > 0);
}

#[test]
fn those_who_boast_of_chunks_and_those_who_never_answer_stop_nobody() {
    for kind in ["\"lying-availability\"", "\"silent\""] {
        let report = lied_to(kind, 0.2, false, 2);
        assert_eq!((report.unmet, report.wrong_bytes, report.honest_blamed), (Vec::<String>::new(), 0, 0), "{kind}");
    }
    assert!(lied_to("\"lying-availability\"", 0.2, false, 2).counts["missing"] > 0);
}

#[test]
fn a_forged_chain_is_found_out_and_no_layer_is_taken_with_bytes_of_it() {
    for colluding in [false, true] {
        let report = lied_to("\"forged-chain\"", 0.2, colluding, 3);
        assert_eq!((without_layers(&report), report.wrong_bytes), (0, 0), "colluding: {colluding}\n{report}");
        assert!(report.counts["disputes"] > 0);
    }
}

#[test]
fn wrong_bytes_taken_for_good_are_noticed() {
    let mut world = World::new(&small("")).unwrap();
    while world.nodes[0].holdings[0].have.len() < 3 {
        assert!(world.step());
    }
    let chunk = world.nodes[0].holdings[0].have.iter().next().unwrap();
    world.nodes[0].holdings[0].store(chunk, Bytes(7));
    let report = world.run();
    assert!(report.wrong_bytes > 0 && !report.is_met());
}

#[test]
fn made_up_bytes_fit_their_own_chain_but_for_its_end() {
    let blob = Blob::new(1, 0, 4 << 20);
    let (forged, true_chain) = (blob.segments_of(PeerId([1; 32]), Bytes(3)), blob.segments(PeerId([1; 32])));
    for (chain, bytes) in [(forged, Bytes(3)), (true_chain, Bytes::TRUE)] {
        let states = &chain[0].states;
        for (at, pair) in states.windows(2).enumerate() {
            assert_eq!(blob.link(pair[0], ChunkIndex(at as u32), bytes), LinkEnd::State(pair[1]));
            assert_ne!(blob.link(pair[0], ChunkIndex(at as u32), Bytes(4)), LinkEnd::State(pair[1]));
        }
        let end = blob.link(states[states.len() - 1], blob.layout.last(), bytes);
        assert_eq!(end == LinkEnd::Digest(blob.digest), bytes == Bytes::TRUE);
    }
}
