//! Whether somebody else would hold a lease better.
//!
//! The holder may be a node whose links are slow, and nobody knows what the origin could give. So it is tried: the lease
//! goes to another member for a while, and how fast the *other* members get on under the two decides who keeps it. Once
//! two holders are about equal, the origin or the swarm is the limit, and the lease stays until it gets much slower.

use std::time::Duration;

use crate::{limits::Limits, peer::PeerId, time::Time};

/// A holder is better if the others get on so many times faster under it.
const FASTER: f64 = 1.5;
/// A settled lease is tried out again if the others get on so many times slower than when it settled.
const SAGS: f64 = 2.0;
/// A fetch that would be over sooner is not worth a trial.
const WORTH: Duration = Duration::from_secs(2);
/// Holders that are remembered as tried.
const TRIED_MAX: usize = 8;

/// Trials of one lease.
#[derive(Debug, Default)]
pub(super) struct Trial {
    tenure: Option<Tenure>,
    /// The best holder that was measured, and how fast a member got on under it, in chunks a second.
    best: Option<(PeerId, f64)>,
    /// How fast a member got on under the holder before this one.
    before: f64,
    /// How long a tenure is measured; none for the first time's.
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

/// What the others got while one node held the lease.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    holder: PeerId,
    since: Time,
    /// What the holder had at the beginning, and had last.
    have: (u32, u32),
    /// When it last reported.
    heard: Time,
    chunks: f64,
    /// The time in which they got those, added up over members, in seconds.
    time: f64,
}

impl Tenure {
    const fn new(now: Time, holder: PeerId, have: u32) -> Self {
        Self { holder, since: now, have: (have, have), heard: now, chunks: 0.0, time: 0.0 }
    }

    /// Chunks a second that the others got on average, or the holder if nobody else has reported.
    fn rate(&self) -> f64 {
        if self.time > 0.0 { (self.chunks / self.time).max(0.0) } else { self.own_rate() }
    }

    fn own_rate(&self) -> f64 {
        let time = self.heard.since(self.since).as_secs_f64();
        if time > 0.0 { f64::from(self.have.1.saturating_sub(self.have.0)) / time } else { 0.0 }
    }
}

/// One member's report, held against the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) peer: PeerId,
    pub(super) from: (Time, u32),
    pub(super) to: (Time, u32),
}

impl Trial {
    pub(super) fn was_tried(&self, peer: PeerId) -> bool {
        self.tried.contains(&peer)
    }

    /// For whom the lease was asked back.
    pub(super) const fn next(&self) -> Option<PeerId> {
        self.next
    }

    /// Counts what a member got that does not hold the lease. Those that held it do not count while others can: they
    /// may be the slow ones.
    pub(super) fn count(&mut self, progress: Progress) {
        let tried = self.was_tried(progress.peer);
        let before = self.before;
        let Some(tenure) = self.tenure.as_mut().filter(|tenure| tenure.holder != progress.peer && !tried) else {
            return;
        };
        let ((since, had), (now, has)) = (progress.from, progress.to);
        // What it got before this tenure is known from how fast the others were then.
        let earlier = if since < tenure.since { tenure.since.since(since).as_secs_f64() * before } else { 0.0 };
        tenure.chunks += f64::from(has) - f64::from(had) - earlier;
        tenure.time += now.since(since.max(tenure.since)).as_secs_f64();
    }

    /// The holder reported its lease for the first time.
    pub(super) fn begin(&mut self, now: Time, holder: PeerId, have: u32) {
        let ended = self.tenure.take().filter(|_| self.next.is_some());
        match ended {
            Some(ended) => {
                self.before = ended.rate();
                self.best = self.best.or(Some((ended.holder, self.before)));
                self.note_tried(ended.holder);
            }
            None => *self = Self::default(),
        }
        self.next = None;
        self.note_tried(holder);
        self.tenure = Some(Tenure::new(now, holder, have));
    }

    fn note_tried(&mut self, peer: PeerId) {
        if !self.was_tried(peer) {
            if self.tried.len() >= TRIED_MAX {
                self.tried.remove(0);
            }
            self.tried.push(peer);
        }
    }

    /// The holder reports: how many chunks it has, and how many it lacks.
    pub(super) fn judge(&mut self, now: Time, have: u32, left: u32, limits: &Limits) -> Verdict {
        let pause = self.pause.unwrap_or(limits.lease_trial);
        let Some(tenure) = &mut self.tenure else { return Verdict::Stay };
        tenure.have.1 = have;
        tenure.heard = now;
        let tenure = *tenure;
        let unheard = tenure.time <= 0.0 && self.best.is_some();
        let patience = if unheard { pause + limits.heartbeat * 3 } else { pause };
        if tenure.since + patience > now {
            return Verdict::Stay;
        }
        let (rate, chunk) = (tenure.rate(), 1.0 / now.since(tenure.since).as_secs_f64().max(0.001));
        let slowest = rate.min(tenure.own_rate());
        let worth = f64::from(left) > slowest * WORTH.as_secs_f64();
        match self.best {
            Some((best, measured)) if best != tenure.holder => {
                self.pause = Some((pause * 2).min(limits.lease_trial_max));
                if rate > measured * FASTER + chunk {
                    self.best = Some((tenure.holder, rate));
                } else if rate * FASTER + chunk < measured && worth {
                    return Verdict::Back(best);
                } else {
                    self.settled = true;
                    self.best = Some((tenure.holder, rate.max(measured)));
                    self.pause = Some(limits.lease_trial_max);
                }
                Verdict::Stay
            }
            Some((_, measured)) if self.settled && rate * SAGS + chunk >= measured => {
                self.tenure = Some(Tenure::new(now, tenure.holder, have));
                Verdict::Stay
            }
            Some(_) | None if worth => {
                self.settled = false;
                self.best = self.best.map(|_| (tenure.holder, rate));
                Verdict::Another
            }
            Some(_) | None => Verdict::Stay,
        }
    }

    /// The lease was asked back for this one.
    pub(super) const fn ask_back(&mut self, next: PeerId) {
        self.next = Some(next);
    }

    /// There is nobody else to try.
    pub(super) fn stay(&mut self, limits: &Limits) {
        self.pause = Some(limits.lease_trial_max);
        self.tenure = self.tenure.map(|tenure| Tenure::new(tenure.heard, tenure.holder, tenure.have.1));
    }
}
