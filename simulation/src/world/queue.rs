//! What is yet to happen, and slabs for what is under way.

use std::{collections::VecDeque, time::Duration};

use shoal_proto::time::Time;

use super::wheel::{Key, NEVER, Wheel};

/// Events in the order of their time; those of the same time in the order in which they came.
///
/// Most events happen after one of a few delays. Each such delay has a lane, where what comes later is due later, so that
/// neither coming nor going costs a search. All others go through a wheel.
#[derive(Debug)]
pub(super) struct Queue<E> {
    lanes: Vec<Lane<E>>,
    wheel: Wheel<E>,
    /// Twice the number of the last event. An event that is put off has an odd number.
    sequence: u64,
    /// When the first event of all is due, its number, and its lane or that of the wheel.
    first: (Key, usize),
}

#[derive(Debug)]
struct Lane<E> {
    delay: Duration,
    front: Key,
    events: VecDeque<(Key, E)>,
    /// Of how many events at the front it was said that they come.
    told: usize,
}

/// The lane of nothing and nobody: events that are on the wheel.
const WHEEL: usize = usize::MAX;
/// Events that are told of at a time.
const AHEAD: usize = 12;

impl<E> Queue<E> {
    /// An empty queue with lanes for these delays.
    pub(super) fn new(mut delays: Vec<Duration>) -> Self {
        delays.sort_unstable();
        delays.dedup();
        let lane = |delay| Lane { delay, front: NEVER, events: VecDeque::new(), told: 0 };
        let lanes = delays.into_iter().map(lane).collect();
        Self { lanes, wheel: Wheel::new(), sequence: 0, first: (NEVER, WHEEL) }
    }

    pub(super) fn push(&mut self, now: Time, after: Duration, event: E) {
        self.sequence += 2;
        let key = ((now + after).as_nanos(), self.sequence);
        let lane = self.lanes.iter_mut().enumerate().find(|(_, lane)| lane.delay == after);
        let at = if let Some((at, lane)) = lane {
            if lane.events.is_empty() {
                lane.front = key;
            }
            lane.events.push_back((key, event));
            at
        } else {
            self.wheel.push(key, event);
            WHEEL
        };
        self.note_first(key, at);
    }

    /// Puts off an event that was due until a later time.
    pub(super) fn put_off(&mut self, until: Time, event: E) {
        self.sequence += 2;
        let key = (until.as_nanos(), self.sequence | 1);
        self.wheel.push(key, event);
        self.note_first(key, WHEEL);
    }

    fn note_first(&mut self, key: Key, at: usize) {
        if key < self.first.0 {
            self.first = (if at == WHEEL { self.wheel.front() } else { key }, at);
        }
    }

    /// When the next event is due at the earliest; [`FOREVER`](crate::net::FOREVER) if there is none.
    pub(super) const fn due(&self) -> Time {
        Time::from_nanos(self.first.0.0)
    }

    /// Finds out when exactly the next event is due; returns whether that was not known.
    pub(super) fn settle(&mut self) -> bool {
        let settled = self.first.1 == WHEEL && self.wheel.settle();
        if settled {
            self.find_first();
        }
        settled
    }

    fn find_first(&mut self) {
        self.first = (self.wheel.front(), WHEEL);
        for (at, lane) in self.lanes.iter().enumerate() {
            if lane.front < self.first.0 {
                self.first = (lane.front, at);
            }
        }
    }

    /// Tells of events that will come soon, some at a time.
    pub(super) fn foretell(&mut self) -> impl Iterator<Item = &E> {
        let lane = self.lanes.get_mut(self.first.1).filter(|lane| lane.told == 0);
        lane.into_iter().flat_map(|lane| {
            lane.told = lane.events.len().min(AHEAD);
            lane.events.iter().take(AHEAD).map(|(_, event)| event)
        })
    }

