//! Whether somebody else would hold a lease better.
//!
//! The holder may be a node whose links are slow, and nobody knows what the origin could give. So where a fetch would take
//! long it is tried: the lease goes to another member for a while, and whoever gets more keeps it. A holder whose others
//! get much less than itself hoards: it cannot send what it gets, and what the others get counts for it. Once three holders
//! are about equal, the origin or the swarm is the limit, and the lease stays until it gets much slower.

use std::time::Duration;

use crate::{limits::Limits, peer::PeerId, time::Time};

/// A holder is better if it gets so many times more.
const FASTER: f64 = 1.5;
/// A settled lease is tried out again if it gets so many times slower than when it settled.
const SAGS: f64 = 2.0;
/// A holder hoards if it gets so many times more than the others.
const HOARDS: f64 = 4.0;
/// The others starve if it gets so many times more: then there is nothing to be tried out.
const STARVES: f64 = 32.0;
/// That is said once it got so many chunks, of which the first had time to go round, however long each takes.
const STARVES_AFTER: u32 = 64;
/// And not before this, since hungry members report about as soon.
const STARVES_TIME: Duration = Duration::from_millis(300);
/// The first holder is replaced if it got no chunk at all for so long since its first bytes: readers give up a few seconds
/// later, and no more than a part of one chunk is lost.
const BARREN: Duration = Duration::from_secs(1);
/// Unless so few chunks are left that this part is much.
const BARREN_LEFT: u32 = 16;
/// A fetch that would be over sooner is not worth a trial: one in fifty nodes may be slow, and a trial costs about a second
/// where a node's link is no faster than the origin, since the new holder has to catch up meanwhile.
const WORTH: Duration = Duration::from_secs(30);
/// Later tenures are measured so many times longer than the first, since their holders have to catch up.
const LONGER: u32 = 16;
/// What the others report counts from so long after the lease was taken, when chunks had time to go round.
const SETTLED: Duration = Duration::from_millis(500);
/// So many reports say how the others get on.
const REPORTS: u32 = 3;
/// Chunks that a tenure brings before it is judged, if it lasts no longer than trials may.
const SAMPLE: u32 = 2;
/// A later holder is sent away, even if it got no chunk yet, if it gets so many times less: one that has to catch up meanwhile
/// gets a part of what there is.
const HOPELESS: f64 = 20.0;
/// So many holders are about equal before the origin is taken for the limit: two may both be slow, where one node in fifty is.
const EQUALS: usize = 3;
/// After such a part of its time the second is judged if it is like the first.
const DULL: u32 = 10;
/// But the third is only tried where so many chunks are left: what is on its way when a lease moves comes twice.
const MANY: u32 = 256;
/// Holders that are remembered as tried.
const TRIED_MAX: usize = 8;

/// Trials of one lease.
#[derive(Debug, Default)]
pub(super) struct Trial {
    tenure: Option<Tenure>,
    /// The best holder that was measured.
    best: Option<(PeerId, Measure)>,
    /// How fast a member got on under the holder before this one, in chunks a second.
    before: f64,
    /// How long a tenure is measured; none for the first one's.
    pause: Option<Duration>,
    settled: bool,
    tried: Vec<PeerId>,
    /// The lease was asked back for this one.
    next: Option<PeerId>,
}

/// Who shall have a lease from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its holder.
    Stay,
    /// Some member that was not tried.
    Another,
    /// One that was better.
    Back(PeerId),
}

/// What a holder reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) at: Time,
    /// Chunks that it has.
    pub(super) have: u32,
    /// Chunks that it lacks.
    pub(super) left: u32,
    /// Streams that it has open.
    pub(super) streams: u8,
    /// What came in under the lease: bytes from the origin, chunks into a zone.
    pub(super) amount: u64,
}

/// One member's report, held against the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) peer: PeerId,
    pub(super) from: (Time, u32),
    pub(super) to: (Time, u32),
}

/// The time during which one node holds the lease.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    holder: PeerId,
    first: Report,
    /// From where on its own rate is measured.
    steady: Report,
    last: Report,
    others: Others,
}

/// What the others got during a tenure.
#[derive(Debug, Clone, Copy, Default)]
struct Others {
    /// Chunks, added up over them.
    chunks: f64,
    /// The time that it took them, added up over them, in seconds.
    time: f64,
    /// Reports.
    reports: u32,
    /// Those that came late enough to mean something.
    late: u32,
}

/// How good a tenure is, a second.
#[derive(Debug, Clone, Copy)]
struct Measure {
    /// What comes in under the lease.
    amount: f64,
    /// Chunks that the others get on average, and that many less if one came a moment too late.
    others: f64,
    chunk: f64,
    hoards: bool,
    starves: bool,
}

