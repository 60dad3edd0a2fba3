//! The allow-list of registries: from the `[upstreams]` table and from `NAME=URL` pairs.

use std::{collections::BTreeMap, path::PathBuf};

use toml::{Table, Value};
use url::Url;

use crate::access::Policy;

use super::{
    ConfigError, Password, TagPolicy, UpstreamConfig,
    gather::{Layers, Refusal, described},
    keys::hint,
    values::{host, is_host_name, quoted},
};

/// The set when none is configured.
const DEFAULT_NAMES: [&str; 8] =
    ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "nvcr.io", "public.ecr.aws", "mcr.microsoft.com"];

const FIELDS: [&str; 16] = [
    "url",
    "mirrors",
    "username",
    "username_env",
    "password",
    "password_file",
    "password_env",
    "credentials",
    "ca_file",
    "client_cert_file",
    "client_key_file",
    "allow_private",
    "realm_hosts",
    "push",
    "access",
    "tags",
];

const URL_FORM: &str = "https://HOST[:PORT][/PATH], or http:// for a registry without TLS";
const PAIR_FORM: &str = "NAME=URL, for example docker.io=https://registry-1.docker.io";

/// All upstreams, sorted by name.
pub(super) fn load(layers: &Layers, env: &BTreeMap<String, String>) -> Result<Vec<UpstreamConfig>, ConfigError> {
    let mut upstreams = BTreeMap::new();
    for (name, value) in &layers.upstreams {
        let upstream = from_table(layers, env, name, value)?;
        upstreams.insert(upstream.name.clone(), upstream);
    }
    // A pair replaces the whole entry: the file's credentials were meant for the file's URL.
    for given in layers.all("upstreams") {
        for pair in &given.values {
            let (name, url) = given.parse(pair, pair_of)?;
            upstreams.insert(name.clone(), bare(name, url));
        }
    }
    if upstreams.is_empty() {
        for name in DEFAULT_NAMES {
            let url = given_url(&default_url(name)).map_err(|(problem, form)| ConfigError::Value {
                place: format!("upstream {name}"),
                problem,
                hint: form.to_owned(),
            })?;
            upstreams.insert(name.to_owned(), bare(name.to_owned(), url));
        }
    }
    Ok(upstreams.into_values().collect())
}

/// The upstream of names that name none.
pub(super) fn default(layers: &Layers, upstreams: &[UpstreamConfig]) -> Result<Option<String>, ConfigError> {
    let known = |name: &str| upstreams.iter().any(|upstream| upstream.name == name);
    match layers.one("default_upstream", upstream_name)? {
        Some(name) if known(&name) => Ok(Some(name)),
        Some(name) => Err(ConfigError::Value {
            place: layers.place("default_upstream"),
            problem: format!("{} is not among the upstreams", quoted(&name)),
            hint: hint(&name, upstreams.iter().map(|upstream| upstream.name.as_str())),
        }),
        None => Ok(Some("docker.io".to_owned()).filter(|name| known(name))),
    }
}

/// Passwords in the clear deserve a word.
pub(super) fn warnings(upstreams: &[UpstreamConfig]) -> Vec<String> {
    let in_the_clear = |upstream: &&UpstreamConfig| {
        (upstream.username.is_some() || upstream.credentials.is_some())
            && upstream.url.scheme() == "http"
            && !upstream.is_on_this_machine()
    };
    (upstreams.iter().filter(in_the_clear))
        .map(|upstream| {
            format!(
                "upstream {}: its password goes over the network in the clear, because {} is not https",
                upstream.name, upstream.url
            )
        })
        .collect()
}

fn bare(name: String, url: Url) -> UpstreamConfig {
    UpstreamConfig {
        name,
        url,
        mirrors: Vec::new(),
        username: None,
        password: None,
        password_file: None,
        password_env: None,
        credentials: None,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
        allow_private: false,
        realm_hosts: Vec::new(),
        push: false,
        access: Policy::Node,
        tags: TagPolicy::Origin,
    }
}

fn default_url(name: &str) -> String {
    match name {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        other => format!("https://{other}"),
    }
}

fn pair_of(text: &str) -> Result<(String, Url), Refusal> {
    let Some((name, url)) = text.split_once('=') else {
        return Err((format!("{} has no `=`", quoted(text)), PAIR_FORM));
    };
    Ok((upstream_name(name.trim())?, given_url(url.trim())?))
}

/// A registry as image references name it.
fn upstream_name(text: &str) -> Result<String, Refusal> {
    const FORM: &str = "HOST or HOST:PORT as image names have it, without scheme and path";
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_fine = match bracketed {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_host_name(host),
    };
    if host_is_fine && port.is_none_or(|port| port.parse::<u16>().is_ok()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err((format!("{} is not a registry's name", quoted(text)), FORM))
    }
}

