//! A small map from peers to what is known of them: sorted, contiguous, and open to a random start.

use crate::peer::PeerId;

/// Values by peer. A blob has some dozens of peers and looks at them all the time, mostly from a random one on, so that
/// none is favoured: a sorted vector does both in a few cache lines.
#[derive(Debug)]
pub(super) struct PeerMap<T> {
    entries: Vec<(PeerId, T)>,
}

impl<T> Default for PeerMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> PeerMap<T> {
    fn find(&self, peer: PeerId) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other.cmp(&peer))
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains_key(&self, peer: PeerId) -> bool {
        self.find(peer).is_ok()
    }

    pub(super) fn get(&self, peer: PeerId) -> Option<&T> {
        self.find(peer).ok().map(|at| &self.entries[at].1)
    }

    pub(super) fn get_mut(&mut self, peer: PeerId) -> Option<&mut T> {
        self.find(peer).ok().map(|at| &mut self.entries[at].1)
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> Option<T> {
        self.find(peer).ok().map(|at| self.entries.remove(at).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &T)> {
        self.entries.iter().map(|(peer, value)| (*peer, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut T)> {
        self.entries.iter_mut().map(|(peer, value)| (*peer, value))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    /// All entries once, from a position on and around.
    pub(super) fn around(&self, start: usize) -> impl Iterator<Item = (PeerId, &T)> {
        let start = start.min(self.entries.len());
        let (front, back) = self.entries.split_at(start);
        back.iter().chain(front).map(|(peer, value)| (*peer, value))
    }

    pub(super) fn take(&mut self) -> Vec<(PeerId, T)> {
        std::mem::take(&mut self.entries)
    }
}

impl<T: Default> PeerMap<T> {
    pub(super) fn get_or_default(&mut self, peer: PeerId) -> &mut T {
        let at = self.find(peer).unwrap_or_else(|at| {
            self.entries.insert(at, (peer, T::default()));
            at
        });
        &mut self.entries[at].1
    }
}
