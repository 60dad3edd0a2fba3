//! Credential helpers: good ones, broken ones, hostile ones.

use std::io::Read;

use super::*;

/// Credentials of `a.test` that come from the helper `docker-credential-test`.
fn with_helper(bench: &Bench, script: &str, deadline: Duration) -> OpenedCredentials {
    bench.program("docker-credential-test", script);
    let file = bench.file("config.json", r#"{"credHelpers":{"a.test":"test"}}"#);
    bench.open_within(&format!("{}{}", files(&[&file]), upstream("a.test", "")), deadline).unwrap()
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_helper_is_asked_for_its_registry_and_its_answer_is_kept() {
    let bench = Bench::new();
    let script = r#"echo "$1 $(cat)" >> asked
        printf '%s' '{"ServerURL":"a.test","Username":"u","Secret":"p\u0000\n"}'"#;
    let opened = with_helper(&bench, script, LONG);
    let asked = Asked(&opened, "a.test");
    for repository in ["x", "team/y", "x"] {
        assert_eq!(asked.find(repository).await, Ok(basic("u", "p\0\n")));
    }
    assert_eq!(fs::read_to_string(bench.path("asked")).unwrap(), "get a.test\n");
    opened.upstreams["a.test"].forget("a.test", "x");
    assert_eq!(asked.find("x").await, Ok(basic("u", "p\0\n")));
    assert_eq!(bench.lines("asked"), 2, "asked anew after its answer was refused");
}

#[tokio::test]
async fn all_who_ask_at_once_share_one_run() {
    let bench = Bench::new();
    let fifo = bench.fifo("gate");
    let script = r#"echo run >> runs; cat gate; echo '{"Username":"<token>","Secret":"tok.en"}'"#;
    let opened = with_helper(&bench, script, LONG);
    let asked = Asked(&opened, "a.test");
    let all = futures_util::future::join_all((0..50).map(|number| {
        let asked = &asked;
        async move { asked.find(&format!("x{number}")).await }
    }));
    // Opening the gate waits for the helper to read from it.
    let open = tokio::task::spawn_blocking(move || fs::write(fifo, "").unwrap());
    let (found, opened) = tokio::join!(all, open);
    opened.unwrap();
    assert!(found.iter().all(|found| found == &Ok(Some(Credential::Identity("tok.en".to_owned())))), "{found:?}");
    assert_eq!(bench.lines("runs"), 1);
}

#[tokio::test]
async fn a_helper_that_has_nothing_is_no_error() {
    for script in [
        "echo 'credentials not found in native keychain'; exit 1",
        "echo 'Error: Credentials Not Found'; exit 3",
        r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#,
    ] {
        let bench = Bench::new();
        assert_eq!(Asked(&with_helper(&bench, script, LONG), "a.test").find("x").await, Ok(None), "{script}");
    }
}

#[tokio::test]
async fn docker_hub_is_asked_for_under_dockers_name_and_then_under_podmans() {
    let bench = Bench::new();
    let script = r#"server=$(cat); echo "$server" >> asked
        if [ "$server" = docker.io ]; then echo '{"Username":"u","Secret":"p"}'; else echo 'credentials not found'; exit 1; fi"#;
    bench.program("docker-credential-test", script);
    let file = bench.file("config.json", r#"{"credsStore":"test"}"#);
    let toml = "[upstreams.\"docker.io\"]\nurl = \"https://registry-1.docker.io\"\n";
    let opened = bench.open(&format!("{}{toml}", files(&[&file]))).unwrap();
    assert_eq!(Asked(&opened, "docker.io").find("library/alpine").await, Ok(basic("u", "p")));
    assert_eq!(fs::read_to_string(bench.path("asked")).unwrap(), "https://index.docker.io/v1/\ndocker.io\n");
}

#[tokio::test]
async fn failures_name_the_helper_and_never_what_it_wrote() {
    let cases = [
        ("echo hunter2; echo hunter2 >&2; exit 4", "it failed (exit status: 4)"),
        ("echo hunter2", "what it says: it is not JSON"),
        ("echo '[\"hunter2\"]'", "what it says is a list"),
        (r#"echo '{"Username":"u","Secret":["hunter2"]}'"#, "Secret is a list"),
        (r#"echo '{"Secret":"hunter2"}'"#, "it gives a secret without a user name"),
        (r#"echo '{"Username":"a:b","Secret":"hunter2"}'"#, "the user name holds a colon"),
        (r#"printf '{"Username":"u","Secret":"\377"}'"#, "what it says: it is not JSON"),
        ("kill -9 $$", "it failed (signal: 9"),
        ("yes hunter2", "it says more than 262144 bytes"),
        ("cat /dev/zero", "it says more than 262144 bytes"),
    ];
    for (script, expected) in cases {
        let bench = Bench::new();
        let error = Asked(&with_helper(&bench, script, LONG), "a.test").find("x").await.unwrap_err();
        let place =
            format!("{}, credential helper docker-credential-test for a.test", bench.path("config.json").display());
        assert_eq!(error.place, place);
        assert!(error.problem.starts_with(expected), "{script}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_helper_says_so() {
    let bench = Bench::new();
    let file = bench.file("config.json", r#"{"credsStore":"absent"}"#);
    let opened = bench.open(&format!("{}{}", files(&[&file]), upstream("a.test", ""))).unwrap();
    let error = Asked(&opened, "a.test").find("x").await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-absent for a.test: cannot run it: No such file"), "{error}");
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed_with_all_that_it_started_and_not_run_again_at_once() {
    let bench = Bench::new();
    let fifo = bench.fifo("alive");
    // Everything that is started here holds the FIFO open for writing.
    let script = "echo run >> runs; exec 3> alive; sleep 1000 & sleep 1000";
    let opened = with_helper(&bench, script, Duration::from_secs(2));
    let gone = tokio::task::spawn_blocking(move || fs::File::open(fifo).unwrap().read_to_end(&mut Vec::new()).unwrap());
    let error = Asked(&opened, "a.test").find("x").await.unwrap_err();
    assert!(error.problem.starts_with("it took longer than 2s and was killed"), "{error}");
    gone.await.unwrap();
    assert_eq!(Asked(&opened, "a.test").find("y").await.unwrap_err(), error);
    assert_eq!(bench.lines("runs"), 1);
}

#[tokio::test]
async fn a_helper_whose_asker_goes_away_is_killed() {
    let bench = Bench::new();
    let fifo = bench.fifo("alive");
    let opened = with_helper(&bench, "exec 3> alive; sleep 1000", LONG);
    let started = tokio::task::spawn_blocking(move || fs::File::open(fifo).unwrap());
    let mut alive = tokio::select! {
        found = async { Asked(&opened, "a.test").find("x").await } => unreachable!("{found:?}"),
        alive = started => alive.unwrap(),
    };
    tokio::task::spawn_blocking(move || alive.read_to_end(&mut Vec::new()).unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_helper_does_not_see_the_passwords_of_other_registries() {
    let bench = Bench::new();
    let script = format!(r#"echo '{{"Username":"u","Secret":"'"${{{HIDDEN}-hidden}}${{PATH:+shown}}"'"}}'"#);
    assert!(std::env::var(HIDDEN).is_ok(), "there is something to hide");
    assert_eq!(Asked(&with_helper(&bench, &script, LONG), "a.test").find("x").await, Ok(basic("u", "hiddenshown")));
}

#[tokio::test]
async fn a_helper_for_the_registry_wins_over_the_entry_and_the_entry_over_the_store() {
    let bench = Bench::new();
    bench.program("docker-credential-own", r#"echo '{"Username":"own","Secret":"p"}'"#);
    bench.program("docker-credential-store", r#"echo '{"Username":"store","Secret":"p"}'"#);
    let entry = format!(r#"{{"auth":"{}"}}"#, auth("entry:p"));
    let text = format!(
        r#"{{"auths":{{"a.test":{entry},"b.test":{entry},"c.test":{{}},"d.test":{entry}}},
        "credHelpers":{{"a.test":"own","d.test":""}},"credsStore":"store"}}"#
    );
    let file = bench.file("config.json", text);
    let names = ["a.test", "b.test", "c.test", "d.test"];
    let upstreams: String = names.iter().map(|name| upstream(name, "")).collect();
    let opened = bench.open(&format!("{}{upstreams}", files(&[&file]))).unwrap();
    for (name, expected) in names.into_iter().zip(["own", "entry", "store", "entry"]) {
        assert_eq!(Asked(&opened, name).find("x").await, Ok(basic(expected, "p")), "{name}");
    }
}
