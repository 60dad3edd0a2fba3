//! Bearer tokens: one per repository and credential of an upstream, fetched once however many wait, renewed before it ends.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

use crate::origin::{
    account::{self, Who},
    error::Failure,
};

/// Tokens that are kept per upstream; idle ones are forgotten beyond.
const TOKENS: usize = 1024;

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

/// What a token server gives along to get the next token with, without a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct RefreshToken(pub(super) String);

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken")
    }
}

/// A token server's answer.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) token: Token,
    /// For the next time.
    pub(super) refresh: Option<RefreshToken>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

impl Grant {
    /// Reads a token server's answer; none if it grants nothing usable.
    pub(super) fn parse(answer: &[u8], asked: Instant) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(answer).ok()?;
        let refresh = answer.refresh_token.filter(|text| !text.is_empty()).map(RefreshToken);
        let text = [answer.token, answer.access_token].into_iter().flatten().find(|text| !text.is_empty())?;
        let header = account::bearer(&text).ok()?;
        let life =
            answer.expires_in.filter(|&life| life > 0).map_or(DEFAULT_LIFE, Duration::from_secs).min(LONGEST_LIFE);
        Some(Self { token: Token { header, renew: asked + life.mul_f64(0.8), end: asked + life }, refresh })
    }
}

/// A refresh token alone, as ACR's exchange answers; none if there is none.
pub(super) fn parse_refresh_token(answer: &[u8]) -> Option<RefreshToken> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.refresh_token.filter(|text| !text.is_empty()).map(RefreshToken)
}

/// The tokens of one upstream, by repository and who asked for them.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<(String, Who), SharedSlot>>,
}

type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Debug, Default)]
struct Slot {
    token: Option<Token>,
    /// For the next fetch.
    refresh: Option<RefreshToken>,
    /// The last failure, for those who were already waiting when it happened.
    failed: Option<(Instant, Failure)>,
}

impl Tokens {
    /// The token of a repository and a credential: kept, or by `fetch`, which runs once for all who wait and gets the last refresh token.
    /// `refused` is a token that the registry did not take: it is not given again. `asked` is now.
    pub(super) async fn get<F>(
        &self,
        asked: Instant,
        (repository, who): (&str, Who),
        refused: Option<&HeaderValue>,
        fetch: impl FnOnce(Option<RefreshToken>) -> F,
    ) -> Result<Token, Failure>
    where
        F: Future<Output = Result<Grant, Failure>>,
    {
        let slot = self.slot(repository, who);
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
        match fetch(slot.refresh.clone()).await {
            Ok(Grant { token, refresh }) => {
                *slot = Slot { token: Some(token.clone()), refresh, failed: None };
                Ok(token)
            }
            Err(failure) => {
                slot.failed = Some((Instant::now(), failure.clone()));
                kept.ok_or(failure)
            }
        }
    }

