//! The kubelet's plugins, and how long their answers hold.

use super::*;

/// The configuration of one plugin, `plug`.
fn config(bench: &Bench, match_images: &str, default_cache_duration: &str) -> String {
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: plug\n  \
         matchImages: [{match_images}]\n  defaultCacheDuration: \"{default_cache_duration}\"\n  \
         apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get, \"two words\"]\n  \
         env:\n  - {{name: PROFILE, value: test}}\n"
    );
    let file = bench.file("providers.yaml", text);
    format!("credential_provider_config = {file:?}\ncredential_provider_bin_dir = {:?}\n", bench.directory.path())
}

/// A plugin that writes each image it is asked for into `asked`, and answers with the rest of a response.
fn plugin(rest: &str) -> String {
    format!(
        r#"sed 's/.*"image":"\([^"]*\)".*/\1/' >> asked; echo >> asked
        echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",{rest}}}'"#
    )
}

const AUTH: &str = r#""auth":{"*.test":{"username":"u","password":"p"}}"#;

fn asked_images(bench: &Bench) -> Vec<String> {
    let text = fs::read_to_string(bench.path("asked")).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn open_plugin(bench: &Bench, script: &str, default_cache_duration: &str) -> OpenedCredentials {
    bench.program("plug", script);
    let upstreams = format!("{}{}", upstream("a.test", ""), upstream("b.test", ""));
    bench.open(&format!("{}{upstreams}", config(bench, "a.test, b.test", default_cache_duration))).unwrap()
}

async fn find_all(opened: &OpenedCredentials, asked: &[(&str, &str)]) {
    for (name, repository) in asked {
        assert_eq!(Asked(opened, name).find(repository).await, Ok(basic("u", "p")), "{name}/{repository}");
    }
}

#[tokio::test]
async fn a_plugin_gets_its_arguments_environment_and_request() {
    let bench = Bench::new();
    let script = format!(r#"cat > request; echo "$1,$2,$#,$PROFILE" > arguments; {}"#, plugin(AUTH_BY_REGISTRY));
    let opened = open_plugin(&bench, &script, "1h");
    find_all(&opened, &[("a.test", "team/x")]).await;
    assert_eq!(fs::read_to_string(bench.path("arguments")).unwrap(), "get,two words,2,test\n");
    let request: serde_json::Value = serde_json::from_slice(&fs::read(bench.path("request")).unwrap()).unwrap();
    let expected = serde_json::json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": "a.test/team/x",
    });
    assert_eq!(request, expected);
}

const AUTH_BY_REGISTRY: &str = r#""cacheKeyType":"Registry","auth":{"a.test":{"username":"u","password":"p"}}"#;

