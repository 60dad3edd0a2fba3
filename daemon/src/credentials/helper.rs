//! Docker's credential helpers: `docker-credential-NAME get`, a registry on its standard input, JSON on its output.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::credentials::{
    Credential, CredentialError,
    command::{Ran, Runner},
    fields::{json, object, text},
    scope::{DOCKER_HUB, Target},
    shared::Shared,
};

/// How long an answer is kept. Short, because helpers of clouds hand out tokens that may be about to end.
const LIFE: Duration = Duration::from_secs(60);

/// What docker calls Docker Hub when it asks a helper, and what podman calls it.
const DOCKER_HUB_SERVERS: &[&str] = &["https://index.docker.io/v1/", DOCKER_HUB];

/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What helpers write when they have nothing, in docker-credential-helpers and those made after it.
const NOT_FOUND: &[u8] = b"credentials not found";

/// The part of a helper's name behind `docker-credential-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HelperName(String);

impl HelperName {
    /// Refuses what could lead out of the directories of `PATH`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.len() <= 64 && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err("it is not a helper's name: letters, digits, dashes, dots and underscores, at most 64")
        }
    }

    fn program(&self) -> String {
        format!("docker-credential-{}", self.0)
    }
}

/// All helpers, and what they said lately.
#[derive(Debug)]
pub(super) struct Helpers {
    runner: Arc<Runner>,
    answers: Shared<Option<Credential>>,
}

impl Helpers {
    pub(super) fn new(runner: Arc<Runner>) -> Self {
        Self { runner, answers: Shared::default() }
    }

    /// The credential that `helper` has for the target's registry.
    pub(super) async fn ask(
        &self,
        helper: &HelperName,
        target: &Target,
    ) -> Result<Option<Credential>, CredentialError> {
        for server in servers(target) {
            if let Some(credential) = self.ask_server(helper, server).await? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }

    /// Drops what any helper said about the target's registry.
    pub(super) fn forget(&self, target: &Target) {
        for server in servers(target) {
            self.answers.forget(|key| key.split_once(' ').is_some_and(|(_, kept)| kept == server));
        }
    }

    async fn ask_server(&self, helper: &HelperName, server: &str) -> Result<Option<Credential>, CredentialError> {
        let run = async {
            let program = helper.program();
            let refused = |problem: String| {
                let cure = format!("to see why, run `echo {server} | {program} get` as the daemon's user");
                CredentialError::new(format!("credential helper {program} for {server}"), format!("{problem}; {cure}"))
            };
            let mut command = self.runner.command(&program);
            command.arg("get");
            let ran = self.runner.run(command, server.as_bytes()).await.map_err(refused)?;
            Ok((understand(&ran).map_err(refused)?, LIFE))
        };
        self.answers.get(&format!("{} {server}", helper.0), Instant::now(), run).await
    }
}

/// The names under which a helper may have the registry, best first.
fn servers(target: &Target) -> Vec<&str> {
    if target.host == DOCKER_HUB { DOCKER_HUB_SERVERS.to_vec() } else { vec![&target.host] }
}

fn understand(ran: &Ran) -> Result<Option<Credential>, String> {
    if !ran.status.success() {
        let nothing = ran.said.windows(NOT_FOUND.len()).any(|part| part.eq_ignore_ascii_case(NOT_FOUND));
        return if nothing { Ok(None) } else { Err(format!("it failed ({})", ran.status)) };
    }
    let answer = json(&ran.said).map_err(|problem| format!("what it says: {problem}"))?;
    let answer = object(&answer, "what it says")?;
    let (user, secret) = (text(answer, "Username", "")?, text(answer, "Secret", "")?);
    match (user, secret) {
        (_, None) => Ok(None),
        (Some(TOKEN_USER), Some(secret)) => Ok(Some(Credential::Identity(secret.to_owned()))),
        (Some(user), Some(secret)) => Ok(Some(Credential::basic(user, secret)?)),
        (None, Some(_)) => Err("it gives a secret without a user name".to_owned()),
    }
}
