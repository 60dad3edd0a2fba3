//! How the messages of [`wire`](super) become bytes, and what is refused on the way back.
//!
//! Three guards stand in front of hostile input: the frame length is checked before a body is read, bincode counts the
//! memory that a body claims to need before it allocates, and what was decoded is checked against the limits and the
//! blob's layout before anything else sees it. So a machine never meets a chunk index beyond the largest blob, a chunk
//! set of the wrong length, or a segment that leaves its blob.
//!
//! bincode accepts integers in longer form than needed: two different bodies may mean the same message. So nothing may
//! sign or hash a body; [`Segment::signed_bytes`] exists for that.

use bincode::{
    BorrowDecode, Decode, Encode, config,
    de::{BorrowDecoder, Decoder, read::Reader},
    enc::{Encoder, write::Writer},
    error::{DecodeError, EncodeError},
};

use super::{
    Ask, CONTACTS_MAX, FRAME_BYTES_MAX, GOT_CHUNKS_MAX, Hello, Message, SEGMENT_STATES_MAX, SOURCES_MAX, TagWord,
    VERSION,
};
use crate::{
    chain::{Ends, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::{Segment, Signature},
    digest::{Algorithm, Digest},
    peer::{Contact, PeerId, Place},
    tags::{self, RECORD_BYTES_MAX},
};

/// Bytes in front of a frame's body: its length, little-endian.
pub const FRAME_HEADER_BYTES: usize = 4;

/// A frame's body and the bytes behind the frame.
pub type BodyAndRest<'a> = (&'a [u8], &'a [u8]);

/// Chunks of the largest blob: every index on the wire is below, so that arithmetic on it cannot overflow.
const CHUNKS_MAX: u32 = match Layout::new(Layout::SIZE_MAX) {
    Some(layout) => layout.count(),
    None => 0,
};

/// Why bytes of a peer are refused. Each of these ends the connection: a sound peer never sends such bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame's length is zero or above [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes: 1 to {FRAME_BYTES_MAX} are allowed")]
    Length(usize),
    /// The body ends before its message does.
    #[error("frame ends inside its message")]
    Truncated,
    /// Bytes follow the message in its body.
    #[error("{0} bytes follow the message in its frame")]
    Trailing(usize),
    /// The body claims to hold more than a frame can.
    #[error("message claims to be larger than a frame")]
    Oversized,
    /// A value outside its limits.
    #[error("message breaks a limit: {0}")]
    Limit(&'static str),
    /// Not a message of this version.
    #[error("not a message: {0}")]
    Malformed(String),
    /// The peer's [`Hello`] names another version.
    #[error("peer speaks version {0} of the protocol, this node version {VERSION}: run the same release on all nodes")]
    Version(u16),
}

impl From<DecodeError> for WireError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "bincode's errors are open-ended")]
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnexpectedEnd { .. } => Self::Truncated,
            DecodeError::LimitExceeded => Self::Oversized,
            DecodeError::Other(limit) => Self::Limit(limit),
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// A message as a whole frame: length and body.
#[must_use]
pub fn encode_message(message: &Message) -> Vec<u8> {
    debug_assert_eq!(check(message), Ok(()), "a node must not send what its peers refuse: {message:?}");
    frame(message)
}

/// The message of a frame's body.
///
/// # Errors
/// See [`WireError`].
pub fn decode_message(body: &[u8]) -> Result<Message, WireError> {
    let message = decode(body)?;
    check(&message)?;
    Ok(message)
}

/// A hello as a whole frame: length and body.
#[must_use]
pub fn encode_hello(hello: &Hello) -> Vec<u8> {
    frame(hello)
}

/// The hello of a frame's body.
///
/// # Errors
/// [`WireError::Version`] if it is that of another version, whatever follows the number; else see [`WireError`].
pub fn decode_hello(body: &[u8]) -> Result<Hello, WireError> {
    check_length(body.len())?;
    let (version, _) = bincode::decode_from_slice::<u16, _>(body, limited())?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    decode(body)
}

/// A request for a chunk as a whole frame: length and body.
#[must_use]
pub fn encode_ask(ask: &Ask) -> Vec<u8> {
    frame(ask)
}

