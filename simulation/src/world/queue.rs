//! What is yet to happen, and slabs for what is under way.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use shoal_proto::time::Time;

/// Events in the order of their time; those of the same time in the order in which they came.
///
/// Most events happen after one of a few delays. Each such delay has a lane, where what comes later is due later, so that
/// neither coming nor going costs a search. All others go through a heap of small entries.
#[derive(Debug)]
pub(super) struct Queue<E> {
    lanes: Vec<Lane<E>>,
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    /// Events of the heap's entries.
    events: Vec<Option<E>>,
    free: Vec<usize>,
    sequence: u64,
}

#[derive(Debug)]
struct Lane<E> {
    delay: Duration,
    due: VecDeque<(Time, u64, E)>,
}

impl<E> Queue<E> {
    /// An empty queue with lanes for these delays.
    pub(super) fn new(mut delays: Vec<Duration>) -> Self {
        delays.sort_unstable();
        delays.dedup();
        let lanes = delays.into_iter().map(|delay| Lane { delay, due: VecDeque::new() }).collect();
        Self { lanes, heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    pub(super) fn push(&mut self, now: Time, after: Duration, event: E) {
        self.sequence += 1;
        let time = now + after;
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.delay == after) {
            lane.due.push_back((time, self.sequence, event));
            return;
        }
        let slot = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(slot) {
            Some(place) => *place = Some(event),
            None => self.events.push(Some(event)),
        }
        self.heap.push(Reverse((time, self.sequence, slot)));
    }

    /// When the next event is due.
    pub(super) fn due(&self) -> Option<Time> {
        let heap = self.heap.peek().map(|Reverse((time, ..))| *time);
        let lanes = self.lanes.iter().filter_map(|lane| lane.due.front().map(|(time, ..)| *time));
        lanes.chain(heap).min()
    }

    pub(super) fn pop(&mut self) -> Option<(Time, E)> {
        let fronts = self.lanes.iter().enumerate();
        let fronts = fronts.filter_map(|(at, lane)| lane.due.front().map(|(time, sequence, _)| (*time, *sequence, at)));
        let first = fronts.min();
        let heap = self.heap.peek().map(|Reverse((time, sequence, _))| (*time, *sequence));
        match (first, heap) {
            (Some((time, sequence, lane)), heap) if heap.is_none_or(|heap| (time, sequence) < heap) => {
                self.lanes[lane].due.pop_front().map(|(time, _, event)| (time, event))
            }
            (_, Some(_)) => {
                let Reverse((time, _, slot)) = self.heap.pop()?;
                self.free.push(slot);
                self.events[slot].take().map(|event| (time, event))
            }
            (Some(_) | None, None) => None,
        }
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
                let (time, event) = queue.pop().expect("more came than went");
                assert_eq!(due, Some(time));
                seen.push((time, event));
                now = now.max(time);
            }
        }
        while let Some(event) = queue.pop() {
            seen.push(event);
        }
        expected.sort_unstable();
        assert_eq!(seen, expected);
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
