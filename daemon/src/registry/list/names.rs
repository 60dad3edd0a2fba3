//! Tags and repositories: a list of names, cut into pages here if the origin does not.

use serde_json::{Map, Value, json};

use super::Page;

/// Longest name, in bytes: a repository of the longest kind with a host before it.
const NAME_BYTES: usize = 512;

/// A page of names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// As JSON.
    pub(super) document: Vec<u8>,
    /// The query of the next page, if the names were cut here.
    pub(super) next: Option<String>,
}

/// Reads the origin's `document`, whose names are in `field`, and cuts out the page. `paged` says that the origin told where
/// the next one is.
pub(super) fn cut(document: &[u8], field: &str, page: &Page, paged: bool) -> Result<Cut, &'static str> {
    let mut document: Map<String, Value> =
        serde_json::from_slice(document).map_err(|_| "a list that is no JSON object")?;
    let mut names = match document.remove(field) {
        // Distribution says so for a repository that has lost its last tag.
        Some(Value::Null) => Vec::new(),
        Some(Value::Array(names)) => {
            names.into_iter().map(name).collect::<Option<Vec<_>>>().ok_or("names that are none")?
        }
        Some(_) | None => return Err("a list without names"),
    };
    let mut next = None;
    if !paged && ignored(&names, page) {
        names.sort();
        names.retain(|name| page.last().is_none_or(|last| name.as_str() > last));
        let n = page.n().unwrap_or(usize::MAX);
        if names.len() > n {
            names.truncate(n);
            next = names.last().map(|last| page.after(last));
        }
    }
    if page.n() == Some(0) {
        names.clear();
    }
    let mut cut = Map::new();
    // Nothing else that the origin may have put there is known to clients.
    if let Some(Value::String(name)) = document.remove("name") {
        cut.insert(String::from("name"), Value::String(name));
    }
    cut.insert(field.to_owned(), json!(names));
    let document = serde_json::to_vec(&cut).map_err(|_| "a list that cannot be written")?;
    Ok(Cut { document, next })
}

/// Whether an origin that told of no next page has not heard of pages at all. The last name of the page before is in none
/// that it made.
fn ignored(names: &[String], page: &Page) -> bool {
    page.n().is_some_and(|n| names.len() > n.max(1))
        || page.last().is_some_and(|last| names.iter().any(|name| name == last))
}

fn name(value: Value) -> Option<String> {
    let Value::String(name) = value else { return None };
    let fits = !name.is_empty() && name.len() <= NAME_BYTES && !name.chars().any(char::is_control);
    fits.then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn page(query: &str) -> Page {
        Page::parse("/v2/a/tags/list", Some(query)).unwrap()
    }

    fn names(document: &str, query: &str) -> (Vec<String>, Option<String>) {
        let cut = cut(document.as_bytes(), "tags", &page(query), false).unwrap();
        let document: Value = serde_json::from_slice(&cut.document).unwrap();
        assert_eq!(document["name"], "a");
        (serde_json::from_value(document["tags"].clone()).unwrap(), cut.next)
    }

    #[test]
    fn an_origin_without_pages_is_cut_into_them() {
        let all = r#"{"name":"a","tags":["d","b","a","c"]}"#;
        for (query, expected, next) in [
            ("", &["d", "b", "a", "c"][..], None),
            ("n=4", &["d", "b", "a", "c"], None),
            ("n=2", &["a", "b"], Some("last=b&n=2")),
            ("n=2&last=b", &["c", "d"], None),
            ("n=2&last=a", &["b", "c"], Some("last=c&n=2")),
            ("n=9&last=c", &["d"], None),
            ("last=c", &["d"], None),
            ("n=0", &[], None),
        ] {
            let (names, told) = names(all, query);
            assert!(names == expected && told.as_deref() == next, "{query}: {names:?} {told:?}");
        }
    }

    #[test]
    fn a_page_that_the_origin_made_stays_as_it_is() {
        let (kept, next) = names(r#"{"name":"a","tags":["b","A"]}"#, "n=2&last=aa");
        assert_eq!((kept, next), (vec!["b".to_owned(), "A".to_owned()], None));
        let told = cut(br#"{"tags":["c","b","a"]}"#, "tags", &page("n=2"), true).unwrap();
        assert_eq!((told.document.as_slice(), told.next), (&br#"{"tags":["c","b","a"]}"#[..], None));
    }

    #[test]
    fn a_repository_without_tags_has_an_empty_list() {
        assert_eq!(names(r#"{"name":"a","tags":null}"#, ""), (Vec::new(), None));
        assert_eq!(names(r#"{"name":"a","tags":[],"more":"x"}"#, "n=1"), (Vec::new(), None));
    }

    #[test]
    fn what_is_no_list_of_names_is_refused() {
        let long = format!(r#"{{"tags":["{}"]}}"#, "x".repeat(NAME_BYTES + 1));
        let deep = format!(r#"{{"tags":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
        for document in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"tags":{}}"#,
            r#"{"tags":"a"}"#,
            r#"{"tags":[1]}"#,
            r#"{"tags":["a",null]}"#,
            r#"{"tags":[""]}"#,
            r#"{"tags":["a\nb"]}"#,
            r#"{"repositories":["a"]}"#,
            r#"{"tags":["a"]"#,
            &long,
            &deep,
        ] {
            assert!(cut(document.as_bytes(), "tags", &page(""), false).is_err(), "{document:.60}");
        }
    }
}
