//! Daemons that are killed, and what their data directories are good for afterwards.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_tests::{daemon::Daemon, eventually, image::Blob, process::run};

use crate::{MIB, REPOSITORY, blob_path, one_daemon};

const TRANSFER: Duration = Duration::from_secs(60);

/// Reads a blob until the connection ends, however it ends; what came must be right.
fn read_some(daemon: &Daemon, blob: &Blob) -> tokio::task::JoinHandle<u64> {
    let request = daemon.get(&blob_path(&blob.digest));
    let truth = blob.bytes.clone();
    tokio::spawn(async move {
        let mut at = 0;
        let Ok(mut response) = request.send().await else { return 0 };
        while let Ok(Some(bytes)) = response.chunk().await {
            assert!(truth[at..].starts_with(&bytes), "a wrong byte at or after {at}");
            at += bytes.len();
        }
        at as u64
    })
}

/// Waits until so many bytes of a blob are in the store, verified.
pub(crate) async fn wait_for_bytes(daemon: &Daemon, blob: &Blob, bytes: u64) {
    eventually(TRANSFER, &format!("{bytes} bytes of {} being here", blob.digest), || async {
        let status = daemon.status().await;
        let is_it = |digest: &dyn ToString| digest.to_string() == blob.digest;
        let fetched = status.fetches.iter().any(|fetch| is_it(&fetch.digest) && fetch.bytes >= bytes);
        (fetched || status.blobs.iter().any(|kept| kept.sealed && is_it(&kept.digest))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_moment_serves_nothing_wrong_afterwards() {
    const SEED: u64 = 1;
    let (origin, image, mut daemon) = one_daemon(600, &[12 * MIB, 300, 5 * MIB]).await;
    origin.limit(24 * MIB);
    let layers = &image.native().layers;
    let mut random = StdRng::seed_from_u64(SEED);
    for round in 0..8 {
        let mut readers = Vec::new();
        for layer in layers {
            readers.push(read_some(&daemon, layer));
        }
        // Somewhere in the first half of the largest: the wait for a status adds what it likes.
        let moment = random.random_range(0..layers[0].size() / 2);
        wait_for_bytes(&daemon, &layers[0], moment).await;
        daemon.kill();
        for reader in readers {
            reader.await.unwrap_or_else(|error| panic!("round {round} of seed {SEED}: {error}"));
        }
        daemon.up().await;
    }
    for layer in layers {
        assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_blob_is_continued_after_a_kill() {
    let (origin, image, mut daemon) = one_daemon(601, &[64 * MIB]).await;
    origin.limit(32 * MIB);
    let layer = &image.native().layers[0];
    let reader = read_some(&daemon, layer);
    wait_for_bytes(&daemon, layer, layer.size() / 2).await;
    daemon.kill();
    reader.await.unwrap();
    let before = origin.bytes_of(&layer.digest);
    daemon.up().await;
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
    let after = origin.bytes_of(&layer.digest) - before;
    // The claim that proves what is there again is saved from time to time, not with every chunk.
    assert!(
        after <= layer.size() * 3 / 4 + MIB,
        "{after} of {} bytes were fetched again\n{}",
        layer.size(),
        daemon.log()
    );
    let gets = origin.gets(&layer.digest);
    assert!(gets[1..].iter().all(|get| get.range().is_some()), "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_blob_outlives_a_kill_without_the_origin() {
    let (mut origin, image, mut daemon) = one_daemon(602, &[5 * MIB]).await;
    let layer = &image.native().layers[0];
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
    wait_for_bytes(&daemon, layer, u64::MAX).await;
    daemon.kill();
    origin.down().await;
    daemon.up().await;
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_rotted_between_two_lives_is_not_served_and_is_fetched_again() {
    let (origin, image, mut daemon) = one_daemon(603, &[5 * MIB]).await;
    let layer = &image.native().layers[0];
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
    wait_for_bytes(&daemon, layer, u64::MAX).await;
    daemon.kill();
    rot(&daemon.data(), &layer.digest, 2 * MIB);
    daemon.up().await;
    let (status, body) = daemon.try_blob(REPOSITORY, &layer.digest).await;
    assert!(status != 200 || body.is_empty() || body == layer.bytes, "a wrong byte was served");
    eventually(TRANSFER, "the blob being whole again", || async {
        let (status, body) = daemon.try_blob(REPOSITORY, &layer.digest).await;
        (status == 200 && body == layer.bytes).then_some(())
    })
    .await;
    assert!(origin.bytes_of(&layer.digest) > layer.size(), "what rotted came from the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_one_data_directory_ends_with_a_message_and_harms_nothing() {
    let (_origin, image, mut daemon) = one_daemon(604, &[MIB]).await;
    let data = daemon.data();
    let mut second = daemon.settings().clone();
    second.listen = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"].map(String::from);
    let output = run(second.command(&data), Duration::from_secs(20)).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(&data.display().to_string()), "{message}");
    assert!(daemon.is_running());
    let layer = &image.native().layers[0];
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_asked_to_end_finishes_what_clients_are_reading() {
    let (origin, image, mut daemon) = one_daemon(605, &[8 * MIB]).await;
    origin.limit(4 * MIB);
    let layer = &image.native().layers[0];
    let reader = read_some(&daemon, layer);
    wait_for_bytes(&daemon, layer, MIB).await;
    let status = daemon.terminate().await;
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert_eq!(reader.await.unwrap(), layer.size());
}

/// Flips a bit of a sealed blob on disk.
pub(crate) fn rot(data: &Path, digest: &str, at: u64) {
    let hex = digest.trim_start_matches("sha256:");
    let file: PathBuf = data.join("blobs/sha256").join(&hex[..2]).join(hex);
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}
