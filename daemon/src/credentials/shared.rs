//! One run for all who ask for the same thing, and its outcome kept for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::credentials::CredentialError;

/// Things that may be kept at once; idle ones are forgotten beyond.
const KEPT_MAX: usize = 1024;

/// How long a failure is kept: long enough that a rollout does not run a broken program once a layer.
pub(super) const FAILURE_LIFE: Duration = Duration::from_secs(5);

/// Whoever runs for a key holds its slot; none: nobody has yet.
type Slot<V> = Arc<tokio::sync::Mutex<Option<Outcome<V>>>>;

/// Outcomes by key.
#[derive(Debug)]
pub(super) struct Shared<V> {
    slots: Mutex<HashMap<String, Slot<V>>>,
}

#[derive(Debug, Clone)]
struct Outcome<V> {
    value: Result<V, CredentialError>,
    had: Instant,
    until: Instant,
}

impl<V> Default for Shared<V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<V: Clone> Shared<V> {
    /// The outcome kept under `key`, or that of `run`, which also says how long it holds. Whoever already waited when it
    /// came gets it too, even if it holds no longer than that. A run whose caller goes away is begun anew by the next.
    /// `asked` is now.
    pub(super) async fn get(
        &self,
        key: &str,
        asked: Instant,
        run: impl Future<Output = Result<(V, Duration), CredentialError>>,
    ) -> Result<V, CredentialError> {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some(outcome) = slot.as_ref().filter(|outcome| outcome.had >= asked || outcome.until > asked) {
            return outcome.value.clone();
        }
        let (value, life) = match run.await {
            Ok((value, life)) => (Ok(value), life),
            Err(error) => {
                tracing::warn!("no credential: {error}");
                (Err(error), FAILURE_LIFE)
            }
        };
        let had = Instant::now();
        *slot = Some(Outcome { value: value.clone(), had, until: had + life });
        value
    }

    /// Drops what is kept under the keys that `forgotten` picks. Who waits for a run still gets its outcome.
    pub(super) fn forget(&self, forgotten: impl Fn(&str) -> bool) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| !forgotten(key));
    }

    fn slot(&self, key: &str) -> Slot<V> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        if slots.len() >= KEPT_MAX {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let slot = Arc::default();
        // With so many in use at once, one more goes without a place to be kept.
        if slots.len() < KEPT_MAX {
            slots.insert(key.to_owned(), Arc::clone(&slot));
        }
        slot
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn unasked() -> std::future::Ready<Result<(u32, Duration), CredentialError>> {
        std::future::ready(Err(CredentialError::new("test", "ran although the outcome was there")))
    }

    fn failure() -> CredentialError {
        CredentialError::new("test", "broken")
    }

    #[tokio::test]
    async fn an_outcome_is_kept_as_long_as_it_holds_and_a_failure_briefly() {
        let (shared, now, hour) = (Shared::default(), Instant::now(), Duration::from_secs(3600));
        assert_eq!(shared.get("a", now, async { Ok((1, hour)) }).await, Ok(1));
        assert_eq!(shared.get("a", now + hour, unasked()).await, Ok(1));
        assert_eq!(
            shared.get("b", now, async { Err(failure()) }).await,
            Err(failure()),
            "another key is another thing"
        );
        assert_eq!(shared.get("b", now + FAILURE_LIFE, async { Ok((2, hour)) }).await, Err(failure()));
        assert_eq!(shared.get("b", now + 2 * FAILURE_LIFE, async { Ok((2, hour)) }).await, Ok(2));
        assert_eq!(shared.get("a", now + 2 * hour, async { Ok((3, Duration::ZERO)) }).await, Ok(3));
        assert_eq!(
            shared.get("a", now + 2 * hour, async { Ok((4, hour)) }).await,
            Ok(4),
            "nothing is kept for no time"
        );
    }

    #[tokio::test]
    async fn all_who_wait_share_one_run_even_if_it_is_not_kept() {
        let (shared, now) = (Shared::default(), Instant::now());
        let (send, receive) = tokio::sync::oneshot::channel();
        let first = shared.get("a", now, async { receive.await.map_err(|_| failure()) });
        let second = shared.get("a", now, unasked());
        let (first, second, ()) =
            tokio::join!(biased; first, second, async { send.send((7, Duration::ZERO)).unwrap() });
        assert_eq!((first, second), (Ok(7), Ok(7)));
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_begun_anew_by_the_next() {
        let shared = Shared::default();
        tokio::select! {
            biased;
            _ = shared.get("a", Instant::now(), std::future::pending()) => unreachable!("it never ends"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(shared.get("a", Instant::now(), async { Ok((1, Duration::ZERO)) }).await, Ok(1));
    }

    #[tokio::test]
    async fn what_is_forgotten_is_run_for_again() {
        let shared = Shared::default();
        for key in ["a", "b"] {
            assert_eq!(shared.get(key, Instant::now(), async { Ok((1, FAILURE_LIFE)) }).await, Ok(1));
        }
        shared.forget(|key| key == "a");
        assert_eq!(shared.get("a", Instant::now(), async { Ok((2, FAILURE_LIFE)) }).await, Ok(2));
        assert_eq!(shared.get("b", Instant::now(), unasked()).await, Ok(1));
    }

    #[tokio::test]
    async fn forgotten_keys_make_room() {
        let shared = Shared::default();
        for number in 0..KEPT_MAX + 10 {
            assert!(
                shared.get(&number.to_string(), Instant::now(), async { Ok((number, FAILURE_LIFE)) }).await.is_ok()
            );
        }
        assert!(shared.slots.lock().unwrap().len() <= KEPT_MAX);
    }
}