/// The request of a frame's body.
///
/// # Errors
/// See [`WireError`].
pub fn decode_ask(body: &[u8]) -> Result<Ask, WireError> {
    decode(body)
}

/// The number of body bytes that follow a frame's header; to be called before room is made for them.
///
/// # Errors
/// [`WireError::Length`].
pub fn body_bytes(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, WireError> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    check_length(length)?;
    Ok(length)
}

/// Splits the first whole frame off `bytes`: its body and what follows. None if more bytes must come first.
///
/// # Errors
/// [`WireError::Length`], as soon as the header is there.
pub fn split_frame(bytes: &[u8]) -> Result<Option<BodyAndRest<'_>>, WireError> {
    let Some((header, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    Ok(rest.split_at_checked(body_bytes(*header)?))
}

const fn limited() -> impl config::Config {
    config::standard().with_limit::<FRAME_BYTES_MAX>()
}

const fn check_length(length: usize) -> Result<(), WireError> {
    if length == 0 || length > FRAME_BYTES_MAX { Err(WireError::Length(length)) } else { Ok(()) }
}

fn frame(value: &impl Encode) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    bincode::encode_into_std_write(value, &mut frame, limited())
        .unwrap_or_else(|error| unreachable!("memory takes every message: {error}"));
    let length = frame.len() - FRAME_HEADER_BYTES;
    debug_assert_eq!(check_length(length), Ok(()));
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    frame
}

fn decode<T: Decode<()>>(body: &[u8]) -> Result<T, WireError> {
    check_length(body.len())?;
    let (value, consumed) = bincode::decode_from_slice(body, limited())?;
    if consumed == body.len() { Ok(value) } else { Err(WireError::Trailing(body.len() - consumed)) }
}

/// What bincode cannot see: counts, and whether the parts fit the blob.
fn check(message: &Message) -> Result<(), WireError> {
    let limit = |holds, limit| if holds { Ok(()) } else { Err(WireError::Limit(limit)) };
    match message {
        Message::Joined { peers, sources, .. } => {
            limit(peers.len() <= CONTACTS_MAX, "too many contacts")?;
            limit(sources.len() <= SOURCES_MAX, "too many holders")
        }
        Message::Peers { peers, .. } => limit(peers.len() <= CONTACTS_MAX, "too many contacts"),
        Message::Join(join) => limit(join.have <= CHUNKS_MAX, "more chunks than the largest blob has"),
        Message::Have { size, chunks, .. } => {
            limit(chunks.capacity() == layout(*size)?.count(), "the chunk set does not fit the blob's size")
        }
        Message::Got { chunks, .. } | Message::Fresh { chunks, .. } => {
            limit(chunks.len() <= GOT_CHUNKS_MAX, "too many chunks")
        }
        Message::Segment { size, segment, .. } => {
            let (count, states) = (layout(*size)?.count(), segment.states.len());
            limit(states <= SEGMENT_STATES_MAX, "too many states")?;
            limit(states >= 2 || (states == 1 && count == 1), "too few states")?;
            limit(segment.from.at() + states <= count as usize, "the states leave the blob")
        }
        Message::Tag { word: TagWord::Record { record, .. } | TagWord::Resolved { record, .. }, .. } => {
            limit(record.body.len() <= RECORD_BYTES_MAX, "too large a record of a tag")
        }
        Message::Tag { word: TagWord::Wanted { .. } | TagWord::Duty | TagWord::Pending | TagWord::Dropped, .. }
        | Message::Revoked { .. }
        | Message::Leave { .. }
        | Message::Subscribe { .. }
        | Message::Unsubscribe { .. }
        | Message::Unknown { .. }
        | Message::Entitled { .. } => Ok(()),
    }
}

fn layout(size: u64) -> Result<Layout, WireError> {
    Layout::new(size).ok_or(WireError::Limit("blob larger than any"))
}

