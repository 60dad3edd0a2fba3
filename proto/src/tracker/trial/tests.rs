//! What a tracker decides from what it hears of one lease.

use super::*;

/// What the tracker hears of one holder, which gets so many bytes a second, until it decides something.
fn tenure(trial: &mut Trial, now: &mut Time, holder: u8, rate: u64, left: u32) -> Option<Verdict> {
    let report = |at: Time, since: Time| Report {
        at,
        have: 1 + u32::try_from(at.since(since).as_millis() / 1000).expect("a short test"),
        left,
        streams: 1,
        amount: 1 + rate * u64::try_from(at.since(since).as_millis()).expect("a short test") / 1000,
        members: 100,
    };
    let since = *now;
    trial.begin(PeerId([holder; 32]), report(since, since));
    let reports = (1..=600).map(|step| since + Duration::from_millis(50) * step);
    for at in reports {
        *now = at;
        match trial.judge(report(at, since), &Limits::default()) {
            Verdict::Stay => {}
            verdict @ (Verdict::Another | Verdict::Back { .. }) => {
                trial.ask_back(PeerId([holder + 1; 32]));
                return Some(verdict);
            }
        }
    }
    None
}

#[test]
fn two_slow_holders_in_a_row_are_no_proof_of_a_slow_origin() {
    let (mut trial, mut now) = (Trial::default(), Time::ZERO);
    assert_eq!(tenure(&mut trial, &mut now, 1, 1_000_000, 100_000), Some(Verdict::Another));
    assert_eq!(tenure(&mut trial, &mut now, 2, 1_000_000, 100_000), Some(Verdict::Another));
    // The third is better, so that there may be a better one still.
    assert_eq!(tenure(&mut trial, &mut now, 3, 50_000_000, 100_000), Some(Verdict::Another));
    assert_eq!(
        tenure(&mut trial, &mut now, 4, 1_000_000, 100_000),
        Some(Verdict::Back { to: PeerId([3; 32]), hopeless: true })
    );
}

#[test]
fn three_equal_holders_are() {
    let (mut trial, mut now) = (Trial::default(), Time::ZERO);
    for holder in [1, 2] {
        assert_eq!(tenure(&mut trial, &mut now, holder, 1_000_000, 100_000), Some(Verdict::Another));
    }
    assert_eq!(tenure(&mut trial, &mut now, 3, 1_000_000, 100_000), None);
}

#[test]
fn a_first_holder_that_gets_no_chunk_in_a_second_is_replaced_and_the_second_has_its_time() {
    let decided_after = |tried: u8, left: u32| {
        let mut trial = Trial::default();
        let report = |milliseconds: u64, amount: u64| Report {
            at: Time::ZERO + Duration::from_millis(milliseconds),
            have: 0,
            left,
            streams: 1,
            amount,
            members: 100,
        };
        for holder in 0..tried {
            trial.ask_back(PeerId([holder; 32]));
            trial.begin(PeerId([holder; 32]), report(0, 1));
        }
        let judged = |at: &u64| trial.judge(report(*at, 1 + at), &Limits::default()) != Verdict::Stay;
        (100..=3000).step_by(100).find(judged)
    };
    assert_eq!(decided_after(1, 48), Some(1000));
    assert_eq!(decided_after(1, 4), None, "too little is left");
    assert_eq!(decided_after(2, 48), None, "two in a row: it is not the holder");
}

#[test]
fn a_second_holder_is_judged_early_if_it_is_like_the_first() {
    let limits = Limits::default();
    // So many chunks a second under each of two holders, until the second is judged, in milliseconds.
    let judged = |rates: [u64; 2]| {
        let (mut trial, mut begun) = (Trial::default(), 0);
        for (holder, rate) in rates.into_iter().enumerate() {
            let report = |milliseconds: u64| Report {
                at: Time::ZERO + Duration::from_millis(begun + milliseconds),
                have: u32::try_from(1 + rate * milliseconds / 1000).expect("a short test"),
                left: 100_000,
                streams: 1,
                amount: 1 + rate * milliseconds,
                members: 100,
            };
            trial.begin(PeerId([holder as u8; 32]), report(0));
            let mut moments = (50..=5000).step_by(50);
            let end = moments.find(|at| trial.judge(report(*at), &limits) != Verdict::Stay)?;
            trial.ask_back(PeerId([9; 32]));
            begun = end;
        }
        Some(begun)
    };
    assert!(judged([20, 20]).is_some_and(|milliseconds| milliseconds < 500));
    assert_eq!(judged([20, 5000]), None, "it is better");
    assert!(judged([200, 20]).is_some_and(|milliseconds| milliseconds > 2000), "it may have to catch up");
}

