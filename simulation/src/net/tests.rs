#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::*;

fn near(time: Time, seconds: f64) -> bool {
    (time.since(Time::ZERO).as_secs_f64() - seconds).abs() < 1e-3
}

fn start(net: &mut Net, now: Time, links: &[LinkId], bytes: u64) -> FlowId {
    net.start(now, Path::new(links), None, bytes, 0)
}

/// Exact max-min rates by progressive filling: all rates grow together until a link is full; its transfers stop there.
fn exact(rates: &[f64], paths: &[Vec<usize>]) -> Vec<f64> {
    let mut given: Vec<Option<f64>> = vec![None; paths.len()];
    while given.contains(&None) {
        let level = |link: usize| {
            let on = || paths.iter().zip(&given).filter(|(path, _)| path.contains(&link));
            let taken: f64 = on().filter_map(|(_, given)| *given).sum();
            let open = on().filter(|(_, given)| given.is_none()).count();
            (open > 0).then(|| ((rates[link] - taken) / open as f64, link))
        };
        let (rate, full) = (0..rates.len()).filter_map(level).min_by(|one, two| one.0.total_cmp(&two.0)).unwrap();
        for (path, given) in paths.iter().zip(&mut given) {
            if given.is_none() && path.contains(&full) {
                *given = Some(rate);
            }
        }
    }
    given.into_iter().flatten().collect()
}

#[test]
fn transfers_share_a_link_and_one_that_cannot_use_its_share_leaves_it_to_the_others() {
    let mut net = Net::default();
    let (up, slow, fast, spare) = (net.link(100), net.link(10), net.link(1000), net.link(1000));
    let held_back = start(&mut net, Time::ZERO, &[up, slow], 100);
    let first = start(&mut net, Time::ZERO, &[up, fast], 90);
    let second = start(&mut net, Time::ZERO, &[up, spare], 90);
    // 10 to the slow one, 45 to each of the others.
    let (end, flow) = net.next_end(Time::ZERO).unwrap();
    assert!(near(end, 2.0) && flow == first, "{end:?}");
    assert!((net.usage(up) - 1.0).abs() < 0.01);
    assert_eq!((net.stop(end, first), net.stop(end, second)), (0, 0));
    let (end, flow) = net.next_end(end).unwrap();
    assert!(near(end, 10.0) && flow == held_back, "{end:?}");
    assert_eq!(net.stop(end, flow), 0);
    assert_eq!(net.next_end(end), None);
}

#[test]
fn a_stopped_transfer_says_what_it_had_left_and_frees_its_share() {
    let mut net = Net::default();
    let (up, one, two) = (net.link(100), net.link(100), net.link(100));
    let stopped = start(&mut net, Time::ZERO, &[up, one], 1000);
    let other = start(&mut net, Time::ZERO, &[up, two], 1000);
    assert!(near(net.next_end(Time::ZERO).unwrap().0, 20.0));
    let later = Time::ZERO + Duration::from_secs(10);
    assert_eq!((net.left(later, stopped), net.stop(later, stopped), net.stop(later, stopped)), (500, 500, 0));
    let (end, flow) = net.next_end(later).unwrap();
    assert!(near(end, 15.0) && flow == other, "{end:?}");
}

#[test]
fn a_cap_holds_and_a_transfer_goes_on_at_its_rate() {
    let mut net = Net::default();
    let path = Path::new(&[net.link(100), net.link(100)]);
    let flow = net.start(Time::ZERO, path, Some(20), 20, 7);
    let (end, _) = net.next_end(Time::ZERO).unwrap();
    assert!(near(end, 1.0));
    net.go_on(end, flow, 40);
    assert!(near(net.next_end(end).unwrap().0, 3.0));
}

