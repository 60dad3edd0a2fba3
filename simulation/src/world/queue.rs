//! What is yet to happen, and slabs for what is under way.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use shoal_proto::time::Time;

use crate::net::FOREVER;

/// Events in the order of their time; those of the same time in the order in which they came.
///
/// Most events happen after one of a few delays. Each such delay has a lane, where what comes later is due later, so that
/// neither coming nor going costs a search. All others go through a heap of small entries.
#[derive(Debug)]
pub(super) struct Queue<E> {
    delays: Vec<Duration>,
    lanes: Vec<VecDeque<(Time, u64, E)>>,
    /// When the first event of each lane is due, and its number.
    fronts: Vec<(Time, u64)>,
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    /// Events of the heap's entries, and whether they were put off.
    events: Vec<Option<(E, bool)>>,
    free: Vec<usize>,
    sequence: u64,
    /// When the first event of all is due, its number, and its lane or that of the heap.
    first: (Time, u64, usize),
}

/// The lane of nothing and nobody: events that are in the heap.
const HEAP: usize = usize::MAX;
const NEVER: (Time, u64) = (FOREVER, u64::MAX);

impl<E> Queue<E> {
    /// An empty queue with lanes for these delays.
    pub(super) fn new(mut delays: Vec<Duration>) -> Self {
        delays.sort_unstable();
        delays.dedup();
        Self {
            lanes: delays.iter().map(|_| VecDeque::new()).collect(),
            fronts: vec![NEVER; delays.len()],
            delays,
            heap: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            first: (NEVER.0, NEVER.1, HEAP),
        }
    }

    pub(super) fn push(&mut self, now: Time, after: Duration, event: E) {
        self.sequence += 1;
        let time = now + after;
        let Some(lane) = self.delays.iter().position(|delay| *delay == after) else {
            self.pile(time, event, false);
            return;
        };
        if self.lanes[lane].is_empty() {
            self.fronts[lane] = (time, self.sequence);
            self.first = self.first.min((time, self.sequence, lane));
        }
        self.lanes[lane].push_back((time, self.sequence, event));
    }

    /// Puts off an event that was due until a later time.
    pub(super) fn put_off(&mut self, until: Time, event: E) {
        self.sequence += 1;
        self.pile(until, event, true);
    }

    fn pile(&mut self, time: Time, event: E, again: bool) {
        let slot = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(slot) {
            Some(place) => *place = Some((event, again)),
            None => self.events.push(Some((event, again))),
        }
        self.heap.push(Reverse((time, self.sequence, slot)));
        self.first = self.first.min((time, self.sequence, HEAP));
    }

    /// When the next event is due; [`FOREVER`] if there is none.
    pub(super) const fn due(&self) -> Time {
        self.first.0
    }

    /// Takes out the next event; says also whether it was put off before.
    pub(super) fn pop(&mut self) -> Option<(Time, E, bool)> {
        let (time, _, lane) = self.first;
        let popped = if let Some(events) = self.lanes.get_mut(lane) {
            let event = events.pop_front().map(|(_, _, event)| (time, event, false));
            self.fronts[lane] = events.front().map_or(NEVER, |(time, sequence, _)| (*time, *sequence));
            event
        } else {
            let Reverse((_, _, slot)) = self.heap.pop()?;
            self.free.push(slot);
            self.events[slot].take().map(|(event, again)| (time, event, again))
        };
        let heap = self.heap.peek().map_or(NEVER, |Reverse((time, sequence, _))| (*time, *sequence));
        self.first = (heap.0, heap.1, HEAP);
        for (lane, (time, sequence)) in self.fronts.iter().enumerate() {
            self.first = self.first.min((*time, *sequence, lane));
        }
        popped
    }
}

/// Things with names that are never given twice.
#[derive(Debug)]
pub(super) struct Slab<T> {
    /// Generation, and what is there.
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, thing: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let (generation, place) = &mut self.places[at as usize];
        *place = Some(thing);
        u64::from(*generation) << 32 | u64::from(at)
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let (generation, thing) = self.places.get(id as u32 as usize)?;
        thing.as_ref().filter(|_| u64::from(*generation) == id >> 32)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (generation, thing) = self.places.get_mut(id as u32 as usize)?;
        thing.as_mut().filter(|_| u64::from(*generation) == id >> 32)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let (generation, thing) = &mut self.places[id as u32 as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(id as u32);
        thing.take()
    }

    /// All that is there, by its place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let named = self.places.iter().enumerate();
        named.filter_map(|(at, (generation, thing))| {
            thing.as_ref().map(|thing| (u64::from(*generation) << 32 | at as u64, thing))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
