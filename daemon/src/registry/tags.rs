//! What tags point at, for a short while. Only the origin resolves tags; this cache keeps a rollout from asking it once
//! for every container on the node, and lets requests that come together share one question.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture, future::Shared};
use tokio::time::{Instant, timeout};

use super::content::{Content, TagQuestion};
use crate::origin::{OriginError, Resolved};

/// Most tags remembered. With names and Accept values at their longest this is some 5 MB.
const ENTRIES: usize = 1024;

/// What decides the origin's answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    upstream: String,
    repository: String,
    tag: String,
    accept: String,
}

impl From<&TagQuestion> for Key {
    fn from(question: &TagQuestion) -> Self {
        Self {
            upstream: question.upstream.name.clone(),
            repository: question.repository.clone(),
            tag: question.tag.clone(),
            accept: question.accept.clone(),
        }
    }
}

type Answer = Result<Resolved, OriginError>;
type Flight = Shared<BoxFuture<'static, Answer>>;

#[derive(Debug)]
enum Entry {
    /// The origin is being asked.
    Asking(Flight),
    /// It answered, and may be believed until then.
    Known(Resolved, Instant),
}

/// The cache of resolved tags; a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Tags {
    ttl: Duration,
    patience: Duration,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
}

impl Tags {
    /// Answers are believed for `ttl` (zero: only shared among requests that come together); the origin is given
    /// `patience` to answer.
    pub(super) fn new(ttl: Duration, patience: Duration) -> Self {
        Self { ttl, patience, entries: Arc::default() }
    }

    /// What the tag points at.
    ///
    /// # Errors
    /// The origin's, or that it did not answer within the patience, or that too many tags are being resolved at once.
    pub(super) async fn resolve(&self, content: &Arc<dyn Content>, question: TagQuestion) -> Answer {
        let flight = match self.find(content, &question, Instant::now()) {
            Found::Known(resolved) => return Ok(resolved),
            Found::Asking(flight) => flight,
            Found::Full => {
                let why = String::from("this node is resolving too many tags at once");
                return Err(OriginError::Unavailable { host: question.upstream.name.clone(), why });
            }
        };
        flight.await
    }

    /// Forgets an answer that turned out to be of no use.
    pub(super) fn forget(&self, question: &TagQuestion) {
        let mut entries = self.lock();
        let key = Key::from(question);
        if matches!(entries.get(&key), Some(Entry::Known(..))) {
            entries.remove(&key);
        }
    }

    fn find(&self, content: &Arc<dyn Content>, question: &TagQuestion, now: Instant) -> Found {
        let key = Key::from(question);
        let mut entries = self.lock();
        match entries.get(&key) {
            Some(Entry::Known(resolved, until)) if now < *until => return Found::Known(resolved.clone()),
            Some(Entry::Asking(flight)) => return Found::Asking(flight.clone()),
            Some(Entry::Known(..)) | None => {}
        }
        if !entries.contains_key(&key) && entries.len() >= ENTRIES && !make_room(&mut entries, now) {
            return Found::Full;
        }
        let flight = self.ask(content, question.clone(), key.clone());
        entries.insert(key, Entry::Asking(flight.clone()));
        Found::Asking(flight)
    }