#[tokio::test]
async fn an_answer_holds_for_what_its_cache_key_type_says() {
    let images = [("a.test", "x"), ("a.test", "x"), ("a.test", "y"), ("b.test", "x")];
    for (key_type, expected) in [
        ("Image", &["a.test/x", "a.test/y", "b.test/x"][..]),
        ("Registry", &["a.test/x", "b.test/x"]),
        ("Global", &["a.test/x"]),
    ] {
        let bench = Bench::new();
        let script = plugin(&format!(r#""cacheKeyType":"{key_type}","cacheDuration":"1h",{AUTH}"#));
        let opened = open_plugin(&bench, &script, "0s");
        find_all(&opened, &images).await;
        assert_eq!(asked_images(&bench), expected, "{key_type}");
        opened.upstreams["a.test"].forget("a.test", "x");
        find_all(&opened, &images[..1]).await;
        assert_eq!(asked_images(&bench).len(), expected.len() + 1, "{key_type}: asked anew after a refusal");
    }
}

#[tokio::test]
async fn without_a_duration_the_default_counts_and_zero_is_not_kept() {
    for (duration, default, runs) in
        [("", "1h", 1), ("", "0s", 2), (r#""cacheDuration":"0s","#, "1h", 2), (r#""cacheDuration":"1h","#, "0s", 1)]
    {
        let bench = Bench::new();
        let script = plugin(&format!(r#""cacheKeyType":"Registry",{duration}{AUTH}"#));
        find_all(&open_plugin(&bench, &script, default), &[("a.test", "x"), ("a.test", "x")]).await;
        assert_eq!(asked_images(&bench).len(), runs, "{duration} with default {default}");
    }
}

#[tokio::test]
async fn a_rollout_runs_a_plugin_once_for_a_registry() {
    let bench = Bench::new();
    let script = plugin(&format!(r#""cacheKeyType":"Registry","cacheDuration":"1h",{AUTH}"#));
    let opened = open_plugin(&bench, &script, "0s");
    let asked = Asked(&opened, "a.test");
    let all = (0..50).map(|number| {
        let asked = &asked;
        async move { asked.find(&format!("x{number}")).await }
    });
    let found = futures_util::future::join_all(all).await;
    assert!(found.iter().all(|found| found == &Ok(basic("u", "p"))), "{found:?}");
    assert_eq!(asked_images(&bench).len(), 1);
}

#[tokio::test]
async fn images_that_ask_at_once_get_each_their_own_answer() {
    let bench = Bench::new();
    let script = r#"image=$(sed 's/.*"image":"\([^"]*\)".*/\1/'); printf '%s' '{"kind":"CredentialProviderResponse",
        "apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","cacheDuration":"1h",
        "auth":{"'"$image"'":{"username":"'"$image"'","password":"p"}}}'"#;
    let opened = open_plugin(&bench, script, "0s");
    let asked = Asked(&opened, "a.test");
    let all = (0..20).map(|number| {
        let asked = &asked;
        async move { asked.find(&format!("x{number}")).await }
    });
    let found = futures_util::future::join_all(all).await;
    for (number, found) in found.into_iter().enumerate() {
        assert_eq!(found, Ok(basic(&format!("a.test/x{number}"), "p")));
    }
}

#[tokio::test]
async fn only_images_that_match_are_shown_to_a_plugin() {
    let bench = Bench::new();
    bench.program("plug", &plugin(&format!(r#""cacheKeyType":"Image",{AUTH}"#)));
    let upstreams = format!("{}{}", upstream("a.test", ""), upstream("b.test", ""));
    let opened = bench.open(&format!("{}{upstreams}", config(&bench, "a.test/team", "1h"))).unwrap();
    assert_eq!(Asked(&opened, "b.test").find("team/x").await, Ok(None));
    assert_eq!(Asked(&opened, "a.test").find("other/x").await, Ok(None));
    find_all(&opened, &[("a.test", "team/x")]).await;
    assert_eq!(asked_images(&bench), ["a.test/team/x"]);
}

#[tokio::test]
async fn failures_name_the_plugin_and_never_what_it_wrote() {
    let wrong = plugin(r#""cacheKeyType":"hunter2""#);
    for (script, expected) in [
        ("echo hunter2; echo hunter2 >&2; exit 1", "it failed (exit status: 1) for a.test/x"),
        ("echo hunter2", "what it says: it is not JSON"),
        ("yes hunter2", "it says more than 262144 bytes"),
        (wrong.as_str(), "its cacheKeyType is none of Image, Registry and Global"),
        ("true", "what it says: it is not JSON"),
    ] {
        let bench = Bench::new();
        let opened = open_plugin(&bench, &format!("echo run >> runs; {script}"), "1h");
        let asked = Asked(&opened, "a.test");
        let error = asked.find("x").await.unwrap_err();
        assert_eq!(error.place, format!("{}, credential provider plug", bench.path("providers.yaml").display()));
        assert!(error.problem.starts_with(expected) && !error.to_string().contains("hunter2"), "{error}");
        assert_eq!(asked.find("y").await.unwrap_err(), error, "a failure is kept for a moment");
        assert_eq!(bench.lines("runs"), 1);
    }
}

#[tokio::test]
async fn a_changed_configuration_is_used_at_once_and_a_touched_one_forgets_nothing() {
    let bench = Bench::new();
    let script = plugin(&format!(r#""cacheKeyType":"Registry","cacheDuration":"1h",{AUTH}"#));
    let opened = open_plugin(&bench, &script, "0s");
    find_all(&opened, &[("a.test", "x")]).await;
    let same = fs::read(bench.path("providers.yaml")).unwrap();
    bench.file("providers.yaml", same);
    find_all(&opened, &[("a.test", "x")]).await;
    assert_eq!(asked_images(&bench).len(), 1);
    bench.file("providers.yaml", "kind: [");
    find_all(&opened, &[("a.test", "x")]).await;
    config(&bench, "b.test", "0s");
    assert_eq!(Asked(&opened, "a.test").find("x").await, Ok(None));
    find_all(&opened, &[("b.test", "x")]).await;
}

#[test]
fn at_start_a_bad_configuration_or_a_missing_plugin_is_an_error_that_names_it() {
    let bench = Bench::new();
    let good = config(&bench, "a.test", "1h");
    let message = bench.open(&good).unwrap_err().to_string();
    let file = bench.path("providers.yaml");
    let program = bench.path("plug");
    let expected = format!(
        "credential_provider_config: {}: provider plug: there is no program {}",
        file.display(),
        program.display()
    );
    assert_eq!(message, expected);
    bench.file("providers.yaml", "kind: [hunter2");
    let message = bench.open(&good).unwrap_err().to_string();
    let expected = format!("credential_provider_config: {}: it is not YAML", file.display());
    assert!(message.starts_with(&expected) && !message.contains("hunter2"), "{message}");
    for (line, expected) in [
        (0, "credential_provider_config: it needs credential_provider_bin_dir too"),
        (1, "credential_provider_bin_dir: it needs credential_provider_config too"),
    ] {
        assert_eq!(bench.open(good.lines().nth(line).unwrap()).unwrap_err().to_string(), expected);
    }
}
