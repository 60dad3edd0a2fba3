//! Reading JSON by hand, because the messages of a deserializer repeat the values that it did not like, and those are secrets.

use serde_json::{Map, Value};

use crate::config::quoted;

/// A JSON document.
pub(super) fn json(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes)
        .map_err(|error| format!("it is not JSON: see line {}, column {}", error.line(), error.column()))
}

/// The type of a value in words: never the value.
fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(place: &str, value: &Value, form: &str) -> String {
    format!("{place} is {}; it must be {form}", described(value))
}

/// `key` of the object that stands at `place`, as messages name it.
pub(super) fn at(place: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let key = if plain { key.to_owned() } else { quoted(key) };
    if place.is_empty() { key } else { format!("{place}.{key}") }
}

pub(super) fn object<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| wrong(if place.is_empty() { "the whole" } else { place }, value, "an object"))
}

/// The object under `key`; none if it is missing or null, as Go's decoder sees it.
pub(super) fn inner_object<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    place: &str,
) -> Result<Option<&'a Map<String, Value>>, String> {
    given(map, key).map(|value| object(value, &at(place, key))).transpose()
}

/// The text under `key`; none if it is missing, null or empty.
pub(super) fn text<'a>(map: &'a Map<String, Value>, key: &str, place: &str) -> Result<Option<&'a str>, String> {
    let Some(value) = given(map, key) else { return Ok(None) };
    match value.as_str() {
        Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        None => Err(wrong(&at(place, key), value, "a text")),
    }
}

/// The list under `key`; empty if it is missing or null.
pub(super) fn list<'a>(map: &'a Map<String, Value>, key: &str, place: &str) -> Result<&'a [Value], String> {
    match given(map, key) {
        None => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        Some(other) => Err(wrong(&at(place, key), other, "a list")),
    }
}

/// A list of texts under `key`.
pub(super) fn texts(map: &Map<String, Value>, key: &str, place: &str) -> Result<Vec<String>, String> {
    let values = list(map, key, place)?.iter().enumerate();
    values
        .map(|(index, value)| match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(wrong(&format!("{}[{index}]", at(place, key)), value, "a text")),
        })
        .collect()
}

/// Refuses what is not in `known`: it may change who gets which credential.
pub(super) fn only(map: &Map<String, Value>, known: &[&str], place: &str) -> Result<(), String> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("{} is unknown; known are {}", at(place, key), known.join(", "))),
        None => Ok(()),
    }
}

fn given<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}