#[test]
fn the_narrowest_link_of_a_path_decides_and_may_change_its_rate() {
    let mut net = Net::default();
    let links: Vec<LinkId> = [100, 80, 50, 60, 70, 90].into_iter().map(|rate| net.link(rate)).collect();
    let flow = start(&mut net, Time::ZERO, &links, 200);
    let (end, _) = net.next_end(Time::ZERO).unwrap();
    assert!(near(end, 4.0), "{end:?}");
    let later = Time::ZERO + Duration::from_secs(2);
    net.set_rate(links[4], 10);
    assert_eq!(net.next_end(later), Some((later + Duration::from_nanos(10_000_000_001), flow)));
}

#[test]
fn rates_are_those_of_exact_fairness_within_some_percent_once_all_links_have_settled() {
    for seed in 0..20 {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut net = Net::default();
        let rates: Vec<f64> = (0..60).map(|_| f64::from(rng.random_range(20..200_u32)) * 1e4).collect();
        let links: Vec<LinkId> = rates.iter().map(|rate| net.link(*rate as u64)).collect();
        let (mut paths, mut flows) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            // An uplink, for some a link that many share, and a downlink.
            let mut path = vec![rng.random_range(0..28), rng.random_range(32..60)];
            if rng.random_bool(0.5) {
                path.insert(1, rng.random_range(28..32));
            }
            let through: Vec<LinkId> = path.iter().map(|at: &usize| links[*at]).collect();
            flows.push(start(&mut net, Time::ZERO, &through, 1 << 50));
            paths.push(path);
            net.next_end(Time::ZERO);
        }
        for _ in 0..100 {
            net.next_end(Time::ZERO);
        }
        let mut off = 0.0;
        let fair = exact(&rates, &paths);
        for (flow, fair) in flows.iter().zip(&fair) {
            off += (net.flows[flow.index()].rate - fair).abs() / fair / flows.len() as f64;
        }
        assert!(off < 0.03, "seed {seed}: rates are {off} off on average");
    }
}

#[test]
fn links_stay_full_but_not_fuller_while_transfers_come_and_go_and_no_byte_is_lost() {
    let mut rng = Pcg64Mcg::seed_from_u64(7);
    let mut net = Net::default();
    const NODES: usize = 40;
    const CHUNK: u64 = 1 << 20;
    let ups: Vec<LinkId> = (0..NODES).map(|_| net.link(1_000_000_000)).collect();
    let downs: Vec<LinkId> = (0..NODES).map(|_| net.link(1_000_000_000)).collect();
    let (mut now, mut ends) = (Time::ZERO, 0_u64);
    let mut path = |from: usize| {
        let to = rng.random_range(0..NODES);
        Path::new(&[ups[from], downs[to]])
    };
    // Each node sends 12 chunks at any time, each to any node.
    let mut senders = vec![0; NODES * 12];
    for from in 0..NODES * 12 {
        let flow = net.start(now, path(from % NODES), None, CHUNK, 0);
        senders[flow.index()] = from % NODES;
        net.next_end(now);
    }
    let (mut used, mut full, mut samples) = (0.0, 0.0, 0.0);
    while ends < 10_000 {
        let (end, flow) = net.next_end(now).unwrap();
        used += ups.iter().map(|up| net.usage(*up)).sum::<f64>() * end.since(now).as_secs_f64();
        for link in ups.iter().chain(&downs) {
            let usage = net.usage(*link);
            assert!(usage < 1.05, "a link carries {usage} of its rate");
            if net.links[link.at()].binds {
                full += usage;
                samples += 1.0;
            }
        }
        now = end;
        assert_eq!(net.stop(now, flow), 0);
        ends += 1;
        let from = senders[flow.index()];
        let flow = net.start(now, path(from), None, CHUNK, 0);
        senders[flow.index()] = from;
    }
    let full: f64 = full / samples;
    assert!((0.99..1.002).contains(&full), "links that are wanted carry {full} of their rate on average");
    let under_way: u64 = (0..net.flows.len() as u32)
        .map(|index| CHUNK - net.left(now, FlowId { index, generation: net.flows[index as usize].generation }))
        .sum();
    let (sent, arrived) = (used * 1e9, (ends * CHUNK + under_way) as f64);
    assert!((sent / arrived - 1.0).abs() < 1e-4, "{sent} bytes went through links, {arrived} arrived");
}
