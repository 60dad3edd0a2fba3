//! Bearer tokens: one per repository of an upstream, fetched once however many wait, renewed before it ends.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

use crate::origin::error::Failure;

/// Repositories with a token of their own per upstream; idle ones are forgotten beyond.
const REPOSITORIES: usize = 1024;

/// What a token lives if the server does not say (Distribution's specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// No token is kept longer, whatever the server says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A token as a header.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    /// At 80 % of its life.
    renew: Instant,
    end: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("end", &self.end).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Grant {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Token {
    /// Reads a token server's answer; none if it grants nothing usable.
    pub(super) fn parse(answer: &[u8], asked: Instant) -> Option<Self> {
        let grant: Grant = serde_json::from_slice(answer).ok()?;
        let text = [grant.token, grant.access_token].into_iter().flatten().find(|text| !text.is_empty())?;
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        let life =
            grant.expires_in.filter(|&life| life > 0).map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE);
        Some(Self { header, renew: asked + life.mul_f64(0.8), end: asked + life })
    }
}

/// The tokens of one upstream, by repository.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>,
}

#[derive(Debug, Default)]
struct Slot {
    token: Option<Token>,
    /// The last failure, for those who were already waiting when it happened.
    failed: Option<(Instant, Failure)>,
}

impl Tokens {
    /// The repository's token: kept, or by `fetch`, which runs once for all who wait. `refused` is a token that the registry did not take:
    /// it is not given again. `asked` is now.
    pub(super) async fn get<F>(
        &self,
        asked: Instant,
        repository: &str,
        refused: Option<&HeaderValue>,
        fetch: F,
    ) -> Result<Token, Failure>
    where
        F: Future<Output = Result<Token, Failure>>,
    {
        let slot = self.slot(repository);
        let mut slot = slot.lock().await;
        let kept = slot.token.clone().filter(|token| token.end > asked && refused != Some(&token.header));
        if let Some(token) = &kept
            && token.renew > asked
        {
            return Ok(token.clone());
        }
        match &slot.failed {
            Some((at, failure)) if *at >= asked => return kept.ok_or_else(|| failure.clone()),
            _ => {}
        }
        match fetch.await {
            Ok(token) => {
                *slot = Slot { token: Some(token.clone()), failed: None };
                Ok(token)
            }
            Err(failure) => {
                slot.failed = Some((Instant::now(), failure.clone()));
                kept.ok_or(failure)
            }
        }
    }

    fn slot(&self, repository: &str) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(repository) {
            return Arc::clone(slot);
        }
        if slots.len() >= REPOSITORIES {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let slot = Arc::default();
        // With so many in use at once, one more goes without a place to be kept.
        if slots.len() < REPOSITORIES {
            slots.insert(repository.to_owned(), Arc::clone(&slot));
        }
        slot
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::origin::OriginError;

    fn token(text: &str, life: u64) -> Token {
        Token::parse(format!(r#"{{"token":"{text}","expires_in":{life}}}"#).as_bytes(), Instant::now()).unwrap()
    }

    fn failure() -> Failure {
        Failure::passing(OriginError::unavailable("host", "down"))
    }

    fn unasked() -> std::future::Ready<Result<Token, Failure>> {
        std::future::ready(Err(Failure::fatal(OriginError::protocol(
            "host",
            "a token was fetched that was not needed",
        ))))
    }

    #[test]
    fn either_name_of_the_token_is_read_and_it_lives_a_minute_by_default() {
        let now = Instant::now();
        for answer in [
            r#"{"token":"abc"}"#,
            r#"{"access_token":"abc","expires_in":0}"#,
            r#"{"token":"","access_token":"abc","x":1}"#,
        ] {
            let token = Token::parse(answer.as_bytes(), now).unwrap();
            assert_eq!((token.header.to_str().unwrap(), token.end), ("Bearer abc", now + Duration::from_secs(60)));
        }
        for answer in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":1}"#] {
            assert!(Token::parse(answer.as_bytes(), now).is_none(), "{answer}");
        }
        assert!(Token::parse(format!(r#"{{"token":"a","expires_in":{}}}"#, u64::MAX).as_bytes(), now).is_some());
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", token("hunter2", 60)).contains("hunter2"));
    }

    #[tokio::test]
    async fn a_token_is_kept_for_80_percent_of_its_life_and_a_failed_renewal_keeps_the_rest() {
        let (tokens, start) = (Tokens::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let fresh = |text: &str| Token::parse(format!(r#"{{"token":"{text}","expires_in":100}}"#).as_bytes(), start);
        assert!(tokens.get(start, "a", None, async { Ok(fresh("one").unwrap()) }).await.is_ok());
        assert_eq!(tokens.get(after(79), "a", None, unasked()).await.unwrap().header, "Bearer one");
        assert_eq!(tokens.get(after(81), "a", None, async { Err(failure()) }).await.unwrap().header, "Bearer one");
        assert!(tokens.get(after(101), "a", None, async { Err(failure()) }).await.is_err());
        assert_eq!(
            tokens.get(after(81), "a", None, async { Ok(fresh("two").unwrap()) }).await.unwrap().header,
            "Bearer two"
        );
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_and_repositories_do_not_share() {
        let tokens = Tokens::default();
        let one = tokens.get(Instant::now(), "a", None, async { Ok(token("one", 100)) }).await.unwrap();
        let two = tokens.get(Instant::now(), "a", Some(&one.header), async { Ok(token("two", 100)) }).await.unwrap();
        assert_eq!(two.header, "Bearer two");
        // Somebody else who held the refused one gets the new one without asking again.
        assert_eq!(tokens.get(Instant::now(), "a", Some(&one.header), unasked()).await.unwrap().header, "Bearer two");
        assert_eq!(
            tokens.get(Instant::now(), "b", None, async { Ok(token("three", 100)) }).await.unwrap().header,
            "Bearer three"
        );
    }

    #[tokio::test]
    async fn all_who_wait_share_one_request_and_one_failure() {
        let tokens = Tokens::default();
        let (send, receive) = tokio::sync::oneshot::channel();
        let first = tokens.get(Instant::now(), "a", None, async { receive.await.unwrap() });
        let second = tokens.get(Instant::now(), "a", None, unasked());
        let (first, second, ()) = tokio::join!(biased; first, second, async { send.send(Err(failure())).unwrap() });
        assert_eq!((first.unwrap_err().error, second.unwrap_err().error), (failure().error, failure().error));
        assert!(
            tokens.get(Instant::now(), "a", None, async { Ok(token("one", 100)) }).await.is_ok(),
            "who comes later tries anew"
        );
    }

    #[tokio::test]
    async fn forgotten_repositories_make_room() {
        let tokens = Tokens::default();
        for number in 0..REPOSITORIES + 10 {
            assert!(tokens.get(Instant::now(), &number.to_string(), None, async { Ok(token("x", 100)) }).await.is_ok());
        }
        assert!(tokens.slots.lock().unwrap().len() <= REPOSITORIES);
    }
}
