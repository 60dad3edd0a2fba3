//! What clients that are not run here ask, step by step, and what they need of each answer.
//!
//! Each sequence is as it was recorded from the client or follows from its source: its methods and paths, its header lines
//! one by one, whether it keeps the connection. Releases in the `User-Agent` lines are examples. The clients that are run for
//! real are in `clients`.

use shoal_tests::{
    daemon::Daemon,
    image::{Blob, Image, ImageSpec},
    origin::OriginDouble,
    raw::{Answer, Connection},
};

use crate::{ANSWER, MIB, REPOSITORY, settings};

/// How a client names the registry behind the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As `ns` in the query.
    Namespace,
    /// As the first component of the path.
    Path,
    /// Not at all.
    Default,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Tag,
    Index,
    Manifest,
    Config,
    Layer,
}

/// One request of a client.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Whether there is a registry.
    Ping,
    /// The length, type and digest of a manifest.
    Head(Subject, &'static [(&'static str, &'static str)]),
    /// All of it.
    Get(Subject, &'static [(&'static str, &'static str)]),
    /// The layer from a byte on to its end, of which some bytes are read before the connection is dropped.
    Aborted { from: u64, read: usize },
    /// Several ranges of the layer at once: all of it (200) or just these (206), never an error.
    Ranges(&'static str),
}

struct Shape {
    client: &'static str,
    form: Form,
    /// Header lines of each request.
    always: &'static [(&'static str, &'static str)],
    keeps_connection: bool,
    steps: &'static [Step],
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// containerd, and all that pull by its library.
const CONTAINERD_ACCEPT: (&str, &str) = (
    "Accept",
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*",
);
const CONTAINERD: &[Step] = &[
    Step::Head(Subject::Tag, &[CONTAINERD_ACCEPT]),
    Step::Get(Subject::Index, &[("Accept", "application/vnd.oci.image.index.v1+json, */*")]),
    Step::Get(Subject::Manifest, &[("Accept", "application/vnd.oci.image.manifest.v1+json, */*")]),
    Step::Get(Subject::Config, &[("Accept", "application/vnd.oci.image.config.v1+json, */*")]),
    Step::Get(Subject::Layer, &[("Accept", "application/vnd.oci.image.layer.v1.tar+gzip, */*")]),
];

/// The containers/image library: no HEAD, one line a type.
const CONTAINERS_ACCEPT: &[(&str, &str)] = &[
    ("Accept", OCI_MANIFEST),
    ("Accept", DOCKER_MANIFEST),
    ("Accept", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ("Accept", "application/vnd.docker.distribution.manifest.v1+json"),
    ("Accept", DOCKER_LIST),
    ("Accept", OCI_INDEX),
];
const CONTAINERS: &[Step] = &[
    Step::Ping,
    Step::Get(Subject::Tag, CONTAINERS_ACCEPT),
    Step::Get(Subject::Manifest, CONTAINERS_ACCEPT),
    Step::Get(Subject::Config, &[]),
    Step::Get(Subject::Layer, &[]),
];

const SHAPES: &[Shape] = &[
    Shape {
        client: "nerdctl with containerd 1.7",
        form: Form::Namespace,
        always: &[("User-Agent", "containerd/1.7.34"), ("Accept-Encoding", "gzip")],
        keeps_connection: true,
        steps: CONTAINERD,
    },
    Shape {
        client: "k3s with containerd 2.x",
        form: Form::Namespace,
        always: &[
            ("User-Agent", "containerd/2.1.4-k3s1"),
            ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
        ],
        keeps_connection: true,
        steps: CONTAINERD,
    },
    Shape {
        client: "containerd 2.x with parallel layer fetches",
        form: Form::Namespace,
        always: &[("User-Agent", "containerd/2.3.4"), ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")],
        keeps_connection: true,
        steps: &[
            Step::Head(Subject::Tag, &[CONTAINERD_ACCEPT]),
            Step::Get(
                Subject::Index,
                &[("Accept", "application/vnd.oci.image.index.v1+json, */*"), ("Range", "bytes=0-")],
            ),
            Step::Get(
                Subject::Manifest,
                &[("Accept", "application/vnd.oci.image.manifest.v1+json, */*"), ("Range", "bytes=0-")],
            ),
            Step::Get(Subject::Config, &[("Range", "bytes=0-")]),
            Step::Aborted { from: 2 * MIB, read: 64 << 10 },
            Step::Aborted { from: 0, read: 64 << 10 },
            Step::Aborted { from: MIB, read: 64 << 10 },
            Step::Get(Subject::Layer, &[("Range", "bytes=0-")]),
        ],
    },
    Shape {
        client: "Docker 29 with the containerd store",
        form: Form::Namespace,
        always: &[
            ("User-Agent", "docker/29.0.0 go/go1.25 kernel/6.1 os/linux arch/amd64"),
            ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
            ("Baggage", "trigger=api"),
        ],
        keeps_connection: true,
        steps: CONTAINERD,
    },
    Shape {
        client: "Docker 28 with the graph store",
        form: Form::Default,
        always: &[("User-Agent", "docker/28.0.0 go/go1.23"), ("Connection", "close")],
        keeps_connection: false,
        steps: &[
            Step::Ping,
            Step::Head(
                Subject::Tag,
                &[
                    ("Accept", DOCKER_LIST),
                    ("Accept", OCI_INDEX),
                    ("Accept", OCI_MANIFEST),
                    ("Accept", DOCKER_MANIFEST),
                ],
            ),
            Step::Get(Subject::Index, &[("Accept", DOCKER_LIST), ("Accept", OCI_INDEX)]),
            Step::Get(Subject::Manifest, &[("Accept", OCI_MANIFEST), ("Accept", DOCKER_MANIFEST)]),
            Step::Get(Subject::Config, &[]),
            Step::Get(Subject::Layer, &[]),
        ],
    },
    Shape {
        client: "CRI-O",
        form: Form::Path,
        always: &[
            ("User-Agent", "cri-o/1.34.0 go/go1.24 os/linux arch/amd64"),
            ("Docker-Distribution-Api-Version", "registry/2.0"),
            ("Connection", "close"),
        ],
        keeps_connection: false,
        steps: CONTAINERS,
    },
    Shape {
        client: "podman with partial pulls of zstd:chunked layers",
        form: Form::Path,
        always: &[("User-Agent", "containers/5.36.0 (github.com/containers/image)")],
        keeps_connection: true,
        steps: &[Step::Ping, Step::Get(Subject::Tag, CONTAINERS_ACCEPT), Step::Ranges("bytes=0-99,4096-8191")],
    },
    Shape {
        client: "Singularity, Apptainer before 1.4",
        form: Form::Path,
        always: &[
            ("User-Agent", "SingularityCE/4.5.1 (Linux amd64) Go/1.24"),
            ("Docker-Distribution-Api-Version", "registry/2.0"),
            ("Connection", "close"),
        ],
        keeps_connection: false,
        steps: CONTAINERS,
    },
    Shape {
        client: "Apptainer 1.4 and later (go-containerregistry)",
        form: Form::Path,
        always: &[("User-Agent", "apptainer/1.5.3 go-containerregistry"), ("Accept-Encoding", "gzip")],
        keeps_connection: true,
        steps: &[
            Step::Ping,
            Step::Get(
                Subject::Tag,
                &[(
                    "Accept",
                    "application/vnd.docker.distribution.manifest.v2+json,application/vnd.oci.image.manifest.v1+json,\
                     application/vnd.docker.distribution.manifest.list.v2+json,application/vnd.oci.image.index.v1+json",
                )],
            ),
            Step::Get(
                Subject::Manifest,
                &[(
                    "Accept",
                    "application/vnd.docker.distribution.manifest.v2+json,application/vnd.oci.image.manifest.v1+json",
                )],
            ),
            Step::Get(Subject::Config, &[]),
            Step::Get(Subject::Layer, &[]),
        ],
    },
    Shape {
        client: "Charliecloud",
        form: Form::Path,
        always: &[
            ("User-Agent", "python-requests/2.28.1"),
            ("Accept-Encoding", "gzip, deflate"),
            ("Connection", "keep-alive"),
        ],
        keeps_connection: true,
        steps: &[
            Step::Get(
                Subject::Tag,
                &[("Accept", "application/vnd.docker.distribution.manifest.list.v2+json, */*;q=0.8")],
            ),
            Step::Get(Subject::Tag, &[("Accept", "application/vnd.oci.image.index.v1+json, */*;q=0.8")]),
            Step::Get(Subject::Manifest, &[("Accept", "application/vnd.oci.image.manifest.v1+json, */*;q=0.8")]),
            Step::Get(Subject::Config, &[("Accept", "*/*")]),
            Step::Get(Subject::Layer, &[("Accept", "*/*")]),
        ],
    },
    // Its own puller: no Accept, and it needs the length and digest of each manifest.
    Shape {
        client: "Shifter",
        form: Form::Path,
        always: &[("Accept-Encoding", "identity")],
        keeps_connection: false,
        steps: &[
            Step::Get(Subject::Tag, &[]),
            Step::Get(Subject::Manifest, &[]),
            Step::Get(Subject::Config, &[]),
            Step::Get(Subject::Layer, &[]),
        ],
    },
];

/// One client before one daemon.
struct Replay<'a> {
    shape: &'a Shape,
    image: &'a Image,
    daemon: &'a Daemon,
    connection: Option<Connection>,
}

impl Replay<'_> {
    async fn run(&mut self) {
        for step in self.shape.steps {
            match *step {
                Step::Ping => {
                    let answer = self.ask("GET", "/v2/", &[], usize::MAX).await;
                    self.must(&answer, 200, "/v2/");
                }
                Step::Head(subject, headers) => {
                    let answer = self.ask("HEAD", &self.path(subject), headers, 0).await;
                    self.described(&answer, subject);
                    self.must(&answer, 200, "HEAD");
                }
                Step::Get(subject, headers) => self.whole(subject, headers).await,
                Step::Aborted { from, read } => self.aborted(from as usize, read).await,
                Step::Ranges(ranges) => {
                    let answer = self.ask("GET", &self.path(Subject::Layer), &[("Range", ranges)], usize::MAX).await;
                    let multipart = answer.headers["content-type"].starts_with("multipart/byteranges");
                    assert!(
                        answer.status == 200 || answer.status == 206 && multipart,
                        "{}: {answer:?}",
                        self.shape.client
                    );
                }
            }
        }
    }

    /// A GET, perhaps with a range from the first byte on: the client takes what it gets for the whole.
    async fn whole(&mut self, subject: Subject, headers: &[(&str, &str)]) {
        let answer = self.ask("GET", &self.path(subject), headers, usize::MAX).await;
        let blob = self.blob(subject).clone();
        let ranged = headers.iter().any(|(name, _)| *name == "Range");
        match (ranged, answer.status) {
            (true, 206) => {
                let all = format!("bytes 0-{}/{}", blob.size() - 1, blob.size());
                assert_eq!(answer.headers["content-range"], all, "{}", self.shape.client);
            }
            _ => self.must(&answer, 200, "GET"),
        }
        self.described(&answer, subject);
        assert!(answer.body == blob.bytes, "{}: {subject:?}: other bytes", self.shape.client);
    }

    /// The client wants one piece of the layer and has no end to tell: it drops the connection when it has it.
    async fn aborted(&mut self, from: usize, read: usize) {
        let range = format!("bytes={from}-");
        let answer = self.ask("GET", &self.path(Subject::Layer), &[("Range", &range)], read).await;
        let layer = self.blob(Subject::Layer).clone();
        self.must(&answer, 206, &range);
        let expected = format!("bytes {from}-{}/{}", layer.size() - 1, layer.size());
        assert_eq!(answer.headers["content-range"], expected, "{}", self.shape.client);
        assert_eq!(answer.headers["content-length"], (layer.size() - from as u64).to_string());
        assert!(answer.body == layer.bytes[from..from + read], "{}: other bytes", self.shape.client);
        self.connection = None;
    }

    /// A tag that is not there: the client goes on to the registry, and is not asked who it is.
    async fn missing(&mut self) {
        let path = self.path(Subject::Tag).replace("/v1", "/nothing");
        let answer = self.ask("GET", &path, &[], usize::MAX).await;
        self.must(&answer, 404, &path);
        let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["errors"][0]["code"], "MANIFEST_UNKNOWN", "{}", self.shape.client);
    }

    async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], most: usize) -> Answer {
        let headers = [self.shape.always, headers].concat();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.daemon.registry()).await,
        };
        // A layer comes at the origin's speed, which is this machine's.
        let answer = connection.ask(method, path, &headers, most, ANSWER * 4).await;
        if self.shape.keeps_connection {
            self.connection = Some(connection);
        }
        assert!(!answer.headers.contains_key("content-encoding"), "{}: {answer:?}", self.shape.client);
        assert!(!answer.headers.contains_key("www-authenticate"), "{}: {answer:?}", self.shape.client);
        answer
    }

    fn must(&self, answer: &Answer, status: u16, what: &str) {
        assert_eq!(answer.status, status, "{}: {what}: {:?}", self.shape.client, answer.headers);
    }

    /// What every client takes from the headers.
    fn described(&self, answer: &Answer, subject: Subject) {
        let blob = self.blob(subject);
        let client = self.shape.client;
        assert_eq!(answer.headers["docker-content-digest"], blob.digest, "{client}: {subject:?}");
        assert_eq!(answer.headers["content-length"], blob.size().to_string(), "{client}: {subject:?}");
        let media_type = match subject {
            Subject::Tag | Subject::Index | Subject::Manifest => blob.media_type,
            Subject::Config | Subject::Layer => "application/octet-stream",
        };
        assert_eq!(answer.headers["content-type"], media_type, "{client}: {subject:?}");
        let namespace = answer.headers.get("oci-namespace").map(String::as_str);
        assert_eq!(namespace, (self.shape.form == Form::Namespace).then_some("origin.test"), "{client}: {subject:?}");
    }

    fn blob(&self, subject: Subject) -> &Blob {
        let platform = self.image.native();
        match subject {
            Subject::Tag | Subject::Index => &self.image.index,
            Subject::Manifest => &platform.manifest,
            Subject::Config => &platform.config,
            Subject::Layer => &platform.layers[0],
        }
    }

    fn path(&self, subject: Subject) -> String {
        let digest = &self.blob(subject).digest;
        let end = match subject {
            Subject::Tag => "manifests/v1".to_owned(),
            Subject::Index | Subject::Manifest => format!("manifests/{digest}"),
            Subject::Config | Subject::Layer => format!("blobs/{digest}"),
        };
        match self.shape.form {
            Form::Namespace => format!("/v2/{REPOSITORY}/{end}?ns=origin.test"),
            Form::Path => format!("/v2/origin.test/{REPOSITORY}/{end}"),
            Form::Default => format!("/v2/{REPOSITORY}/{end}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_what_it_needs_cold_and_warm() {
    for (seed, shape) in (760..).zip(SHAPES) {
        let image = ImageSpec::new(seed, &[3 * MIB]).build();
        let origin = OriginDouble::start().await;
        origin.offer(&image, REPOSITORY, "v1");
        let daemon = Daemon::start(settings(&origin.url()).with("--default-upstream=origin.test")).await;
        let mut replay = Replay { shape, image: &image, daemon: &daemon, connection: None };
        replay.run().await;
        replay.missing().await;
        let layer = &image.native().layers[0].digest;
        let layers_asked = shape.steps.iter().filter(|step| matches!(step, Step::Get(Subject::Layer, _))).count();
        if layers_asked > 0 {
            origin.forget();
            Replay { shape, image: &image, daemon: &daemon, connection: None }.run().await;
            assert_eq!(origin.gets(layer).len(), 0, "{}: warm", shape.client);
        }
    }
}
