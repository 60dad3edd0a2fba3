//! What the origin answered, for a short while, and questions that come together asked once. Tags and lists are kept so: it
//! keeps a rollout from asking the origin once for every container on the node.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture, future::Shared};
use tokio::time::{Instant, timeout};

use crate::origin::OriginError;

type Answer<V> = Result<Told<V>, OriginError>;
type Flight<V> = Shared<BoxFuture<'static, Answer<V>>>;

/// An answer that may have been on its way for a while.
pub(super) trait Aged {
    /// Time since the origin was asked.
    fn age(&self) -> Duration {
        Duration::ZERO
    }
}

/// Bounds of a cache of answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most answers remembered, questions under way included.
    pub(super) entries: usize,
    /// How long an answer is believed; zero: it is only shared among requests that come together.
    pub(super) ttl: Duration,
    /// How much longer it may be told while the origin cannot be asked.
    pub(super) stale: Duration,
    /// How long the origin is given to answer.
    pub(super) patience: Duration,
}

/// An answer of the origin.
#[derive(Debug, Clone)]
pub(super) struct Told<V> {
    pub(super) value: V,
    /// How old it is, if it is told only because the origin cannot be asked.
    pub(super) stale: Option<Duration>,
}

/// An answer that is remembered.
#[derive(Debug, Clone)]
struct Known<V> {
    value: V,
    learned: Instant,
    /// Until then the origin is not asked.
    believed_until: Instant,
    /// Whether the origin could not be asked since.
    overdue: bool,
}

impl<V: Clone> Known<V> {
    fn told(&self, now: Instant) -> Told<V> {
        Told { value: self.value.clone(), stale: self.overdue.then(|| now.saturating_duration_since(self.learned)) }
    }
}

struct Entry<V> {
    known: Option<Known<V>>,
    /// The question under way, by its number.
    asking: Option<(u64, Flight<V>)>,
}

struct Table<K, V> {
    entries: HashMap<K, Entry<V>>,
    asked: u64,
}

/// A cache of answers; a cheap handle.
pub(super) struct Answers<K, V> {
    bounds: Bounds,
    table: Arc<Mutex<Table<K, V>>>,
}

impl<K, V> Clone for Answers<K, V> {
    fn clone(&self) -> Self {
        Self { bounds: self.bounds, table: Arc::clone(&self.table) }
    }
}

