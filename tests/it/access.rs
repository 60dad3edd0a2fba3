//! Who may have which content: peers with the same credential share what it opens, private content is for clients whom the
//! origin lets have it, and knowing a digest opens nothing.

use std::{net::SocketAddr, path::PathBuf};

use shoal_tests::{
    daemon::{Daemon, Settings},
    image::{Blob, Image},
    origin::{Auth, OriginDouble},
};
use tempfile::TempDir;

use crate::{MIB, REPOSITORY, SHOAL, blob_path, manifest_path, origin_with};

const ACCOUNT: &str = "username = \"robot\"\npassword = \"word\"\n";
const OTHER_ACCOUNT: &str = "username = \"other\"\npassword = \"word\"\n";
const PRIVATE: &str = "access = \"private\"\n";

/// An origin that gives to `robot` only, and nodes before it.
struct Site {
    origin: OriginDouble,
    image: Image,
    directory: TempDir,
    started: usize,
}

impl Site {
    async fn new(seed: u64) -> Self {
        let (origin, image) = origin_with(seed, &[3 * MIB]).await;
        origin.require(Auth::Basic("robot", "word"));
        Self { origin, image, directory: tempfile::tempdir().unwrap(), started: 0 }
    }

    fn layer(&self) -> &Blob {
        &self.image.native().layers[0]
    }

    /// A node whose upstream `origin.test` has these keys beside its URL.
    async fn node(&mut self, keys: &str, peers: &[&Daemon]) -> Daemon {
        self.node_with(&format!("[upstreams.\"origin.test\"]\nurl = \"{}\"\n{keys}", self.origin.url()), peers).await
    }

    async fn node_with(&mut self, config: &str, peers: &[&Daemon]) -> Daemon {
        self.started += 1;
        let file = self.directory.path().join(format!("shoal{}.toml", self.started));
        std::fs::write(&file, config).unwrap();
        let bootstrap: Vec<SocketAddr> = peers.iter().map(|peer| peer.addresses().p2p).collect();
        let settings = Settings { upstreams: Vec::new(), bootstrap, ..Settings::new(PathBuf::from(SHOAL), "") };
        let node = Daemon::start(settings.with("--config").with(file.display().to_string())).await;
        node.wait_for_peers(u32::try_from(peers.len()).unwrap()).await;
        node
    }

    /// GETs of blobs that the origin answered with content.
    fn blob_gets(&self) -> usize {
        let served = self.origin.requests();
        let gets = served.iter().filter(|get| get.method == "GET" && get.path.contains("/blobs/"));
        gets.filter(|get| get.status.load(std::sync::atomic::Ordering::Relaxed) < 300).count()
    }
}

async fn pull(node: &Daemon, blob: &Blob) {
    let (status, body) = node.try_blob(REPOSITORY, &blob.digest).await;
    assert!(status == 200 && body == blob.bytes, "{status}, {} bytes\n{}", body.len(), node.log());
}

