//! Mistakes in the configuration: exit code 64 and one line that says which key, what is wrong, and what to do.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output, time::Duration};

use shoal_tests::{daemon::write_secret, process::run};

use crate::SHOAL;

async fn daemon(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = std::process::Command::new(SHOAL);
    command
        .env_clear()
        .env("HOME", "/nowhere")
        .args(["daemon", "--check"])
        .args(arguments)
        .envs(environment.iter().copied());
    run(command, Duration::from_secs(20)).await.unwrap()
}

async fn must_refuse(arguments: &[&str], environment: &[(&str, &str)], words: &[&str]) {
    let output = daemon(arguments, environment).await;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{arguments:?} {environment:?}: {message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{arguments:?} {environment:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?} {environment:?}: no `{word}` in: {message}");
    }
}

fn file(directory: &Path, name: &str, text: &str, mode: u32) -> String {
    let file = directory.join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_flag_or_variable_is_told_by_its_name_with_the_right_form() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().display().to_string();
    let data = ["--data-dir", &data];
    for (flag, value, word) in [
        ("--registry-listen", "localhost", "IP:PORT"),
        ("--p2p-listen", "5051", "IP:PORT"),
        ("--tag-ttl", "5parsecs", "30s"),
        ("--stream", "slow", "verified"),
        ("--upstream", "docker.io", "NAME=URL"),
        ("--upstream", "docker.io=ftp://x", "https://"),
        ("--bootstrap", "nowhere:port", "HOST:PORT"),
        ("--limits-upload", "0", "MB/s"),
        ("--default-upstream", "quay.oi", "quay.io"),
        ("--log", "shoal=loud", "TARGET=LEVEL"),
    ] {
        must_refuse(
            &[&data[..], &[flag, value]].concat(),
            &[],
            &[flag.trim_start_matches("--").split('-').next().unwrap(), word],
        )
        .await;
        let variable = format!("SHOAL_{}", flag.trim_start_matches("--").replace('-', "_").to_uppercase());
        must_refuse(&data, &[(&variable, value)], &[&variable, word]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_told_by_name_with_the_key_that_was_meant() {
    let directory = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("regsitry_listen = [\"127.0.0.1:0\"]\n", &["regsitry_listen", "did you mean `registry_listen`"][..]),
        ("[limits]\nuplaod = \"1MB/s\"\n", &["uplaod", "limits", "`upload`"]),
        ("zone = [\"a\", \"b\"]\n", &["zone"]),
        ("zone = \n", &[":1"]),
        ("[upstreams.\"a.test\"]\nurl = \"https://a.test\"\npasword = \"x\"\n", &["pasword", "`password`"]),
    ] {
        let config = file(directory.path(), "shoal.toml", text, 0o644);
        must_refuse(&["--config", &config], &[], &[&[config.as_str()], words].concat()).await;
    }
    must_refuse(&["--config", "/nowhere/shoal.toml"], &[], &["/nowhere/shoal.toml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_missing_public_or_wrong_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path();
    let data = base.join("data").display().to_string();
    let with = |secret: &str| ["--data-dir", &data, "--secret-file", secret].map(String::from);
    let public = file(base, "public.key", "AAAA\n", 0o644);
    let wrong = file(base, "wrong.key", "not a key\n", 0o600);
    let empty = file(base, "empty.key", "", 0o600);
    for (secret, word) in
        [(public.as_str(), "chmod 600"), (&wrong, "1"), (&empty, "empty"), ("/nowhere.key", "/nowhere.key")]
    {
        must_refuse(&with(secret).each_ref().map(String::as_str), &[], &["secret", secret, word]).await;
    }
    let open = ["--data-dir", &data, "--p2p-listen", "0.0.0.0:0"];
    must_refuse(&open, &[], &["p2p-listen", "secret", "shoal key generate"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_missing_broken_or_alone_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path();
    let data = base.join("data").display().to_string();
    let broken = file(base, "broken.pem", "hello\n", 0o600);
    let listen = ["--data-dir", &data, "--registry-tls-listen", "127.0.0.1:0"];
    for (cert, key, words) in [
        ("/nowhere.pem", &broken, &["registry_tls_cert", "/nowhere.pem"]),
        (broken.as_str(), &broken, &["registry_tls_cert", "no certificate"]),
    ] {
        let given = ["--registry-tls-cert", cert, "--registry-tls-key", key];
        must_refuse(&[&listen[..], &given].concat(), &[], &words[..]).await;
    }
    must_refuse(&[&listen[..], &["--registry-tls-key", &broken]].concat(), &[], &["registry_tls_cert is missing"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_overrule_the_environment_which_overrules_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let config = file(directory.path(), "shoal.toml", "zone = \"file\"\nrack = \"file\"\ntag_ttl = \"7s\"\n", 0o644);
    let secret = directory.path().join("cluster.key");
    write_secret(&secret);
    let secret = secret.display().to_string();
    let arguments = ["--json", "--config", &config, "--zone", "flag", "--secret-file", &secret];
    let output = daemon(&arguments, &[("SHOAL_ZONE", "env"), ("SHOAL_RACK", "env")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let checked: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checked = &checked["configuration"];
    assert_eq!((&checked["zone"], &checked["rack"]), (&"flag".into(), &"env".into()), "{checked}");
    assert_eq!(checked["tag_ttl"].as_str().map(|ttl| ttl.starts_with('7')), Some(true), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_credential_file_or_plugin_is_told_by_its_name_and_without_its_secret() {
    let directory = tempfile::tempdir().unwrap();
    let broken = file(directory.path(), "config.json", "{\"auths\":{\"a.test\":{\"auth\":\"hunter2!\"}}}", 0o600);
    let providers = file(directory.path(), "providers.yaml", "kind: CredentialProviderConfig\n", 0o600);
    let data = directory.path().join("data").display().to_string();
    for (more, words) in [
        (&["--credential-files", "/nowhere/auth.json"][..], &["credential_files", "/nowhere/auth.json"][..]),
        (&["--credential-files", &broken], &["config.json", "auths.\"a.test\".auth is not base64"]),
        (&["--credential-provider-config", &providers], &["credential_provider_bin_dir"]),
        (
            &["--credential-provider-config", &providers, "--credential-provider-bin-dir", "/nowhere"],
            &["providers.yaml", "apiVersion"],
        ),
    ] {
        let flags = [&["--data-dir", data.as_str()][..], more].concat();
        must_refuse(&flags, &[], words).await;
        let message = daemon(&flags, &[]).await.stderr;
        assert!(!String::from_utf8_lossy(&message).contains("hunter2"));
    }
    let exposed = file(directory.path(), "auth.json", "{}", 0o644);
    let output = daemon(&["--data-dir", &data, "--credential-files", &exposed], &[]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("warning: ") && text.contains("is open to others"), "{text}");
}
