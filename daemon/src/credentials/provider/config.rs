//! The kubelet's `CredentialProviderConfig`, in YAML or JSON.

use std::{fmt, time::Duration};

use serde_json::{Map, Value};

use crate::{
    config::quoted,
    credentials::{
        fields::{at, list, object, only, text, texts},
        pattern::ImagePattern,
    },
};

/// The group of versions that the file itself may be written in.
const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];

/// Versions of the exec protocol. They differ in their names only.
const EXEC_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Parser events of a document: far more than any node's file has, far fewer than an alias bomb.
const YAML_EVENTS_MAX: usize = 50_000;

/// One plugin, as configured. Prints no environment: it may hold secrets.
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) match_images: Vec<ImagePattern>,
    pub(super) default_cache_duration: Duration,
    pub(super) api_version: &'static str,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("match_images", &self.match_images)
            .finish_non_exhaustive()
    }
}

/// Reads the file's bytes. As strict as the kubelet: an unknown field is an error.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Provider>, String> {
    let document = yaml(bytes)?;
    let top = object(&document, "")?;
    if text(top, "kind", "")? != Some("CredentialProviderConfig") {
        return Err("kind is not CredentialProviderConfig".to_owned());
    }
    if !text(top, "apiVersion", "")?.is_some_and(|version| CONFIG_VERSIONS.contains(&version)) {
        return Err(format!("apiVersion is none of {}", CONFIG_VERSIONS.join(", ")));
    }
    only(top, &["kind", "apiVersion", "providers"], "")?;
    let mut providers: Vec<Provider> = Vec::new();
    for (index, value) in list(top, "providers", "")?.iter().enumerate() {
        let place = format!("providers[{index}]");
        let provider = provider(object(value, &place)?, &place)?;
        if providers.iter().any(|other| other.name == provider.name) {
            return Err(format!("{place}.name: {} is there twice", quoted(&provider.name)));
        }
        providers.push(provider);
    }
    if providers.is_empty() {
        return Err("providers is empty".to_owned());
    }
    Ok(providers)
}

fn yaml(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: YAML_EVENTS_MAX, max_nodes: YAML_EVENTS_MAX, max_documents: 1 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: YAML_EVENTS_MAX },
        with_snippet: false,
    };
    // Only the place: the message itself quotes the document.
    serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
        Some(place) => format!("it is not YAML: see line {}, column {}", place.line(), place.column()),
        None => "it is not YAML".to_owned(),
    })
}

fn provider(fields: &Map<String, Value>, place: &str) -> Result<Provider, String> {
    if fields.get("tokenAttributes").is_some_and(|value| !value.is_null()) {
        return Err(format!(
            "{place}.tokenAttributes: plugins that need a pod's service account token cannot work here, because no pod asks; remove this provider from the copy of the file that Shoal reads"
        ));
    }
    only(fields, &["name", "matchImages", "defaultCacheDuration", "apiVersion", "args", "env"], place)?;
    let missing = |key: &str| format!("{} is missing", at(place, key));
    let name = text(fields, "name", place)?.ok_or_else(|| missing("name"))?;
    if name == "." || name == ".." || name.contains(['/', '\0']) || name.contains(char::is_whitespace) {
        return Err(format!("{place}.name: {} is not the name of a program", quoted(name)));
    }
    let version = text(fields, "apiVersion", place)?.ok_or_else(|| missing("apiVersion"))?;
    let api_version = EXEC_VERSIONS.into_iter().find(|known| *known == version);
    let default = text(fields, "defaultCacheDuration", place)?.ok_or_else(|| missing("defaultCacheDuration"))?;
    let patterns = texts(fields, "matchImages", place)?;
    if patterns.is_empty() {
        return Err(missing("matchImages"));
    }
    let match_images = patterns.iter().enumerate().map(|(index, pattern)| {
        ImagePattern::parse(pattern).map_err(|problem| format!("{place}.matchImages[{index}]: {problem}"))
    });
    Ok(Provider {
        name: name.to_owned(),
        match_images: match_images.collect::<Result<_, _>>()?,
        default_cache_duration: duration(default)
            .map_err(|problem| format!("{} {problem}", at(place, "defaultCacheDuration")))?,
        api_version: api_version
            .ok_or_else(|| format!("{place}.apiVersion is none of {}", EXEC_VERSIONS.join(", ")))?,
        args: arguments(fields, place)?,
        env: environment(fields, place)?,
    })
}

fn arguments(fields: &Map<String, Value>, place: &str) -> Result<Vec<String>, String> {
    let args = texts(fields, "args", place)?;
    match args.iter().position(|argument| argument.contains('\0')) {
        Some(index) => Err(format!("{place}.args[{index}] holds a zero byte")),
        None => Ok(args),
    }
}

fn environment(fields: &Map<String, Value>, place: &str) -> Result<Vec<(String, String)>, String> {
    let mut env = Vec::new();
    for (index, value) in list(fields, "env", place)?.iter().enumerate() {
        let place = format!("{place}.env[{index}]");
        let entry = object(value, &place)?;
        only(entry, &["name", "value"], &place)?;
        let name = text(entry, "name", &place)?.ok_or_else(|| format!("{place}.name is missing"))?;
        let value = text(entry, "value", &place)?.unwrap_or_default();
        if name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("{place} is not a variable and its value"));
        }
        env.push((name.to_owned(), value.to_owned()));
    }
    Ok(env)
}

