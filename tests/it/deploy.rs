//! The files of `deploy/`: each is used, or checked by the program that reads it.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use shoal_tests::{
    containerd::Containerd,
    daemon::Daemon,
    image::ImageSpec,
    origin::OriginDouble,
    process::{Place, must, run},
    tools::{available, possible},
};

use crate::{MIB, SHOAL, settings};

fn deploy(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_with_the_sample_of_hosts_toml() {
    if !available(&["containerd", "ctr"], true) {
        return;
    }
    let origin = OriginDouble::start().await;
    let image = ImageSpec::new(900, &[MIB]).build();
    origin.offer(&image, "library/app", "v1");
    let mut settings = settings(&origin.url());
    settings.upstreams = vec![format!("docker.io={}", origin.url())];
    let daemon = Daemon::start(settings).await;
    let containerd = Containerd::start(&Place::Here).await;
    let text = fs::read_to_string(deploy("containerd/hosts.toml")).unwrap();
    let here = text.replace("127.0.0.1:5050", &daemon.registry().to_string());
    assert_ne!(here, text, "the sample names the daemon's default address");
    containerd.hosts("docker.io", &here);
    containerd.pull("docker.io/library/app:v1").await.expect_ok();
    assert!(origin.requests().iter().all(|served| !served.headers["user-agent"].contains("containerd")));
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_with_what_configure_writes() {
    if !available(&["containerd", "ctr"], true) {
        return;
    }
    let origin = OriginDouble::start().await;
    let image = ImageSpec::new(901, &[MIB]).build();
    origin.offer(&image, "team/app", "v1");
    let daemon = Daemon::start(settings(&origin.url())).await;
    let containerd = Containerd::start(&Place::Here).await;
    let configure = |remove: &[&str]| {
        let mut command = Command::new(SHOAL);
        command
            .args(["configure", "containerd", "--registry", "origin.test", "--certs-dir"])
            .arg(containerd.certs_dir());
        command.arg("--endpoint").arg(format!("http://{}", daemon.registry())).args(remove);
        command
    };
    must(configure(&[])).await;
    containerd.pull("origin.test/team/app:v1").await.expect_ok();
    must(configure(&["--remove"])).await;
    assert_eq!(fs::read_dir(containerd.certs_dir()).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_configuration_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("cluster.key");
    shoal_tests::daemon::write_secret(&secret);
    let text = fs::read_to_string(deploy("systemd/shoal.toml")).unwrap();
    let kubernetes = fs::read_to_string(deploy("kubernetes/shoal.yaml")).unwrap();
    // The file inside the ConfigMap, four spaces further right.
    let (_, inside) = kubernetes.split_once("  shoal.toml: |\n").unwrap();
    let inside: String =
        inside.lines().take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", &line[4..])).collect();
    assert!(inside.contains("bootstrap"));
    for text in [text, inside] {
        let file = directory.path().join("shoal.toml");
        let here = secret.display().to_string();
        let text = text.replace("/etc/shoal/cluster.key", &here).replace("/etc/shoal-secret/cluster.key", &here);
        assert!(text.contains(&here));
        fs::write(&file, text).unwrap();
        let mut check = Command::new(SHOAL);
        check.args(["daemon", "--check", "--config"]).arg(&file).arg("--data-dir").arg(directory.path());
        assert!(must(check).await.contains("configuration is fine"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_accepts_the_unit() {
    if !available(&["systemd-analyze"], false) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deploy("systemd/shoal.service")).unwrap();
    // It checks that the program is there.
    let here = text.replace("/usr/local/bin/shoal ", &format!("{SHOAL} "));
    assert_ne!(here, text);
    let unit = directory.path().join("shoal.service");
    fs::write(&unit, here).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg("--man=no").arg(&unit);
    let output = run(verify, Duration::from_secs(60)).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("shoal.service"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubernetes_file_is_yaml_and_its_parts_fit_together() {
    let mut yaml = Command::new("/usr/bin/python3");
    let there = yaml.args(["-c", "import yaml"]).output().is_ok_and(|output| output.status.success());
    if !possible((!there).then(|| String::from("python3-yaml not installed (apt-get install python3-yaml)"))) {
        return;
    }
    let mut convert = Command::new("/usr/bin/python3");
    convert.args(["-c", "import json,sys,yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"]);
    let text = must({
        convert.arg(deploy("kubernetes/shoal.yaml"));
        convert
    })
    .await;
    let documents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Namespace", "Secret", "ConfigMap", "Service", "DaemonSet"]);
    let pod = &documents[4]["spec"]["template"]["spec"];
    assert_eq!(documents[4]["spec"]["selector"]["matchLabels"], documents[4]["spec"]["template"]["metadata"]["labels"]);
    assert_eq!(documents[3]["spec"]["selector"], documents[4]["spec"]["template"]["metadata"]["labels"]);
    let containers = [&pod["initContainers"][0], &pod["containers"][0]];
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    for container in containers {
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(volumes.contains(&&mount["name"]), "{mount}");
        }
    }
    let secret = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "secret").unwrap();
    assert_eq!(secret["secret"]["defaultMode"], 0o400, "the daemon refuses a secret that others can read");
    // The command lines are ones that the program knows.
    for (container, more) in containers.iter().zip(["--dry-run", "--help"]) {
        let arguments: Vec<_> =
            container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
        let mut command = Command::new(SHOAL);
        command.args(arguments).arg(more);
        must(command).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containerfile_builds_an_image_of_two_files() {
    if !available(&["buildah"], true) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let context = directory.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::copy(SHOAL, context.join("shoal")).unwrap();
    fs::write(context.join("ca-certificates.crt"), "").unwrap();
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(directory.path().join("root")).arg("--runroot").arg(directory.path().join("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments).env("TMPDIR", directory.path());
        command
    };
    let (file, context) = (deploy("Containerfile").display().to_string(), context.display().to_string());
    must(buildah(&["build", "--isolation", "chroot", "--file", &file, "--tag", "shoal:test", &context])).await;
    let inspected = must(buildah(&["inspect", "--type", "image", "shoal:test"])).await;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let config = &inspected["OCIv1"]["config"];
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/local/bin/shoal"]));
    assert_eq!(config["Cmd"], serde_json::json!(["daemon"]));
}
