//! The registries of the world as far as a puller can tell them apart: one table, a row a registry, played by
//! [`RegistryDouble`].
//!
//! Hosts, challenges, grants and redirects are those of the vendors' documentation and of recorded answers. A double refuses
//! what the real one would refuse, and notes every secret that comes where it does not belong.

mod double;
mod sign_in;
mod store;

use base64::{Engine, prelude::BASE64_STANDARD};

pub use double::{Asked, RegistryDouble};

/// One registry.
#[derive(Debug)]
pub struct Row {
    /// As image names have it: the upstream's name.
    pub name: &'static str,
    /// The host that serves `/v2/`.
    pub registry: &'static str,
    /// The repository as that host knows it.
    pub repository: &'static str,
    /// The account that it knows. Without one everybody is served.
    pub account: Option<Account>,
    /// How callers sign in.
    pub sign_in: SignIn,
    /// How manifests are handed out.
    pub manifests: Delivery,
    /// How blobs are handed out.
    pub blobs: Delivery,
    /// What whoever hands out blobs does with `Range`.
    pub ranges: Ranges,
    /// What it does with HEAD.
    pub heads: Heads,
    /// Whether manifests have a `Docker-Content-Digest`.
    pub tells_digest: bool,
    /// Headers of every answer about content.
    pub headers: &'static [(&'static str, &'static str)],
}

/// A user and what proves him.
#[derive(Debug)]
pub struct Account {
    /// The user.
    pub user: &'static str,
    /// His secret.
    pub secret: Secret,
}

/// What is shown as a password.
#[derive(Debug)]
pub enum Secret {
    /// As it is.
    Text(&'static str),
    /// The key file of a Google service account: JSON of several KB with line ends.
    JsonKey,
    /// The same on one line.
    JsonKeyBase64,
}

impl Secret {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> String {
        let key = || {
            let lines = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\\n".repeat(100);
            format!("{{\n  \"type\": \"service_account\",\n  \"private_key\": \"-----BEGIN\\n{lines}\"\n}}")
        };
        match self {
            Self::Text(text) => (*text).to_owned(),
            Self::JsonKey => key(),
            Self::JsonKeyBase64 => BASE64_STANDARD.encode(key()),
        }
    }
}

/// How callers sign in.
#[derive(Debug)]
pub enum SignIn {
    /// Not at all.
    Open,
    /// With the password on every request. The lines of its challenge.
    Basic(&'static [&'static str]),
    /// With a token.
    Token(TokenShape),
}

/// A token server and the challenge that leads to it.
#[derive(Debug)]
pub struct TokenShape {
    /// Lines of `WWW-Authenticate`; `{repository}` stands for the one that was asked for.
    pub challenge: &'static [&'static str],
    /// Where it is.
    pub host: &'static str,
    /// And under which path.
    pub path: &'static str,
    /// What `service` must be; it must be absent where this is.
    pub service: Option<&'static str>,
    /// What `scope` must be; `{repository}` as above.
    pub scope: &'static str,
    /// The only way in which it can be asked.
    pub grant: Grant,
    /// The field of its answer that holds the token.
    pub field: &'static str,
}

/// A way to ask for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// GET with Basic; a POST is answered with 405.
    Get,
    /// POST of OAuth2's password grant; a GET is answered with 405.
    Password,
    /// POST of OAuth2's refresh token grant; the password is the refresh token.
    Refresh,
    /// The same, but the password is an access token that `/oauth2/exchange` changes into the refresh token.
    Exchange,
}