/// A time as Go writes it: `12h`, `1h30m`, `0`, `1.5s`. Not below zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "is not a time such as 12h, 1h30m or 0s";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(FORM.to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, behind) = rest.split_at(digits);
        let unit = behind.split(|letter: char| letter.is_ascii_digit() || letter == '.').next().unwrap_or_default();
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(FORM.to_owned()),
        };
        seconds += number.parse::<f64>().map_err(|_| FORM.to_owned())? * scale;
        rest = behind.strip_prefix(unit).unwrap_or_default();
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| FORM.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn a_damaged_document_never_ends_the_daemon(at in 0..GOOD.len(), bytes in vec(any::<u8>(), 0..4)) {
            let mut text = GOOD.as_bytes().to_vec();
            text.splice(at..(at + 2).min(text.len()), bytes);
            if let Ok(providers) = parse(&text) {
                prop_assert!(!providers.is_empty());
            }
        }

        #[test]
        fn a_time_of_any_form_is_read_or_refused(text in "[0-9.hmsnu+µ-]{0,12}") {
            if let Ok(time) = duration(&text) {
                prop_assert!(text.contains('0') || !time.is_zero() || text.contains("ns"));
            }
        }
    }

    const GOOD: &str = "\
# As the documentation of Kubernetes has it.
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - \"*.dkr.ecr.*.amazonaws.com\"
      - 'registry.test:8080/path'
    defaultCacheDuration: \"12h\"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example_profile
";

    #[test]
    fn the_kubelets_file_is_read_in_yaml_and_in_json() {
        let json = serde_json::to_string(&yaml(GOOD.as_bytes()).unwrap()).unwrap();
        for text in [GOOD, &json] {
            let providers = parse(text.as_bytes()).unwrap();
            let [provider] = &providers[..] else { unreachable!("one provider") };
            assert_eq!(provider.name, "ecr-credential-provider");
            assert!(provider.match_images[0].matches("1.dkr.ecr.eu-west-1.amazonaws.com/x"));
            assert!(provider.match_images[1].matches("registry.test:8080/path/x"));
            assert_eq!(provider.default_cache_duration, Duration::from_secs(12 * 3600));
            assert_eq!(provider.api_version, "credentialprovider.kubelet.k8s.io/v1");
            assert_eq!(provider.args, ["get-credentials"]);
            assert_eq!(provider.env, [("AWS_PROFILE".to_owned(), "example_profile".to_owned())]);
        }
    }

    #[test]
    fn each_fault_is_named_by_its_place() {
        let cases = [
            ("kind: CredentialProviderConfig", "kind: Pod", "kind is not CredentialProviderConfig"),
            ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v9", "apiVersion is none of kubelet.config.k8s.io/v1"),
            ("name: ecr-credential-provider", "nam: x", "providers[0].nam is unknown"),
            ("name: ecr-credential-provider", "name: ../sh", "providers[0].name: \"../sh\" is not the name"),
            ("name: ecr-credential-provider", "name: 7", "providers[0].name is a number"),
            ("\"*.dkr.ecr.*.amazonaws.com\"", "\"https://a.test\"", "providers[0].matchImages[0]: it has a scheme"),
            ("\"12h\"", "\"12\"", "providers[0].defaultCacheDuration is not a time"),
            ("\"12h\"", "12", "providers[0].defaultCacheDuration is a number"),
            ("credentialprovider.kubelet.k8s.io/v1", "v1", "providers[0].apiVersion is none of credentialprovider"),
            ("- get-credentials", "- [hunter2]", "providers[0].args[0] is a list"),
            ("value: example_profile", "valve: hunter2", "providers[0].env[0].valve is unknown"),
            ("value: example_profile", "value: [hunter2]", "providers[0].env[0].value is a list"),
            ("- name: AWS_PROFILE", "- name: A=B", "providers[0].env[0] is not a variable"),
            (
                "    args:",
                "    tokenAttributes: {cacheType: Token}\n    args:",
                "providers[0].tokenAttributes: plugins that need a pod's service account token",
            ),
        ];
        for (from, to, expected) in cases {
            assert!(GOOD.contains(from), "{from}");
            let problem = parse(GOOD.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{problem}");
        }
        let twice = format!("{GOOD}{}", GOOD.split_once("providers:\n").unwrap().1);
        assert!(
            parse(twice.as_bytes())
                .unwrap_err()
                .contains("providers[1].name: \"ecr-credential-provider\" is there twice")
        );
        let none = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: []\n";
        assert_eq!(parse(none.as_bytes()).unwrap_err(), "providers is empty");
    }

    #[test]
    fn hostile_documents_are_refused_and_quoted_nowhere() {
        let bomb = (1..30).fold("a0: &a0 [hunter2]\n".to_owned(), |text, level| {
            let aliases = vec![format!("*a{}", level - 1); 9].join(",");
            format!("{text}a{level}: &a{level} [{aliases}]\n")
        });
        let documents = [
            String::new(),
            "hunter2".to_owned(),
            "a: [hunter2".to_owned(),
            "a: hunter2\na: hunter2\n".to_owned(),
            "a: b: hunter2: c".to_owned(),
            "%hunter2\n---\n".to_owned(),
            "\u{0}hunter2".to_owned(),
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(100_000),
            format!("{GOOD}---\n{GOOD}"),
            bomb,
        ];
        for document in documents {
            let problem = parse(document.as_bytes()).unwrap_err();
            assert!(!problem.contains("hunter2") && problem.len() < 200, "{problem}");
        }
        assert_eq!(parse(b"a: \xff").unwrap_err(), "it is not UTF-8");
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("12h", 43_200_000),
            ("1h30m", 5_400_000),
            ("1h0m0.5s", 3_600_500),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("2000us", 2),
            ("+5m", 300_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "5", "h", "-1s", "1d", "1h-5m", "1..5s", "s5", "1e9h", "1 h", "+", "\u{663}s", &"9".repeat(400)]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration(&format!("{}h", "9".repeat(400))).is_err(), "endless");
    }
}
