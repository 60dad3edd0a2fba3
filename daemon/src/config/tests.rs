#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs};

use super::*;

/// Sources with a home, and whatever is put into the file, the environment and the flags.
struct Setup {
    directory: tempfile::TempDir,
    sources: ConfigSources,
}

fn setup() -> Setup {
    let mut sources = ConfigSources::default();
    sources.env.insert("HOME".to_owned(), "/home/fish".to_owned());
    Setup { directory: tempfile::tempdir().unwrap(), sources }
}

impl Setup {
    fn file(mut self, text: &str) -> Self {
        let file = self.directory.path().join("shoal.toml");
        fs::write(&file, text).unwrap();
        self.sources.file = Some(file);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.sources.flags.entry(name.to_owned()).or_default().push(value.to_owned());
        self
    }

    fn load(self) -> Result<Config, ConfigError> {
        Config::load(self.sources)
    }

    /// The message, with the file's directory cut out.
    fn refused(self) -> String {
        let directory = format!("{}/", self.directory.path().display());
        let message = Config::load(self.sources).unwrap_err().to_string();
        assert!(!message.contains('\n'), "one line: {message}");
        message.replace(&directory, "")
    }
}

/// A good value for each key, as TOML and as text, and how the configuration then shows it.
const SAMPLES: &[(&str, &str, &str, &str)] = &[
    ("data_dir", "\"/a\"", "/a", r#""/a""#),
    ("registry_listen", "[\"127.0.0.1:1\", \"[::1]:2\"]", "127.0.0.1:1,[::1]:2", r#"["127.0.0.1:1","[::1]:2"]"#),
    ("registry_tls_listen", "[\"127.0.0.1:5\"]", "127.0.0.1:5", r#"["127.0.0.1:5"]"#),
    ("registry_tls_cert", "\"/c\"", "/c", r#""/c""#),
    ("registry_tls_key", "\"/k\"", "/k", r#""/k""#),
    ("p2p_listen", "\"127.0.0.1:3\"", "127.0.0.1:3", r#""127.0.0.1:3""#),
    ("observe_listen", "\"127.0.0.1:4\"", "127.0.0.1:4", r#""127.0.0.1:4""#),
    ("secret_file", "\"/s\"", "/s", r#""/s""#),
    ("bootstrap", "[\"a.test:5\", \"b.test\"]", "a.test:5,b.test", r#"["a.test:5","b.test:5051"]"#),
    ("default_upstream", "\"ghcr.io\"", "ghcr.io", r#""ghcr.io""#),
    ("credential_files", "[\"/a\", \"/b\"]", "/a,/b", r#"["/a","/b"]"#),
    ("credential_provider_config", "\"/c\"", "/c", r#""/c""#),
    ("credential_provider_bin_dir", "\"/d\"", "/d", r#""/d""#),
    ("zone", "\"z1\"", "z1", r#""z1""#),
    ("rack", "\"r1\"", "r1", r#""r1""#),
    ("log", "\"json\"", "json", r#""json""#),
    ("stream", "\"sealed\"", "sealed", r#""sealed""#),
    ("tag_ttl", "\"5m\"", "5m", r#""300s""#),
    ("stale_if_error", "\"2h\"", "2h", r#""7200s""#),
    ("shutdown_grace", "\"250ms\"", "250ms", r#""250ms""#),
    ("registry_hosts", "[\"Shoal.test\", \"[::2]\"]", "Shoal.test,[::2]", r#"["shoal.test","::2"]"#),
    ("limits.upload", "\"25MB/s\"", "25MB/s", ""),
    ("limits.download", "\"1Gbit/s\"", "1Gbit/s", ""),
    ("limits.origin", "\"1MiB/s\"", "1MiB/s", ""),
];

/// The value at a dotted path of the configuration, as JSON.
fn shown(config: &Config, name: &str) -> serde_json::Value {
    let json = serde_json::to_value(config).unwrap();
    name.split('.').fold(json, |json, part| json[part].clone())
}

fn toml_of(name: &str, value: &str) -> String {
    match name.split_once('.') {
        Some((section, key)) => format!("[{section}]\n{key} = {value}\n"),
        None => format!("{name} = {value}\n"),
    }
}

#[test]
fn every_key_is_read_from_all_three_sources_alike() {
    let sampled: BTreeSet<_> = SAMPLES.iter().map(|sample| sample.0).chain(["upstreams"]).collect();
    assert_eq!(sampled, KEYS.iter().map(|key| key.name).collect(), "a sample for each key");
    let plain = setup().load().unwrap();
    for &(name, toml, text, expected) in SAMPLES {
        let key = keys::key(name);
        // Two of them come together or not at all.
        let setup = || match name {
            "registry_tls_cert" => setup().flag("registry-tls-key", "/k"),
            "registry_tls_key" => setup().flag("registry-tls-cert", "/c"),
            _ => setup(),
        };
        let from_file = setup().file(&toml_of(name, toml)).load().unwrap();
        let from_env = setup().env(&key.env(), text).load().unwrap();
        let mut from_flag = setup();
        for value in text.split(',') {
            from_flag = from_flag.flag(key.flag, value);
        }
        let from_flag = from_flag.load().unwrap();
        let value = shown(&from_file, name);
        assert_ne!(value, shown(&plain, name), "{name} has an effect");
        assert_eq!(value, shown(&from_env, name), "{name} from the environment");
        assert_eq!(value, shown(&from_flag, name), "{name} from a flag");
        if !expected.is_empty() {
            assert_eq!(value.to_string(), expected, "{name}");
        }
    }
}

#[test]
fn a_certificate_without_its_key_is_refused_and_one_without_a_listener_is_told() {
    let half = setup().flag("registry-tls-key", "/k").refused();
    assert!(half.starts_with("--registry-tls-key: registry_tls_cert is missing"), "{half}");
    let unused = setup().flag("registry-tls-key", "/k").flag("registry-tls-cert", "/c").load().unwrap();
    assert!(unused.warnings[0].contains("registry_tls_listen is not set"), "{:?}", unused.warnings);
    let clash = setup().flag("registry-tls-listen", "127.0.0.1:5050").refused();
    assert!(clash.contains("collides with registry_listen"), "{clash}");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let file = || setup().file("zone = \"file\"\nregistry_listen = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n");
    assert_eq!(file().load().unwrap().zone.as_deref(), Some("file"));
    assert_eq!(file().env("SHOAL_ZONE", "env").load().unwrap().zone.as_deref(), Some("env"));
    let all = file().env("SHOAL_ZONE", "env").flag("zone", "flag").env("SHOAL_REGISTRY_LISTEN", "127.0.0.1:3");
    let config = all.load().unwrap();
    assert_eq!(config.zone.as_deref(), Some("flag"));
    assert_eq!(config.registry_listen, vec!["127.0.0.1:3".parse().unwrap()], "lists are replaced, not joined");
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    assert_eq!(setup().file("zone = \"file\"").env("SHOAL_ZONE", " ").load().unwrap().zone.as_deref(), Some("file"));
}

#[test]
fn defaults_listen_on_loopback_and_know_the_public_registries() {
    let config = setup().load().unwrap();
    assert_eq!(config.p2p_listen.to_string(), "127.0.0.1:5051");
    assert_eq!(config.registry_listen[0].to_string(), "127.0.0.1:5050");
    assert_eq!(config.observe_listen.to_string(), "127.0.0.1:5052");
    assert_eq!(config.data_dir, PathBuf::from("/home/fish/.local/share/shoal"));
    assert_eq!(config.default_upstream.as_deref(), Some("docker.io"));
    assert_eq!(config.upstreams.len(), 8);
    let hub = config.upstreams.iter().find(|upstream| upstream.name == "docker.io").unwrap();
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert!(!hub.allow_private);
}

#[test]
fn the_data_directory_depends_on_the_user() {
    let mut root = setup();
    root.sources.root = true;
    assert_eq!(root.load().unwrap().data_dir, PathBuf::from("/var/lib/shoal"));
    let config = setup().env("XDG_DATA_HOME", "/data").load().unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/data/shoal"));
    let error = Config::load(ConfigSources::default()).unwrap_err().to_string();
    assert!(error.contains("data_dir") && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_secret_opens_the_peer_port_and_without_one_it_stays_on_loopback() {
    assert_eq!(setup().flag("secret-file", "/s").load().unwrap().p2p_listen.to_string(), "0.0.0.0:5051");
    assert_eq!(setup().flag("p2p-listen", "[::1]:0").load().unwrap().p2p_listen.to_string(), "[::1]:0");
    assert_eq!(
        setup().flag("p2p-listen", "0.0.0.0:5051").refused(),
        "--p2p-listen: 0.0.0.0:5051 is not a loopback address and no secret is given; make one with `shoal key generate --output FILE` and give secret_file (SHOAL_SECRET_FILE, --secret-file)"
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_key() {
    let cases = [
        ("[limits]\nuplod = \"1MB/s\"", "shoal.toml: unknown key `uplod` in [limits]; did you mean `upload`?"),
        ("data-dir = \"/x\"", "shoal.toml: unknown key `data-dir`; did you mean `data_dir`?"),
        ("upload = \"1MB/s\"", "shoal.toml: unknown key `upload`; `upload` belongs into [limits]"),
        (
            "[limits]\nzone = \"a\"",
            "shoal.toml: unknown key `zone` in [limits]; `zone` belongs to the top of the file, before the first [table]",
        ),
        (
            "[upstreams.\"a.test\"]\nulr = \"x\"",
            "shoal.toml: unknown key `ulr` in [upstreams.\"a.test\"]; did you mean `url`?",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(setup().file(text).refused(), expected);
    }
    let far = setup().file("[limits]\nfrobnicate = 1").refused();
    assert_eq!(far, "shoal.toml: unknown key `frobnicate` in [limits]; known are upload, download, origin");
}

#[test]
fn each_bad_value_names_its_key_and_the_allowed_form() {
    let cases = [
        ("registry-listen", "localhost", "IP:PORT"),
        ("p2p-listen", "5051", "IP:PORT"),
        ("observe-listen", "127.0.0.1", "IP:PORT"),
        ("bootstrap", "a.test:port", "HOST:PORT"),
        ("bootstrap", "2001:db8::1", "HOST:PORT"),
        ("upstream", "docker.io", "NAME=URL"),
        ("upstream", "a/b=https://a.test", "HOST or HOST:PORT"),
        ("upstream", "a.test=ftp://a.test", "https://HOST"),
        ("upstream", "a.test=https://a.test/?x", "https://HOST"),
        ("default-upstream", "ghcr.oi", "did you mean `ghcr.io`?"),
        ("zone", "a b", "64 printable"),
        ("rack", "\u{e4}", "64 printable"),
        ("log", "jsn", "`text` or `json`"),
        ("log", "json,shoal=loud", "`text` or `json`"),
        ("stream", "fast", "`verified` or `sealed`"),
        ("tag-ttl", "30", "500ms, 30s, 5m or 2h"),
        ("shutdown-grace", "-3s", "500ms, 30s, 5m or 2h"),
        ("shutdown-grace", "99999999999999999999h", "500ms, 30s, 5m or 2h"),
        ("registry-hosts", "http://a.test", "without scheme and port"),
        ("registry-hosts", "a.test:5050", "without scheme and port"),
        ("limits-upload", "0MB/s", "25MB/s"),
        ("limits-download", "fast", "25MB/s"),
        ("limits-origin", "-1MB/s", "25MB/s"),
    ];
    for (flag, value, form) in cases {
        let message = setup().flag(flag, value).refused();
        assert!(message.starts_with(&format!("--{flag}: ")), "{message}");
        assert!(message.contains(form), "{message}");
        let variable = KEYS.iter().find(|key| key.flag == flag).unwrap().env();
        let message = setup().env(&variable, value).refused();
        assert!(message.starts_with(&format!("{variable}: ")) && message.contains(form), "{message}");
    }
}

#[test]
fn an_empty_flag_is_refused() {
    for key in KEYS {
        let message = setup().flag(key.flag, "").refused();
        assert_eq!(message, format!("--{}: it is empty; give a value or leave it out", key.flag));
    }
}

#[test]
fn values_of_the_wrong_toml_type_are_told_as_such() {
    let cases = [
        ("zone = [\"a\"]", "key `zone` in shoal.toml: it is a list; the form is one text: \"TEXT\""),
        ("zone = true", "key `zone` in shoal.toml: it is true or false; the form is one text: \"TEXT\""),
        ("zone = \"\"", "key `zone` in shoal.toml: it is empty; the form is one text: \"TEXT\""),
        (
            "limits = 3",
            "key `limits` in shoal.toml: it is a number; it is a table: write [limits] on a line of its own and its keys below",
        ),
        (
            "bootstrap = [[\"a\"]]",
            "key `bootstrap` in shoal.toml: it is a list; the form is a list of texts: [\"HOST:PORT\"]",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(setup().file(text).refused(), expected);
    }
    assert!(setup().file("zone = \"a\"\nrack = ").refused().starts_with("shoal.toml:2: this is not TOML: "));
    let mut missing = setup();
    missing.sources.file = Some(missing.directory.path().join("none.toml"));
    assert!(missing.refused().starts_with("none.toml: cannot read the configuration file: No such file"));
}

#[test]
fn two_listeners_on_one_port_are_refused() {
    assert_eq!(
        setup().flag("observe-listen", "127.0.0.1:5050").refused(),
        "--observe-listen: 127.0.0.1:5050 collides with registry_listen 127.0.0.1:5050; give each listener a port of its own"
    );
    let free_ports = setup().flag("observe-listen", "127.0.0.1:0").flag("registry-listen", "127.0.0.1:0");
    free_ports.load().unwrap();
}

#[test]
fn upstreams_of_the_file_carry_credentials_and_pairs_replace_them_whole() {
    let file = "[upstreams.\"docker.io\"]\nusername = \"u\"\npassword_file = \"/p\"\nallow_private = true\n\
                [upstreams.\"Registry.test:5000\"]\nurl = \"http://127.0.0.1:9\"\nca_file = \"/ca\"\n\
                realm_hosts = [\"auth.test\"]\nmirrors = [\"https://m.test\", \"http://n.test:81/x\"]\n\
                client_cert_file = \"/cert\"\nclient_key_file = \"/key\"\ntags = \"cluster\"\n";
    let config = setup().file(file).load().unwrap();
    let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    assert_eq!(names, ["docker.io", "registry.test:5000"], "no default set beside configured ones");
    assert_eq!(config.upstreams[0].url.as_str(), "https://registry-1.docker.io/", "known by its name");
    assert_eq!(config.upstreams[0].password_file.as_deref(), Some("/p".as_ref()));
    assert!(config.upstreams[0].allow_private);
    assert_eq!(config.upstreams.iter().map(|u| u.tags).collect::<Vec<_>>(), [TagPolicy::Origin, TagPolicy::Cluster]);

    let config = setup().file(file).flag("upstream", "docker.io=https://mirror.test").load().unwrap();
    assert_eq!(config.upstreams[0].url.as_str(), "https://mirror.test/");
    assert_eq!(config.upstreams[0].username, None, "the credentials were meant for another host");
    assert_eq!(config.upstreams[1].ca_file.as_deref(), Some("/ca".as_ref()));
    assert_eq!(config.upstreams[1].realm_hosts, ["auth.test"]);
    let mirrors: Vec<_> = config.upstreams[1].mirrors.iter().map(Url::as_str).collect();
    assert_eq!(mirrors, ["https://m.test/", "http://n.test:81/x"]);
    assert_eq!(config.upstreams[1].client_cert_file.as_deref(), Some("/cert".as_ref()));
    assert_eq!(config.upstreams[1].client_key_file.as_deref(), Some("/key".as_ref()));

    let config = setup().env("SHOAL_UPSTREAM", "a.test=https://a.test, b.test=https://b.test:8443").load().unwrap();
    assert_eq!(config.upstreams[1].url.as_str(), "https://b.test:8443/");
    assert_eq!(config.default_upstream, None, "docker.io is not among them");
}

#[test]
fn incomplete_credentials_are_refused() {
    let cases = [
        ("username = \"u\"", "key `upstreams.\"a.test\".username`", "add password_file"),
        ("password = \"p\"", "key `upstreams.\"a.test\".password`", "add username"),
        ("password_file = \"/p\"", "key `upstreams.\"a.test\".password_file`", "add username"),
        (
            "username = \"u\"\npassword = \"p\"\npassword_file = \"/p\"",
            "key `upstreams.\"a.test\".password`",
            "keep one",
        ),
        ("client_cert_file = \"/c\"", "key `upstreams.\"a.test\".client_cert_file`", "add client_key_file"),
        ("client_key_file = \"/k\"", "key `upstreams.\"a.test\".client_key_file`", "add client_cert_file"),
        ("mirrors = \"https://m.test\"", "key `upstreams.\"a.test\".mirrors`", "a list of URLs"),
        ("mirrors = [1]", "key `upstreams.\"a.test\".mirrors`", "a list of URLs"),
        ("mirrors = [\"https://u:hunter2@m.test\"]", "key `upstreams.\"a.test\".mirrors`", "https://HOST"),
        ("mirrors = [\"file:///x\"]", "key `upstreams.\"a.test\".mirrors`", "https://HOST"),
        ("realm_hosts = \"a.test\"", "key `upstreams.\"a.test\".realm_hosts`", "a list of host names"),
        ("realm_hosts = [\"https://a\"]", "key `upstreams.\"a.test\".realm_hosts`", "a list of host names"),
        ("allow_private = \"yes\"", "key `upstreams.\"a.test\".allow_private`", "true or false"),
        ("tags = \"peers\"", "key `upstreams.\"a.test\".tags`", "\"origin\" or \"cluster\""),
        ("tags = true", "key `upstreams.\"a.test\".tags`", "a text"),
        (
            "tags = \"cluster\"\naccess = \"private\"",
            "key `upstreams.\"a.test\".tags`",
            "remove it, or say access = \"node\"",
        ),
    ];
    for (fields, place, hint) in cases {
        let message = setup().file(&format!("[upstreams.\"a.test\"]\n{fields}\n")).refused();
        assert!(message.starts_with(place) && message.contains(hint), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn an_account_may_come_from_environment_variables() {
    let file = "[upstreams.\"a.test\"]\nusername_env = \"HUB_USER\"\npassword_env = \"HUB_PASSWORD\"\n";
    let set = || setup().env("HUB_USER", "u").env("HUB_PASSWORD", "hunter2");
    let config = set().file(file).load().unwrap();
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.username.as_deref(), Some("u"));
    assert_eq!(upstream.password.as_ref().unwrap().expose(), "hunter2");
    assert_eq!(upstream.password_env.as_deref(), Some("HUB_PASSWORD"));
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));

    let mixed = "[upstreams.\"a.test\"]\nusername = \"u\"\npassword_env = \"HUB_PASSWORD\"\n";
    assert_eq!(set().file(mixed).load().unwrap().upstreams[0].password.as_ref().unwrap().expose(), "hunter2");
    assert!(!format!("{:?}", set().sources).contains("hunter2"));
    let unset = setup().env("HUB_USER", "u").env("HUB_PASSWORD", "").file(file).refused();
    assert_eq!(
        unset,
        "key `upstreams.\"a.test\".password_env` in shoal.toml: the variable \"HUB_PASSWORD\" is not set; the form is the \
         name of an environment variable that is set, as \"HUB_PASSWORD\""
    );
    for (fields, key) in [
        ("username_env = \"HUB_USER\"", "username"),
        ("password_env = \"HUB_PASSWORD\"", "password"),
        ("username = \"u\"\nusername_env = \"HUB_USER\"", "username_env"),
        ("username = \"u\"\npassword_file = \"/p\"\npassword_env = \"HUB_PASSWORD\"", "password"),
    ] {
        let message = set().file(&format!("[upstreams.\"a.test\"]\n{fields}\n")).refused();
        let place = format!("key `upstreams.\"a.test\".{key}`");
        assert!(message.starts_with(&place) && !message.contains("hunter2"), "{message}");
    }
}

#[test]
fn an_upstream_may_have_a_credential_file_of_its_own() {
    let file = "[upstreams.\"a.test\"]\ncredentials = \"/c\"\n";
    assert_eq!(setup().file(file).load().unwrap().upstreams[0].credentials.as_deref(), Some("/c".as_ref()));
    let clear = "[upstreams.\"a.test\"]\nurl = \"http://a.test\"\ncredentials = \"/c\"\n";
    assert_eq!(setup().file(clear).load().unwrap().warnings.len(), 1, "a password in the clear");
}

#[test]
fn a_password_file_is_read_without_its_line_end() {
    let kept = setup();
    let file = kept.directory.path().join("token");
    let toml = format!("[upstreams.\"a.test\"]\nusername = \"u\"\npassword_file = \"{}\"\n", file.display());
    let upstream = setup().file(&toml).load().unwrap().upstreams.remove(0);
    assert!(upstream.read_password().unwrap_err().to_string().contains("cannot read"));
    fs::write(&file, "\n").unwrap();
    assert!(upstream.read_password().unwrap_err().to_string().contains("is empty"));
    fs::write(&file, "hunter2\r\n").unwrap();
    assert_eq!(upstream.read_password().unwrap().unwrap().expose(), "hunter2");
}

#[test]
fn secrets_appear_neither_in_messages_nor_in_debug_output() {
    let secret = "hunter2";
    let refused = [
        setup().flag("upstream", "a.test=https://u:hunter2@a.test").refused(),
        setup().flag("upstream", "a.test=https://u:hunter2@[").refused(),
        setup().file("[upstreams.\"a.test\"]\nurl = \"https://u:hunter2@a.test\"").refused(),
        setup().file("[upstreams.\"a.test\"]\npassword = \"hunter2\"").refused(),
        setup().file("[upstreams.\"a.test\"]\npassword = \"hunter2").refused(),
        setup().file("[upstreams.\"a.test\"]\npassword = [\"hunter2\"]").refused(),
    ];
    for message in refused {
        assert!(!message.contains(secret), "{message}");
    }
    let config = setup().file("[upstreams.\"a.test\"]\nusername = \"u\"\npassword = \"hunter2\"\n").load().unwrap();
    assert_eq!(config.upstreams[0].password.as_ref().unwrap().expose(), secret);
    assert!(!format!("{config:?}").contains(secret));
    assert!(!serde_json::to_string(&config).unwrap().contains(secret));
}

#[test]
fn format_and_filter_of_the_log_are_chosen_apart() {
    let json = || setup().file("log = \"json\"");
    let config = json().env("SHOAL_LOG", "debug").load().unwrap();
    assert_eq!((config.log, config.log_filter.as_str()), (LogFormat::Json, "debug"));
    let config = json().flag("log", "text,info,shoal_daemon::dht=debug").load().unwrap();
    assert_eq!((config.log, config.log_filter.as_str()), (LogFormat::Text, "info,shoal_daemon::dht=debug"));
    assert_eq!(setup().load().unwrap().log_filter, "info");
}

#[test]
fn a_misspelt_variable_is_warned_about_and_kubernetes_service_variables_are_not() {
    let config = setup().env("SHOAL_ZNOE", "a").env("SHOAL_PORT", "tcp://10.0.0.1:5051").load().unwrap();
    assert_eq!(config.warnings, ["SHOAL_ZNOE: unknown variable; did you mean SHOAL_ZONE?"]);
    let service = setup().env("SHOAL_SERVICE_HOST", "10.0.0.1").env("SHOAL_PORT_5051_TCP_ADDR", "10.0.0.1");
    assert_eq!(service.env("SHOAL_CONFIG", "/x").load().unwrap().warnings, Vec::<String>::new());
}

#[test]
fn peers_elsewhere_without_a_secret_are_warned_about() {
    let warned = |peer: &str| setup().flag("bootstrap", peer).load().unwrap().warnings.len();
    assert_eq!(warned("node1.test:5051"), 1);
    assert_eq!([warned("127.0.0.1:4000"), warned("localhost:4000"), warned("/ip4/127.0.0.1/tcp/4000")], [0; 3]);
    let with_secret = setup().flag("bootstrap", "node1.test:5051").flag("secret-file", "/s");
    assert_eq!(with_secret.load().unwrap().warnings, Vec::<String>::new());
}

#[test]
fn a_password_in_the_clear_is_warned_about() {
    let with = |url| format!("[upstreams.\"a.test\"]\nurl = \"{url}\"\nusername = \"u\"\npassword = \"p\"\n");
    assert_eq!(setup().file(&with("http://a.test:5000")).load().unwrap().warnings.len(), 1);
    assert_eq!(setup().file(&with("http://127.0.0.1:5000")).load().unwrap().warnings.len(), 0);
    assert_eq!(setup().file(&with("https://a.test")).load().unwrap().warnings.len(), 0);
}

#[test]
fn pushing_is_off_unless_configured_and_a_listener_that_takes_no_pushes_is_named() {
    let with =
        |line: &str| format!("registry_listen = [\"127.0.0.1:1\", \"192.0.2.1:1\"]\n[upstreams.\"a.test\"]\n{line}");
    let config = setup().file(&with("")).load().unwrap();
    assert!(!config.upstreams[0].push && config.warnings.is_empty());
    let config = setup().file(&with("push = true")).load().unwrap();
    assert!(config.upstreams[0].push);
    assert_eq!(
        config.warnings,
        ["registry_listen: pushes to a.test are taken on loopback addresses only, not on 192.0.2.1:1"]
    );
    assert!(setup().file(&with("push = \"yes\"")).refused().contains("true or false"));
    assert!(setup().load().unwrap().upstreams.iter().all(|upstream| !upstream.push));
}
