//! Pulling a whole image into the store, for `shoal pull`.
// To be written: see the surface below.

use std::{collections::BTreeMap, sync::Arc};

use shoal_proto::status::{PullProgress, PullRequest};
use tokio::sync::mpsc;

use crate::{
    node::Node,
    origin::{Origin, Upstream},
};

/// Pulls images for local users.
#[derive(Debug, Clone)]
pub struct Puller {
    upstreams: BTreeMap<String, Arc<Upstream>>,
    default_upstream: Option<String>,
    node: Node,
    origin: Origin,
}

impl Puller {
    /// A puller for the allow-listed upstreams.
    #[must_use]
    pub fn new(
        upstreams: BTreeMap<String, Arc<Upstream>>,
        default_upstream: Option<String>,
        node: Node,
        origin: Origin,
    ) -> Self {
        Self { upstreams, default_upstream, node, origin }
    }

    /// The puller as the admin interfaces call it.
    #[must_use]
    pub fn source(self) -> Arc<dyn Fn(PullRequest) -> mpsc::Receiver<PullProgress> + Send + Sync> {
        Arc::new(move |_request| {
            let (_tx, rx) = mpsc::channel(1);
            rx
        })
    }
}