/// Algorithm (one byte), then the value's 32 or 64 bytes.
impl Encode for Digest {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let tag: u8 = match self.algorithm() {
            Algorithm::Sha256 => 0,
            Algorithm::Sha512 => 1,
        };
        tag.encode(encoder)?;
        encoder.writer().write(self.as_bytes())
    }
}

impl<Context> Decode<Context> for Digest {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(decoder)? {
            0 => Ok(Self::sha256(Decode::decode(decoder)?)),
            1 => Ok(Self::sha512(Decode::decode(decoder)?)),
            _ => Err(DecodeError::Other("unknown digest algorithm")),
        }
    }
}

/// A variable-length integer.
impl Encode for ChunkIndex {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<Context> Decode<Context> for ChunkIndex {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let index = u32::decode(decoder)?;
        if index < CHUNKS_MAX { Ok(Self(index)) } else { Err(DecodeError::Other("chunk index beyond any blob")) }
    }
}

/// The number of chunks of the blob, then its bits in as many bytes as they need.
impl Encode for ChunkSet {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.capacity().encode(encoder)?;
        encoder.writer().write(&self.to_bytes())
    }
}

impl<Context> Decode<Context> for ChunkSet {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let count = u32::decode(decoder)?;
        if count > CHUNKS_MAX {
            return Err(DecodeError::Other("chunk set of more chunks than any blob has"));
        }
        let mut bytes = vec![0; (count as usize).div_ceil(8)];
        decoder.claim_bytes_read(bytes.len())?;
        decoder.reader().read(&mut bytes)?;
        Self::from_bytes(count, &bytes).ok_or(DecodeError::Other("chunk set with bits beyond the blob"))
    }
}

/// Author, first chunk, states, signature.
impl Encode for Segment {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.author.encode(encoder)?;
        self.from.encode(encoder)?;
        self.states.encode(encoder)?;
        self.signature.encode(encoder)
    }
}

impl<Context> Decode<Context> for Segment {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            author: Decode::decode(decoder)?,
            from: Decode::decode(decoder)?,
            states: Decode::decode(decoder)?,
            signature: Decode::decode(decoder)?,
        })
    }
}

/// Body, resolver, signature.
impl Encode for tags::Record {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.body.encode(encoder)?;
        self.resolver.encode(encoder)?;
        self.signature.encode(encoder)
    }
}

impl<Context> Decode<Context> for tags::Record {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            body: Decode::decode(decoder)?,
            resolver: Decode::decode(decoder)?,
            signature: Decode::decode(decoder)?,
        })
    }
}

/// Peer, then address.
impl Encode for Contact {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.peer.encode(encoder)?;
        self.address.encode(encoder)
    }
}

impl<Context> Decode<Context> for Contact {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { peer: Decode::decode(decoder)?, address: Decode::decode(decoder)? })
    }
}

/// Zone, then rack.
impl Encode for Place {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.zone.encode(encoder)?;
        self.rack.encode(encoder)
    }
}

impl<Context> Decode<Context> for Place {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { zone: Decode::decode(decoder)?, rack: Decode::decode(decoder)? })
    }
}

/// The state in front, then the state behind if there is one.
impl Encode for Ends {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.before.encode(encoder)?;
        self.after.encode(encoder)
    }
}

impl<Context> Decode<Context> for Ends {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { before: Decode::decode(decoder)?, after: Decode::decode(decoder)? })
    }
}

/// Types that are an array of bytes and go out as these bytes alone.
macro_rules! bytes_on_the_wire {
    ($($name:ident),+) => {$(
        impl Encode for $name {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.0.encode(encoder)
            }
        }

        impl<Context> Decode<Context> for $name {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Ok(Self(Decode::decode(decoder)?))
            }
        }
    )+};
}

bytes_on_the_wire!(State, PeerId, Signature);

/// Nothing here borrows from the body, but bincode's derive asks for this twin.
macro_rules! never_borrowed {
    ($($name:path),+) => {$(
        impl<'de, Context> BorrowDecode<'de, Context> for $name {
            fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Self::decode(decoder)
            }
        }
    )+};
}

never_borrowed!(Digest, ChunkIndex, ChunkSet, State, Ends, Segment, Signature, PeerId, Contact, Place, tags::Record);