#[test]
fn a_holder_that_gets_next_to_nothing_is_sent_away_before_its_first_chunk() {
    let (mut trial, mut now) = (Trial::default(), Time::ZERO);
    assert_eq!(tenure(&mut trial, &mut now, 1, 10_000_000, 100_000), Some(Verdict::Another));
    let report = |milliseconds: u64, rate: u64| Report {
        at: now + Duration::from_millis(milliseconds),
        have: 7,
        left: 100_000,
        streams: 1,
        amount: 1 + rate * milliseconds / 1000,
        members: 100,
    };
    let judged = |trial: &mut Trial, rate: u64| {
        trial.begin(PeerId([2; 32]), report(0, rate));
        (50..4000).step_by(50).find_map(|at| match trial.judge(report(at, rate), &Limits::default()) {
            Verdict::Stay => None,
            verdict @ (Verdict::Another | Verdict::Back { .. }) => Some(verdict),
        })
    };
    assert_eq!(judged(&mut trial, 200_000), Some(Verdict::Back { to: PeerId([1; 32]), hopeless: true }));
    trial.ask_back(PeerId([2; 32]));
    assert_eq!(judged(&mut trial, 5_000_000), None, "large chunks take their time");
}

#[test]
fn few_chunks_are_not_worth_a_third() {
    // A chunk a second: they take long all the same.
    let (mut trial, mut now) = (Trial::default(), Time::ZERO);
    assert_eq!(tenure(&mut trial, &mut now, 1, 1_000_000, MANY * 2), Some(Verdict::Another));
    assert_eq!(tenure(&mut trial, &mut now, 2, 1_000_000, MANY - 1), None);
}

/// A holder that gets 40 chunks a second and one member or more that get none, for two seconds.
fn with_hungry(hungry: &[u8], members: u32) -> (Trial, Report) {
    let report = |milliseconds: u64| Report {
        at: Time::ZERO + Duration::from_millis(milliseconds),
        have: u32::try_from(1 + milliseconds / 25).expect("a short test"),
        left: 100_000,
        streams: 1,
        amount: 1 + milliseconds * 10_000,
        members,
    };
    let mut trial = Trial::default();
    trial.begin(PeerId([1; 32]), report(0));
    for milliseconds in (250..=2000).step_by(250) {
        let (from, to) = (report(milliseconds - 250).at, report(milliseconds).at);
        for id in hungry {
            trial.count(Progress { peer: PeerId([*id; 32]), from: (from, 0), to: (to, 0) });
        }
    }
    // Too early for a verdict, so that only what was counted is looked at.
    trial.pause = Some(Duration::from_secs(60));
    assert_eq!(trial.judge(report(2000), &Limits::default()), Verdict::Stay);
    (trial, report(2000))
}

#[test]
fn one_that_reports_again_and_again_that_it_gets_nothing_is_no_proof_that_its_holder_hoards() {
    let hoards = |hungry: &[u8], members| {
        let (trial, _) = with_hungry(hungry, members);
        trial.tenure.expect("it began").measure().hoards
    };
    assert!(!hoards(&[9], 12), "it may be the slow one");
    assert!(!hoards(&[8, 9], 12));
    assert!(hoards(&[7, 8, 9], 12));
    assert!(hoards(&[9], 2), "there is nobody else");
}

#[test]
fn of_two_members_the_one_that_was_slow_all_along_does_not_keep_the_lease() {
    let (mut trial, last) = with_hungry(&[9], 2);
    trial.pause = None;
    let at = |milliseconds: u64| last.at + Duration::from_millis(milliseconds);
    let ended = Report { at: at(50), ..last };
    assert_eq!(trial.judge(ended, &Limits::default()), Verdict::Another, "it looks as if it could not send");
    trial.ask_back(PeerId([9; 32]));
    let report =
        |milliseconds: u64| Report { at: at(100 + milliseconds), have: 0, amount: 1 + milliseconds * 10, ..last };
    trial.begin(PeerId([9; 32]), report(0));
    let verdict = (50..10_000).step_by(50).map(|moment| trial.judge(report(moment), &Limits::default()));
    let first = verdict.filter(|verdict| *verdict != Verdict::Stay).take(1).last();
    assert_eq!(first, Some(Verdict::Back { to: PeerId([1; 32]), hopeless: true }));
}
