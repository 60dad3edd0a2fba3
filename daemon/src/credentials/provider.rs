//! The kubelet's credential provider plugins, run with the kubelet's own configuration: this covers the registries of the
//! clouds without their libraries. Protocol and cache rules: `k8s.io/kubelet/pkg/apis/credentialprovider/v1` and
//! `pkg/credentialprovider/plugin/plugin.go` of Kubernetes.

mod answer;
mod config;

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::credentials::{
    Credential, CredentialError, command::Runner, scope::Target, shared::FAILURE_LIFE, watched::Watched,
};

use answer::{Answer, CacheKeyType};
use config::Provider;

/// Answers that a plugin's cache holds; the ones that end first go beyond.
const ANSWERS_MAX: usize = 1024;

/// No answer is kept longer, whatever the plugin says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The plugins of one `CredentialProviderConfig`.
#[derive(Debug)]
pub(super) struct Plugins {
    config: Watched<Vec<Plugin>>,
    runner: Arc<Runner>,
}

impl Plugins {
    /// Reads the configuration and looks for the plugins in `bin_dir`. The second part is a warning.
    pub(super) fn open(
        config: PathBuf,
        bin_dir: PathBuf,
        runner: Arc<Runner>,
    ) -> Result<(Self, Option<String>), CredentialError> {
        let parse = move |bytes: &[u8]| {
            let providers = config::parse(bytes)?.into_iter();
            providers.map(|provider| Plugin::find(provider, &bin_dir)).collect::<Result<Vec<_>, _>>()
        };
        let (config, warning) = Watched::open(config, parse)?;
        Ok((Self { config, runner }, warning))
    }

    pub(super) fn path(&self) -> &Path {
        self.config.path()
    }

    /// Drops what the plugins said about the target's image.
    pub(super) fn forget(&self, target: &Target) {
        let image = target.image();
        for plugin in self.config.last().iter().filter(|plugin| plugin.serves(&image)) {
            let mut cache = plugin.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for key_type in CacheKeyType::ALL {
                cache.answers.remove(key_type.key(&image));
            }
        }
    }