impl Tenure {
    fn new(holder: PeerId, first: Report) -> Self {
        Self { holder, first, steady: first, last: first, others: Others::default() }
    }

    fn measure(&self) -> Measure {
        let chunk = per_second(1.0, self.first.at, self.last.at);
        let amount = self.last.amount.saturating_sub(self.steady.amount) as f64;
        let own = self.own();
        let Others { chunks, time, late, reports } = self.others;
        let average = (chunks / time.max(0.001)).max(0.0);
        let old = self.first.at + STARVES_TIME <= self.last.at && self.first.have + STARVES_AFTER <= self.last.have;
        let starves = old && reports >= REPORTS && average * STARVES < own;
        // Early reports are not enough to say how much less the others get, but that they get nothing.
        let others = if late >= REPORTS || starves { average } else { own };
        let hoards = others * HOARDS + chunk < own;
        Measure { amount: per_second(amount, self.steady.at, self.last.at), others, chunk, hoards, starves }
    }

    /// Chunks a second that the holder got, from wherever.
    fn own(&self) -> f64 {
        per_second(f64::from(self.last.have.saturating_sub(self.first.have)), self.first.at, self.last.at)
    }

    /// Whether the rest takes long enough for trials.
    fn is_worth_trials(&self) -> bool {
        let measure = self.measure();
        let rate = if measure.hoards { measure.others } else { self.own() };
        f64::from(self.last.left) > (rate + measure.chunk) * WORTH.as_secs_f64()
    }
}

impl Measure {
    /// Whether this is clearly better, by the factor.
    fn beats(&self, other: &Self, factor: f64) -> bool {
        match (self.hoards, other.hoards) {
            (false, false) => self.amount > other.amount * factor,
            (_, true) => self.others > (other.others + self.chunk) * factor,
            (true, false) => false,
        }
    }

    /// Whether a holder gets so much less than the one before it that nothing has to be counted in chunks.
    fn is_hopeless(&self, known: &Self) -> bool {
        !known.hoards && known.amount > self.amount * HOPELESS
    }

    /// Whether neither is clearly better. Where the first holder was slow, a second whose links are sound soon gets much
    /// more, even if it has to catch up: one that is like it is slow too, and a third can be tried at once.
    fn is_like(&self, known: &Self) -> bool {
        !self.beats(known, FASTER) && !known.beats(self, FASTER)
    }
}

fn per_second(amount: f64, from: Time, to: Time) -> f64 {
    amount / to.since(from).as_secs_f64().max(0.001)
}

impl Trial {
    pub(super) fn was_tried(&self, peer: PeerId) -> bool {
        self.tried.contains(&peer)
    }

    /// For whom the lease was asked back.
    pub(super) const fn next(&self) -> Option<PeerId> {
        self.next
    }

    /// Counts what a member got that does not hold the lease. Those that held it do not count: they may be the slow ones.
    pub(super) fn count(&mut self, progress: Progress) {
        let tried = self.was_tried(progress.peer);
        let before = self.before;
        let Some(tenure) = self.tenure.as_mut().filter(|tenure| tenure.holder != progress.peer && !tried) else {
            return;
        };
        let ((since, had), (now, has)) = (progress.from, progress.to);
        // What it got before this tenure is known from how fast the others were then.
        let earlier = tenure.first.at.since(since).as_secs_f64() * before;
        tenure.others.chunks += f64::from(has) - f64::from(had) - earlier;
        tenure.others.time += now.since(since.max(tenure.first.at)).as_secs_f64();
        tenure.others.reports += u32::from(now > tenure.first.at + STARVES_TIME / 2);
        tenure.others.late += u32::from(now.since(tenure.first.at) >= SETTLED);
    }

    /// The holder reported its lease for the first time.
    pub(super) fn begin(&mut self, holder: PeerId, report: Report) {
        match self.tenure.take().filter(|_| self.next.is_some()) {
            Some(ended) => {
                let measure = ended.measure();
                self.before = measure.others;
                self.best = self.best.or(Some((ended.holder, measure)));
                self.note_tried(ended.holder);
            }
            None => *self = Self::default(),
        }
        self.next = None;
        self.note_tried(holder);
        self.tenure = Some(Tenure::new(holder, report));
    }

    fn note_tried(&mut self, peer: PeerId) {
        if !self.was_tried(peer) {
            if self.tried.len() >= TRIED_MAX {
                self.tried.remove(0);
            }
            self.tried.push(peer);
        }
    }

