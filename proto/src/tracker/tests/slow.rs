//! Holders that are slow: trials, and what they cost.

use super::*;

/// A cluster in which each holder lets the others get so many chunks a second. Everybody but holders beats each second.
struct Cluster {
    rig: Rig,
    have: Vec<f64>,
    rates: Vec<f64>,
    holder: Option<(u8, Grant)>,
    /// The holder was asked to give the lease back.
    asked: bool,
    deaf: bool,
    /// It gets 100 chunks a second, whatever the others get.
    hoarder: Option<u8>,
    gone: Option<u8>,
    left: u32,
    /// Who held the lease, in turn.
    held: Vec<u8>,
    /// The others named in the last grant.
    named: Vec<Contact>,
}

impl Cluster {
    fn new(rates: &[f64]) -> Self {
        let mut cluster = Self {
            rig: Rig::new(),
            have: vec![0.0; rates.len()],
            rates: rates.to_vec(),
            holder: None,
            asked: false,
            deaf: false,
            hoarder: None,
            gone: None,
            left: 100_000,
            held: Vec::new(),
            named: Vec::new(),
        };
        for id in 0..rates.len() as u8 {
            let out = cluster.rig.join(id, join(Standing::Starved));
            cluster.obey(out);
        }
        cluster
    }

    fn obey(&mut self, out: Vec<Send>) {
        for Send { peer, message } in out {
            let id = peer.0[0];
            if let Message::Joined { lease: Some(grant), peers, .. } = message {
                if self.holder != Some((id, grant)) {
                    self.holder = Some((id, grant));
                    self.asked = false;
                    self.held.push(id);
                    self.named = peers;
                    self.beat(id);
                }
            } else if let Message::Revoked { .. } = message {
                self.asked |= self.holder.is_some_and(|(holder, _)| holder == id);
            }
        }
    }

    fn leave(&mut self, id: u8) {
        self.gone = Some(id);
        let out = self.rig.handle(Input::Left { peer: peer(id), digest: digest() });
        self.obey(out);
    }

    fn beat(&mut self, id: u8) {
        if self.gone == Some(id) {
            return;
        }
        let have = self.have[usize::from(id)] as u32;
        let plain = Join { have, ..join(Standing::Fetching) };
        let lease = self.holder.filter(|(holder, _)| *holder == id).map(|(_, grant)| grant);
        let report = match lease {
            Some(_) if self.asked && !self.deaf => plain,
            Some(grant) => {
                let held = Held {
                    epoch: grant.epoch,
                    scope: grant.scope,
                    bytes: 1 + (u64::from(have) << 20),
                    left: self.left,
                    streams: 1,
                };
                Join { lease: Some(held), ..plain }
            }
            None => plain,
        };
        let out = self.rig.join(id, report);
        self.obey(out);
    }

    /// Lets time pass in steps of 100 ms.
    fn run(&mut self, seconds: f64) {
        for _ in 0..(seconds * 10.0) as u32 {
            let out = self.rig.wait(Duration::from_millis(100));
            let rate = self.holder.map_or(0.0, |(holder, _)| self.rates[usize::from(holder)]);
            self.have.iter_mut().for_each(|have| *have += rate / 10.0);
            if let Some((holder, _)) = self.holder.filter(|(holder, _)| self.hoarder == Some(*holder)) {
                self.have[usize::from(holder)] += 10.0;
            }
            self.obey(out);
            let tick = self.rig.now.as_nanos() / 100_000_000;
            for id in 0..self.rates.len() as u8 {
                let holds = self.holder.is_some_and(|(holder, _)| holder == id);
                if holds && (tick.is_multiple_of(4) || self.asked) || !holds && tick % 10 == u64::from(id) % 10 {
                    self.beat(id);
                }
            }
        }
    }
}

#[test]
fn a_slow_holder_is_found_out_after_two_chunks_and_another_keeps_the_lease() {
    let mut rates = [100.0; 20];
    rates[0] = 2.0;
    let mut cluster = Cluster::new(&rates);
    cluster.run(1.5);
    assert!(cluster.held.len() > 1, "somebody else was tried");
    cluster.run(60.0);
    assert_ne!(cluster.holder.map(|(id, _)| id), Some(0));
    assert!(cluster.held.len() <= 4, "{:?}", cluster.held);
}

#[test]
fn where_the_origin_is_the_limit_few_are_tried() {
    let mut cluster = Cluster::new(&[10.0; 20]);
    cluster.run(25.0);
    assert!((2..=3).contains(&cluster.held.len()), "{:?}", cluster.held);
    // Somebody else may still do better, and is looked for once in a while.
    cluster.run(35.0);
    assert!((3..=5).contains(&cluster.held.len()), "{:?}", cluster.held);
    cluster.run(3600.0);
    assert!(cluster.held.len() <= 20, "{:?}", cluster.held);
}

