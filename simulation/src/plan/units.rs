//! How times, shares and moments are written in a plan.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A time span, written with its unit: `0.2ms`, `5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// A share of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(pub f64);

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// After the start of the run.
    After(Span),
    /// As soon as the origin has sent this share (0 to 1) of the bytes of all layers.
    Progress(f64),
}

/// A part of the run: `from` is in it, `to` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// After the start of the run.
    #[serde(default)]
    pub from: Span,
    /// After the start of the run.
    pub to: Span,
}

impl Span {
    /// A span of so many milliseconds.
    pub(crate) const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl Share {
    /// How many of `count` this share is, rounded; at least one of any when it is not zero.
    #[must_use]
    pub fn of(self, count: usize) -> usize {
        let part = (count as f64 * self.0).round() as usize;
        if self.0 > 0.0 { part.max(1).min(count) } else { 0 }
    }
}

impl Window {
    /// Whether a time after the start is in it.
    #[must_use]
    pub fn contains(&self, time: Duration) -> bool {
        self.from.0 <= time && time < self.to.0
    }

    pub(super) fn is_sound(&self) -> bool {
        self.from < self.to
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, f64); 6] =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("min", 60.0), ("s", 1.0)];
        let malformed = || format!("{text:?} is not a time: write a number with one of ns, us, ms, s, min");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| text.trim().strip_suffix(name).map(|number| (number, unit)))
            .ok_or_else(malformed)?;
        let number: f64 = number.trim().parse().map_err(|_| malformed())?;
        Duration::try_from_secs_f64(number * unit).map(Self).map_err(|_| malformed())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit, like \"0.2ms\" or \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share of 0 to 1, like 0.05")
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Share, E> {
                let unfit = || E::invalid_value(de::Unexpected::Float(share), &self);
                (0.0..=1.0).contains(&share).then_some(Share(share)).ok_or_else(unfit)
            }

            fn visit_i64<E: de::Error>(self, share: i64) -> Result<Share, E> {
                self.visit_f64(share as f64)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like \"3s\", or a share of the origin's work like 0.5")
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Moment, E> {
                let unfit = || E::invalid_value(de::Unexpected::Float(share), &self);
                (0.0..=1.0).contains(&share).then_some(Moment::Progress(share)).ok_or_else(unfit)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
                text.parse().map(Moment::After).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
