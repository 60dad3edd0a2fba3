//! Which source wins, and to whom its credentials may go.

use super::*;

/// A file with one user for each key.
fn users(bench: &Bench, name: &str, entries: &[(&str, &str)]) -> PathBuf {
    let entry = |(key, user): &(&str, &str)| format!(r#""{key}":{{"auth":"{}"}}"#, auth(&format!("{user}:p")));
    let entries: Vec<_> = entries.iter().map(entry).collect();
    bench.file(name, format!(r#"{{"auths":{{{}}}}}"#, entries.join(",")))
}

async fn user(opened: &OpenedCredentials, name: &str, registry: &str, repository: &str) -> Option<String> {
    match opened.upstreams[name].find(registry, repository).await.unwrap() {
        Some(Credential::Basic { username, .. }) => Some(username),
        Some(Credential::Identity(_) | Credential::Bearer(_)) | None => None,
    }
}

#[tokio::test]
async fn an_upstreams_account_wins_over_its_file_and_that_over_the_common_ones_in_their_order() {
    let bench = Bench::new();
    let own = users(&bench, "own.json", &[("a.test", "own"), ("b.test", "own")]);
    let first = users(&bench, "first.json", &[("a.test", "first"), ("c.test", "first")]);
    let second = users(&bench, "second.json", &[("c.test", "second"), ("d.test", "second")]);
    let toml = [
        files(&[&first, &second]),
        upstream("a.test", &format!("username = \"account\"\npassword = \"p\"\ncredentials = {own:?}")),
        upstream("b.test", &format!("credentials = {own:?}")),
        upstream("c.test", ""),
        upstream("d.test", ""),
        upstream("e.test", ""),
    ];
    let opened = bench.open(&toml.concat()).unwrap();
    for (name, expected) in [
        ("a.test", Some("account")),
        ("b.test", Some("own")),
        ("c.test", Some("first")),
        ("d.test", Some("second")),
        ("e.test", None),
    ] {
        assert_eq!(user(&opened, name, name, "x").await.as_deref(), expected, "{name}");
    }
}

#[tokio::test]
async fn nothing_is_read_by_default() {
    let bench = Bench::new();
    let opened = bench.open("").unwrap();
    for (name, credentials) in &opened.upstreams {
        assert_eq!(credentials.find(name, "x").await, Ok(None), "{name}");
    }
    assert_eq!(opened.upstreams.len(), 8);
}

#[tokio::test]
async fn what_is_meant_for_a_registry_does_not_go_to_another_host_that_stands_in_its_place() {
    let bench = Bench::new();
    let file = users(&bench, "auth.json", &[("docker.io", "hub"), ("r.test", "named")]);
    let upstreams = "[upstreams.\"docker.io\"]\nurl = \"https://cache.test/v2/hub\"\n\
                     [upstreams.\"r.test\"]\nurl = \"http://127.0.0.1:5000\"\n";
    let opened = bench.open(&format!("{}{upstreams}", files(&[&file]))).unwrap();
    assert_eq!(user(&opened, "docker.io", "docker.io", "library/x").await, None);
    assert_eq!(user(&opened, "r.test", "r.test", "x").await.as_deref(), Some("named"), "this machine may stand for it");

    let own = upstreams.replace("/hub\"\n", &format!("/hub\"\ncredentials = {file:?}\n"));
    let opened = bench.open(&own).unwrap();
    assert_eq!(user(&opened, "docker.io", "docker.io", "library/x").await.as_deref(), Some("hub"), "it says so itself");
}

#[tokio::test]
async fn the_path_of_the_url_counts_where_credentials_are_for_a_part_of_a_registry() {
    let bench = Bench::new();
    let file =
        users(&bench, "auth.json", &[("cache.test", "all"), ("cache.test/hub", "hub"), ("cache.test/library", "no")]);
    let toml = "[upstreams.\"docker.io\"]\nurl = \"https://cache.test/v2/hub/\"\n";
    let opened = bench.open(&format!("{}{toml}", files(&[&file]))).unwrap();
    assert_eq!(user(&opened, "docker.io", "docker.io", "library/x").await.as_deref(), Some("hub"));
}

#[tokio::test]
async fn a_mirror_is_looked_up_under_its_own_host_and_never_gets_the_account() {
    let bench = Bench::new();
    let file = users(&bench, "auth.json", &[("mirror.test:5000", "mirror"), ("a.test", "registry")]);
    let account = "username = \"account\"\npassword = \"hunter2\"";
    let opened = bench.open(&format!("{}{}", files(&[&file]), upstream("a.test", account))).unwrap();
    assert_eq!(user(&opened, "a.test", "a.test", "x").await.as_deref(), Some("account"));
    assert_eq!(user(&opened, "a.test", "mirror.test:5000", "x").await.as_deref(), Some("mirror"));
    assert_eq!(user(&opened, "a.test", "other.test", "x").await, None);
}

#[tokio::test]
async fn a_source_that_fails_does_not_hide_the_next() {
    let bench = Bench::new();
    bench.program("docker-credential-bad", "exit 1");
    let bad = bench.file("bad.json", r#"{"credsStore":"bad"}"#);
    let good = users(&bench, "good.json", &[("a.test", "good")]);
    let toml = format!("{}{}{}", files(&[&bad, &good]), upstream("a.test", ""), upstream("b.test", ""));
    let opened = bench.open(&toml).unwrap();
    assert_eq!(user(&opened, "a.test", "a.test", "x").await.as_deref(), Some("good"));
    let error = Asked(&opened, "b.test").find("x").await.unwrap_err();
    assert!(error.place.starts_with(bad.to_str().unwrap()), "with no credential at all the failure counts: {error}");
}

#[test]
fn an_account_that_basic_cannot_carry_is_refused_at_start() {
    let bench = Bench::new();
    let error = bench.open(&upstream("a.test", "username = \"a:b\"\npassword = \"hunter2\"")).unwrap_err();
    assert_eq!(error.to_string(), "username of upstream a.test: the user name holds a colon, which Basic cannot carry");
}

#[test]
fn nothing_of_it_prints_a_secret() {
    let bench = Bench::new();
    let file = users(&bench, "auth.json", &[("a.test", "robot")]);
    let account = "username = \"robot\"\npassword = \"hunter2\"";
    let opened = bench.open(&format!("{}{}", files(&[&file]), upstream("a.test", account))).unwrap();
    let text = format!("{opened:?}");
    assert!(text.contains("auth.json") && !text.contains("hunter2") && !text.contains("robot"), "{text}");
}
