#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::*;

fn parse(text: &str) -> Plan {
    Plan::parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    Plan::parse(text, &[]).map(|_| ()).expect_err(text).to_string()
}

#[test]
fn every_plan_of_the_program_can_be_run() {
    for (name, _) in PLANS {
        let plan = Plan::load(name, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!plan.about.is_empty(), "{name}");
    }
}

#[test]
fn an_empty_plan_is_a_plan() {
    assert_eq!(parse(""), Plan::default());
}

#[test]
fn unknown_keys_are_named_wherever_they_are() {
    for (text, key) in [
        ("link_upp = \"1MB/s\"", "link_upp"),
        ("[topology]\nzoness = 3", "zoness"),
        ("[dht]\nlocat = \"1ms\"", "locat"),
        ("dht.outages = [{ from = \"1s\", too = \"2s\" }]", "too"),
        ("faults = [{ at = 0.5, who = 1, whom = 2 }]", "whom"),
        ("[liars]\nshares = 0.2", "shares"),
        ("[limits]\npulls = 3", "pulls"),
    ] {
        let error = error(text);
        assert!(error.contains(key), "{text}: {error}");
    }
}

#[test]
fn impossible_values_are_refused() {
    for text in [
        "link_up = \"fast\"",
        "rtt = 5",
        "nodes = 0",
        "layers = []",
        "limits.pulls_max = \"many\"",
        "limits.lease_timeout = \"1ms\"",
        "faults = [{ who = 100, at = \"1s\" }]",
        "faults = [{ who = \"nobody\", at = \"1s\" }]",
        "faults = [{ who = \"rack:1\", at = \"1s\" }]",
        "faults = [{ who = 1.5, at = \"1s\" }]",
        "faults = [{ who = 1, at = 1.5 }]",
        "faults = [{ who = 1, at = 0.5, disk = \"kept\" }]",
        "faults = [{ who = 1, at = 0.5, kind = \"slow\", factor = 0.0 }]",
        "faults = [{ who = 1, at = 0.5, kind = \"slow\", after = \"1s\" }]",
        "origin_trouble = [{ to = \"1s\", kind = \"418\" }]",
        "origin_trouble = [{ from = \"2s\", to = \"1s\", kind = \"429\" }]",
        "origin_trouble = [{ to = \"1s\", kind = \"truncate\", retry_after = \"1s\" }]",
        "poisson = {}",
        "poisson = { rate = 3.0, gap = \"1s\" }",
        "poisson = { rate = 0.0 }",
        "jitter = \"1s\"\npoisson = { rate = 3.0 }",
        "base = [{ layer = 1 }]",
        "liars = { share = 2.0 }",
        "liars = { kinds = [] }",
        "topology = { zones = 0 }",
        "topology = { oversubscription = 0.5 }",
        "nodes = 7\ntopology = { racks = 2, hosts = 3 }",
    ] {
        error(text);
    }
    assert!(matches!(Plan::load("nothing", &[]), Err(PlanError::Unknown(_))));
    assert!(matches!(Plan::load("nothing.toml", &[]), Err(PlanError::Read(..))));
}

#[test]
fn settings_take_the_place_of_what_the_plan_says() {
    let settings = ["nodes=3", "rtt=7ms", "limits.pulls_max=9", "limits.got_delay=1ms", "seed=5"].map(str::to_owned);
    let plan = Plan::load("demo-8", &settings).unwrap();
    assert_eq!((plan.nodes, plan.rtt.0, plan.seed), (3, Duration::from_millis(7), 5));
    let limits = plan.limits().unwrap();
    assert_eq!((limits.pulls_max, limits.got_delay), (9, Duration::from_millis(1)));
    let text = "faults = [{ at = 0.5, who = 1 }]";
    let plan = Plan::parse(text, &["faults.0.at=0.25".to_owned(), "dht.table=0".to_owned()]).unwrap();
    assert_eq!((plan.faults[0].at, plan.dht.table), (Moment::Progress(0.25), 0));
    for setting in ["nodes", "=3", "faults.x=3", "faults.0.at.b=3", "faults.9.at=0.5"] {
        assert!(matches!(Plan::parse(text, &[setting.to_owned()]), Err(PlanError::Setting(_))), "{setting}");
    }
}

#[test]
fn nodes_are_dealt_to_racks_in_turn_and_far_ones_are_further_away() {
    let plan = parse(
        "rtt = \"1ms\"\nzone_rtt = \"2ms\"\nfar_rtt = \"3ms\"\nlink_up = \"100MB/s\"\nlink_down = \"200MB/s\"\n\
         topology = { zones = 2, racks = 3, hosts = 4, oversubscription = 2 }",
    );
    assert_eq!(plan.nodes, 24);
    let hosts = |rack| (0..plan.nodes).filter(|node| plan.topology.site(*node).rack == rack).count();
    assert!((0..6).all(|rack| hosts(rack) == 4));
    assert_eq!(plan.topology.site(9), Site { zone: 1, rack: 3 });
    let trips = [0, 6, 2, 1].map(|other| plan.round_trip(0, other).as_millis());
    assert_eq!(trips, [0, 1, 2, 3]);
    assert_eq!(plan.rack_rates(), Some((200_000_000, 400_000_000)));
    assert_eq!(parse("topology = { racks = 3 }").rack_rates(), None);
}