/// The value is not repeated in messages: a URL is where people put passwords.
fn given_url(text: &str) -> Result<Url, Refusal> {
    let url = Url::parse(text).map_err(|error| (format!("the URL cannot be read ({error})"), URL_FORM))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err((format!("the URL's scheme is {}", quoted(url.scheme())), URL_FORM));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err((
            "the URL holds credentials".to_owned(),
            "https://HOST[:PORT][/PATH]; put username and password_file into [upstreams.\"NAME\"] of the configuration file",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(("the URL has a `?` or a `#`".to_owned(), URL_FORM));
    }
    Ok(url)
}

fn from_table(
    layers: &Layers,
    env: &BTreeMap<String, String>,
    name: &str,
    value: &Value,
) -> Result<UpstreamConfig, ConfigError> {
    let section = format!("upstreams.\"{name}\"");
    let place = |field: &str| format!("key `{section}.{field}` in {}", layers.file.display());
    let Value::Table(fields) = value else {
        return Err(ConfigError::Value {
            place: format!("key `{section}` in {}", layers.file.display()),
            problem: format!("it is {}", described(value)),
            hint: format!("it is a table: [{section}] with url = \"https://...\" below"),
        });
    };
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(ConfigError::UnknownKey {
            file: layers.file.clone(),
            key: unknown.clone(),
            section: Some(section),
            hint: hint(unknown, FIELDS.into_iter()),
        });
    }
    let refused = |field: &str| {
        let place = place(field);
        move |(problem, form): Refusal| ConfigError::Value { place, problem, hint: format!("the form is {form}") }
    };
    let of_field = |(field, refusal): (&'static str, Refusal)| refused(field)(refusal);
    let name = upstream_name(name).map_err(|(problem, form)| ConfigError::Value {
        place: format!("table [{section}] in {}", layers.file.display()),
        problem,
        hint: format!("the form is {form}"),
    })?;
    let url = text(fields, "url").map_err(refused("url"))?.unwrap_or_else(|| default_url(&name));
    let upstream = UpstreamConfig {
        url: given_url(&url).map_err(refused("url"))?,
        mirrors: urls(fields, "mirrors").map_err(refused("mirrors"))?,
        username: text_or_variable(fields, env, "username", "username_env").map_err(of_field)?,
        password: text_or_variable(fields, env, "password", "password_env").map_err(of_field)?.map(Password),
        password_file: text(fields, "password_file").map_err(refused("password_file"))?.map(PathBuf::from),
        password_env: text(fields, "password_env").map_err(refused("password_env"))?,
        credentials: text(fields, "credentials").map_err(refused("credentials"))?.map(PathBuf::from),
        ca_file: text(fields, "ca_file").map_err(refused("ca_file"))?.map(PathBuf::from),
        client_cert_file: text(fields, "client_cert_file").map_err(refused("client_cert_file"))?.map(PathBuf::from),
        client_key_file: text(fields, "client_key_file").map_err(refused("client_key_file"))?.map(PathBuf::from),
        allow_private: flag(fields, "allow_private").map_err(refused("allow_private"))?,
        realm_hosts: hosts(fields, "realm_hosts").map_err(refused("realm_hosts"))?,
        push: flag(fields, "push").map_err(refused("push"))?,
        access: policy(fields, "access").map_err(refused("access"))?,
        tags: tag_policy(fields, "tags").map_err(refused("tags"))?,
        name,
    };
    check_credentials(&upstream)
        .and_then(|()| check_client_certificate(&upstream))
        .and_then(|()| check_access(&upstream))
        .and_then(|()| check_tags(&upstream))
        .map_err(|(field, problem, hint)| ConfigError::Value {
            place: place(field),
            problem: problem.to_owned(),
            hint: hint.to_owned(),
        })?;
    Ok(upstream)
}

fn check_credentials(upstream: &UpstreamConfig) -> Result<(), (&'static str, &'static str, &'static str)> {
    match (&upstream.username, &upstream.password, &upstream.password_file) {
        (_, Some(_), Some(_)) => Err(("password", "password_file is given too", "keep one of them")),
        (Some(_), None, None) => Err(("username", "it has no password", "add password_file = \"FILE\"")),
        (None, Some(_), None) => Err(("password", "it has no username", "add username = \"NAME\"")),
        (None, None, Some(_)) => Err(("password_file", "it has no username", "add username = \"NAME\"")),
        _ => Ok(()),
    }
}

/// An account that is never used was meant to be.
fn check_access(upstream: &UpstreamConfig) -> Result<(), (&'static str, &'static str, &'static str)> {
    let has_account = upstream.username.is_some() || upstream.credentials.is_some();
    match upstream.access {
        Policy::Public if has_account => {
            Err(("access", "what is public is asked for without an account", "remove the account, or say \"node\""))
        }
        Policy::Private if has_account => Err((
            "access",
            "what is private is asked for with the client's account",
            "remove the account, or say \"node\"",
        )),
        Policy::Public | Policy::Node | Policy::Private => Ok(()),
    }
}

/// What a client's own credential shows is told to nobody.
fn check_tags(upstream: &UpstreamConfig) -> Result<(), (&'static str, &'static str, &'static str)> {
    match (upstream.tags, upstream.access) {
        (TagPolicy::Cluster, Policy::Private) => Err((
            "tags",
            "what is private is asked for with the client's account, and shared with no node",
            "remove it, or say access = \"node\"",
        )),
        (TagPolicy::Cluster, Policy::Public | Policy::Node) | (TagPolicy::Origin, _) => Ok(()),
    }
}

fn check_client_certificate(upstream: &UpstreamConfig) -> Result<(), (&'static str, &'static str, &'static str)> {
    match (&upstream.client_cert_file, &upstream.client_key_file) {
        (Some(_), None) => Err(("client_cert_file", "it has no key", "add client_key_file = \"FILE\"")),
        (None, Some(_)) => Err(("client_key_file", "it has no certificate", "add client_cert_file = \"FILE\"")),
        _ => Ok(()),
    }
}

/// Wrong types are told by type alone, because the value may be a password.
fn text(fields: &Table, field: &str) -> Result<Option<String>, Refusal> {
    match fields.get(field) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Err(("it is empty".to_owned(), "a text in quotes")),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err((format!("it is {}", described(other)), "a text in quotes")),
    }
}

