//! Whether somebody else would hold a lease better.
//!
//! The holder may be a node whose links are slow, and nobody knows what the origin could give. So where a fetch would take
//! long it is tried: the lease goes to another member for a while, and whoever gets more keeps it. A holder whose others
//! get much less than itself hoards: it cannot send what it gets, and what members get on average counts for it. Once three
//! holders are about equal, the origin or the swarm is the limit; then, or once four were tried, the lease stays where it is,
//! until it gets much slower or much later.

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
/// A settled lease is tried out again, even if it gets no slower, after this long at first and after at most so long: where
/// few members report, none of those that were tried may have been the right one.
const REST_MAX: Duration = Duration::from_secs(1800);
/// Later tenures are measured so many times longer than the first, since their holders have to catch up.
const LONGER: u32 = 16;
/// What the others report counts from so long after the lease was taken, when chunks had time to go round.
const SETTLED: Duration = Duration::from_millis(500);
/// So many members that report, or all if there are fewer, say how the others get on: one alone may be the slow one, and
/// hungry ones report more often than those that get on.
const REPORTERS: u32 = 3;
/// Chunks that a tenure brings before it is judged, if it lasts no longer than trials may.
const SAMPLE: u32 = 2;
/// A later holder is sent away, even if it got no chunk yet, if it gets so many times less: one that has to catch up meanwhile
/// gets a part of what there is.
const HOPELESS: f64 = 20.0;
/// So many holders are about equal before the origin is taken for the limit: two may both be slow, where one node in fifty is.
const EQUALS: usize = 3;
/// Once so many were tried the lease stays at the best of them, even if they differ: where several streams share a link each
/// gets now more and now less.
const TRIES: usize = 4;
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
    /// Until when it stays where it is, unless it gets much slower; none while it is tried out.
    again: Option<Time>,
    /// How long it stays then, if longer than a fetch that is worth a trial.
    rest: Duration,
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
    /// One that was better. Where the holder is hopeless, nothing is lost if its chunk is not waited for.
    Back { to: PeerId, hopeless: bool },
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
    /// Members of its zone that the tracker knows, the holder included.
    pub(super) members: u32,
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
    /// Members that reported since chunks could have come.
    early: u32,
    /// Those that reported late enough to mean something.
    late: u32,
    /// All that there are, but for those that held the lease.
    members: u32,
}

/// How good a tenure is, a second.
#[derive(Debug, Clone, Copy)]
struct Measure {
    /// What comes in under the lease.
    amount: f64,
    /// Which part of it members get on average, the holder included, where that hoards; else all.
    spread: f64,
    /// Chunks that members get on average, the holder included, and that many less if one came a moment too late.
    each: f64,
    chunk: f64,
    /// Chunks that the others get on average.
    others: f64,
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
        let Others { chunks, time, early, late, members } = self.others;
        let enough = REPORTERS.min(members).max(1);
        let average = (chunks / time.max(0.001)).max(0.0);
        let old = self.first.at + STARVES_TIME <= self.last.at && self.first.have + STARVES_AFTER <= self.last.have;
        let starves = old && early >= enough && average * STARVES < own;
        // Early reports are not enough to say how much less the others get, but that they get nothing.
        let others = if late >= enough || starves { average } else { own };
        let hoards = others * HOARDS + chunk < own;
        let each = (own + others * f64::from(members)) / (1.0 + f64::from(members));
        let spread = if hoards { each / own } else { 1.0 };
        Measure {
            amount: per_second(amount, self.steady.at, self.last.at),
            spread,
            each,
            chunk,
            others,
            hoards,
            starves,
        }
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
    /// Whether this is clearly better, by the factor: where one of them hoards, what members get counts.
    fn beats(&self, other: &Self, factor: f64) -> bool {
        match (self.hoards, other.hoards) {
            (false, false) => self.amount > other.amount * factor,
            (_, true) => self.each > (other.each + self.chunk) * factor,
            (true, false) => self.each > (other.each + other.chunk) * factor,
        }
    }

    /// Whether a holder gets so much less than the one before it that nothing has to be counted in chunks.
    fn is_hopeless(&self, known: &Self) -> bool {
        known.amount * known.spread > self.amount * HOPELESS
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
        let first_after = |after: Duration| since < tenure.first.at + after && now >= tenure.first.at + after;
        let (early, late) = (first_after(STARVES_TIME / 2), first_after(SETTLED));
        tenure.others.early += u32::from(early);
        tenure.others.late += u32::from(late);
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
        let held = u32::try_from(self.tried.len()).unwrap_or(u32::MAX);
        let Some(tenure) = &mut self.tenure else { return Verdict::Stay };
        let pause = self.pause.unwrap_or(limits.lease_trial);
        if tenure.last.amount == 0 && report.amount > 0 {
            // Until now the origin did not answer: that says nothing of the holder.
            *tenure = Tenure::new(tenure.holder, report);
        }
        let since = tenure.first.at;
        tenure.last = report;
        tenure.others.members = report.members.saturating_sub(held);
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
                return Verdict::Back { to: best, hopeless };
            }
            self.best = Some((holder, measure));
            if measure.beats(&known, FASTER) {
                self.lengthen(pause, limits);
                self.measure_anew();
            } else if worth && self.tried.len() < EQUALS && report.left >= MANY {
                return Verdict::Another;
            } else {
                self.settle_for_longer(limits);
            }
            return Verdict::Stay;
        }
        match self.best {
            Some((_, known)) if self.again.is_some_and(|again| report.at < again) && !known.beats(&measure, SAGS) => {
                self.measure_anew();
                Verdict::Stay
            }
            Some(_) | None if worth && (self.again.is_some() || self.tried.len() < TRIES) => {
                self.again = None;
                self.best = self.best.map(|_| (holder, measure));
                self.pause = self.pause.or(Some(limits.lease_trial * LONGER));
                Verdict::Another
            }
            Some(_) | None if worth => {
                self.best = Some((holder, measure));
                self.settle_for_longer(limits);
                Verdict::Stay
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
        self.again = self.tenure.map(|tenure| tenure.last.at + self.rest.max(WORTH));
        self.pause = Some(limits.lease_trial_max);
        self.best = self.best.or(self.tenure.map(|tenure| (tenure.holder, tenure.measure())));
        self.measure_anew();
    }

    /// Enough were tried.
    fn settle_for_longer(&mut self, limits: &Limits) {
        self.rest = (self.rest * 2).clamp(WORTH, REST_MAX);
        self.settle(limits);
    }

    fn lengthen(&mut self, pause: Duration, limits: &Limits) {
        self.pause = Some((pause * 2).min(limits.lease_trial_max));
    }

    fn measure_anew(&mut self) {
        self.tenure = self.tenure.map(|tenure| Tenure::new(tenure.holder, tenure.last));
    }
}

#[cfg(test)]
mod tests;
