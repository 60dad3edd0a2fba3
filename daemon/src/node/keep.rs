//! Keeping what local clients push: proven here, then shown to peers like anything that was fetched.

use std::sync::Arc;

use shoal_proto::{
    chain::State,
    digest::{Algorithm, Digest},
};
use tokio::task::spawn_blocking;

use super::{Node, OpenError, Want, obey::sign_chain, parts::Parts, whole::blocking};
use crate::store::Draft;

impl Node {
    /// A place for bytes whose digest is not known yet.
    ///
    /// # Errors
    /// [`OpenError::Disk`].
    pub async fn draft(&self) -> Result<Draft, OpenError> {
        let store = self.shared.store.clone();
        blocking(move || store.draft()).await
    }

    /// Keeps a draft as the blob that `want` names, if its bytes are that. Trackers and peers then hear of it, so that a
    /// rollout begins here and not at the origin.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] if the bytes are others; [`OpenError::Disk`]. A blob that is here already, or on its way, is
    /// no error.
    pub async fn keep(&self, draft: Draft, want: Want) -> Result<(), OpenError> {
        let (parts, digest) = (Arc::clone(&self.shared.parts), want.digest);
        let access = Arc::clone(&parts.access);
        let wanted = self.sealed_size(&digest).is_none();
        if !wanted {
            // The origin has it from us: it was had under this scope, too.
            access.prove(&digest, want.scope, true);
        }
        let proven = if wanted { prove(&parts, &draft, &digest).await.map(Some) } else { Ok(None) };
        let Ok(Some(states)) = proven else {
            // Its file is deleted, which may take a while.
            spawn_blocking(move || drop(draft)).await.ok();
            return proven.map(drop);
        };
        match spawn_blocking(move || store(&parts, draft, &digest, states.as_deref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Ok(Err(error)) => return Err(disk(error)),
            Err(error) => return Err(disk(std::io::Error::other(error))),
        }
        if digest.algorithm() == Algorithm::Sha512 {
            access.prove(&digest, want.scope, true);
        }
        access.left(&digest, want.scope);
        // What lies there whole with its chain is proven anew and sealed; nothing is fetched.
        self.fetch(want).await?.done().await?;
        Ok(())
    }
}

/// The chain of a draft, if its bytes are what `digest` names; none for a digest without chains.
async fn prove(parts: &Parts, draft: &Draft, digest: &Digest) -> Result<Option<Vec<State>>, OpenError> {
    let content = draft.content().map_err(disk)?;
    let (states, found) = match digest.algorithm() {
        Algorithm::Sha256 => {
            let derived = parts.verifier.derive(&content).await.map_err(disk)?;
            let (states, found) = derived.ok_or(OpenError::Overloaded("the blob is too large"))?;
            (Some(states), found)
        }
        Algorithm::Sha512 => (None, parts.verifier.digest_of(&content, Algorithm::Sha512).await.map_err(disk)?),
    };
    if found == *digest { Ok(states) } else { Err(OpenError::Corrupt) }
}

/// Puts a proven draft where the loop finds it. A blob without a chain is of no use to peers: it is sealed here.
fn store(parts: &Parts, draft: Draft, digest: &Digest, states: Option<&[State]>) -> std::io::Result<()> {
    let partial = draft.into_partial(digest)?;
    let stored = match states {
        Some(states) => partial.save_claim(&sign_chain(parts, digest, partial.layout().size(), states)),
        None => partial.seal(&[]).map(drop),
    };
    match stored {
        Ok(()) => partial.release(),
        Err(_) => partial.discard()?,
    }
    stored
}

fn disk(error: std::io::Error) -> OpenError {
    OpenError::Disk(error.to_string())
}
