//! `Warning` headers: what a registry wants people to read (distribution specification, "Warnings").

use reqwest::header::{HeaderMap, HeaderValue, WARNING};

/// Most bytes of warnings in one answer, all header values together, as the specification bounds them.
const WARNINGS_BYTES: usize = 4096;

/// The warnings of an answer that are of the one form that the specification knows, `299 - "text"`, up to the bound. What is
/// of another form, or would go beyond, is left out: nobody acts on warnings.
pub(super) fn warnings(headers: &HeaderMap) -> Vec<HeaderValue> {
    let mut left = WARNINGS_BYTES;
    let read = headers.get_all(WARNING).iter().filter_map(text).filter_map(|text| warning(&text));
    read.filter(|value| {
        let fits = value.len() <= left;
        left -= if fits { value.len() } else { 0 };
        fits
    })
    .collect()
}

/// A warning with this text. What is not printable ASCII becomes a question mark.
pub(crate) fn warning(text: &str) -> Option<HeaderValue> {
    let mut value = String::from("299 - \"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => value.extend(['\\', letter]),
            ' '..='~' => value.push(letter),
            _ => value.push('?'),
        }
    }
    value.push('"');
    HeaderValue::try_from(value).ok()
}

/// What stands between the quotes, unescaped; none if it is not such a value.
fn text(value: &HeaderValue) -> Option<String> {
    let quoted = value.to_str().ok()?.trim().strip_prefix("299 - \"")?.strip_suffix('"')?;
    let (mut text, mut letters) = (String::new(), quoted.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => text.push(letters.next()?),
            '"' => return None,
            letter => text.push(letter),
        }
    }
    Some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn read(values: &[&[u8]]) -> Vec<String> {
        let headers = values.iter().map(|value| (WARNING, HeaderValue::from_bytes(value).unwrap())).collect();
        warnings(&headers).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn warnings_of_the_one_known_form_are_passed_on_and_others_are_not() {
        for good in [r#"299 - "gone soon""#, r#"299 - """#, r#"299 - "a \"quoted\" \\ word""#] {
            assert_eq!(read(&[good.as_bytes()]), [good]);
        }
        for bad in [
            &b"gone soon"[..],
            b"",
            b"199 - \"x\"",
            b"299 example.com \"x\"",
            b"299 - x",
            b"299 - \"x",
            b"299 - \"",
            b"299 - \"x\\\"",
            b"299 - \"x\" \"y\"",
            b"299 - \"x\", 299 - \"y\"",
            b"299 - \"caf\xe9\"",
        ] {
            assert_eq!(read(&[bad]), Vec::<String>::new(), "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(read(&[b"299 - \"tab\there\""]), [r#"299 - "tab?here""#]);
    }

    #[test]
    fn all_warnings_together_stay_within_the_bound() {
        let long = format!("299 - \"{}\"", "x".repeat(2000));
        let read = read(&[long.as_bytes(), long.as_bytes(), long.as_bytes(), br#"299 - "short""#]);
        assert_eq!(read, [long.as_str(), &long, r#"299 - "short""#]);
        assert!(read.iter().map(String::len).sum::<usize>() <= WARNINGS_BYTES);
    }

    #[test]
    fn a_warning_of_our_own_is_a_header_whatever_its_text() {
        assert_eq!(warning("a \"b\"\r\nX: é").unwrap(), r#"299 - "a \"b\"??X: ?""#);
    }
}
