//! What an upstream and the hosts behind it have shown lately: who asked to be left alone, who failed, who answers ranges.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Hosts that are remembered for one upstream: the registry, its token server, its stores.
const HOSTS: usize = 32;

/// A host is left alone no longer than this at a time, whatever it asks for: some name a time stamp where seconds belong.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// How long an upstream that failed is asked after its others.
const FAILING: Duration = Duration::from_secs(30);

/// How long a host that ignored a range gets no other: stores learn, and a wrong guess must not last.
const RANGES_IGNORED: Duration = Duration::from_secs(600);

/// The memory of one upstream. Bounded in hosts and in time.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    hosts: HashMap<String, Host>,
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Host {
    touched: Instant,
    rest_until: Option<Instant>,
    /// Whether it answered its last range with that range, and when.
    ranges: Option<(bool, Instant)>,
}

impl Memory {
    /// `host` asked to be left alone.
    pub(super) fn rest(&self, host: &str, retry_after: Duration, now: Instant) {
        let until = now + retry_after.min(LONGEST_REST);
        self.with(host, now, |host| host.rest_until = host.rest_until.max(Some(until)));
    }

    /// How long `host` still wants to be left alone; none if it may be asked.
    pub(super) fn resting(&self, host: &str, now: Instant) -> Option<Duration> {
        let until = self.known().hosts.get(host)?.rest_until?;
        until.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// The upstream could not be reached, broke down, or broke off.
    pub(super) fn failed(&self, now: Instant) {
        self.known().failed = Some(now);
    }

    /// It answered.
    pub(super) fn works(&self) {
        self.known().failed = None;
    }

    pub(super) fn is_failing(&self, now: Instant) -> bool {
        self.known().failed.is_some_and(|failed| now.duration_since(failed) < FAILING)
    }

    /// `host` was asked for a range of a blob, and did or did not answer with it.
    pub(super) fn answered_range(&self, host: &str, answered: bool, now: Instant) {
        self.with(host, now, |host| host.ranges = Some((answered, now)));
    }

    /// Whether `host` answers ranges; none if that is not known (any more).
    pub(super) fn ranges(&self, host: &str, now: Instant) -> Option<bool> {
        let (answered, when) = self.known().hosts.get(host)?.ranges?;
        (answered || now.duration_since(when) < RANGES_IGNORED).then_some(answered)
    }

    fn with(&self, name: &str, now: Instant, note: impl FnOnce(&mut Host)) {
        let mut known = self.known();
        if !known.hosts.contains_key(name) && known.hosts.len() >= HOSTS {
            let oldest = known.hosts.iter().min_by_key(|(_, host)| host.touched).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| known.hosts.remove(&oldest));
        }
        let new = || Host { touched: now, rest_until: None, ranges: None };
        let host = known.hosts.entry(name.to_owned()).or_insert_with(new);
        host.touched = now;
        note(host);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_rest_lasts_as_long_as_was_asked_for_but_not_for_ever() {
        let (memory, now) = (Memory::default(), Instant::now());
        assert_eq!(memory.resting("a", now), None);
        memory.rest("a", 7 * SECOND, now);
        memory.rest("a", SECOND, now);
        assert_eq!(memory.resting("a", now), Some(7 * SECOND), "the longer one counts");
        assert_eq!(memory.resting("b", now), None);
        assert_eq!(memory.resting("a", now + 7 * SECOND), None);
        memory.rest("a", Duration::MAX, now);
        assert_eq!(memory.resting("a", now), Some(LONGEST_REST));
    }

    #[test]
    fn a_failure_is_forgotten_after_a_while_or_with_the_next_answer() {
        let (memory, now) = (Memory::default(), Instant::now());
        memory.failed(now);
        assert!(memory.is_failing(now) && !memory.is_failing(now + FAILING));
        memory.works();
        assert!(!memory.is_failing(now));
    }

    #[test]
    fn a_host_that_ignored_a_range_is_given_another_chance_later() {
        let (memory, now) = (Memory::default(), Instant::now());
        assert_eq!(memory.ranges("store", now), None);
        memory.answered_range("store", false, now);
        assert_eq!(memory.ranges("store", now), Some(false));
        let later = now + RANGES_IGNORED;
        assert_eq!(memory.ranges("store", later), None);
        memory.answered_range("store", true, later);
        assert_eq!(memory.ranges("store", later + RANGES_IGNORED), Some(true));
    }

    #[test]
    fn hosts_beyond_the_bound_are_forgotten_oldest_first() {
        let (memory, mut now) = (Memory::default(), Instant::now());
        for number in 0..=HOSTS {
            memory.answered_range(&number.to_string(), true, now);
            now += SECOND;
        }
        assert_eq!((memory.ranges("0", now), memory.ranges("1", now)), (None, Some(true)));
    }
}
