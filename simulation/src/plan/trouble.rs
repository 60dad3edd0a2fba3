//! Times in which the origin misbehaves.

use std::time::Duration;

use serde::Deserialize;

use super::{Share, Span, Window};

/// A time in which the origin misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trouble {
    /// From when on, after the start of the run.
    #[serde(default)]
    pub from: Span,
    /// Until when, after the start of the run.
    pub to: Span,
    /// What it does.
    pub kind: TroubleKind,
    /// Share of the requests made in this time that it does it to, each drawn by itself. An outage spares none.
    #[serde(default = "all")]
    pub share: Share,
    /// What a 429 or a 503 asks the client to wait before the next request (`Retry-After`). Without: not said.
    #[serde(default)]
    pub retry_after: Option<Span>,
}

/// What an origin in trouble does. Except in an outage, answers that began before go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TroubleKind {
    /// Answers with status 429, `origin_latency` after the request.
    #[serde(rename = "429")]
    TooMany,
    /// Answers with status 503, `origin_latency` after the request.
    #[serde(rename = "5xx")]
    Unavailable,
    /// Sends a good head, but ends the body at a byte drawn at random from those asked for.
    #[serde(rename = "truncate")]
    Truncate,
    /// Refuses connections, `origin_latency` after the request, and answers on their way break off as it begins.
    #[serde(rename = "outage")]
    Outage,
}

impl Trouble {
    /// The time it lasts.
    #[must_use]
    pub const fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }

    /// Whether it hits a request made at a time after the start; `chance` was drawn from 0 to 1 for that request.
    #[must_use]
    pub fn hits(&self, time: Duration, chance: f64) -> bool {
        self.window().contains(time) && (self.kind == TroubleKind::Outage || chance < self.share.0)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !self.window().is_sound() {
            return Err("`to` must come after `from`");
        }
        let may_ask = matches!(self.kind, TroubleKind::TooMany | TroubleKind::Unavailable);
        if self.retry_after.is_some() && !may_ask {
            return Err("`retry_after` goes with the kinds \"429\" and \"5xx\" only");
        }
        Ok(())
    }
}

const fn all() -> Share {
    Share(1.0)
}
