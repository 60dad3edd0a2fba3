//! From the three sources to one layered set of texts, each with the place it came from.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    ConfigError, ConfigSources,
    keys::{KEYS, Key, distance, hint, key},
};

/// Variables that start with `SHOAL_` and are no keys: the configuration file itself.
const OTHER_VARIABLES: [&str; 1] = ["SHOAL_CONFIG"];

/// The values of one key from one source.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// At least one.
    pub(super) values: Vec<String>,
    /// For messages: `--zone`, `SHOAL_ZONE`, ``key `zone` in FILE``.
    pub(super) place: String,
}

/// All that was given: for each key the sources that gave it, weakest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    given: BTreeMap<&'static str, Vec<Given>>,
    /// The `[upstreams]` table of the file, which has a shape of its own.
    pub(super) upstreams: Table,
    /// The file, for messages about `upstreams`.
    pub(super) file: PathBuf,
    /// Suspicious but harmless findings.
    pub(super) warnings: Vec<String>,
}

/// Why a text is not of its key's form: what is wrong, and the allowed form.
pub(super) type Refusal = (String, &'static str);

impl Layers {
    pub(super) fn gather(sources: &ConfigSources) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        if let Some(file) = &sources.file {
            layers.file.clone_from(file);
            layers.add_file(file)?;
        }
        layers.add_env(&sources.env);
        for (flag, values) in &sources.flags {
            if let Some(key) = KEYS.iter().find(|key| key.flag == flag) {
                layers.add(key, values.clone(), format!("--{flag}"));
            }
        }
        Ok(layers)
    }

    fn add(&mut self, key: &'static Key, values: Vec<String>, place: String) {
        if !values.is_empty() {
            self.given.entry(key.name).or_default().push(Given { values, place });
        }
    }

    fn add_env(&mut self, env: &BTreeMap<String, String>) {
        for key in KEYS {
            let name = key.env();
            // Charts and units pass empty variables for what is not set.
            let Some(text) = env.get(&name).filter(|text| !text.trim().is_empty()) else { continue };
            let values = if key.many {
                text.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).collect()
            } else {
                vec![text.trim().to_owned()]
            };
            self.add(key, values, name);
        }
        // Kubernetes sets SHOAL_PORT and the like for a service called "shoal": only near misses are worth a word.
        let known: Vec<String> = KEYS
            .iter()
            .map(Key::env)
            .chain(OTHER_VARIABLES.map(str::to_owned))
            .map(|name| name.to_lowercase())
            .collect();
        for name in env.keys().filter(|name| name.starts_with("SHOAL_")) {
            let lower = name.to_lowercase();
            if known.contains(&lower) {
                continue;
            }
            if let Some(near) = known.iter().find(|near| distance(&lower, near) == 1) {
                self.warnings.push(format!("{name}: unknown variable; did you mean {}?", near.to_uppercase()));
            }
        }
    }

    fn add_file(&mut self, file: &Path) -> Result<(), ConfigError> {
        let text = fs::read_to_string(file)
            .map_err(|error| ConfigError::Read { file: file.to_owned(), why: error.to_string() })?;
        let table: Table = toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ConfigError::Syntax {
                file: file.to_owned(),
                line: 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count(),
                why: error.message().replace('\n', ", "),
            }
        })?;
        for (name, value) in table {
            if name != "upstreams" && !is_section(&name) {
                self.add_file_value(file, None, &name, value)?;
                continue;
            }
            let Value::Table(section) = value else {
                return Err(ConfigError::Value {
                    place: format!("key `{name}` in {}", file.display()),
                    problem: format!("it is {}", described(&value)),
                    hint: format!("it is a table: write [{name}] on a line of its own and its keys below"),
                });
            };
            if name == "upstreams" {
                self.upstreams = section;
            } else {
                for (inner, value) in section {
                    self.add_file_value(file, Some(&name), &inner, value)?;
                }
            }
        }
        Ok(())
    }

    fn add_file_value(
        &mut self,
        file: &Path,
        section: Option<&str>,
        name: &str,
        value: Value,
    ) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name != "upstreams" && key.split() == (section, name)) else {
            return Err(unknown(file, section, name));
        };
        let place = format!("key `{}` in {}", key.name, file.display());
        let values = match (value, key.many) {
            (Value::Array(values), true) => values.iter().map(|value| text_of(value, key, &place)).collect(),
            (value, _) => text_of(&value, key, &place).map(|text| vec![text]),
        }?;
        self.add(key, values, place);
        Ok(())
    }

    /// All sources that gave this key, weakest first.
    pub(super) fn all(&self, name: &str) -> &[Given] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// The strongest source's value, parsed.
    pub(super) fn one<T>(&self, name: &str, parse: fn(&str) -> Result<T, Refusal>) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.all(name).last() else { return Ok(None) };
        // A flag given twice: the last one counts, as everywhere.
        given.values.last().map(|value| given.parse(value, parse)).transpose()
    }

    /// The strongest source's list, each value parsed.
    pub(super) fn list<T>(
        &self,
        name: &str,
        parse: fn(&str) -> Result<T, Refusal>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(given) = self.all(name).last() else { return Ok(None) };
        given.values.iter().map(|value| given.parse(value, parse)).collect::<Result<_, _>>().map(Some)
    }

    /// Where the value in force came from; the key's name if it is the default.
    pub(super) fn place(&self, name: &str) -> String {
        self.all(name).last().map_or_else(|| key(name).name.to_owned(), |given| given.place.clone())
    }
}

impl Given {
    pub(super) fn parse<T>(&self, value: &str, parse: fn(&str) -> Result<T, Refusal>) -> Result<T, ConfigError> {
        let refused = |problem, hint| ConfigError::Value { place: self.place.clone(), problem, hint };
        if value.trim().is_empty() {
            return Err(refused("it is empty".to_owned(), "give a value or leave it out".to_owned()));
        }
        parse(value).map_err(|(problem, form)| refused(problem, format!("the form is {form}")))
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.split().0 == Some(name))
}

fn text_of(value: &Value, key: &Key, place: &str) -> Result<String, ConfigError> {
    let wrong = |problem: &str| ConfigError::Value {
        place: place.to_owned(),
        problem: problem.to_owned(),
        hint: if key.many {
            format!("the form is a list of texts: [\"{}\"]", key.form)
        } else {
            format!("the form is one text: \"{}\"", key.form)
        },
    };
    if let Some(number) = value.as_integer() {
        return Ok(number.to_string());
    }
    match value.as_str().map(str::trim) {
        Some("") => Err(wrong("it is empty")),
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(&format!("it is {}", described(value)))),
    }
}

/// The type of a value in words: never the value, which may be a password.
pub(super) fn described(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn unknown(file: &Path, section: Option<&str>, name: &str) -> ConfigError {
    let siblings = KEYS.iter().map(Key::split).filter(|(table, _)| *table == section).map(|(_, key)| key);
    // The right key in the wrong table is a slip too.
    let elsewhere = KEYS.iter().map(Key::split).find(|(_, key)| *key == name);
    let hint = match elsewhere {
        Some((Some(table), key)) => format!("`{key}` belongs into [{table}]"),
        Some((None, key)) => format!("`{key}` belongs to the top of the file, before the first [table]"),
        None => hint(name, siblings),
    };
    ConfigError::UnknownKey { file: file.to_owned(), key: name.to_owned(), section: section.map(str::to_owned), hint }
}