/// A client's GET and HEAD with this account, or with none: the status, and whether the content is right if there is any.
async fn ask(node: &Daemon, blob: &Blob, account: Option<(&str, &str)>) -> u16 {
    let path = blob_path(&blob.digest);
    let of = |request: reqwest::RequestBuilder| match account {
        Some((user, password)) => request.basic_auth(user, Some(password)),
        None => request,
    };
    let head = of(node.head(&path)).send().await.unwrap().status();
    let response = of(node.get(&path)).send().await.unwrap();
    let status = response.status();
    assert!(!response.headers().contains_key("www-authenticate"), "a client must not be asked for its password");
    let body = response.bytes().await.unwrap();
    assert_eq!(status, head, "GET and HEAD differ");
    assert_eq!(status.is_success(), body == blob.bytes, "{status} with {} bytes", body.len());
    status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_one_credential_share_what_it_opens_and_others_get_none_of_it() {
    let mut site = Site::new(2100).await;
    let first = site.node(ACCOUNT, &[]).await;
    let second = site.node(ACCOUNT, &[&first]).await;
    let anonymous = site.node("", &[&first, &second]).await;
    let other = site.node(OTHER_ACCOUNT, &[&first, &second]).await;
    let layer = site.layer().clone();
    pull(&first, &layer).await;
    assert_eq!(site.blob_gets(), 1);
    pull(&second, &layer).await;
    assert_eq!(site.blob_gets(), 1, "the second got it from the first\n{}", second.log());
    for stranger in [&anonymous, &other] {
        assert_eq!(ask(stranger, &layer, None).await, 404, "{}", stranger.log());
    }
    assert_eq!(site.blob_gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_credential_gets_nothing_from_peers_even_if_the_origin_is_down() {
    let mut site = Site::new(2101).await;
    let mut first = site.node(ACCOUNT, &[]).await;
    let second = site.node(ACCOUNT, &[&first]).await;
    let anonymous = site.node("", &[&first]).await;
    let layer = site.layer().clone();
    pull(&first, &layer).await;
    site.origin.down().await;
    assert_eq!(ask(&anonymous, &layer, None).await, 503);
    // What the first one may share outlives its process.
    first.kill();
    first.up().await;
    // It begins anew without any peer, so that it knows the second once the second found it again.
    first.wait_for_peers(1).await;
    pull(&second, &layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_content_is_served_to_whom_the_origin_gives_it_just_now_and_to_no_peer() {
    let mut site = Site::new(2102).await;
    let node = site.node(PRIVATE, &[]).await;
    let beside = site.node(PRIVATE, &[&node]).await;
    let of_the_node = site.node(ACCOUNT, &[&node]).await;
    let layer = site.layer().clone();
    let (robot, wrong) = (Some(("robot", "word")), Some(("robot", "guess")));
    assert_eq!(ask(&node, &layer, None).await, 404);
    assert_eq!(site.blob_gets(), 0);
    assert_eq!(ask(&node, &layer, robot).await, 200, "{}", node.log());
    assert_eq!(site.blob_gets(), 1);
    // It is here now, but only for those that the origin lets have it.
    assert_eq!(ask(&node, &layer, robot).await, 200);
    assert_eq!(site.blob_gets(), 1, "the second answer came from the store");
    for stranger in [None, wrong] {
        assert_eq!(ask(&node, &layer, stranger).await, 404);
    }
    // Other nodes pay the origin for themselves.
    assert_eq!(ask(&beside, &layer, robot).await, 200);
    assert_eq!(site.blob_gets(), 2);
    pull(&of_the_node, &layer).await;
    assert_eq!(site.blob_gets(), 3);
    // When the origin cannot be asked, private means no.
    site.origin.down().await;
    assert_eq!(ask(&node, &layer, robot).await, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_tags_of_a_private_upstream_are_resolved_for_each_client_anew() {
    let mut site = Site::new(2103).await;
    let node = site.node(PRIVATE, &[]).await;
    for path in [manifest_path("v1"), manifest_path(&site.image.index.digest)] {
        let robot = node.get(&path).basic_auth("robot", Some("word")).send().await.unwrap();
        assert_eq!(robot.status(), 200, "{path}\n{}", node.log());
        for request in [node.get(&path), node.head(&path), node.get(&path).basic_auth("robot", Some("guess"))] {
            assert_eq!(request.send().await.unwrap().status(), 404, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn knowing_a_digest_opens_nothing_under_another_registrys_name() {
    let mut site = Site::new(2104).await;
    let open = OriginDouble::start().await;
    let config = format!(
        "[upstreams.\"origin.test\"]\nurl = \"{}\"\n{ACCOUNT}\n[upstreams.\"open.test\"]\nurl = \"{}\"\n",
        site.origin.url(),
        open.url()
    );
    let node = site.node_with(&config, &[]).await;
    let layer = site.layer().clone();
    pull(&node, &layer).await;
    let path = format!("/v2/open.test/any/thing/blobs/{}", layer.digest);
    for request in [node.get(&path), node.head(&path), node.get(&path).header("range", "bytes=0-9")] {
        assert_eq!(request.send().await.unwrap().status(), 404, "{}", node.log());
    }
    // If that registry has it too, it is stored once and fetched once.
    open.offer_blob(&layer);
    let answer = node.get(&path).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.bytes().await.unwrap()), (200, layer.bytes.clone()));
    assert_eq!(open.blob_bytes(), 0, "only asked whether it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn public_content_is_asked_for_without_a_credential_and_goes_to_every_node() {
    const PUBLIC: &str = "access = \"public\"\n";
    let mut site = Site::new(2105).await;
    site.origin.require(Auth::Open);
    let accounts = site.directory.path().join("config.json");
    std::fs::write(&accounts, r#"{"auths":{"origin.test":{"auth":"cm9ib3Q6d29yZA=="}}}"#).unwrap();
    let url = site.origin.url();
    let config = format!(
        "credential_files = [\"{}\"]\n[upstreams.\"origin.test\"]\nurl = \"{url}\"\n{PUBLIC}",
        accounts.display()
    );
    let first = site.node_with(&config, &[]).await;
    let second = site.node(PUBLIC, &[&first]).await;
    let layer = site.layer().clone();
    for node in [&first, &second] {
        assert_eq!(node.get(&manifest_path("v1")).send().await.unwrap().status(), 200);
        pull(node, &layer).await;
    }
    assert_eq!(site.blob_gets(), 1, "the second got it from the first\n{}", second.log());
    assert!(site.origin.requests().iter().all(|request| !request.headers.contains_key("authorization")));
    // A node with an account gets it, too, whoever sends it.
    let third = site.node(ACCOUNT, &[&first, &second]).await;
    pull(&third, &layer).await;
}
