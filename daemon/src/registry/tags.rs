//! What tags point at, for a short while. Only the origin resolves tags.

use std::{sync::Arc, time::Duration};

use super::{
    answers::{Answers, Bounds, Told},
    content::{Content, TagQuestion},
    route::Target,
};
use crate::origin::{OriginError, Resolved};

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
pub(super) struct Tags(Answers<Key, Resolved>);

impl Tags {
    /// Answers are believed for `ttl`; for `stale` longer, they are told while the origin cannot be asked. It is given
    /// `patience` to answer.
    pub(super) fn new(ttl: Duration, stale: Duration, patience: Duration) -> Self {
        Self(Answers::new(Bounds { entries: ENTRIES, ttl, stale, patience }))
    }

    /// What the tag points at.
    ///
    /// # Errors
    /// See [`Answers::get`].
    pub(super) async fn resolve(
        &self,
        content: &Arc<dyn Content>,
        question: TagQuestion,
    ) -> Result<Told<Resolved>, OriginError> {
        let (key, host) = (Key::from(&question), question.upstream.name.clone());
        self.0.get(key, &host, || content.resolve(question)).await
    }

    /// Forgets all tags of a repository: it was pushed to.
    pub(super) fn forget_repository(&self, target: &Target) {
        self.0.forget(|key| key.upstream == target.upstream.cache_key() && key.repository == target.repository);
    }

    /// Forgets an answer that turned out to be of no use.
    pub(super) fn forget(&self, question: &TagQuestion) {
        let unwanted = Key::from(question);
        self.0.forget(|key| *key == unwanted);
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
}
