//! The forms of values: one parser each, which says what is wrong and what the form is.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Serializer;
use shoal_proto::units::Rate;

use super::{
    ConfigError, LogFormat, P2P_PORT, StreamMode,
    gather::{Layers, Refusal},
};

/// Bytes of a wrong value that a message repeats.
const MAX_QUOTED: usize = 60;

/// The value as a message shows it: on one line and not endless.
pub(crate) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{dots}")
}

fn refuse<T>(text: &str, what: &str, form: &'static str) -> Result<T, Refusal> {
    Err((format!("{} {what}", quoted(text)), form))
}

pub(super) fn path(text: &str) -> Result<PathBuf, Refusal> {
    Ok(PathBuf::from(text))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().or_else(|_| {
        refuse(text, "is not an address", "IP:PORT, for example 127.0.0.1:5050 or [::1]:5050 (port 0: any free one)")
    })
}

/// `host:port`, `host` (the usual port is added) or a multiaddr.
pub(super) fn bootstrap(text: &str) -> Result<String, Refusal> {
    const FORM: &str = "HOST:PORT, IP:PORT, [IPV6]:PORT, HOST (port 5051) or a multiaddr (/dns4/NAME/tcp/PORT)";
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (name, port),
            _ => return refuse(text, "has no usable port", FORM),
        },
        None => (text, P2P_PORT),
    };
    if is_host_name(name) { Ok(format!("{name}:{port}")) } else { refuse(text, "is not an address", FORM) }
}

/// A name or an address. Without a port: where it is used, only the name is compared.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if is_host_name(text) || literal.parse::<IpAddr>().is_ok() {
        Ok(literal.to_ascii_lowercase())
    } else {
        refuse(text, "is not a host", "a host name or an IP address, without scheme and port")
    }
}

/// Letters, digits, dots, dashes and underscores; neither empty nor starting with a dash.
pub(super) fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// A zone or a rack: goes to peers, so it is short.
pub(super) fn label(text: &str) -> Result<String, Refusal> {
    if text.len() <= 64 && text.chars().all(|letter| letter.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        refuse(text, "is not a label", "at most 64 printable ASCII characters without spaces")
    }
}

pub(super) fn stream(text: &str) -> Result<StreamMode, Refusal> {
    match text {
        "verified" => Ok(StreamMode::Verified),
        "sealed" => Ok(StreamMode::Sealed),
        _ => refuse(text, "is no mode", "`verified` or `sealed`"),
    }
}

pub(super) fn rate(text: &str) -> Result<Rate, Refusal> {
    text.parse().or_else(|_| {
        refuse(
            text,
            "is not a rate above zero",
            "a number and a unit per second, for example 25MB/s, 1MiB/s or 10Gbit/s",
        )
    })
}

pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
    const FORM: &str = "a whole number and a unit, for example 500ms, 30s, 5m or 2h (0 is allowed)";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_per_unit: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return refuse(text, "has no unit", FORM),
        _ => return refuse(text, "is not a time", FORM),
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis_per_unit)) {
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => refuse(text, "is not a time", FORM),
    }
}

/// A time as it can be written in a configuration: `30s`, `1500ms`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

/// The other way round, for `--check`.
pub(super) fn serialize_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration_text(*duration))
}

/// Anything that prints itself.
pub(super) fn serialize_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A list of that.
pub(super) fn serialize_texts<S: Serializer>(values: &[impl Display], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

/// `log` holds a format, a filter, or both: the strongest source that names one decides it, so that
/// `SHOAL_LOG=debug` leaves the file's `log = "json"` alone.
pub(super) fn log(layers: &Layers) -> Result<(LogFormat, String), ConfigError> {
    let mut format = LogFormat::default();
    let mut filter = "info".to_owned();
    for given in layers.all("log") {
        let mut directives: Vec<String> = Vec::new();
        for word in given.values.iter().flat_map(|value| value.split(',')).map(str::trim) {
            match given.parse(word, log_word)? {
                LogWord::Format(word) => format = word,
                LogWord::Directive(directive) => directives.push(directive),
            }
        }
        if !directives.is_empty() {
            filter = directives.join(",");
        }
    }
    Ok((format, filter))
}

enum LogWord {
    Format(LogFormat),
    Directive(String),
}

fn log_word(text: &str) -> Result<LogWord, Refusal> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.contains(&text.to_ascii_lowercase().as_str());
    match (text, text.split_once('=')) {
        ("text", _) => Ok(LogWord::Format(LogFormat::Text)),
        ("json", _) => Ok(LogWord::Format(LogFormat::Json)),
        (_, None) if is_level(text) => Ok(LogWord::Directive(text.to_owned())),
        (_, Some((target, level))) if is_level(level) && is_target(target) => Ok(LogWord::Directive(text.to_owned())),
        _ => refuse(
            text,
            "is neither a format nor a level",
            "`text` or `json`, and a filter: off, error, warn, info, debug, trace or TARGET=LEVEL, with commas between",
        ),
    }
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'))
}
