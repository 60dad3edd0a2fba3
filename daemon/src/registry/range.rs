//! The `Range` header of RFC 9110 for one range of bytes.

use std::ops::Range;

use hyper::header::HeaderValue;

/// What a `Range` header asks for, before the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The whole content: no header, a unit that is not ours, or several ranges (a server may answer those in full).
    Whole,
    /// `first-last`, inclusive as written.
    Span(u64, u64),
    /// `first-`.
    From(u64),
    /// `-length`: the last bytes.
    Suffix(u64),
    /// Bytes were asked for, but no range can satisfy it: `500-0`, `abc`.
    Unsatisfiable,
}

impl Wanted {
    /// Reads the header. Unknown units are ignored, as RFC 9110 section 14.2 wants; a malformed or reversed range of
    /// bytes is unsatisfiable (RFC 9110 leaves that open; the conformance suite wants 416 for `bytes=500-0`), because a
    /// client that is resuming must never take a whole body for the rest of one.
    pub(super) fn parse(header: Option<&HeaderValue>) -> Self {
        let Some(header) = header else { return Self::Whole };
        let Ok(text) = header.to_str() else { return Self::Unsatisfiable };
        let Some((unit, set)) = text.split_once('=') else { return Self::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Whole;
        }
        let mut ranges = set.split(',').map(str::trim).filter(|range| !range.is_empty());
        match (ranges.next(), ranges.next()) {
            (Some(range), None) => Self::single(range).unwrap_or(Self::Unsatisfiable),
            (Some(_), Some(_)) => Self::Whole,
            (None, _) => Self::Unsatisfiable,
        }
    }

    fn single(range: &str) -> Option<Self> {
        let (first, last) = range.split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", length) => Some(Self::Suffix(number(length)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Span(first, last))
            }
        }
    }

    /// Where reading will begin, as far as that is known without the size.
    pub(super) const fn offset(self) -> u64 {
        match self {
            Self::Span(first, _) | Self::From(first) => first,
            Self::Whole | Self::Suffix(_) | Self::Unsatisfiable => 0,
        }
    }

    /// The bytes of content of `size` bytes that this selects; none if it selects nothing.
    pub(super) fn of(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Whole => return Some(0..size),
            Self::Span(first, last) => first..size.min(last.saturating_add(1)),
            Self::From(first) => first..size,
            Self::Suffix(length) => size.saturating_sub(length)..size,
            Self::Unsatisfiable => return None,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Digits only; a number beyond u64 is beyond any blob.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Wanted {
        Wanted::parse(Some(&HeaderValue::from_str(text).unwrap()))
    }

    #[test]
    fn a_single_range_selects_the_bytes_it_names() {
        for (text, range) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=0-", Some(0..100)),
            ("bytes=5-", Some(5..100)),
            ("bytes=5-9", Some(5..10)),
            ("bytes=99-99", Some(99..100)),
            ("bytes=90-1000", Some(90..100)),
            ("bytes=90-18446744073709551615", Some(90..100)),
            ("bytes=0-99999999999999999999999", Some(0..100)),
            ("bytes=-10", Some(90..100)),
            ("bytes=-1000", Some(0..100)),
            ("Bytes = 5-9", Some(5..10)),
            ("bytes=5-9,", Some(5..10)),
            ("bytes=-0", None),
            ("bytes=100-", None),
            ("bytes=100-200", None),
            ("bytes=99999999999999999999999-", None),
            ("bytes=500-0", None),
            ("bytes=abc", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("bytes=1-2-3", None),
            ("bytes=0x1-2", None),
        ] {
            assert_eq!(parse(text).of(100), range, "{text}");
        }
    }

    #[test]
    fn other_units_and_several_ranges_select_the_whole() {
        for text in ["items=0-5", "bytes", "0-5", "bytes=0-4,10-14"] {
            assert_eq!(parse(text), Wanted::Whole, "{text}");
        }
        assert_eq!(Wanted::parse(None).of(0), Some(0..0));
    }

    #[test]
    fn nothing_of_an_empty_blob_can_be_selected_by_range() {
        for text in ["bytes=0-", "bytes=0-0", "bytes=-5"] {
            assert_eq!(parse(text).of(0), None, "{text}");
        }
    }
}