    fn slot(&self, repository: &str, who: Who) -> SharedSlot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.to_owned(), who);
        if let Some(slot) = slots.get(&key) {
            return Arc::clone(slot);
        }
        if slots.len() >= TOKENS {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let slot = Arc::default();
        // With so many in use at once, one more goes without a place to be kept.
        if slots.len() < TOKENS {
            slots.insert(key, Arc::clone(&slot));
        }
        slot
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::origin::OriginError;

    fn grant(text: &str, life: u64) -> Grant {
        Grant::parse(format!(r#"{{"token":"{text}","expires_in":{life}}}"#).as_bytes(), Instant::now()).unwrap()
    }

    fn anybody() -> Who {
        Who::of(None)
    }

    fn failure() -> Failure {
        Failure::passing(OriginError::unavailable("host", "down"))
    }

    fn unasked(_: Option<RefreshToken>) -> std::future::Ready<Result<Grant, Failure>> {
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
            let token = Grant::parse(answer.as_bytes(), now).unwrap().token;
            assert_eq!((token.header.to_str().unwrap(), token.end), ("Bearer abc", now + Duration::from_secs(60)));
        }
        for answer in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":1}"#] {
            assert!(Grant::parse(answer.as_bytes(), now).is_none(), "{answer}");
        }
        assert!(Grant::parse(format!(r#"{{"token":"a","expires_in":{}}}"#, u64::MAX).as_bytes(), now).is_some());
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", grant("hunter2", 60)).contains("hunter2"));
    }

    #[tokio::test]
    async fn a_token_is_kept_for_80_percent_of_its_life_and_a_failed_renewal_keeps_the_rest() {
        let (tokens, start) = (Tokens::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let fresh = |text: &str| Grant::parse(format!(r#"{{"token":"{text}","expires_in":100}}"#).as_bytes(), start);
        assert!(tokens.get(start, ("a", anybody()), None, |_| async { Ok(fresh("one").unwrap()) }).await.is_ok());
        assert_eq!(tokens.get(after(79), ("a", anybody()), None, unasked).await.unwrap().header, "Bearer one");
        assert_eq!(
            tokens.get(after(81), ("a", anybody()), None, |_| async { Err(failure()) }).await.unwrap().header,
            "Bearer one"
        );
        assert!(tokens.get(after(101), ("a", anybody()), None, |_| async { Err(failure()) }).await.is_err());
        assert_eq!(
            tokens
                .get(after(81), ("a", anybody()), None, |_| async { Ok(fresh("two").unwrap()) })
                .await
                .unwrap()
                .header,
            "Bearer two"
        );
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_and_repositories_do_not_share() {
        let tokens = Tokens::default();
        let one =
            tokens.get(Instant::now(), ("a", anybody()), None, |_| async { Ok(grant("one", 100)) }).await.unwrap();
        let two = tokens
            .get(Instant::now(), ("a", anybody()), Some(&one.header), |_| async { Ok(grant("two", 100)) })
            .await
            .unwrap();
        assert_eq!(two.header, "Bearer two");
        // Somebody else who held the refused one gets the new one without asking again.
        assert_eq!(
            tokens.get(Instant::now(), ("a", anybody()), Some(&one.header), unasked).await.unwrap().header,
            "Bearer two"
        );
        assert_eq!(
            tokens
                .get(Instant::now(), ("b", anybody()), None, |_| async { Ok(grant("three", 100)) })
                .await
                .unwrap()
                .header,
            "Bearer three"
        );
    }

    #[tokio::test]
    async fn all_who_wait_share_one_request_and_one_failure() {
        let tokens = Tokens::default();
        let (send, receive) = tokio::sync::oneshot::channel();
        let first = tokens.get(Instant::now(), ("a", anybody()), None, |_| async { receive.await.unwrap() });
        let second = tokens.get(Instant::now(), ("a", anybody()), None, unasked);
        let (first, second, ()) = tokio::join!(biased; first, second, async { send.send(Err(failure())).unwrap() });
        assert_eq!((first.unwrap_err().error, second.unwrap_err().error), (failure().error, failure().error));
        assert!(
            tokens.get(Instant::now(), ("a", anybody()), None, |_| async { Ok(grant("one", 100)) }).await.is_ok(),
            "who comes later tries anew"
        );
    }

    #[tokio::test]
    async fn a_refresh_token_is_handed_to_the_next_fetch_of_the_same_credential_only() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let with_refresh = |text: &str| Grant { refresh: Some(RefreshToken(text.to_owned())), ..grant("x", 0) };
        let other = Who::of(Some(&crate::credentials::Credential::Identity("i".to_owned())));
        let later = now + 10 * DEFAULT_LIFE;
        for (asked, who, expected, given) in [
            (now, anybody(), None, with_refresh("one")),
            (later, anybody(), Some("one"), grant("y", 0)),
            (later, other, None, grant("z", 0)),
            (later + 10 * DEFAULT_LIFE, anybody(), None, grant("z", 0)),
        ] {
            let got = tokens.get(asked, ("a", who), None, |refresh| async move {
                assert_eq!(refresh.map(|refresh| refresh.0).as_deref(), expected);
                Ok(given)
            });
            assert!(got.await.is_ok());
        }
        assert_eq!(format!("{:?}", with_refresh("hunter2").refresh), "Some(RefreshToken)");
    }

    #[tokio::test]
    async fn forgotten_repositories_make_room() {
        let tokens = Tokens::default();
        for number in 0..TOKENS + 10 {
            assert!(
                tokens
                    .get(Instant::now(), (&number.to_string(), anybody()), None, |_| async { Ok(grant("x", 100)) })
                    .await
                    .is_ok()
            );
        }
        assert!(tokens.slots.lock().unwrap().len() <= TOKENS);
    }
}