#[test]
fn faults_say_whom_when_and_what() {
    let plan = parse(
        r#"
        nodes = 40
        topology = { zones = 2, racks = 2 }
        faults = [
            { at = "1s", who = 7 },
            { at = 0.5, who = 0.25, kind = "restart", over = "20s", after = "3s", disk = "lost" },
            { at = "2s", who = "rack:3", kind = "slow", factor = 0.1, what = "up", for = "4s" },
            { at = "0s", who = "zone", kind = "partition" },
            { at = 0.0, who = "lease-holder" },
            { at = 0.0, who = "trackers" },
        ]"#,
    );
    let [crash, restart, slow, partition, ..] = plan.faults[..] else { panic!("{plan:?}") };
    assert_eq!(
        (crash.who, crash.kind, crash.at),
        (Victims::Node(7), FaultKind::Crash, Moment::After(Span::millis(1000)))
    );
    assert_eq!(
        (restart.who, restart.at, restart.disk()),
        (Victims::Share(Share(0.25)), Moment::Progress(0.5), Disk::Lost)
    );
    assert_eq!((restart.down(), restart.over), (Span::millis(3000), Span::millis(20_000)));
    assert_eq!((slow.who, slow.what(), slow.lasts()), (Victims::Rack(Some(3)), What::Up, Some(Span::millis(4000))));
    assert_eq!((partition.who, partition.lasts()), (Victims::Zone(None), Some(Span::millis(10_000))));
    let counts: Vec<usize> = plan.faults.iter().map(|fault| fault.who.count(&plan)).collect();
    assert_eq!(counts, [1, 10, 10, 20, 1, 8]);
}

#[test]
fn arrivals_follow_from_the_plan_and_its_seed() {
    let plan = parse("nodes = 400\npoisson = { gap = \"50ms\" }\nlate = [{ nodes = 1, at = \"90s\" }]");
    let starts = plan.starts();
    assert_eq!(starts, plan.starts());
    assert_eq!(starts[399], Duration::from_secs(90));
    assert!(starts[..399].is_sorted());
    let last = starts[398].as_secs_f64();
    assert!((17.0..23.0).contains(&last), "{last}");
    assert_ne!(starts, Plan { seed: 1, ..plan }.starts());
    let plan = parse("nodes = 5\nlate = [{ nodes = 1, at = \"1s\" }, { nodes = 2, at = \"2s\" }]");
    assert_eq!(plan.starts().iter().map(Duration::as_secs).collect::<Vec<_>>(), [0, 0, 2, 2, 1]);
    let plan = parse("jitter = \"2s\"");
    assert!(plan.starts().iter().all(|start| *start < Duration::from_secs(2)));
}

#[test]
fn base_layers_and_liars_are_drawn_in_exact_numbers() {
    let plan = parse(
        "nodes = 60\nlayers = [\"1MiB\", \"2MiB\"]\nbase = [{ layer = 1, share = 0.5 }]\n\
         liars = { share = 0.2, kinds = [\"corrupt\", \"silent\"] }",
    );
    let held: Vec<usize> = plan.held().iter().map(|held| held.iter().filter(|held| **held).count()).collect();
    assert_eq!(held, [0, 30]);
    let lies = plan.lies();
    let count = |lie| lies.iter().filter(|other| **other == Some(lie)).count();
    assert_eq!((count(Lie::Corrupt), count(Lie::Silent), count(Lie::ForgedChain)), (6, 6, 0));
    assert_ne!(lies, Plan { seed: 9, ..plan }.lies());
}

#[test]
fn outages_and_troubles_know_their_time() {
    let plan = parse(
        "origin_trouble = [{ from = \"1s\", to = \"2s\", kind = \"429\", share = 0.5, retry_after = \"1s\" }]\n\
         dht.outages = [{ to = \"60s\" }]",
    );
    let trouble = plan.origin_trouble[0];
    let at = Duration::from_millis;
    assert!(trouble.hits(at(1000), 0.4) && !trouble.hits(at(1000), 0.6) && !trouble.hits(at(2000), 0.4));
    assert_eq!(plan.dht.outage_until(at(59_999)), Some(Duration::from_secs(60)));
    assert_eq!(plan.dht.outage_until(at(60_000)), None);
}

/// The keys that a table may have, as the error about an unknown one lists them.
fn keys(table: &str) -> Vec<String> {
    let error = error(&format!("{table}no_such_key = 1"));
    let list = error.split("expected one of").nth(1).unwrap_or_default();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_readme_names_every_key_and_its_example_can_be_run() {
    let readme = include_str!("../../README.md");
    let example = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let plan = parse(example);
    assert_eq!((plan.faults.len(), plan.origin_trouble.len(), plan.topology.zones), (3, 1, 2));
    let tables = ["", "[topology]\n", "[dht]\n", "[liars]\n", "[[faults]]\n", "[[origin_trouble]]\n"];
    let keys: Vec<String> = tables.into_iter().flat_map(keys).collect();
    assert!(keys.len() > 50, "{keys:?}");
    let code =
        readme.split('`').skip(1).step_by(2).flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    let words: std::collections::BTreeSet<&str> = code.collect();
    let unnamed: Vec<_> = keys.iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
}
