//! `shoal demo` with something broken: what it reports must be true of any machine, however slow.

use std::{process::Command, time::Duration};

use serde_json::Value;
use shoal_tests::process::run;

use crate::SHOAL;

/// How long a demo may take before something is wrong.
const DEMO: Duration = Duration::from_secs(120);

/// The report of a demo, and its exit code.
async fn demo(options: &str) -> (Value, Option<i32>) {
    let mut command = Command::new(SHOAL);
    command.args(["demo", "--json"]).args(options.split_whitespace());
    let output = run(command, DEMO).await.unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{options}: no report ({error})\n{}", String::from_utf8_lossy(&output.stderr));
    });
    (report, output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_survives_the_death_of_the_node_that_streams_from_the_origin() {
    let (report, code) =
        demo("--nodes 4 --layers 20MiB,4MiB --link-rate 4MB/s --origin-rate 4MB/s --fault kill-holder").await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["survivors"], 3, "{report}");
    assert_eq!(report["killed"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["verified"], true, "{report}");
    // What the dead one had and nobody else comes again; not the whole image.
    assert!(report["copies"].as_f64().unwrap() < 1.4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_no_dht_brings_together_still_cost_the_origin_one_copy() {
    let (report, code) = demo("--nodes 3 --layers 4MiB,1MiB --fault no-dht").await;
    assert_eq!(code, Some(0), "{report}");
    assert!(report["copies"].as_f64().unwrap() < 1.2, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_for_a_while_delays_a_rollout_and_does_not_fail_it() {
    let (report, code) =
        demo("--nodes 3 --layers 12MiB,4MiB --link-rate 4MB/s --origin-rate 4MB/s --fault origin-429").await;
    assert_eq!(code, Some(0), "{report}");
    assert!(report["origin"]["broken"].as_u64() > Some(0), "{report}");
    assert!(report["copies"].as_f64().unwrap() < 1.4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_node_that_is_slow_on_purpose() {
    let (report, code) =
        demo("--nodes 4 --layers 12MiB,4MiB --link-rate 4MB/s --origin-rate 4MB/s --fault slow-node").await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["slow"], serde_json::json!(["node4"]));
    let healthy = report["nodes"].as_array().unwrap().iter().filter(|node| node["name"] != "node4");
    assert!(healthy.into_iter().all(|node| node["verified"] == true), "{report}");
}
