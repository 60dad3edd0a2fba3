//! The files of `docker login`, `podman login` and `kubectl create secret docker-registry`.
//!
//! One parser for docker's `config.json`, podman's `auth.json` (containers-auth.json(5)), secrets of type
//! `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`. They differ in the keys that they allow;
//! [`Scope`] takes them all.

use std::{fmt, path::Path};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::credentials::{
    Credential,
    fields::{at, inner_object, json, object, text},
    helper::HelperName,
    scope::{Scope, Target},
};

/// With or without padding: both are found in such files.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a file says about a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// This one, and its key, for messages.
    Credential(Credential),
    /// A credential helper knows.
    Ask(HelperName),
    /// Nothing.
    Nothing,
}

/// A parsed file. Prints keys only.
pub(super) struct DockerConfig {
    auths: Vec<(Scope, Credential)>,
    /// `credHelpers`: none where an empty name switches the helper off.
    helpers: Vec<(Scope, Option<HelperName>)>,
    /// `credsStore`.
    store: Option<HelperName>,
}

impl DockerConfig {
    /// Reads a file's bytes. `file` tells the older format, which has no `auths` around its entries, by its name.
    pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Self, String> {
        let document = json(bytes)?;
        let top = object(&document, "")?;
        let older = file.file_name().is_some_and(|name| name == ".dockercfg" || name == "dockercfg");
        if older {
            return Ok(Self { auths: auths(top, "")?, helpers: Vec::new(), store: None });
        }
        let auths = match inner_object(top, "auths", "")? {
            Some(entries) => auths(entries, "auths")?,
            None => Vec::new(),
        };
        let mut helpers = Vec::new();
        if let Some(entries) = inner_object(top, "credHelpers", "")? {
            for key in entries.keys() {
                let helper = helper(entries, key, "credHelpers")?;
                helpers.extend(Scope::parse(key).map(|scope| (scope, helper)));
            }
        }
        Ok(Self { auths, helpers, store: helper(top, "credsStore", "")? })
    }

    /// A helper named for the registry decides; else the entry that fits best; else the store. (Docker looks into its store
    /// only, podman into the entries only: a secret that stands in the file is meant to be used.)
    pub(super) fn say(&self, target: &Target) -> Said {
        if let Some(Some(helper)) = best(&self.helpers, target) {
            return Said::Ask(helper.clone());
        }
        if let Some(credential) = best(&self.auths, target) {
            return Said::Credential(credential.clone());
        }
        self.store.clone().map_or(Said::Nothing, Said::Ask)
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig")
            .field("auths", &self.auths)
            .field("helpers", &self.helpers)
            .field("store", &self.store)
            .finish()
    }
}

fn best<'a, T>(entries: &'a [(Scope, T)], target: &Target) -> Option<&'a T> {
    let fitting = entries.iter().filter_map(|(scope, value)| Some((scope.fit(target)?, value)));
    fitting.max_by_key(|(fit, _)| *fit).map(|(_, value)| value)
}

fn helper(map: &Map<String, Value>, key: &str, place: &str) -> Result<Option<HelperName>, String> {
    let name = text(map, key, place)?;
    name.map(|name| HelperName::parse(name).map_err(|problem| format!("{}: {problem}", at(place, key)))).transpose()
}

/// Entries without a secret are what `docker login` leaves behind when the secret went into a store: they say nothing.
fn auths(entries: &Map<String, Value>, place: &str) -> Result<Vec<(Scope, Credential)>, String> {
    let mut auths = Vec::new();
    for (key, entry) in entries {
        let place = at(place, key);
        let entry = object(entry, &place)?;
        if let (Some(credential), Some(scope)) = (credential(entry, &place)?, Scope::parse(key)) {
            auths.push((scope, credential));
        }
    }
    Ok(auths)
}

fn credential(entry: &Map<String, Value>, place: &str) -> Result<Option<Credential>, String> {
    if let Some(token) = token(entry, "registrytoken", place)? {
        return Ok(Some(Credential::Bearer(token)));
    }
    if let Some(token) = token(entry, "identitytoken", place)? {
        return Ok(Some(Credential::Identity(token)));
    }
    let basic = |username: &str, password: &str| {
        Credential::basic(username, password).map(Some).map_err(|problem| format!("{place}: {problem}"))
    };
    if let Some(auth) = text(entry, "auth", place)? {
        let (username, password) = pair(auth).map_err(|problem| format!("{} {problem}", at(place, "auth")))?;
        return basic(&username, &password);
    }
    match (text(entry, "username", place)?, text(entry, "password", place)?) {
        (Some(username), Some(password)) => basic(username, password),
        _ => Ok(None),
    }
}

/// A token goes into a header or a form: what cannot be in it was cut or pasted wrongly.
fn token(entry: &Map<String, Value>, key: &str, place: &str) -> Result<Option<String>, String> {
    match text(entry, key, place)? {
        Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(format!("{} has a space or another character that no token has", at(place, key)))
        }
        token => Ok(token.map(str::to_owned)),
    }
}

/// `USER:PASSWORD` in base64. The password may hold colons; docker fills it up with zero bytes.
fn pair(auth: &str) -> Result<(String, String), &'static str> {
    let bytes = BASE64.decode(auth.trim()).map_err(|_| "is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 behind its base64")?;
    let (username, password) = text.split_once(':').ok_or("has no colon between user and password")?;
    let password = password.trim_end_matches('\0');
    if username.is_empty() || password.is_empty() {
        return Err("lacks the user or the password");
    }
    Ok((username.to_owned(), password.to_owned()))
}
