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

/// Outcomes by key.
#[derive(Debug)]
pub(super) struct Shared<V> {
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Outcome<V>>>>>>,
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
    pub(super) async fn get(
        &self,
        key: &str,
        run: impl Future<Output = Result<(V, Duration), CredentialError>>,
    ) -> Result<V, CredentialError> {
        let asked = Instant::now();
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some(outcome) = slot.as_ref().filter(|outcome| outcome.had > asked || outcome.until > asked) {
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

    fn slot(&self, key: &str) -> Arc<tokio::sync::Mutex<Option<Outcome<V>>>> {
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

    #[tokio::test(start_paused = true)]
    async fn an_outcome_is_kept_as_long_as_it_holds_and_a_failure_briefly() {
        let shared = Shared::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(shared.get("a", async { Ok((1, hour)) }).await, Ok(1));
        assert_eq!(shared.get("a", unasked()).await, Ok(1));
        assert_eq!(shared.get("b", async { Err(failure()) }).await, Err(failure()), "another key is another thing");
        assert_eq!(shared.get("b", async { Ok((2, hour)) }).await, Err(failure()));
        tokio::time::advance(FAILURE_LIFE).await;
        assert_eq!(shared.get("b", async { Ok((2, hour)) }).await, Ok(2));
        tokio::time::advance(hour).await;
        assert_eq!(shared.get("a", async { Ok((3, Duration::ZERO)) }).await, Ok(3));
        assert_eq!(shared.get("a", async { Ok((4, hour)) }).await, Ok(4), "nothing is kept for no time");
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_one_run_even_if_it_is_not_kept() {
        let shared = Shared::default();
        let (send, receive) = tokio::sync::oneshot::channel();
        let first = shared.get("a", async { receive.await.map_err(|_| failure()) });
        let second = shared.get("a", unasked());
        let finish = async {
            tokio::time::advance(Duration::from_millis(1)).await;
            send.send((7, Duration::ZERO)).unwrap();
        };
        let (first, second, ()) = tokio::join!(biased; first, second, finish);
        assert_eq!((first, second), (Ok(7), Ok(7)));
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_begun_anew_by_the_next() {
        let shared = Shared::default();
        tokio::select! {
            biased;
            _ = shared.get("a", std::future::pending()) => unreachable!("it never ends"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(shared.get("a", async { Ok((1, Duration::ZERO)) }).await, Ok(1));
    }

    #[tokio::test]
    async fn forgotten_keys_make_room() {
        let shared = Shared::default();
        for number in 0..KEPT_MAX + 10 {
            assert!(shared.get(&number.to_string(), async { Ok((number, FAILURE_LIFE)) }).await.is_ok());
        }
        assert!(shared.slots.lock().unwrap().len() <= KEPT_MAX);
    }
}
