//! Provider records: who announced which key.
//!
//! Takes the place of libp2p's in-memory store, which ignores newcomers of a full key in favour of holders that may be
//! long gone, and drops expired records only when somebody asks for their key.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    iter,
    time::Instant,
};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

/// Providers kept for one key. An answer carries twenty; more than that lets the dead expire without a gap.
const PROVIDERS_PER_KEY: usize = 64;

/// Keys that other nodes may announce here.
const KEYS_MAX: usize = 65_536;

/// Records of other nodes in all: some 250 bytes each.
const RECORDS_MAX: usize = 262_144;

/// Keys that this node may announce itself.
const OWN_MAX: usize = 65_536;

/// What others announced to this node, and what it announces itself. Bounded; holds no values.
#[derive(Debug)]
pub(super) struct Providers {
    local: PeerId,
    own: HashMap<RecordKey, ProviderRecord>,
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    records: usize,
}

impl Providers {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, own: HashMap::new(), others: HashMap::new(), records: 0 }
    }

    /// Forgets what has expired by `now`.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.others.retain(|_, records| {
            records.retain(|record| !record.is_expired(now));
            !records.is_empty()
        });
        self.records = self.others.values().map(Vec::len).sum();
    }

    fn add_own(&mut self, record: ProviderRecord) -> Result<()> {
        if self.own.len() >= OWN_MAX && !self.own.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.own.insert(record.key.clone(), record);
        Ok(())
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> =
        iter::Map<hash_map::Values<'a, RecordKey, ProviderRecord>, fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider == self.local {
            return self.add_own(record);
        }
        let full = self.records >= RECORDS_MAX || self.others.len() >= KEYS_MAX;
        match self.others.get_mut(&record.key) {
            Some(records) => {
                let same = records.iter().position(|known| known.provider == record.provider);
                let at = match same {
                    Some(at) => at,
                    None if records.len() < PROVIDERS_PER_KEY && self.records < RECORDS_MAX => {
                        self.records += 1;
                        records.push(record);
                        return Ok(());
                    }
                    // The newest holders are the likeliest to be alive and to have the blob still.
                    None => records
                        .iter()
                        .enumerate()
                        .min_by_key(|(_, known)| known.expires)
                        .map(|(at, _)| at)
                        .ok_or(Error::MaxProvidedKeys)?,
                };
                records[at] = record;
            }
            None if full => return Err(Error::MaxProvidedKeys),
            None => {
                self.records += 1;
                self.others.insert(record.key.clone(), vec![record]);
            }
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.others.get(key).into_iter().flatten();
        // The newest first: an answer has no room for all.
        let mut records: Vec<_> = others.chain(self.own.get(key)).cloned().collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.expires));
        records
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.remove(key);
            return;
        }
        if let hash_map::Entry::Occupied(mut entry) = self.others.entry(key.clone()) {
            let before = entry.get().len();
            entry.get_mut().retain(|record| record.provider != *provider);
            self.records -= before - entry.get().len();
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(key: u8, provider: PeerId, expires: Instant) -> ProviderRecord {
        ProviderRecord { key: RecordKey::new(&[key; 32]), provider, expires: Some(expires), addresses: Vec::new() }
    }

    #[test]
    fn a_newcomer_of_a_full_key_takes_the_place_of_the_oldest() {
        let mut store = Providers::new(PeerId::random());
        let start = Instant::now();
        let peers: Vec<_> = (0..=PROVIDERS_PER_KEY).map(|_| PeerId::random()).collect();
        for (age, peer) in peers.iter().enumerate() {
            store.add_provider(record(1, *peer, start + Duration::from_secs(age as u64))).unwrap();
        }
        let kept = store.providers(&RecordKey::new(&[1; 32]));
        assert_eq!(kept.len(), PROVIDERS_PER_KEY);
        assert_eq!(kept[0].provider, peers[PROVIDERS_PER_KEY], "the newest comes first");
        assert!(kept.iter().all(|record| record.provider != peers[0]));
    }

    #[test]
    fn a_repeated_announcement_is_one_record() {
        let mut store = Providers::new(PeerId::random());
        let (peer, now) = (PeerId::random(), Instant::now());
        for age in 0..3 {
            store.add_provider(record(1, peer, now + Duration::from_secs(age))).unwrap();
        }
        let kept = store.providers(&RecordKey::new(&[1; 32]));
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].expires, Some(now + Duration::from_secs(2)));
        store.remove_provider(&RecordKey::new(&[1; 32]), &peer);
        assert_eq!((store.records, store.others.len()), (0, 0));
    }

    #[test]
    fn a_sweep_forgets_what_has_expired_and_nothing_else() {
        let local = PeerId::random();
        let mut store = Providers::new(local);
        let now = Instant::now();
        store.add_provider(record(1, PeerId::random(), now)).unwrap();
        store.add_provider(record(2, PeerId::random(), now + Duration::from_secs(9))).unwrap();
        store.add_provider(ProviderRecord::new(RecordKey::new(&[3; 32]), local, Vec::new())).unwrap();
        store.sweep(now + Duration::from_secs(1));
        let left = |key: u8| store.providers(&RecordKey::new(&[key; 32])).len();
        assert_eq!([left(1), left(2), left(3)], [0, 1, 1]);
        assert_eq!(store.records, 1);
    }

    #[test]
    fn only_what_this_node_announces_is_announced_again() {
        let local = PeerId::random();
        let mut store = Providers::new(local);
        store.add_provider(record(1, PeerId::random(), Instant::now())).unwrap();
        store.add_provider(ProviderRecord::new(RecordKey::new(&[2; 32]), local, Vec::new())).unwrap();
        let own: Vec<_> = store.provided().map(|record| record.key.clone()).collect();
        assert_eq!(own, [RecordKey::new(&[2; 32])]);
        store.remove_provider(&own[0], &local);
        assert_eq!(store.provided().count(), 0);
    }

    #[test]
    fn values_are_not_stored() {
        let mut store = Providers::new(PeerId::random());
        let value = Record::new(RecordKey::new(&[1; 32]), vec![1]);
        assert!(matches!(store.put(value), Err(Error::MaxRecords)));
        assert_eq!(store.records().count(), 0);
    }
}
