//! Bodies that leave at a rate, are counted, and break where they are told to.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;

use super::{Fault, Served, State};

/// Bytes in one frame: also how precisely faults hit.
const FRAME: usize = 16 * 1024;

pub(crate) type OriginBody = BoxBody<Bytes, io::Error>;

pub(super) fn empty() -> OriginBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn full(text: &str) -> OriginBody {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed()
}

/// What a body does after its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Hang,
    Break,
}

pub(super) fn streamed(bytes: Bytes, state: Arc<State>, served: Arc<Served>, fault: Option<Fault>) -> OriginBody {
    let cut = |at: u64| bytes.slice(..bytes.len().min(at as usize));
    let (rest, end) = match fault {
        Some(Fault::HangAfter(at)) => (cut(at), End::Hang),
        Some(Fault::TruncateAfter(at)) => (cut(at), End::Break),
        _ => (bytes.clone(), End::Complete),
    };
    let frames = stream::unfold((rest, end), move |(mut rest, end)| {
        let (state, served) = (Arc::clone(&state), Arc::clone(&served));
        async move {
            if rest.is_empty() {
                return match end {
                    End::Complete => None,
                    End::Hang => std::future::pending().await,
                    End::Break => Some((Err(io::Error::other("cut on order")), (rest, End::Complete))),
                };
            }
            let frame = rest.split_to(rest.len().min(FRAME));
            if let Some(when) = state.pace(frame.len() as u64) {
                tokio::time::sleep_until(when).await;
            }
            served.sent.fetch_add(frame.len() as u64, Ordering::Relaxed);
            Some((Ok(Frame::data(frame)), (rest, end)))
        }
    });
    BodyExt::boxed(StreamBody::new(Box::pin(frames)))
}
