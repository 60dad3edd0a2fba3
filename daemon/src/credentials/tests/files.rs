//! What stands in files, how it is found there, and what happens when they change.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::credentials::{
    docker::{DockerConfig, Said},
    scope::{Target, canonical_host},
    watched::FILE_BYTES_MAX,
};

fn parse(text: &str) -> Result<DockerConfig, String> {
    DockerConfig::parse(text.as_bytes(), Path::new("config.json"))
}

fn said(config: &DockerConfig, host: &str, repository: &str) -> Option<Credential> {
    let target = Target { host: canonical_host(host), repository: repository.to_owned() };
    match config.say(&target) {
        Said::Credential(credential) => Some(credential),
        Said::Ask(helper) => unreachable!("{helper:?} was not configured"),
        Said::Nothing => None,
    }
}

#[test]
fn every_form_of_an_entry_is_read() {
    let pair = auth("user:pass:word");
    let cases = [
        (format!(r#"{{"auth":"{pair}"}}"#), basic("user", "pass:word")),
        (format!(r#"{{"auth":"{}","email":"a@b.test"}}"#, pair.trim_end_matches('=')), basic("user", "pass:word")),
        (format!(r#"{{"auth":"{pair}","username":"other","password":"other"}}"#), basic("user", "pass:word")),
        (format!(r#"{{"auth":"{}"}}"#, auth("user:word\0\0")), basic("user", "word")),
        (r#"{"username":"user","password":"p\u0000\n\u001b:\u00e4"}"#.to_owned(), basic("user", "p\0\n\u{1b}:\u{e4}")),
        (format!(r#"{{"auth":"{pair}","identitytoken":"tok.en"}}"#), Some(Credential::Identity("tok.en".to_owned()))),
        (
            r#"{"identitytoken":"tok.en","registrytoken":"bear.er"}"#.to_owned(),
            Some(Credential::Bearer("bear.er".to_owned())),
        ),
        ("{}".to_owned(), None),
        (r#"{"auth":"","identitytoken":null}"#.to_owned(), None),
        (r#"{"username":"user"}"#.to_owned(), None),
    ];
    for (entry, expected) in cases {
        let config = parse(&format!(r#"{{"auths":{{"a.test":{entry}}},"HttpHeaders":{{"x":1}}}}"#)).unwrap();
        assert_eq!(said(&config, "a.test", "x"), expected, "{entry}");
    }
}

#[test]
fn an_entry_without_a_secret_does_not_hide_a_wider_one() {
    let text = format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}},"a.test/team":{{}}}}}}"#, auth("u:p"));
    assert_eq!(said(&parse(&text).unwrap(), "a.test", "team/x"), basic("u", "p"));
}

#[test]
fn podmans_namespaces_and_dockers_urls_live_in_one_file() {
    let entry = |user: &str| format!(r#"{{"auth":"{}"}}"#, auth(&format!("{user}:p")));
    let text = format!(
        r#"{{"auths":{{"https://index.docker.io/v1/":{},"quay.io":{},"quay.io/team":{},"*.pkg.test":{}}}}}"#,
        entry("hub"),
        entry("quay"),
        entry("team"),
        entry("glob")
    );
    let config = parse(&text).unwrap();
    for (host, repository, expected) in [
        ("docker.io", "library/alpine", Some("hub")),
        ("registry-1.docker.io", "team/x", Some("hub")),
        ("quay.io", "team/x", Some("team")),
        ("quay.io", "teams/x", Some("quay")),
        ("eu.pkg.test", "x", Some("glob")),
        ("ghcr.io", "team/x", None),
    ] {
        assert_eq!(said(&config, host, repository), expected.and_then(|user| basic(user, "p")), "{host}/{repository}");
    }
}

#[test]
fn hostile_files_are_refused_and_their_secrets_repeated_nowhere() {
    let secret = "hunter2";
    let in_auths = |entry: &str| format!(r#"{{"auths":{{"a.test":{entry}}}}}"#);
    let cases = [
        (String::new(), "it is not JSON: see line 1"),
        (format!("{{\"auths\":{{\n\"a.test\":{{\"auth\":\"{secret}}}"), "it is not JSON: see line 2"),
        (format!("\"{secret}\""), "the whole is a text; it must be an object"),
        ("[".repeat(200_000), "it is not JSON"),
        (format!("{}{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)), "it is not JSON"),
        (format!(r#"{{"auths":"{secret}"}}"#), "auths is a text; it must be an object"),
        (format!(r#"{{"auths":["{secret}"]}}"#), "auths is a list"),
        (in_auths(&format!("\"{secret}\"")), "auths.\"a.test\" is a text"),
        (in_auths(&format!("[\"{secret}\"]")), "auths.\"a.test\" is a list"),
        (in_auths(&format!(r#"{{"auth":["{secret}"]}}"#)), "auths.\"a.test\".auth is a list"),
        (in_auths(r#"{"password":7,"username":"u"}"#), "auths.\"a.test\".password is a number"),
        (in_auths(&format!(r#"{{"auth":"{secret}!"}}"#)), "auths.\"a.test\".auth is not base64"),
        (in_auths(&format!(r#"{{"auth":"{}"}}"#, auth(secret))), "auths.\"a.test\".auth has no colon"),
        (in_auths(&format!(r#"{{"auth":"{}"}}"#, auth(&format!(":{secret}")))), "auths.\"a.test\".auth lacks"),
        (in_auths(r#"{"auth":"/zpzZWNyZXQ="}"#), "auths.\"a.test\".auth is not UTF-8"),
        (in_auths(&format!(r#"{{"username":"u:x","password":"{secret}"}}"#)), "auths.\"a.test\": the user name holds"),
        (in_auths(&format!(r#"{{"identitytoken":"a\r\n{secret}"}}"#)), "auths.\"a.test\".identitytoken has a space"),
        (r#"{"credsStore":"../../bin/sh"}"#.to_owned(), "credsStore: it is not a helper's name"),
        (r#"{"credHelpers":{"a.test":"x y"}}"#.to_owned(), "credHelpers.\"a.test\": it is not a helper's name"),
        (r#"{"credHelpers":{"a.test":["x"]}}"#.to_owned(), "credHelpers.\"a.test\" is a list"),
        (format!(r#"{{"auths":{{"\u001b[31m{}\n":7}}}}"#, "x".repeat(5000)), "auths.\"\\u{1b}[31mxxx"),
    ];
    for (text, expected) in cases {
        let problem = parse(&text).unwrap_err();
        assert!(problem.starts_with(expected), "{problem}");
        assert!(!problem.contains(secret) && problem.len() < 300 && !problem.contains(['\n', '\u{1b}']), "{problem}");
    }
    assert!(DockerConfig::parse(b"{\"auths\":{\"\xff\":{}}}", Path::new("x")).is_err(), "not UTF-8");
}

proptest! {
    #[test]
    fn a_damaged_file_is_refused_or_read_but_never_ends_the_daemon(at in 0..GOOD.len(), bytes in vec(any::<u8>(), 0..4)) {
        let mut text = GOOD.as_bytes().to_vec();
        text.splice(at..(at + 2).min(text.len()), bytes);
        for file in ["config.json", ".dockercfg"] {
            if let Ok(config) = DockerConfig::parse(&text, Path::new(file)) {
                config.say(&Target { host: "a.test".to_owned(), repository: "team/x".to_owned() });
            }
        }
    }
}

const GOOD: &str = r#"{"auths":{"https://*.test/v1/":{"auth":"dTpw"},"a.test/team":{"identitytoken":"t"}},"credHelpers":{"a.test":"x"}}"#;

#[test]
fn of_two_entries_under_one_key_the_last_counts_as_in_docker() {
    let text = format!(
        r#"{{"auths":{{"a.test":{{"auth":"{}"}},"a.test":{{"auth":"{}"}}}}}}"#,
        auth("first:p"),
        auth("last:p")
    );
    assert_eq!(said(&parse(&text).unwrap(), "a.test", "x"), basic("last", "p"));
}

#[test]
fn a_parsed_file_prints_its_keys_only() {
    let text = format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}}}}}}"#, auth("robot:hunter2"));
    let text = format!("{:?}", parse(&text).unwrap());
    assert!(text.contains("a.test") && !text.contains("hunter2") && !text.contains("robot"), "{text}");
}

#[tokio::test]
async fn mounted_pull_secrets_are_read_as_files_and_as_directories_in_both_formats() {
    let bench = Bench::new();
    let entry = format!(r#""a.test":{{"auth":"{}"}}"#, auth("u:p"));
    let new = bench.file("new/.dockerconfigjson", format!(r#"{{"auths":{{{entry}}}}}"#));
    let old = bench.file("old/.dockercfg", format!("{{{entry}}}"));
    for path in [&new, &old, &bench.path("new"), &bench.path("old")] {
        let opened = bench.open(&format!("{}{}", files(&[path]), upstream("a.test", ""))).unwrap();
        assert_eq!(Asked(&opened, "a.test").find("x").await, Ok(basic("u", "p")), "{}", path.display());
    }
}

#[tokio::test]
async fn a_rotated_secret_is_seen_at_once_and_a_broken_file_keeps_the_last_good_one() {
    let bench = Bench::new();
    let write = |name: &str, user: &str| {
        bench.file(name, format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}}}}}}"#, auth(&format!("{user}:p"))))
    };
    let file = write("config.json", "old");
    let opened = bench.open(&format!("{}{}", files(&[&file]), upstream("a.test", ""))).unwrap();
    let asked = Asked(&opened, "a.test");
    assert_eq!(asked.find("x").await, Ok(basic("old", "p")));
    // In place, with the same size.
    write("config.json", "new");
    assert_eq!(asked.find("x").await, Ok(basic("new", "p")));
    for broken in ["{\"auths\":", "7", ""] {
        bench.file("config.json", broken);
        assert_eq!(asked.find("x").await, Ok(basic("new", "p")), "{broken:?}");
    }
    bench.file("config.json", vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]);
    assert_eq!(asked.find("x").await, Ok(basic("new", "p")), "too large");
    fs::remove_file(&file).unwrap();
    assert_eq!(asked.find("x").await, Ok(basic("new", "p")), "gone");
    // As the kubelet does it: another file under the same name.
    fs::rename(write("other", "ren"), &file).unwrap();
    assert_eq!(asked.find("x").await, Ok(basic("ren", "p")));
    bench.file("config.json", r#"{"auths":{}}"#);
    assert_eq!(asked.find("x").await, Ok(None), "a good file that has no more credential is believed");
}

#[tokio::test]
async fn a_file_that_was_quiet_for_long_is_not_read_again_until_it_changes() {
    let bench = Bench::new();
    let text = |user: &str| format!(r#"{{"auths":{{"a.test":{{"auth":"{}"}}}}}}"#, auth(&format!("{user}:p")));
    let file = bench.file("config.json", text("old"));
    let settle = || {
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&file).unwrap().set_modified(hour_ago).unwrap();
    };
    settle();
    let opened = bench.open(&format!("{}{}", files(&[&file]), upstream("a.test", ""))).unwrap();
    let asked = Asked(&opened, "a.test");
    for user in ["old", "new", "two"] {
        bench.file("config.json", text(user));
        settle();
        // The second look finds the file as the first left it.
        for _ in 0..2 {
            assert_eq!(asked.find("x").await, Ok(basic(user, "p")));
        }
    }
    fs::write(&file, "broken").unwrap();
    settle();
    for _ in 0..2 {
        assert_eq!(asked.find("x").await, Ok(basic("two", "p")));
    }
}

#[tokio::test]
async fn an_accounts_password_file_is_read_anew_too() {
    let bench = Bench::new();
    let file = bench.file("token", "one\n");
    let account = format!("username = \"u\"\npassword_file = {file:?}");
    let opened = bench.open(&upstream("a.test", &account)).unwrap();
    assert_eq!(Asked(&opened, "a.test").find("x").await, Ok(basic("u", "one")));
    bench.file("token", "two\n");
    assert_eq!(Asked(&opened, "a.test").find("x").await, Ok(basic("u", "two")));
    bench.file("token", "\n");
    assert_eq!(Asked(&opened, "a.test").find("x").await, Ok(basic("u", "two")), "an empty file is broken");
}

#[test]
fn at_start_a_bad_file_is_an_error_that_names_it() {
    let bench = Bench::new();
    let (broken, fifo) = (bench.file("broken.json", "{\"auths\":{\"hunter2\":"), bench.fifo("fifo"));
    let (missing, empty) = (bench.path("missing.json"), bench.path("empty"));
    fs::create_dir(&empty).unwrap();
    let large = bench.file("large.json", vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]);
    for (path, problem) in [
        (&missing, "cannot read it: No such file"),
        (&broken, "it is not JSON"),
        (&fifo, "it is not a file"),
        (&empty, "it holds none of .dockerconfigjson"),
        (&large, "it is larger than 1048576 bytes"),
    ] {
        let own = upstream("a.test", &format!("credentials = {path:?}"));
        for (toml, key) in [(files(&[path]), "credential_files: "), (own, "credentials of upstream a.test: ")] {
            let message = bench.open(&toml).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{key}{}: {problem}", path.display())), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}

#[test]
fn files_open_to_others_are_warned_about() {
    let bench = Bench::new();
    let file = bench.file("config.json", "{}");
    for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o602, 1)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let opened = bench.open(&files(&[&file])).unwrap();
        assert_eq!(opened.warnings.len(), warnings, "{mode:o}: {:?}", opened.warnings);
        assert!(opened.warnings.iter().all(|warning| warning.contains(file.to_str().unwrap())));
    }
}