impl<K, V> fmt::Debug for Answers<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl<K, V> Answers<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Aged + Clone + Send + Sync + 'static,
{
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, table: Arc::new(Mutex::new(Table { entries: HashMap::new(), asked: 0 })) }
    }

    /// The answer to `key`: remembered, or from the origin `host` by `ask`, which is called at most once for all who wait.
    ///
    /// # Errors
    /// The origin's, or that it did not answer within the patience, or that too many questions are under way.
    pub(super) async fn get<F>(&self, key: K, host: &str, ask: F) -> Answer<V>
    where
        F: FnOnce() -> BoxFuture<'static, Result<V, OriginError>>,
    {
        let flight = match self.find(key, host, Instant::now(), ask) {
            Found::Known(told) => return Ok(told),
            Found::Asking(flight) => flight,
            Found::Full => {
                let why = String::from("this node is asking it too many questions at once");
                return Err(OriginError::Unavailable { host: host.to_owned(), why });
            }
        };
        flight.await
    }

    /// Forgets the answers to all `unwanted` keys; questions under way are answered, but not remembered.
    pub(super) fn forget(&self, unwanted: impl Fn(&K) -> bool) {
        self.lock().entries.retain(|key, _| !unwanted(key));
    }

    fn find<F>(&self, key: K, host: &str, now: Instant, ask: F) -> Found<V>
    where
        F: FnOnce() -> BoxFuture<'static, Result<V, OriginError>>,
    {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get(&key) {
            match (&entry.known, &entry.asking) {
                (Some(known), _) if now < known.believed_until => return Found::Known(known.told(now)),
                (_, Some((_, flight))) => return Found::Asking(flight.clone()),
                _ => {}
            }
        } else if table.entries.len() >= self.bounds.entries && !self.make_room(&mut table, now) {
            return Found::Full;
        }
        table.asked += 1;
        let number = table.asked;
        let flight = self.ask(key.clone(), number, host.to_owned(), ask());
        let entry = table.entries.entry(key).or_insert(Entry { known: None, asking: None });
        entry.asking = Some((number, flight.clone()));
        Found::Asking(flight)
    }

    /// Asks the origin in a task of its own, so that a client that leaves does not take the answer from the others.
    fn ask(&self, key: K, number: u64, host: String, asked: BoxFuture<'static, Result<V, OriginError>>) -> Flight<V> {
        let patience = self.bounds.patience;
        let landing = Landing { cache: self.clone(), key, number };
        let late = OriginError::Unavailable { host: host.clone(), why: format!("no answer within {patience:?}") };
        let task = tokio::spawn(async move {
            match timeout(patience, asked).await.unwrap_or(Err(late)) {
                Ok(value) => Ok(landing.learn(value)),
                Err(error) => landing.stale(&error).ok_or(error),
            }
        });
        let lost = move || OriginError::Unavailable { host, why: String::from("the question was abandoned") };
        task.map(|joined| joined.unwrap_or_else(|_| Err(lost()))).boxed().shared()
    }

    /// Drops what is of no more use, else the answer that is believed the shortest. False if all are questions under way.
    fn make_room(&self, table: &mut Table<K, V>, now: Instant) -> bool {
        let useful = |known: &Known<V>| now < known.believed_until || self.may_be_told(known, now);
        table.entries.retain(|_, entry| entry.asking.is_some() || entry.known.as_ref().is_some_and(useful));
        if table.entries.len() < self.bounds.entries {
            return true;
        }
        let idle = table.entries.iter().filter(|(_, entry)| entry.asking.is_none());
        let first = idle.filter_map(|(key, entry)| Some((entry.known.as_ref()?.believed_until, key)));
        let Some(key) = first.min_by_key(|(until, _)| *until).map(|(_, key)| key.clone()) else { return false };
        table.entries.remove(&key).is_some()
    }

    /// Whether an answer may still be told while the origin cannot be asked.
    fn may_be_told(&self, known: &Known<V>, now: Instant) -> bool {
        let Bounds { ttl, stale, .. } = self.bounds;
        stale > Duration::ZERO && now.saturating_duration_since(known.learned) < ttl.saturating_add(stale)
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, V>> {
        // Every critical section leaves the table whole, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found<V> {
    Known(Told<V>),
    Asking(Flight<V>),
    Full,
}

/// Clears the way for the next question when one is over, however it ended.
struct Landing<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Aged + Clone + Send + Sync + 'static,
{
    cache: Answers<K, V>,
    key: K,
    number: u64,
}

impl<K, V> Landing<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Aged + Clone + Send + Sync + 'static,
{
    /// Remembers an answer, unless it was to be forgotten before it came.
    fn learn(&self, value: V) -> Told<V> {
        let now = Instant::now();
        let learned = now.checked_sub(value.age()).unwrap_or(now);
        let believed_until = learned + self.cache.bounds.ttl;
        let known = Known { value, learned, believed_until, overdue: false };
        let told = known.told(now);
        self.entry(|entry| entry.known = Some(known));
        told
    }

    /// What may be told instead of this error. The origin is then left alone for as long as an answer is believed.
    fn stale(&self, error: &OriginError) -> Option<Told<V>> {
        // An origin that says no can be asked: no is the answer.
        let (OriginError::Unavailable { .. } | OriginError::RateLimited { .. }) = error else { return None };
        let now = Instant::now();
        let mut told = None;
        self.entry(|entry| {
            if let Some(known) = entry.known.as_mut().filter(|known| self.cache.may_be_told(known, now)) {
                known.overdue = true;
                known.believed_until = now + self.cache.bounds.ttl;
                told = Some(known.told(now));
            }
        });
        told
    }

    fn entry(&self, change: impl FnOnce(&mut Entry<V>)) {
        let mut table = self.cache.lock();
        let ours = |entry: &&mut Entry<V>| entry.asking.as_ref().is_some_and(|(number, _)| *number == self.number);
        if let Some(entry) = table.entries.get_mut(&self.key).filter(ours) {
            change(entry);
        }
    }
}

impl<K, V> Drop for Landing<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Aged + Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        self.entry(|entry| entry.asking = None);
        let mut table = self.cache.lock();
        if table.entries.get(&self.key).is_some_and(|entry| entry.known.is_none() && entry.asking.is_none()) {
            table.entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use futures_util::future::{self, join_all};

    use super::*;

    impl Aged for u64 {}

    #[derive(Debug, Clone)]
    struct Old(Duration);

    impl Aged for Old {
        fn age(&self) -> Duration {
            self.0
        }
    }

    #[tokio::test]
    async fn an_answer_is_believed_from_when_the_origin_was_asked() {
        let answers = Answers::<u8, Old>::new(BOUNDS);
        let old = |age| move || future::ready(Ok(Old(age))).boxed();
        answers.get(1, "registry.test", old(HOUR - Duration::from_secs(60))).await.unwrap();
        let found = |later| answers.find(1, "", Instant::now() + Duration::from_secs(later), old(HOUR));
        assert!(matches!(found(30), Found::Known(_)));
        assert!(matches!(found(61), Found::Asking(_)));
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const BOUNDS: Bounds = Bounds { entries: 16, ttl: HOUR, stale: Duration::ZERO, patience: HOUR };

    fn answers(bounds: Bounds) -> Answers<String, u64> {
        Answers::new(bounds)
    }

    /// How often an origin was asked, which answers with that number.
    #[derive(Debug, Default, Clone)]
    struct Asked(Arc<AtomicU64>);

    impl Asked {
        async fn get(&self, answers: &Answers<String, u64>, key: &str) -> Answer<u64> {
            let count = Arc::clone(&self.0);
            let answer = move || async move { Ok(count.fetch_add(1, Relaxed) + 1) }.boxed();
            answers.get(key.to_owned(), "registry.test", answer).await
        }

        async fn fail(&self, answers: &Answers<String, u64>, key: &str, error: OriginError) -> Answer<u64> {
            let count = Arc::clone(&self.0);
            let answer = move || {
                count.fetch_add(1, Relaxed);
                future::ready(Err(error)).boxed()
            };
            answers.get(key.to_owned(), "registry.test", answer).await
        }

        fn count(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    fn down() -> OriginError {
        OriginError::Unavailable { host: String::from("registry.test"), why: String::from("refused") }
    }

    fn silent() -> BoxFuture<'static, Result<u64, OriginError>> {
        future::pending().boxed()
    }

    #[tokio::test]
    async fn requests_that_come_together_ask_the_origin_once() {
        let (answers, asked) = (answers(Bounds { ttl: Duration::ZERO, ..BOUNDS }), Asked::default());
        let all = join_all((0..20).map(|_| asked.get(&answers, "v1"))).await;
        assert!(all.iter().all(|answer| answer.as_ref().is_ok_and(|told| told.value == 1)));
        assert_eq!(asked.count(), 1);
        assert_eq!(asked.get(&answers, "v1").await.unwrap().value, 2, "not remembered");
    }

    #[tokio::test]
    async fn an_answer_is_believed_for_its_time_and_for_its_key_only() {
        let (answers, asked) = (answers(BOUNDS), Asked::default());
        for (key, count) in [("a", 1), ("a", 1), ("b", 2), ("a", 2)] {
            asked.get(&answers, key).await.unwrap();
            assert_eq!(asked.count(), count);
        }
        let later = Instant::now() + HOUR + HOUR;
        assert!(matches!(answers.find("a".to_owned(), "", later, silent), Found::Asking(_)));
        answers.forget(|key| key == "b");
        assert!(matches!(answers.find("b".to_owned(), "", Instant::now(), silent), Found::Asking(_)));
    }

    #[tokio::test]
    async fn an_answer_to_a_question_that_was_forgotten_meanwhile_is_not_remembered() {
        let (answers, asked) = (answers(BOUNDS), Asked::default());
        let (go, gone) = tokio::sync::oneshot::channel();
        let ask = move || async move { gone.await.map_err(|_| down()) }.boxed();
        let Found::Asking(flight) = answers.find("v1".to_owned(), "", Instant::now(), ask) else { panic!("asked") };
        answers.forget(|_| true);
        go.send(7).unwrap();
        assert_eq!(flight.await.unwrap().value, 7, "those who waited get it");
        assert_eq!(asked.get(&answers, "v1").await.unwrap().value, 1, "those who come later ask anew");
    }

    #[tokio::test]
    async fn failures_are_shared_but_not_remembered() {
        let (answers, asked) = (answers(BOUNDS), Asked::default());
        let all = join_all((0..3).map(|_| asked.fail(&answers, "v1", down()))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(asked.count(), 1);
        assert!(asked.fail(&answers, "v1", down()).await.is_err());
        assert_eq!(asked.count(), 2);
        assert!(answers.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn a_silent_origin_is_given_up_and_can_be_asked_again() {
        let answers = answers(Bounds { patience: Duration::from_millis(1), ..BOUNDS });
        let error = answers.get("v1".to_owned(), "registry.test", silent).await.unwrap_err();
        assert!(matches!(error, OriginError::Unavailable { .. }));
        assert!(answers.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn while_the_origin_cannot_be_asked_an_old_answer_is_told_as_such_if_that_is_wanted() {
        let bounds = Bounds { ttl: Duration::ZERO, stale: HOUR, ..BOUNDS };
        let (answers, asked) = (answers(bounds), Asked::default());
        assert!(asked.fail(&answers, "v1", down()).await.is_err(), "nothing is known yet");
        asked.get(&answers, "v1").await.unwrap();
        let limited = OriginError::RateLimited { host: String::new(), retry_after: None };
        for error in [down(), limited] {
            let told = asked.fail(&answers, "v1", error).await.unwrap();
            assert!(told.value == 2 && told.stale.is_some());
        }
        let told = asked.get(&answers, "v1").await.unwrap();
        assert!(told.value == 5 && told.stale.is_none(), "the origin is back");
        for error in [OriginError::NotFound { host: String::new() }, OriginError::Denied { host: String::new() }] {
            assert!(asked.fail(&answers, "v1", error).await.is_err(), "an origin that says no was asked");
        }
    }

    #[tokio::test]
    async fn an_origin_that_cannot_be_asked_is_left_alone_for_as_long_as_an_answer_is_believed() {
        let (answers, asked) = (answers(Bounds { stale: HOUR, ..BOUNDS }), Asked::default());
        asked.get(&answers, "v1").await.unwrap();
        answers.lock().entries.get_mut("v1").unwrap().known.as_mut().unwrap().believed_until = Instant::now();
        for _ in 0..3 {
            assert!(asked.fail(&answers, "v1", down()).await.unwrap().stale.is_some());
        }
        assert_eq!(asked.count(), 2);
    }

    #[tokio::test]
    async fn without_leave_no_old_answer_is_told() {
        let (answers, asked) = (answers(Bounds { ttl: Duration::ZERO, ..BOUNDS }), Asked::default());
        asked.get(&answers, "v1").await.unwrap();
        assert!(asked.fail(&answers, "v1", down()).await.is_err());
    }

    #[tokio::test]
    async fn the_cache_never_grows_beyond_its_bound() {
        let (full, asked) = (answers(BOUNDS), Asked::default());
        for index in 0..BOUNDS.entries + 10 {
            asked.get(&full, &format!("v{index}")).await.unwrap();
        }
        assert_eq!(full.lock().entries.len(), BOUNDS.entries);

        let busy = answers(BOUNDS);
        for index in 0..BOUNDS.entries {
            assert!(matches!(busy.find(format!("v{index}"), "", Instant::now(), silent), Found::Asking(_)));
        }
        assert!(matches!(busy.find("more".to_owned(), "", Instant::now(), silent), Found::Full));
    }
}
