//! Pulls that are open: who asked for what, until it is answered or not wanted any more.

use shoal_proto::swarm::{AskId, PullId};

/// The open pulls of each node. Nodes have few, in a row of places of which some are free; an ask knows its place.
#[derive(Debug)]
pub(super) struct Pulls {
    width: usize,
    places: Vec<(PullId, AskId)>,
}

/// Of a place that is free.
const NONE: AskId = AskId(u64::MAX);
const FREE: (PullId, AskId) = (PullId(0), NONE);

impl Pulls {
    /// For so many nodes.
    pub(super) fn new(nodes: usize) -> Self {
        const WIDTH: usize = 8;
        Self { width: WIDTH, places: vec![FREE; WIDTH * nodes] }
    }

    fn row(&mut self, node: usize) -> &mut [(PullId, AskId)] {
        &mut self.places[node * self.width..(node + 1) * self.width]
    }

    /// Notes a pull of a node; returns its place.
    pub(super) fn open(&mut self, node: usize, pull: PullId, ask: AskId) -> u16 {
        let free = self.row(node).iter().position(|(_, ask)| *ask == NONE);
        let place = free.unwrap_or_else(|| {
            let width = self.width;
            self.widen();
            width
        });
        self.row(node)[place] = (pull, ask);
        place as u16
    }

    fn widen(&mut self) {
        let wide = vec![FREE; self.places.len() * 2];
        let rows = std::mem::replace(&mut self.places, wide);
        for (node, row) in rows.chunks(self.width).enumerate() {
            self.places[2 * node * self.width..][..self.width].copy_from_slice(row);
        }
        self.width *= 2;
    }

    /// Takes the pull at a place out of the open ones.
    pub(super) fn close(&mut self, node: usize, place: Option<u16>) {
        if let Some(place) = place {
            self.row(node)[usize::from(place)] = FREE;
        }
    }

    /// Takes out a pull; returns its ask.
    pub(super) fn take(&mut self, node: usize, pull: PullId) -> Option<AskId> {
        let place = self.row(node).iter_mut().find(|(open, ask)| *open == pull && *ask != NONE)?;
        Some(std::mem::replace(place, FREE).1)
    }

    /// A node has no pulls any more.
    pub(super) fn clear(&mut self, node: usize) {
        self.row(node).fill(FREE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_open_until_it_is_closed_however_many_there_are() {
        let mut pulls = Pulls::new(3);
        let ask = |node: usize, at: u64| AskId(100 * node as u64 + at);
        let places: Vec<Vec<u16>> =
            (0..3).map(|node| (0..20).map(|at| pulls.open(node, PullId(at), ask(node, at))).collect()).collect();
        pulls.close(1, Some(places[1][17]));
        assert_eq!((pulls.take(1, PullId(17)), pulls.take(1, PullId(3))), (None, Some(ask(1, 3))));
        assert_eq!(pulls.open(1, PullId(20), AskId(7)), places[1][3]);
        pulls.clear(2);
        assert_eq!((pulls.take(2, PullId(5)), pulls.take(0, PullId(19))), (None, Some(ask(0, 19))));
    }
}
