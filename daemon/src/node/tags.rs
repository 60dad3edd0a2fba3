//! Tags that one node resolves for the whole cluster. The decisions are those of [`Board`] and [`Errand`].

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use shoal_proto::{
    digest::Digest,
    peer::{Contact, PeerId},
    tags::{Board, Errand, Next, Record, Send},
    time::Time,
    wire::{Age, Message, TagWord},
};
use tokio::{
    sync::mpsc,
    time::{timeout, timeout_at},
};

use super::{
    Node,
    driver::{Command, Driver},
    tag_body::Circle,
};
use crate::{
    identity,
    origin::{OriginError, Resolved, Upstream},
};

/// Tags about which trackers are being asked. Those beyond are asked for at the origin.
const ASKING_MAX: usize = 1024;
/// Words of a tracker that wait for the errand.
const WORDS_MAX: usize = 4;
/// How long it may take to find the trackers.
const LOCATE: Duration = Duration::from_millis(500);

/// What a tag points at, and how that is known.
#[derive(Debug, Clone)]
pub struct TagAnswer {
    /// What the origin said.
    pub resolved: Resolved,
    /// How long ago it was asked.
    pub age: Duration,
    /// The node that asked it; none: this one.
    pub resolver: Option<PeerId>,
}

impl From<Resolved> for TagAnswer {
    fn from(resolved: Resolved) -> Self {
        Self { resolved, age: Duration::ZERO, resolver: None }
    }
}

/// What an errand wants of the loop.
#[derive(Debug)]
pub(super) enum TagCommand {
    /// Ask a tracker; `words` takes what it says, and is closed if it cannot be reached.
    Ask { key: Digest, tracker: Contact, believed: Age, words: mpsc::Sender<TagWord> },
    /// Tell a tracker.
    Say { key: Digest, tracker: PeerId, word: TagWord },
}

/// The loop's part.
#[derive(Debug, Default)]
pub(super) struct Tags {
    board: Board,
    asking: HashMap<Digest, Asking>,
}

#[derive(Debug)]
struct Asking {
    tracker: PeerId,
    believed: Age,
    words: mpsc::Sender<TagWord>,
}

impl Tags {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.board.deadline()
    }
}

/// A duty that was taken on: if it is not done, the tracker gives it to another.
struct Duty {
    commands: mpsc::Sender<Command>,
    tracker: PeerId,
    key: Digest,
    word: TagWord,
}

impl Drop for Duty {
    fn drop(&mut self) {
        let word = std::mem::replace(&mut self.word, TagWord::Dropped);
        let say = TagCommand::Say { key: self.key, tracker: self.tracker, word };
        if self.commands.try_send(Command::Tag(say)).is_err() {
            tracing::debug!("the loop is too far behind to tell a tracker of a tag; the duty runs out there");
        }
    }
}

/// How an errand ended.
enum Found {
    Told(TagAnswer),
    /// With the tracker that waits for the answer.
    Nothing(Option<PeerId>),
}

impl Node {
    /// What a tag points at: from another node where the upstream's tags are shared, else from the origin. See
    /// [`Origin::resolve`](crate::origin::Origin::resolve). Warnings of the origin reach only the node that asks it.
    ///
    /// # Errors
    /// The origin's: where other nodes are of no help it is asked by this one.
    pub async fn resolve_tag(
        &self,
        upstream: &Upstream,
        repository: &str,
        tag: &str,
        accept: &str,
    ) -> Result<TagAnswer, OriginError> {
        let origin = &self.shared.parts.origin;
        let Some((circle, believed)) = self.circle(upstream, [repository, tag, accept]).await else {
            return origin.resolve(upstream, repository, tag, accept).await.map(TagAnswer::from);
        };
        let tracker = match self.ask_trackers(&circle, believed).await {
            Found::Told(answer) => return Ok(answer),
            Found::Nothing(tracker) => tracker,
        };
        let (commands, key) = (self.shared.commands.clone(), circle.key());
        let duty = tracker.map(|tracker| Duty { commands, tracker, key, word: TagWord::Dropped });
        let asked = Instant::now();
        let resolved = origin.resolve(upstream, repository, tag, accept).await?;
        let age = asked.elapsed();
        if let Some(mut duty) = duty
            && let Some(record) = self.sign_record(&circle, &resolved)
        {
            duty.word = TagWord::Resolved { record, age: age.into() };
        }
        Ok(TagAnswer { age, ..TagAnswer::from(resolved) })
    }

    /// Who shares this tag, and for how long it is believed; none: nobody.
    async fn circle(&self, upstream: &Upstream, names: [&str; 3]) -> Option<(Circle, Age)> {
        let believed = upstream.shared_tags?;
        let [repository, tag, accept] = names;
        let scope = self.scope(upstream, repository).await.ok()?;
        let circle = Circle::new(&scope, &[&upstream.name, upstream.host(), repository, tag, accept])?;
        Some((circle, believed.into()))
    }

