//! One connection of the data plane alone: what a pull from node to node could be at best.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shoal_cli::demo::usage;
use shoal_daemon::{
    identity::Identity,
    quic::{DataPlane, DataPlaneConfig, PlaneEvent},
    secret::Secret,
};
use shoal_proto::{
    chain::{Ends, State},
    chunk::{ChunkIndex, Layout},
    digest::Digest,
    peer::Contact,
    wire::Ask,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{Failure, results::Sample};

/// Chunks on their way at once.
const AT_ONCE: u32 = 8;
const DEADLINE: Duration = Duration::from_secs(60);

/// Moves as many bytes as a blob of `size` has, in the same chunks, from memory to nowhere.
pub(crate) async fn sample(size: u64) -> Result<Sample, Failure> {
    let (server, mut asked) = plane()?;
    let (client, mut events) = plane()?;
    let layout = Layout::new(size).ok_or("too large")?;
    let chunk = Bytes::from(vec![42; usize::try_from(layout.chunk_bytes())?]);
    let serve = tokio::spawn(async move {
        while let Some(event) = asked.recv().await {
            if let PlaneEvent::Asked { ask, reply, .. } = event {
                let bytes = chunk.slice(..layout.len(ask.chunk) as usize);
                tokio::spawn(async move { reply.send(vec![bytes]).await });
            }
        }
    });
    client.0.dial(Contact { peer: server.1, address: server.0.local_address() });
    match timeout(DEADLINE, events.recv()).await? {
        Some(PlaneEvent::Connected { .. }) => {}
        event => return Err(format!("the data plane does not connect: {event:?}").into()),
    }
    let cpu = || usage::of(std::process::id()).cpu_seconds;
    let (before, start) = (cpu(), Instant::now());
    let slots = Arc::new(Semaphore::new(AT_ONCE as usize));
    for number in 0..layout.count() {
        let slot = timeout(DEADLINE, Arc::clone(&slots).acquire_owned()).await??;
        let (plane, peer, chunk) = (client.0.clone(), server.1, ChunkIndex(number));
        tokio::spawn(async move {
            let ends = Ends { before: State::INITIAL, after: None };
            let ask = Ask { digest: Digest::sha256([1; 32]), chunk, ends };
            match plane.pull(peer, ask, layout.len(chunk), DEADLINE).await {
                Ok(_) => drop(slot),
                // No more chunks are asked for, and the measurement runs into its deadline.
                Err(_) => slot.forget(),
            }
        });
    }
    drop(timeout(DEADLINE, slots.acquire_many(AT_ONCE)).await??);
    let seconds = start.elapsed().as_secs_f64();
    let sample = Sample::new(size, seconds, &[(before, cpu())], 1);
    client.0.shutdown().await;
    server.0.shutdown().await;
    serve.abort();
    Ok(sample)
}

type Plane = (DataPlane, shoal_proto::peer::PeerId);

fn plane() -> Result<(Plane, mpsc::Receiver<PlaneEvent>), Failure> {
    let (sender, events) = mpsc::channel(64);
    let config = DataPlaneConfig::new(([127, 0, 0, 1], 0).into(), Identity::generate(), Secret::none());
    let peer = config.identity.peer();
    Ok(((DataPlane::bind(config, sender)?, peer), events))
}