/// How content is handed out.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By the registry.
    Here,
    /// By a redirect to another path of the registry, which wants the sign-in too.
    Elsewhere,
    /// By a redirect to this host, which wants none.
    Mirror(&'static str),
    /// By a redirect to this host with a signature that is good for one request, and that refuses any other sign-in.
    Signed(&'static str),
}

/// What is done with `Range`.
#[derive(Debug, PartialEq, Eq)]
pub enum Ranges {
    /// 206 with that range.
    Answered,
    /// 200 with all of it.
    Ignored,
}

/// What is done with HEAD.
#[derive(Debug, PartialEq, Eq)]
pub enum Heads {
    /// As it should.
    Answered,
    /// 405.
    Refused,
}

/// What most have in common.
const PLAIN: Row = Row {
    name: "",
    registry: "",
    repository: "team/app",
    account: None,
    sign_in: SignIn::Open,
    manifests: Delivery::Here,
    blobs: Delivery::Here,
    ranges: Ranges::Answered,
    heads: Heads::Answered,
    tells_digest: true,
    headers: &[],
};

/// What most token servers have in common.
const TOKENS: TokenShape = TokenShape {
    challenge: &[],
    host: "",
    path: "/token",
    service: None,
    scope: "repository:{repository}:pull",
    grant: Grant::Get,
    field: "token",
};

const fn account(user: &'static str, secret: &'static str) -> Option<Account> {
    Some(Account { user, secret: Secret::Text(secret) })
}

/// The user of Azure's registry that stands for a token.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// All of them.
pub static REGISTRIES: [Row; 20] = [
    Row {
        name: "docker.io",
        registry: "registry-1.docker.io",
        repository: "library/alpine",
        account: account("alice", "dckr_pat_hub-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:{repository}:pull""#,
            ],
            host: "auth.docker.io",
            service: Some("registry.docker.io"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("production.cloudflare.docker.com"),
        headers: &[
            ("ratelimit-limit", "200;w=21600"),
            ("ratelimit-remaining", "176;w=21600"),
            ("docker-ratelimit-source", "alice"),
        ],
        ..PLAIN
    },
    Row {
        name: "ghcr.io",
        registry: "ghcr.io",
        account: account("octocat", "ghp_github-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:{repository}:pull""#,
            ],
            host: "ghcr.io",
            service: Some("ghcr.io"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("pkg-containers.githubusercontent.com"),
        ..PLAIN
    },
    Row {
        name: "quay.io",
        registry: "quay.io",
        account: account("team+puller", "quay-robot-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://quay.io/v2/auth",service="quay.io",scope="repository:{repository}:pull""#,
            ],
            host: "quay.io",
            path: "/v2/auth",
            service: Some("quay.io"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("cdn01.quay.io"),
        ..PLAIN
    },
    Row {
        name: "nvcr.io",
        registry: "nvcr.io",
        repository: "nvidia/cuda",
        account: account("$oauthtoken", "nvapi-ngc-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[r#"Bearer realm="https://nvcr.io/proxy_auth?scope=repository:{repository}:pull""#],
            host: "nvcr.io",
            path: "/proxy_auth",
            ..TOKENS
        }),
        blobs: Delivery::Signed("xfiles.ngc.nvidia.com"),
        ..PLAIN
    },
    Row {
        name: "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        registry: "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        account: account("AWS", "ecr-password-of-twelve-hours"),
        sign_in: SignIn::Basic(&[
            r#"Basic realm="https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#,
        ]),
        blobs: Delivery::Signed("prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com"),
        ..PLAIN
    },
    Row {
        name: "public.ecr.aws",
        registry: "public.ecr.aws",
        sign_in: SignIn::Token(TokenShape {
            challenge: &[r#"Bearer realm="https://public.ecr.aws/token/",service="public.ecr.aws",scope="aws""#],
            host: "public.ecr.aws",
            path: "/token/",
            service: Some("public.ecr.aws"),
            scope: "aws",
            ..TOKENS
        }),
        blobs: Delivery::Signed("d5l0dvt14r5h8.cloudfront.net"),
        ..PLAIN
    },
    Row {
        name: "team.azurecr.io",
        registry: "team.azurecr.io",
        account: account(TOKEN_USER, "acr-refresh-token"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://team.azurecr.io/oauth2/token",service="team.azurecr.io",scope="repository:{repository}:pull""#,
            ],
            host: "team.azurecr.io",
            path: "/oauth2/token",
            service: Some("team.azurecr.io"),
            grant: Grant::Refresh,
            field: "access_token",
            ..TOKENS
        }),
        blobs: Delivery::Signed("team.westeurope.data.azurecr.io"),
        ..PLAIN
    },
    Row {
        name: "exchange.azurecr.io",
        registry: "exchange.azurecr.io",
        account: account(TOKEN_USER, "entra-access-token"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://exchange.azurecr.io/oauth2/token",service="exchange.azurecr.io",scope="repository:{repository}:pull""#,
            ],
            host: "exchange.azurecr.io",
            path: "/oauth2/token",
            service: Some("exchange.azurecr.io"),
            grant: Grant::Exchange,
            field: "access_token",
            ..TOKENS
        }),
        blobs: Delivery::Signed("weurmanaged1.blob.core.windows.net"),
        ..PLAIN
    },
    Row {
        name: "europe-docker.pkg.dev",
        registry: "europe-docker.pkg.dev",
        repository: "project/repo/app",
        account: account("oauth2accesstoken", "ya29.google-access-token"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://europe-docker.pkg.dev/v2/token",service="europe-docker.pkg.dev",scope="repository:{repository}:pull""#,
            ],
            host: "europe-docker.pkg.dev",
            path: "/v2/token",
            service: Some("europe-docker.pkg.dev"),
            ..TOKENS
        }),
        blobs: Delivery::Elsewhere,
        ..PLAIN
    },
    Row {
        name: "gcr.io",
        registry: "gcr.io",
        repository: "project/app",
        account: Some(Account { user: "_json_key", secret: Secret::JsonKey }),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://gcr.io/v2/token",service="gcr.io",scope="repository:{repository}:pull""#,
            ],
            host: "gcr.io",
            path: "/v2/token",
            service: Some("gcr.io"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("storage.googleapis.com"),
        ..PLAIN
    },
    Row {
        name: "us.gcr.io",
        registry: "us.gcr.io",
        repository: "project/app",
        account: Some(Account { user: "_json_key_base64", secret: Secret::JsonKeyBase64 }),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://us.gcr.io/v2/token",service="us.gcr.io",scope="repository:{repository}:pull""#,
            ],
            host: "us.gcr.io",
            path: "/v2/token",
            service: Some("us.gcr.io"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("storage.googleapis.com"),
        ..PLAIN
    },
    Row {
        name: "registry.k8s.io",
        registry: "registry.k8s.io",
        repository: "kube-proxy",
        manifests: Delivery::Mirror("europe-west4-docker.pkg.dev"),
        blobs: Delivery::Mirror("prod-registry-k8s-io-eu-west-1.s3.dualstack.eu-west-1.amazonaws.com"),
        ..PLAIN
    },
    Row {
        name: "harbor.example.ch",
        registry: "harbor.example.ch",
        account: account("robot$team+puller", "harbor-robot-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://harbor.example.ch/service/token",service="harbor-registry",scope="repository:{repository}:pull""#,
            ],
            host: "harbor.example.ch",
            path: "/service/token",
            service: Some("harbor-registry"),
            ..TOKENS
        }),
        ..PLAIN
    },
    Row {
        name: "registry.gitlab.com",
        registry: "registry.gitlab.com",
        repository: "group/project/app",
        account: account("gitlab+deploy-token-1", "gldt-gitlab-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://gitlab.com/jwt/auth",service="container_registry",scope="repository:{repository}:pull",error="invalid_token""#,
            ],
            host: "gitlab.com",
            path: "/jwt/auth",
            service: Some("container_registry"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("cdn.registry.gitlab-static.net"),
        ..PLAIN
    },
    Row {
        name: "artifactory.example.org",
        registry: "artifactory.example.org",
        repository: "docker-local/app",
        account: account("ci", "artifactory-secret"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Basic realm="Artifactory Realm""#,
                r#"Bearer realm="https://artifactory.example.org:443/artifactory/api/docker/docker-local/v2/token",service="artifactory.example.org:443",scope="repository:{repository}:pull""#,
            ],
            host: "artifactory.example.org",
            path: "/artifactory/api/docker/docker-local/v2/token",
            service: Some("artifactory.example.org:443"),
            ..TOKENS
        }),
        blobs: Delivery::Signed("jfrog-prod.s3.amazonaws.com"),
        ..PLAIN
    },
    Row {
        name: "basic.artifactory.example.org",
        registry: "basic.artifactory.example.org",
        repository: "docker-local/app",
        account: account("ci", "artifactory-secret"),
        sign_in: SignIn::Basic(&[r#"Negotiate, Basic realm="Artifactory Realm""#]),
        ..PLAIN
    },
    Row { name: "open.registry.test", registry: "open.registry.test", ..PLAIN },
    Row {
        name: "htpasswd.example.org:5000",
        registry: "htpasswd.example.org:5000",
        account: account("alice", "htpasswd-secret"),
        sign_in: SignIn::Basic(&[r#"Basic realm="Registry Realm""#]),
        ..PLAIN
    },
    Row {
        name: "oauth.example.org",
        registry: "oauth.example.org",
        account: account("alice", "oauth&secret=+%"),
        sign_in: SignIn::Token(TokenShape {
            challenge: &[
                r#"Bearer realm="https://login.example.org/oauth/token?account=x",service="oauth, registry",scope="repository:{repository}:pull", Basic realm="fallback""#,
            ],
            host: "login.example.org",
            path: "/oauth/token",
            service: Some("oauth, registry"),
            grant: Grant::Password,
            field: "access_token",
            ..TOKENS
        }),
        ..PLAIN
    },
    Row {
        name: "old.example.net",
        registry: "old.example.net",
        ranges: Ranges::Ignored,
        heads: Heads::Refused,
        tells_digest: false,
        ..PLAIN
    },
];

/// A row by the name of its registry.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn registry(name: &str) -> &'static Row {
    REGISTRIES.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no registry {name} in the table"))
}
