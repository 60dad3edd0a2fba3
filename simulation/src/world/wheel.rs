//! Things that are due at any time: a wheel of short spans.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// When a thing is due, in nanoseconds, and its number: the order in which things come.
pub(super) type Key = (u64, u64);

/// Behind all others.
pub(super) const NEVER: Key = (u64::MAX, u64::MAX);

/// A span is 2 to the power of so many nanoseconds.
const SPAN_BITS: u32 = 10;
/// Spans on the wheel: 4 ms.
const SPANS: u64 = 64 * 64;

/// Things in the order of their keys.
///
/// What is due soon lies with others of its span, unordered; only the things of the next span that has any are put in
/// order. What is due later than the wheel turns waits elsewhere. So most things come and go at the same small cost
/// however many wait.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    /// The things of each span.
    spans: Vec<Vec<(Key, Option<T>)>>,
    /// Room of spans that are over: that which was used last is used next.
    spare: Vec<Vec<(Key, Option<T>)>>,
    /// Which spans have things, and which words of that.
    full: [u64; 64],
    words: u64,
    /// The last span whose things are all in `now`.
    span: u64,
    now: Vec<(Key, Option<T>)>,
    /// The order of what is left of these: keys and places, the first one at the end.
    order: Vec<(Key, u32)>,
    /// If nothing is left: no thing has a lower key.
    bound: Key,
    far: BinaryHeap<Reverse<Far<T>>>,
}

/// A thing that is due late, in the order of the keys.
#[derive(Debug)]
struct Far<T>(Key, T);

impl<T> PartialEq for Far<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Far<T> {}

impl<T> PartialOrd for Far<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Far<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> Wheel<T> {
    pub(super) fn new() -> Self {
        Self {
            spans: (0..SPANS).map(|_| Vec::new()).collect(),
            spare: Vec::new(),
            full: [0; 64],
            words: 0,
            span: 0,
            now: Vec::new(),
            order: Vec::new(),
            bound: NEVER,
            far: BinaryHeap::new(),
        }
    }

    pub(super) fn push(&mut self, key: Key, thing: T) {
        let span = key.0 >> SPAN_BITS;
        if span <= self.span {
            let before = self.order.partition_point(|(other, _)| *other > key);
            self.order.insert(before, (key, self.now.len() as u32));
            self.now.push((key, Some(thing)));
        } else if span - self.span < SPANS {
            let things = &mut self.spans[(span % SPANS) as usize];
            if things.is_empty() {
                let (word, bit) = Self::bit(span);
                self.full[word] |= 1 << bit;
                self.words |= 1 << word;
                if let Some(spare) = self.spare.pop() {
                    *things = spare;
                }
            }
            things.push((key, Some(thing)));
        } else {
            self.far.push(Reverse(Far(key, thing)));
        }
        self.bound = self.bound.min((span << SPAN_BITS, 0));
    }

    /// The key of the first thing, or [`NEVER`]. If the wheel has to turn for it, only a bound: no thing has a lower key.
    pub(super) fn front(&self) -> Key {
        self.order.last().map_or(self.bound, |(key, _)| *key)
    }

    /// Turns so that [`Self::front`] is exact; returns whether it was not.
    ///
    /// This is done as late as possible: what comes before the next things costs a search among them.
    pub(super) fn settle(&mut self) -> bool {
        let turns = self.order.is_empty() && self.bound != NEVER;
        if turns {
            self.turn();
        }
        turns
    }

    /// Takes out the first thing of a wheel that is settled.
    pub(super) fn pop(&mut self) -> Option<(Key, T)> {
        let (key, at) = self.order.pop()?;
        let thing = self.now[at as usize].1.take();
        if self.order.is_empty() {
            self.now.clear();
            self.bound = self.next_any().map_or(NEVER, |span| (span << SPAN_BITS, 0));
        }
        thing.map(|thing| (key, thing))
    }

    const fn bit(span: u64) -> (usize, u32) {
        ((span % SPANS / 64) as usize, (span % 64) as u32)
    }

    /// The next span on the wheel that has things.
    fn next_span(&self) -> Option<u64> {
        let from = self.span + 1;
        let (word, bit) = Self::bit(from);
        let here = self.full[word] >> bit;
        if here != 0 {
            return Some(from + u64::from(here.trailing_zeros()));
        }
        // Behind this word, and once around up to it.
        let others = self.words.rotate_right((word as u32 + 1) % 64);
        if others == 0 {
            return None;
        }
        let words = u64::from(others.trailing_zeros()) + 1;
        let first = self.full[(word + words as usize) % 64].trailing_zeros();
        Some(from - u64::from(bit) + words * 64 + u64::from(first))
    }

    /// The next span that has things.
    fn next_any(&self) -> Option<u64> {
        let far = self.far.peek().map(|Reverse(far)| far.0.0 >> SPAN_BITS);
        self.next_span().into_iter().chain(far).min()
    }

    /// Puts the things of the next span in order.
    fn turn(&mut self) {
        let Some(span) = self.next_any() else { return };
        self.span = span;
        let (word, bit) = Self::bit(span);
        if self.full[word] >> bit & 1 == 1 {
            self.full[word] &= !(1 << bit);
            self.words &= !(u64::from(self.full[word] == 0) << word);
            let things = std::mem::take(&mut self.spans[(span % SPANS) as usize]);
            self.spare.push(std::mem::replace(&mut self.now, things));
        }
        while self.far.peek().is_some_and(|Reverse(far)| far.0.0 >> SPAN_BITS == span)
            && let Some(Reverse(Far(key, thing))) = self.far.pop()
        {
            self.now.push((key, Some(thing)));
        }
        self.order.extend(self.now.iter().enumerate().map(|(at, (key, _))| (*key, at as u32)));
        self.order.sort_unstable_by_key(|(key, _)| Reverse(*key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_in_the_order_of_their_keys_however_far_away_they_are() {
        for spread in [3, 12, 21, 23, 40] {
            let (mut wheel, mut waiting) = (Wheel::new(), std::collections::BTreeMap::new());
            let mut now = 0;
            for number in 0..4000_u64 {
                let chance = crate::node::mix(number, spread);
                // More come than go, then more go.
                if chance % 8 < if number < 2000 { 5 } else { 3 } {
                    let key = (now + (chance >> 8) % (1 << spread), number);
                    wheel.push(key, number);
                    waiting.insert(key, number);
                }
                wheel.settle();
                assert_eq!(wheel.front(), waiting.keys().next().copied().unwrap_or(NEVER));
                if !chance.is_multiple_of(3) {
                    let popped = wheel.pop();
                    assert_eq!(popped, waiting.pop_first());
                    now = popped.map_or(now, |((time, _), _)| time);
                }
            }
        }
    }
}
