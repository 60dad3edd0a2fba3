//! A member of the cluster that lies: it knows the secret, is found like any node, and says and sends what it likes.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use shoal_daemon::{
    dht::{Dht, DhtConfig},
    identity::Identity,
    quic::{DataPlane, DataPlaneConfig, PlaneEvent, Reply},
    secret::Secret,
};
use shoal_proto::{
    chain::{Link, LinkEnd, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
    peer::{Contact, PeerId, Place},
    wire::{Answer, Ask, Join, Message, SEGMENT_STATES_MAX, Standing},
};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::image::Blob;

/// What is false about it. It always says that it has all of the blob, to whoever asks and to the trackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It sends other bytes and claims nothing about the chain.
    Bytes,
    /// It signs the chain of other content and sends that content: each chunk fits its claim.
    Chain,
    /// It never answers when asked for a chunk.
    Silence,
    /// It sends twice as many bytes as a chunk has.
    Excess,
}

/// The liar; gone when dropped.
#[derive(Debug)]
pub struct Liar {
    task: JoinHandle<()>,
    contact: Contact,
    story: Arc<Story>,
}

#[derive(Debug)]
struct Story {
    lie: Lie,
    digest: Digest,
    layout: Layout,
    content: Bytes,
    segments: Vec<Arc<Segment>>,
    contact: Contact,
    asked: AtomicU32,
}

impl Liar {
    /// Joins a cluster and lies about one blob, of which it has `content` of the right length and with wrong bytes.
    ///
    /// # Panics
    /// If it cannot take part at all.
    pub async fn start(secret: &Path, nodes: &[Contact], truth: &Blob, content: Vec<u8>, lie: Lie) -> Self {
        let secret = Secret::load(secret).expect("the secret is fine");
        let identity = Identity::generate();
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let bootstrap = nodes.iter().map(|node| node.address.to_string()).collect();
        let config = DhtConfig { listen: anywhere, identity: identity.clone(), secret: secret.clone(), bootstrap };
        let (dht, listen) = Dht::start(config).await.expect("the liar can join the DHT");
        let (events, inbox) = mpsc::channel(64);
        let config = DataPlaneConfig::new(listen, identity.clone(), secret.clone());
        let plane = DataPlane::bind(config, events).expect("the liar can listen");
        let digest: Digest = truth.digest.parse().expect("a digest");
        let contact = Contact { peer: identity.peer(), address: listen };
        let story = Arc::new(Story::new(lie, (digest, &truth.bytes), content.into(), &identity, contact));
        assert!(dht.provide(secret.blob_key(&digest)), "the liar can announce the blob");
        for node in nodes {
            plane.dial(*node);
        }
        let told = Arc::clone(&story);
        let task = tokio::spawn(async move {
            let _dht = dht;
            told.tell(plane, inbox).await;
        });
        Self { task, contact, story }
    }

    /// How often it was asked for a chunk: how often somebody believed it.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.story.asked.load(Ordering::Relaxed)
    }

    /// Who and where it is.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.contact
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Story {
    fn new(lie: Lie, (digest, truth): (Digest, &Bytes), content: Bytes, identity: &Identity, contact: Contact) -> Self {
        let layout = Layout::new(content.len() as u64).expect("a size that blobs have");
        // Without signed states nobody asks for a chunk: but for its own chain the liar tells the true one.
        let states = chain_of(layout, if lie == Lie::Chain { &content } else { truth });
        let mut segments = Vec::new();
        let mut from = 0;
        while from + 1 < states.len() || segments.is_empty() {
            let end = states.len().min(from + SEGMENT_STATES_MAX);
            let (part, first) = (states[from..end].to_vec(), ChunkIndex(from as u32));
            let signature = identity.sign(&Segment::signed_bytes(&digest, layout.size(), first, &part));
            segments.push(Arc::new(Segment { author: identity.peer(), from: first, states: part, signature }));
            from = end - 1;
        }
        Self { lie, digest, layout, content, segments, contact, asked: AtomicU32::new(0) }
    }

    async fn tell(&self, plane: DataPlane, mut inbox: mpsc::Receiver<PlaneEvent>) {
        let mut unanswered = Vec::new();
        while let Some(event) = inbox.recv().await {
            match event {
                PlaneEvent::Connected { contact, .. } => {
                    let join = Join {
                        digest: self.digest,
                        have: self.layout.count(),
                        standing: Standing::Complete,
                        place: Place::default(),
                        lease: None,
                        accused: None,
                        burden: 0,
                    };
                    plane.send(contact.peer, Message::Join(join)).ok();
                }
                PlaneEvent::Message { peer, message } => self.answer(&plane, peer, &message),
                PlaneEvent::Asked { ask, reply, .. } => match self.chunk(ask) {
                    None => reply.refuse(Answer::Missing),
                    Some(_) if self.lie == Lie::Silence => unanswered.push(reply),
                    Some(bytes) => send(reply, bytes),
                },
                PlaneEvent::Disconnected { .. } | PlaneEvent::DialFailed { .. } => {}
            }
        }
    }

    /// As a tracker it keeps everybody waiting, as a peer it has everything.
    fn answer(&self, plane: &DataPlane, peer: PeerId, message: &Message) {
        let digest = self.digest;
        if let Message::Join(join) = message
            && join.digest == digest
        {
            let peers = vec![self.contact];
            plane.send(peer, Message::Joined { digest, peers, lease: None, served: true, sources: Vec::new() }).ok();
        }
        if let Message::Subscribe { digest: asked, .. } = message
            && *asked == digest
        {
            let size = self.layout.size();
            for segment in &self.segments {
                plane.send(peer, Message::Segment { digest, size, segment: Arc::clone(segment) }).ok();
            }
            plane.send(peer, Message::Have { digest, size, chunks: ChunkSet::full(self.layout.count()) }).ok();
        }
    }

    fn chunk(&self, ask: Ask) -> Option<Bytes> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        (ask.digest == self.digest && self.layout.contains(ask.chunk)).then(|| {
            let range = self.layout.range(ask.chunk);
            let bytes = self.content.slice(range.start as usize..range.end as usize);
            if self.lie == Lie::Excess { [bytes.clone(), bytes].concat().into() } else { bytes }
        })
    }
}

fn send(reply: Reply, bytes: Bytes) {
    // An error means that the asker is gone.
    tokio::spawn(async move { reply.send(vec![bytes]).await.ok() });
}

/// The states in front of all chunks of some content.
fn chain_of(layout: Layout, content: &Bytes) -> Vec<State> {
    let mut states = vec![State::INITIAL];
    for chunk in layout.chunks() {
        let range = layout.range(chunk);
        let mut link = Link::new(layout, chunk, states[chunk.at()]);
        link.update(&content[range.start as usize..range.end as usize]);
        if let Some(LinkEnd::State(state)) = link.end(layout, chunk) {
            states.push(state);
        }
    }
    states
}