    /// The credential of the first plugin that has one.
    pub(super) async fn find(&self, target: &Target) -> Result<Option<Credential>, CredentialError> {
        let image = target.image();
        let mut failed = None;
        for plugin in self.config.current().await.iter() {
            match plugin.credential(&image, &self.runner).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// One plugin and what it said.
#[derive(Debug)]
struct Plugin {
    provider: Provider,
    program: PathBuf,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// By image, registry or nothing at all, as the plugin chose.
    answers: HashMap<String, (Arc<Answer>, Instant)>,
    /// What it chose last. Until it has spoken nobody knows.
    key_type: Option<CacheKeyType>,
    /// Those who run it, each for one key.
    flights: HashMap<String, Arc<tokio::sync::Mutex<Flight>>>,
}

/// The last run for a key.
#[derive(Debug, Default)]
struct Flight {
    last: Option<LastRun>,
}

#[derive(Debug)]
struct LastRun {
    image: String,
    outcome: Result<Arc<Answer>, CredentialError>,
    had: Instant,
}

impl Plugin {
    fn find(provider: Provider, bin_dir: &Path) -> Result<Self, String> {
        let program = bin_dir.join(&provider.name);
        let executable = program.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
        if !executable {
            return Err(format!("provider {}: there is no program {}", provider.name, program.display()));
        }
        Ok(Self { provider, program, cache: Mutex::default() })
    }

    fn serves(&self, image: &str) -> bool {
        self.provider.match_images.iter().any(|pattern| pattern.matches(image))
    }

    async fn credential(&self, image: &str, runner: &Runner) -> Result<Option<Credential>, CredentialError> {
        if !self.serves(image) {
            return Ok(None);
        }
        let answer = match self.cached(image) {
            Some(answer) => answer,
            None => self.fly(image, runner).await?,
        };
        answer.credential(image).map_err(|problem| self.error(problem))
    }

    /// Runs the plugin once for all who wait. As long as its answers hold for a registry, one run serves all images of it,
    /// also those that ask at the same instant.
    async fn fly(&self, image: &str, runner: &Runner) -> Result<Arc<Answer>, CredentialError> {
        let asked = Instant::now();
        let untried = self.key_type().is_none();
        let mut flight = self.flight(image).lock_owned().await;
        // The first answer may have shown that images need not wait for one another.
        if untried && self.key_type() == Some(CacheKeyType::Image) {
            flight = self.flight(image).lock_owned().await;
        }
        if let Some(answer) = self.cached(image) {
            return Ok(answer);
        }
        match &flight.last {
            Some(LastRun { image: same, outcome: Ok(answer), had }) if same == image && *had > asked => {
                return Ok(Arc::clone(answer));
            }
            Some(LastRun { outcome: Err(error), had, .. }) if *had + FAILURE_LIFE > asked => return Err(error.clone()),
            _ => {}
        }
        let outcome = self.run(image, runner).await.map(Arc::new).map_err(|problem| self.error(problem));
        match &outcome {
            Ok(answer) => self.keep(image, answer),
            Err(error) => tracing::warn!("no credential: {error}"),
        }
        flight.last = Some(LastRun { image: image.to_owned(), outcome: outcome.clone(), had: Instant::now() });
        outcome
    }

    async fn run(&self, image: &str, runner: &Runner) -> Result<Answer, String> {
        let mut command = runner.command(&self.program);
        command.args(&self.provider.args);
        command.envs(self.provider.env.iter().map(|(name, value)| (name, value)));
        let request = json!({
            "apiVersion": self.provider.api_version,
            "kind": "CredentialProviderRequest",
            "image": image,
        });
        let ran = runner.run(command, request.to_string().as_bytes()).await?;
        if !ran.status.success() {
            return Err(format!("it failed ({}) for {image}; see the kubelet's log, or run it by hand", ran.status));
        }
        Answer::parse(&ran.said, self.provider.api_version)
    }

    fn error(&self, problem: impl Into<String>) -> CredentialError {
        CredentialError::new(format!("credential provider {}", self.provider.name), problem)
    }

    fn cached(&self, image: &str) -> Option<Arc<Answer>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        CacheKeyType::ALL.into_iter().find_map(|key_type| {
            let (answer, until) = cache.answers.get(key_type.key(image))?;
            (*until > now).then(|| Arc::clone(answer))
        })
    }

    fn keep(&self, image: &str, answer: &Arc<Answer>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.key_type = Some(answer.key_type);
        let life = answer.cache_duration.unwrap_or(self.provider.default_cache_duration).min(LONGEST_LIFE);
        if life.is_zero() {
            return;
        }
        let now = Instant::now();
        if cache.answers.len() >= ANSWERS_MAX {
            cache.answers.retain(|_, (_, until)| *until > now);
        }
        if cache.answers.len() >= ANSWERS_MAX {
            let first = cache.answers.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            first.and_then(|key| cache.answers.remove(&key));
        }
        cache.answers.insert(answer.key_type.key(image).to_owned(), (Arc::clone(answer), now + life));
    }

    fn key_type(&self) -> Option<CacheKeyType> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).key_type
    }

    fn flight(&self, image: &str) -> Arc<tokio::sync::Mutex<Flight>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let key = cache.key_type.unwrap_or(CacheKeyType::Registry).key(image);
        if let Some(flight) = cache.flights.get(key) {
            return Arc::clone(flight);
        }
        if cache.flights.len() >= ANSWERS_MAX {
            cache.flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        }
        let flight = Arc::default();
        if cache.flights.len() < ANSWERS_MAX {
            cache.flights.insert(key.to_owned(), Arc::clone(&flight));
        }
        flight
    }
}