    async fn ask_trackers(&self, circle: &Circle, believed: Age) -> Found {
        let (began, key) = (tokio::time::Instant::now(), circle.key());
        let trackers = timeout(LOCATE, self.shared.parts.trackers(&key)).await.unwrap_or_default();
        let mut errand = Errand::new(believed, trackers);
        let mut next = errand.go_on(began.elapsed());
        // Closed, until a tracker is asked.
        let mut heard = mpsc::channel(WORDS_MAX).1;
        loop {
            match next {
                Next::Ask(tracker) => {
                    let (words, receiver) = mpsc::channel(WORDS_MAX);
                    heard = receiver;
                    let ask = TagCommand::Ask { key, tracker, believed, words };
                    // If there is no room, nobody will say anything, and the errand goes on.
                    self.shared.commands.try_send(Command::Tag(ask)).ok();
                }
                Next::Listen => {}
                Next::Resolve(tracker) => return Found::Nothing(tracker),
                Next::Take(record, age) => {
                    if let Some(answer) = read_record(circle, &record, age) {
                        let (resolver, digest) = (record.resolver, answer.resolved.digest.short());
                        tracing::debug!(%resolver, %digest, ?age, "another node says what a tag points at");
                        return Found::Told(answer);
                    }
                    tracing::warn!(resolver = %record.resolver, "a record of a tag that does not hold; asking others");
                    next = errand.go_on(began.elapsed());
                    continue;
                }
            }
            next = match timeout_at(began + errand.deadline(), heard.recv()).await {
                Ok(Some(word)) => errand.heard(began.elapsed(), word),
                Ok(None) | Err(_) => errand.go_on(began.elapsed()),
            };
        }
    }

    fn sign_record(&self, circle: &Circle, resolved: &Resolved) -> Option<Arc<Record>> {
        let identity = &self.shared.parts.identity;
        let body = circle.write(resolved)?;
        let signature = identity.sign(&Record::signed_bytes(&circle.key(), &body));
        Some(Arc::new(Record { body, resolver: identity.peer(), signature }))
    }
}

fn read_record(circle: &Circle, record: &Record, age: Age) -> Option<TagAnswer> {
    if !is_signed(&circle.key(), record) {
        return None;
    }
    let resolved = circle.read(&record.body)?;
    Some(TagAnswer { resolved, age: age.into(), resolver: Some(record.resolver) })
}

fn is_signed(key: &Digest, record: &Record) -> bool {
    identity::verify(&record.resolver, &Record::signed_bytes(key, &record.body), &record.signature)
}

impl Driver {
    pub(super) fn tag_command(&mut self, command: TagCommand) {
        match command {
            TagCommand::Ask { key, tracker, believed, words } => self.ask_about_tag(key, tracker, believed, words),
            TagCommand::Say { key, tracker, word } => self.say_of_tag(tracker, key, word),
        }
    }

    fn ask_about_tag(&mut self, key: Digest, tracker: Contact, believed: Age, words: mpsc::Sender<TagWord>) {
        let asking = &mut self.tags.asking;
        asking.retain(|_, asking| !asking.words.is_closed());
        if asking.contains_key(&key) || asking.len() >= ASKING_MAX {
            return;
        }
        asking.insert(key, Asking { tracker: tracker.peer, believed, words });
        if tracker.peer == self.me || self.contacts.contains_key(&tracker.peer) {
            self.say_of_tag(tracker.peer, key, TagWord::Wanted { believed });
        } else {
            self.parts.plane.dial(tracker);
        }
    }

    fn say_of_tag(&mut self, peer: PeerId, key: Digest, word: TagWord) {
        if peer == self.me {
            self.tag_word(peer, key, word);
        } else {
            self.send(peer, Message::Tag { key, word });
        }
    }

    /// A peer, or this node itself, says something about a tag.
    pub(super) fn tag_word(&mut self, peer: PeerId, key: Digest, word: TagWord) {
        let (now, mut out) = (self.now(), Vec::new());
        let Tags { board, asking } = &mut self.tags;
        match word {
            TagWord::Wanted { believed } => board.wanted(now, peer, key, believed, &mut out),
            TagWord::Dropped => board.dropped(now, peer, key, &mut out),
            TagWord::Resolved { record, age } => {
                if board.has_duty(peer, &key) {
                    if record.resolver == peer && is_signed(&key, &record) {
                        board.resolved(now, peer, key, (record, age), &mut out);
                    } else {
                        tracing::warn!(%peer, "a record of a tag that its sender did not sign");
                        board.dropped(now, peer, key, &mut out);
                    }
                }
            }
            TagWord::Duty | TagWord::Pending | TagWord::Record { .. } => {
                let duty = word == TagWord::Duty;
                let asking = asking.get(&key).filter(|asking| asking.tracker == peer);
                let taken = asking.is_some_and(|asking| asking.words.try_send(word).is_ok());
                if duty && !taken {
                    // Whoever asked has gone on meanwhile.
                    self.say_of_tag(peer, key, TagWord::Dropped);
                }
            }
        }
        self.send_of_tags(out);
    }

    /// Asks a tracker what waited for its connection.
    pub(super) fn tags_connected(&mut self, peer: PeerId) {
        let waiting = self.tags.asking.iter().filter(|(_, asking)| asking.tracker == peer);
        let waiting: Vec<(Digest, Age)> = waiting.map(|(key, asking)| (*key, asking.believed)).collect();
        for (key, believed) in waiting {
            self.say_of_tag(peer, key, TagWord::Wanted { believed });
        }
    }

    /// A connection broke, or could not be made: what was asked there is asked elsewhere.
    pub(super) fn tags_disconnected(&mut self, peer: PeerId) {
        self.tags.asking.retain(|_, asking| asking.tracker != peer);
        let mut out = Vec::new();
        self.tags.board.disconnected(self.now(), peer, &mut out);
        self.send_of_tags(out);
    }

    pub(super) fn tags_elapsed(&mut self) {
        let mut out = Vec::new();
        self.tags.board.elapsed(self.now(), &mut out);
        self.send_of_tags(out);
    }

    fn send_of_tags(&mut self, orders: Vec<Send>) {
        for Send { peer, key, word } in orders {
            self.say_of_tag(peer, key, word);
        }
    }
}