    /// Asks the origin in a task of its own, so that a client that leaves does not take the answer from the others.
    fn ask(&self, content: &Arc<dyn Content>, question: TagQuestion, key: Key) -> Flight {
        let (cache, host) = (self.clone(), question.upstream.name.clone());
        let (entry, patience) = (Landing { cache: self.clone(), key }, self.patience);
        let asked = content.resolve(question);
        let late = OriginError::Unavailable { host: host.clone(), why: format!("no answer within {patience:?}") };
        let task = tokio::spawn(async move {
            let answer = timeout(patience, asked).await.unwrap_or(Err(late));
            if let Ok(resolved) = &answer {
                entry.keep(resolved.clone(), Instant::now() + cache.ttl);
            }
            answer
        });
        let lost = move || OriginError::Unavailable { host, why: String::from("the question was abandoned") };
        task.map(|joined| joined.unwrap_or_else(|_| Err(lost()))).boxed().shared()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Every critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found {
    Known(Resolved),
    Asking(Flight),
    Full,
}

/// Clears the way for the next question when one is over, however it ended.
struct Landing {
    cache: Tags,
    key: Key,
}

impl Landing {
    fn keep(&self, resolved: Resolved, until: Instant) {
        if let Some(entry) = self.cache.lock().get_mut(&self.key) {
            *entry = Entry::Known(resolved, until);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut entries = self.cache.lock();
        if matches!(entries.get(&self.key), Some(Entry::Asking(_))) {
            entries.remove(&self.key);
        }
    }
}

/// Drops what has expired, else the answer that expires first. False if all are questions under way.
fn make_room(entries: &mut HashMap<Key, Entry>, now: Instant) -> bool {
    entries.retain(|_, entry| {
        matches!(entry, Entry::Asking(_)) || matches!(entry, Entry::Known(_, until) if now < *until)
    });
    if entries.len() < ENTRIES {
        return true;
    }
    let expiry = |entry: &Entry| match entry {
        Entry::Known(_, until) => Some(*until),
        Entry::Asking(_) => None,
    };
    let first = entries.iter().filter_map(|(key, entry)| Some((expiry(entry)?, key))).min_by_key(|(until, _)| *until);
    let Some(key) = first.map(|(_, key)| key.clone()) else { return false };
    entries.remove(&key).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::{LazyLock, atomic::Ordering::Relaxed};

    use futures_util::future::join_all;

    use super::{super::fake::Fake, *};
    use crate::origin::Upstream;

    const HOUR: Duration = Duration::from_secs(3600);

    /// One for all questions: making an upstream loads the system's certificates.
    static UPSTREAM: LazyLock<Arc<Upstream>> = LazyLock::new(|| super::super::fake::upstream("registry.test"));

    fn question(tag: &str, accept: &str) -> TagQuestion {
        TagQuestion {
            upstream: Arc::clone(&UPSTREAM),
            repository: String::from("team/x"),
            tag: tag.to_owned(),
            accept: accept.to_owned(),
        }
    }

    #[tokio::test]
    async fn requests_that_come_together_ask_the_origin_once() {
        let fake = Fake::default().with_tag("v1", b"{}").shared();
        let content: Arc<dyn Content> = fake.clone();
        let tags = Tags::new(Duration::ZERO, HOUR);
        let answers = join_all((0..20).map(|_| tags.resolve(&content, question("v1", "*/*")))).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(fake.resolved.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn an_answer_is_believed_for_its_time_and_for_the_same_accept_only() {
        let fake = Fake::default().with_tag("v1", b"{}").shared();
        let content: Arc<dyn Content> = fake.clone();
        let tags = Tags::new(HOUR, HOUR);
        for (accept, asked) in [("a/b", 1), ("a/b", 1), ("c/d", 2), ("a/b", 2)] {
            tags.resolve(&content, question("v1", accept)).await.unwrap();
            assert_eq!(fake.resolved.load(Relaxed), asked);
        }
        let later = Instant::now() + HOUR + HOUR;
        assert!(matches!(tags.find(&content, &question("v1", "a/b"), later), Found::Asking(_)));
        tags.forget(&question("v1", "c/d"));
        assert!(matches!(tags.find(&content, &question("v1", "c/d"), Instant::now()), Found::Asking(_)));
    }

    #[tokio::test]
    async fn failures_are_shared_but_not_remembered() {
        let fake = Fake::default().shared();
        let content: Arc<dyn Content> = fake.clone();
        let tags = Tags::new(HOUR, HOUR);
        let answers = join_all((0..3).map(|_| tags.resolve(&content, question("v1", "*/*")))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(OriginError::NotFound { .. }))));
        assert_eq!(fake.resolved.load(Relaxed), 1);
        assert!(tags.resolve(&content, question("v1", "*/*")).await.is_err());
        assert_eq!(fake.resolved.load(Relaxed), 2);
        assert!(tags.lock().is_empty());
    }

    #[tokio::test]
    async fn a_silent_origin_is_given_up_and_can_be_asked_again() {
        let content: Arc<dyn Content> = Fake::default().silent().shared();
        let tags = Tags::new(HOUR, Duration::from_millis(1));
        let error = tags.resolve(&content, question("v1", "*/*")).await.unwrap_err();
        assert!(matches!(error, OriginError::Unavailable { .. }));
        assert!(tags.lock().is_empty());
    }

    #[tokio::test]
    async fn the_cache_never_grows_beyond_its_bound() {
        let content: Arc<dyn Content> = Fake::default().with_any_tag(b"{}").shared();
        let tags = Tags::new(HOUR, HOUR);
        for index in 0..ENTRIES + 10 {
            tags.resolve(&content, question(&format!("v{index}"), "*/*")).await.unwrap();
        }
        assert_eq!(tags.lock().len(), ENTRIES);

        let silent: Arc<dyn Content> = Fake::default().silent().shared();
        let busy = Tags::new(HOUR, HOUR);
        for index in 0..ENTRIES {
            let found = busy.find(&silent, &question(&format!("v{index}"), "*/*"), Instant::now());
            assert!(matches!(found, Found::Asking(_)));
        }
        assert!(matches!(busy.find(&silent, &question("more", "*/*"), Instant::now()), Found::Full));
    }
}