    /// The holder reports again.
    pub(super) fn judge(&mut self, report: Report, limits: &Limits) -> Verdict {
        let Some(tenure) = &mut self.tenure else { return Verdict::Stay };
        let pause = self.pause.unwrap_or(limits.lease_trial);
        if tenure.last.amount == 0 && report.amount > 0 {
            // Until now the origin did not answer: that says nothing of the holder.
            *tenure = Tenure::new(tenure.holder, report);
        }
        let since = tenure.first.at;
        tenure.last = report;
        if self.pause.is_some() && tenure.steady == tenure.first && since + pause / 2 <= report.at {
            tenure.steady = report;
        }
        let barren = self.tried.len() == 1
            && report.have == tenure.first.have
            && report.left >= BARREN_LEFT
            && since + BARREN <= report.at;
        let few =
            tenure.last.have.saturating_sub(tenure.first.have) < SAMPLE && since + limits.lease_trial_max > report.at;
        let (holder, measure, long) = (tenure.holder, tenure.measure(), tenure.is_worth_trials());
        let earlier = self.best.filter(|(best, _)| *best != holder);
        let (hopeless, dull) = earlier.map_or((false, false), |(_, known)| {
            let second = self.tried.len() + 1 == EQUALS && report.left >= MANY;
            (measure.is_hopeless(&known), second && long && measure.is_like(&known))
        });
        let due = since + pause <= report.at || since + pause / DULL <= report.at && dull;
        // With several streams it is the origin that is slow, and each holder would have to find that out anew.
        if !barren && (!due || few && !hopeless) || report.streams > 1 {
            return Verdict::Stay;
        }
        // Where one after the other starves them, it is not the holder.
        let starved = barren || measure.starves && since + STARVES_TIME * (1 << self.tried.len()) <= report.at;
        let worth = starved || long;
        if let Some((best, known)) = earlier {
            if known.beats(&measure, FASTER) && worth {
                self.lengthen(pause, limits);
                return Verdict::Back(best);
            }
            self.best = Some((holder, measure));
            if measure.beats(&known, FASTER) {
                self.lengthen(pause, limits);
                self.measure_anew();
            } else if worth && self.tried.len() < EQUALS && report.left >= MANY {
                return Verdict::Another;
            } else {
                self.settle(limits);
            }
            return Verdict::Stay;
        }
        match self.best {
            Some((_, known)) if self.settled && !known.beats(&measure, SAGS) => {
                self.measure_anew();
                Verdict::Stay
            }
            Some(_) | None if worth => {
                self.settled = false;
                self.best = self.best.map(|_| (holder, measure));
                self.pause = self.pause.or(Some(limits.lease_trial * LONGER));
                Verdict::Another
            }
            Some(_) | None => Verdict::Stay,
        }
    }

    /// The lease was asked back for this one.
    pub(super) const fn ask_back(&mut self, next: PeerId) {
        self.next = Some(next);
    }

    /// There is nobody else to try, for now.
    pub(super) fn settle(&mut self, limits: &Limits) {
        self.settled = true;
        self.pause = Some(limits.lease_trial_max);
        self.best = self.best.or(self.tenure.map(|tenure| (tenure.holder, tenure.measure())));
        self.measure_anew();
    }

    fn lengthen(&mut self, pause: Duration, limits: &Limits) {
        self.pause = Some((pause * 2).min(limits.lease_trial_max));
    }

    fn measure_anew(&mut self) {
        self.tenure = self.tenure.map(|tenure| Tenure::new(tenure.holder, tenure.last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the tracker hears of one holder, which gets so many bytes a second, until it decides something.
    fn tenure(trial: &mut Trial, now: &mut Time, holder: u8, rate: u64, left: u32) -> Option<Verdict> {
        let report = |at: Time, since: Time| Report {
            at,
            have: 1 + u32::try_from(at.since(since).as_millis() / 1000).expect("a short test"),
            left,
            streams: 1,
            amount: 1 + rate * u64::try_from(at.since(since).as_millis()).expect("a short test") / 1000,
        };
        let since = *now;
        trial.begin(PeerId([holder; 32]), report(since, since));
        let reports = (1..=600).map(|step| since + Duration::from_millis(50) * step);
        for at in reports {
            *now = at;
            match trial.judge(report(at, since), &Limits::default()) {
                Verdict::Stay => {}
                verdict @ (Verdict::Another | Verdict::Back(_)) => {
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
        assert_eq!(tenure(&mut trial, &mut now, 4, 1_000_000, 100_000), Some(Verdict::Back(PeerId([3; 32]))));
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
        };
        let judged = |trial: &mut Trial, rate: u64| {
            trial.begin(PeerId([2; 32]), report(0, rate));
            (50..4000).step_by(50).find_map(|at| match trial.judge(report(at, rate), &Limits::default()) {
                Verdict::Stay => None,
                verdict @ (Verdict::Another | Verdict::Back(_)) => Some(verdict),
            })
        };
        assert_eq!(judged(&mut trial, 200_000), Some(Verdict::Back(PeerId([1; 32]))));
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
}