/// The value of `field`, or of the environment variable that `field_env` names.
fn text_or_variable(
    fields: &Table,
    env: &BTreeMap<String, String>,
    field: &'static str,
    field_env: &'static str,
) -> Result<Option<String>, (&'static str, Refusal)> {
    const FORM: &str = "the name of an environment variable that is set, as \"HUB_PASSWORD\"";
    let given = text(fields, field).map_err(|refusal| (field, refusal))?;
    let Some(variable) = text(fields, field_env).map_err(|refusal| (field_env, refusal))? else { return Ok(given) };
    if given.is_some() {
        return Err((field_env, (format!("{field} is given too"), "one of the two")));
    }
    match env.get(&variable).filter(|value| !value.is_empty()) {
        Some(value) => Ok(Some(value.clone())),
        None => Err((field_env, (format!("the variable {} is not set", quoted(&variable)), FORM))),
    }
}

fn flag(fields: &Table, field: &str) -> Result<bool, Refusal> {
    match fields.get(field) {
        None => Ok(false),
        Some(Value::Boolean(value)) => Ok(*value),
        Some(other) => Err((format!("it is {}", described(other)), "true or false")),
    }
}

fn policy(fields: &Table, field: &str) -> Result<Policy, Refusal> {
    const FORM: &str = "\"public\", \"node\" or \"private\"";
    let Some(name) = text(fields, field)? else { return Ok(Policy::Node) };
    Policy::parse(&name).ok_or_else(|| (format!("{} is no access policy", quoted(&name)), FORM))
}

fn tag_policy(fields: &Table, field: &str) -> Result<TagPolicy, Refusal> {
    match text(fields, field)?.as_deref() {
        None | Some("origin") => Ok(TagPolicy::Origin),
        Some("cluster") => Ok(TagPolicy::Cluster),
        Some(other) => Err((format!("{} does not say who resolves tags", quoted(other)), "\"origin\" or \"cluster\"")),
    }
}

fn hosts(fields: &Table, field: &str) -> Result<Vec<String>, Refusal> {
    const FORM: &str = "a list of host names: [\"auth.test\"]";
    let values = match fields.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(other) => return Err((format!("it is {}", described(other)), FORM)),
    };
    let parsed = values.iter().map(|value| match value.as_str() {
        Some(text) => host(text).map_err(|(problem, _)| (problem, FORM)),
        None => Err((format!("it holds {}", described(value)), FORM)),
    });
    parsed.collect()
}

fn urls(fields: &Table, field: &str) -> Result<Vec<Url>, Refusal> {
    const FORM: &str = "a list of URLs: [\"https://mirror.test\"]";
    match fields.get(field) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            let parsed = values.iter().map(|value| match value.as_str() {
                Some(text) => given_url(text),
                None => Err((format!("it holds {}", described(value)), FORM)),
            });
            parsed.collect()
        }
        Some(other) => Err((format!("it is {}", described(other)), FORM)),
    }
}