    /// Takes out the next event; says also whether it was put off before.
    pub(super) fn pop(&mut self) -> Option<(Time, E, bool)> {
        while self.settle() {}
        let ((time, number), at) = self.first;
        let popped = if let Some(Lane { front, events, told, .. }) = self.lanes.get_mut(at) {
            let popped = events.pop_front();
            *told = told.saturating_sub(1);
            // A ring is walked through from end to end: one that was widened by a crowd once would never be in a cache.
            if events.len() < events.capacity() / 4 {
                events.shrink_to(events.capacity() / 2);
            }
            *front = events.front().map_or(NEVER, |(key, _)| *key);
            popped
        } else {
            self.wheel.pop()
        };
        self.find_first();
        popped.map(|(_, event)| (Time::from_nanos(time), event, number % 2 == 1))
    }
}

/// Things with names that are never given twice.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

/// One that fits is found in one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Place<T> {
    generation: u32,
    thing: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, thing: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, thing: None });
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[at as usize];
        place.thing = Some(thing);
        u64::from(place.generation) << 32 | u64::from(at)
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let Place { generation, thing } = self.places.get(id as u32 as usize)?;
        thing.as_ref().filter(|_| u64::from(*generation) == id >> 32)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let Place { generation, thing } = self.places.get_mut(id as u32 as usize)?;
        thing.as_mut().filter(|_| u64::from(*generation) == id >> 32)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let Place { generation, thing } = &mut self.places[id as u32 as usize];
        // The highest bit is free for others to use.
        *generation = (*generation + 1) & (u32::MAX >> 1);
        self.free.push(id as u32);
        thing.take()
    }

    /// All that is there, by its place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let named = self.places.iter().enumerate();
        named.filter_map(|(at, Place { generation, thing })| {
            thing.as_ref().map(|thing| (u64::from(*generation) << 32 | at as u64, thing))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::FOREVER;

    #[test]
    fn events_come_in_the_order_of_their_time_and_of_their_coming_whatever_their_delay() {
        let millis = Duration::from_millis;
        let mut queue = Queue::new(vec![millis(2), Duration::ZERO, millis(2), millis(5)]);
        let (mut now, mut expected, mut seen) = (Time::ZERO, Vec::new(), Vec::new());
        for number in 0..3000_u64 {
            let after = millis([2, 0, 5, 1, 7, 2][crate::node::mix(number, 3) as usize % 6]);
            expected.push((now + after, number));
            queue.push(now, after, number);
            if number % 3 != 0 {
                while queue.settle() {}
                let due = queue.due();
                let (time, event, _) = queue.pop().expect("more came than went");
                assert_eq!(due, time);
                seen.push((time, event));
                now = now.max(time);
            }
        }
        while let Some((time, event, again)) = queue.pop() {
            assert!(!again);
            seen.push((time, event));
        }
        assert_eq!(queue.due(), FOREVER);
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_event_that_was_put_off_says_so_when_it_is_due_again() {
        let (second, mut queue) = (Duration::from_secs(1), Queue::new(vec![Duration::ZERO]));
        queue.push(Time::ZERO, second, 'b');
        queue.push(Time::ZERO, Duration::ZERO, 'a');
        let (now, event, again) = queue.pop().expect("there are two");
        assert_eq!((now, event, again), (Time::ZERO, 'a', false));
        queue.put_off(now + second * 2, event);
        assert_eq!(queue.pop(), Some((now + second, 'b', false)));
        assert_eq!(queue.pop(), Some((now + second * 2, 'a', true)));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_name_means_nothing_once_its_thing_is_gone() {
        let mut slab = Slab::default();
        let (one, two) = (slab.insert(1), slab.insert(2));
        assert_eq!(slab.remove(one), Some(1));
        let three = slab.insert(3);
        assert!(slab.get(one).is_none() && slab.get_mut(one).is_none() && slab.remove(one).is_none());
        assert_eq!((slab.get(two), slab.get(three)), (Some(&2), Some(&3)));
        assert_eq!(slab.iter().collect::<Vec<_>>(), [(three, &3), (two, &2)]);
    }
}
