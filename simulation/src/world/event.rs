//! What happens.

use std::time::Duration;

use shoal_proto::{
    chain::LinkEnd,
    chunk::ChunkIndex,
    swarm::{AskId, Input, RunId, Verdict},
    wire::Message,
};

/// What happens. Millions of them wait and are moved, so that the many are small and the few lie elsewhere.
#[derive(Debug)]
pub(super) enum Event {
    /// A fact reaches a node's swarm.
    Swarm(usize, Box<Input>),
    /// News of chunks reach a node: most of all messages.
    Got { to: u32, from: u32, blob: u32, chunks: Vec<ChunkIndex> },
    /// Any other message reaches a node.
    Message { to: u32, from: u32, message: Box<Message> },
    /// A node's reader goes on to a chunk.
    Reading { node: u32, blob: u32, chunk: ChunkIndex },
    /// A node begins to want its layers.
    Begin(usize),
    /// A node wishes again for a layer that it could not get.
    Again(usize, usize),
    /// A dial comes to its end.
    Dialled { from: usize, to: usize },
    /// A node has worked on a new connection.
    Connected { node: usize, other: usize },
    /// A dial was in vain.
    Unreached { from: usize, to: usize },
    /// An ask reaches its sender.
    Asked(AskId),
    /// The withdrawal of an ask reaches its sender.
    Withdrawn(AskId),
    /// The answer to an ask has reached its receiver and is verified.
    Answered(AskId, Verdict),
    /// The origin begins to answer.
    Streaming(usize, RunId),
    /// A chunk from the origin is verified and written.
    Stored { node: usize, run: RunId, chunk: ChunkIndex, end: Option<Box<LinkEnd>> },
    /// A node looks how far its stream from the origin is.
    Looked(usize, RunId),
    /// Others can find a holder.
    Announced(usize, usize),
    /// The origin's answer to a request is an error.
    Refused(usize, RunId, Option<Duration>),
    /// The origin goes out: what it sends breaks off.
    Outage,
    /// A fault of the plan begins.
    Fault(usize),
    /// A fault hits a node.
    Strike { fault: usize, node: usize },
    /// A slow time is over.
    Quick { fault: usize, node: usize },
    /// The connections that a partition cut are given up.
    Severed(usize),
    /// A partition is over.
    Healed(usize),
    /// A node is up again.
    Back(usize),
    /// A sender finds that the receiver of an upload is gone.
    Ended(AskId),
    /// A node finds that its connection to a dead one is gone.
    Lost { node: usize, dead: usize },
    /// The DHT finds that a node is gone.
    Removed(usize),
    /// The DHT finds that a node is back.
    Returned(usize),
}

impl Event {
    /// The node whose process it is for: a later process knows nothing of it.
    pub(super) const fn target(&self) -> Option<usize> {
        match self {
            Self::Got { to: node, .. } | Self::Message { to: node, .. } | Self::Reading { node, .. } => {
                Some(*node as usize)
            }
            Self::Swarm(node, _)
            | Self::Again(node, _)
            | Self::Dialled { from: node, .. }
            | Self::Connected { node, .. }
            | Self::Unreached { from: node, .. }
            | Self::Stored { node, .. }
            | Self::Streaming(node, _)
            | Self::Looked(node, _)
            | Self::Refused(node, ..)
            | Self::Lost { node, .. }
            | Self::Removed(node) => Some(*node),
            Self::Begin(_)
            | Self::Asked(_)
            | Self::Withdrawn(_)
            | Self::Answered(..)
            | Self::Announced(..)
            | Self::Outage
            | Self::Fault(_)
            | Self::Strike { .. }
            | Self::Quick { .. }
            | Self::Severed(_)
            | Self::Healed(_)
            | Self::Back(_)
            | Self::Ended(_)
            | Self::Returned(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn an_event_is_small() {
        assert!(size_of::<Event>() <= 40, "{} bytes", size_of::<Event>());
    }
}