#[test]
fn where_each_holder_differs_the_lease_settles_at_the_best_of_a_few() {
    let rates: Vec<f64> = (0..20_u8).map(|id| f64::from(1 << (id % 6)) * 3.0).collect();
    let mut cluster = Cluster::new(&rates);
    cluster.run(60.0);
    let tried: BTreeSet<u8> = cluster.held.iter().copied().collect();
    assert!((3..=4).contains(&tried.len()), "{:?}", cluster.held);
    let best = tried.iter().max_by_key(|id| **id % 6).expect("some were tried");
    assert_eq!(cluster.holder.map(|(id, _)| id), Some(*best), "{:?}", cluster.held);
}

/// A cluster whose first holder gets all that there is and cannot send it.
#[test]
fn a_holder_that_hoards_is_found_out_though_it_gets_much() {
    let mut cluster = Cluster::new(&[100.0; 20]);
    cluster.rates[0] = 2.0;
    cluster.hoarder = Some(0);
    cluster.run(3.0);
    assert!(cluster.held.len() > 1);
    cluster.run(60.0);
    assert_ne!(cluster.holder.map(|(id, _)| id), Some(0));
    assert!(cluster.held.len() <= 4, "{:?}", cluster.held);
}

#[test]
fn a_good_holder_gets_the_lease_back_from_a_slow_one() {
    // Whoever is tried is slow.
    let mut rates = [1.0; 12];
    rates[0] = 50.0;
    let mut cluster = Cluster::new(&rates);
    cluster.run(8.0);
    assert_eq!(cluster.held[0], 0);
    assert_eq!(cluster.held[2], 0, "{:?}", cluster.held);
    assert_eq!(cluster.held[..3].iter().filter(|id| **id == 0).count(), 2);
}

#[test]
fn where_the_better_holder_is_gone_anybody_else_gets_the_lease_of_a_slow_one() {
    let mut cluster = Cluster::new(&[50.0, 50.0, 1.0]);
    let slow = |cluster: &Cluster| cluster.holder.is_some_and(|(id, _)| id == 2);
    for _ in 0..200 {
        if !slow(&cluster) {
            cluster.run(0.1);
        }
    }
    assert!(slow(&cluster), "{:?}", cluster.held);
    let best = cluster.held[cluster.held.len() - 2];
    cluster.leave(best);
    cluster.run(20.0);
    assert_eq!(cluster.holder.map(|(id, _)| id), Some(1 - best), "{:?}", cluster.held);
}

#[test]
fn the_chunk_of_a_holder_that_gets_next_to_nothing_is_not_waited_for() {
    let held_after = |slow: f64| {
        let mut rates = [slow; 12];
        rates[0] = 50.0;
        let mut cluster = Cluster::new(&rates);
        cluster.run(1.0);
        assert_eq!(cluster.held.len(), 2, "{:?}", cluster.held);
        // It goes on, since its chunk is not over.
        cluster.deaf = true;
        cluster.run(5.0);
        cluster.held.len()
    };
    assert_eq!(held_after(1.0), 3);
    assert_eq!(held_after(10.0), 2, "that would be lost");
}

#[test]
fn a_holder_that_becomes_slow_after_the_trials_is_found_out_too() {
    let mut cluster = Cluster::new(&[100.0; 20]);
    cluster.run(20.0);
    let (holder, _) = cluster.holder.expect("somebody streams");
    cluster.rates[usize::from(holder)] = 2.0;
    cluster.run(25.0);
    assert_ne!(cluster.holder.map(|(id, _)| id), Some(holder));
}

#[test]
fn nobody_else_is_tried_where_the_end_is_near() {
    let mut cluster = Cluster::new(&[100.0; 20]);
    cluster.left = 3000;
    cluster.run(5.0);
    assert_eq!(cluster.held, [0]);
}

#[test]
fn whoever_takes_a_lease_over_is_told_of_the_old_holder() {
    let mut cluster = Cluster::new(&[10.0; 60]);
    cluster.run(0.5);
    assert_eq!(cluster.held.len(), 2);
    assert!(cluster.named.contains(&contact(0)), "{:?}", cluster.named);
}

#[test]
fn a_holder_that_does_not_give_the_lease_back_loses_it() {
    let mut cluster = Cluster::new(&[10.0; 20]);
    cluster.deaf = true;
    cluster.run(0.5);
    assert_eq!(cluster.held, [0]);
    cluster.run(6.5);
    assert_eq!(cluster.held.len(), 2);
}

#[test]
fn a_holder_alone_keeps_the_lease() {
    let mut cluster = Cluster::new(&[1.0]);
    cluster.run(30.0);
    assert_eq!(cluster.held, [0]);
}

#[test]
fn a_tracker_that_only_heard_of_a_lease_tries_nobody() {
    let mut rig = Rig::new();
    for id in 2..20 {
        rig.join(id, Join { standing: Standing::Shut, ..join(Standing::Shut) });
    }
    for step in 0..20 {
        let out = rig.join(1, beat(Grant { epoch: Epoch(4), ..first() }, step));
        assert!(revoked_of(&out).is_empty());
        rig.join(2, join(Standing::Fetching));
        rig.wait(Limits::default().lease_heartbeat);
    }
}
