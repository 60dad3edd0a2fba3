//! The origin registry: streams of layers, one per request, that share its rate.

use std::collections::BTreeMap;

use shoal_proto::{chain::State, chunk::ChunkIndex, swarm::RunId};

use crate::net::{FlowId, LinkId};

/// The origin.
#[derive(Debug)]
pub struct Origin {
    pub(crate) link: LinkId,
    pub(crate) streams: BTreeMap<(usize, RunId), Stream>,
    /// Requests for each layer.
    pub(crate) gets: Vec<u64>,
    /// Bytes sent of each layer.
    pub(crate) bytes: Vec<u64>,
}

impl Stream {
    /// Bytes of a chunk that come, if the next one has so many.
    pub(crate) fn comes(&self, bytes: u64) -> u64 {
        self.cut.map_or(bytes, |cut| bytes.min(cut.saturating_sub(self.bytes)))
    }
}

/// One answer in progress.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    pub(crate) blob: usize,
    /// The chunk that is being sent.
    pub(crate) chunk: ChunkIndex,
    pub(crate) until: Option<ChunkIndex>,
    /// None until the answer begins.
    pub(crate) flow: Option<FlowId>,
    /// Bytes sent.
    pub(crate) bytes: u64,
    /// The state in front of the chunk that is being sent, if its node knew that of the first.
    pub(crate) state: Option<State>,
    /// The answer ends after so many bytes, whatever was asked for.
    pub(crate) cut: Option<u64>,
}

impl Origin {
    pub(crate) fn new(link: LinkId, blobs: usize) -> Self {
        Self { link, streams: BTreeMap::new(), gets: vec![0; blobs], bytes: vec![0; blobs] }
    }

    pub(crate) fn request(
        &mut self,
        node: usize,
        run: RunId,
        blob: usize,
        from: ChunkIndex,
        until: Option<ChunkIndex>,
        state: Option<State>,
    ) {
        self.gets[blob] += 1;
        self.streams.insert((node, run), Stream { blob, chunk: from, until, flow: None, bytes: 0, state, cut: None });
    }

    /// Nodes that stream, or wait for their streams to begin.
    pub(crate) fn fetchers(&self) -> u64 {
        let mut nodes: Vec<usize> = self.streams.keys().map(|(node, _)| *node).collect();
        nodes.dedup();
        nodes.len() as u64
    }

    /// The node that streams, preferably the largest layer.
    pub(crate) fn streaming(&self, size: impl Fn(usize) -> u64) -> Option<usize> {
        let best = self.streams.iter().max_by_key(|((node, _), stream)| (size(stream.blob), std::cmp::Reverse(*node)));
        best.map(|((node, _), _)| *node)
    }
}
