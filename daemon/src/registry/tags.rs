//! What tags point at, for a short while. Only the origin resolves tags, asked by this node or by one for all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    answers::{Aged, Answers, Bounds, Told},
    content::{Content, TagQuestion},
    route::Target,
};
use crate::{node::TagAnswer, origin::OriginError};

/// Most tags remembered. With names and Accept values at their longest this is some 5 MB, and 4 MB more if the origin warns
/// of each.
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
            upstream: question.upstream.cache_key().to_owned(),
            repository: question.repository.clone(),
            tag: question.tag.clone(),
            accept: question.accept.clone(),
        }
    }
}

/// The cache of resolved tags; a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Tags {
    answers: Answers<Key, TagAnswer>,
    /// Repositories that were pushed to through this node, by upstream and name, and when last. Other nodes may know no
    /// better than before for as long as an answer is believed.
    pushed: Arc<Mutex<HashMap<(String, String), Instant>>>,
    ttl: Duration,
}

impl Aged for TagAnswer {
    fn age(&self) -> Duration {
        self.age
    }
}

impl Tags {
    /// Answers are believed for `ttl`; for `stale` longer, they are told while the origin cannot be asked. It is given
    /// `patience` to answer.
    pub(super) fn new(ttl: Duration, stale: Duration, patience: Duration) -> Self {
        let answers = Answers::new(Bounds { entries: ENTRIES, ttl, stale, patience });
        Self { answers, pushed: Arc::default(), ttl }
    }

    /// What the tag points at.
    ///
    /// # Errors
    /// See [`Answers::get`].
    pub(super) async fn resolve(
        &self,
        content: &Arc<dyn Content>,
        mut question: TagQuestion,
    ) -> Result<Told<TagAnswer>, OriginError> {
        let (key, host) = (Key::from(&question), question.upstream.name.clone());
        question.own |= self.was_pushed_to(&key.upstream, &key.repository);
        self.answers.get(key, &host, || content.resolve(question)).await
    }

    /// Forgets all tags of a repository: it was pushed to.
    pub(super) fn forget_repository(&self, target: &Target) {
        let pushed = (target.upstream.cache_key().to_owned(), target.repository.clone());
        self.answers.forget(|key| (&key.upstream, &key.repository) == (&pushed.0, &pushed.1));
        let mut repositories = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        repositories.retain(|_, since| since.elapsed() < self.ttl);
        if repositories.len() < ENTRIES {
            repositories.insert(pushed, Instant::now());
        }
    }

    fn was_pushed_to(&self, upstream: &str, repository: &str) -> bool {
        let repositories = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = repositories.get(&(upstream.to_owned(), repository.to_owned()));
        since.is_some_and(|since| since.elapsed() < self.ttl)
    }

    /// Forgets an answer that turned out to be of no use.
    pub(super) fn forget(&self, question: &TagQuestion) {
        let unwanted = Key::from(question);
        self.answers.forget(|key| *key == unwanted);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::{super::fake::Fake, *};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_tag_is_remembered_for_the_same_accept_only() {
        let fake = Fake::default().with_tag("v1", b"{}").shared();
        let content: Arc<dyn Content> = fake.clone();
        let tags = Tags::new(HOUR, Duration::ZERO, HOUR);
        let upstream = super::super::fake::upstream("registry.test");
        let question = |accept: &str| TagQuestion {
            upstream: Arc::clone(&upstream),
            repository: String::from("team/x"),
            tag: String::from("v1"),
            accept: accept.to_owned(),
            own: false,
        };
        for (accept, asked) in [("a/b", 1), ("a/b", 1), ("c/d", 2), ("a/b", 2)] {
            tags.resolve(&content, question(accept)).await.unwrap();
            assert_eq!(fake.resolved.load(Relaxed), asked);
        }
        tags.forget(&question("a/b"));
        tags.resolve(&content, question("c/d")).await.unwrap();
        assert_eq!(fake.resolved.load(Relaxed), 2, "another answer stays");
        tags.resolve(&content, question("a/b")).await.unwrap();
        assert_eq!(fake.resolved.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn whoever_pushed_through_this_node_sees_what_the_origin_has_and_not_what_other_nodes_remember() {
        let fake = Fake::default().with_tag("v1", b"{}").with_word(b"older").shared();
        let content: Arc<dyn Content> = fake.clone();
        let tags = Tags::new(HOUR, Duration::ZERO, HOUR);
        let upstream = super::super::fake::upstream("registry.test");
        let resolve = async |repository: &str| {
            let (upstream, repository) = (Arc::clone(&upstream), repository.to_owned());
            let (tag, accept) = (String::from("v1"), String::from("a/b"));
            let question = TagQuestion { upstream, repository, tag, accept, own: false };
            tags.resolve(&content, question).await.unwrap().value.resolver.is_some()
        };
        assert!(resolve("team/x").await && resolve("team/y").await);
        tags.forget_repository(&Target {
            upstream: Arc::clone(&upstream),
            repository: String::from("team/x"),
            namespace: None,
            scope: crate::access::Scope::Public,
            problem: None,
        });
        assert!(!resolve("team/x").await && resolve("team/y").await);
    }
}
