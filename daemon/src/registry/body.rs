//! Response bodies: a few bytes at hand, or a stream that must deliver exactly what its `Content-Length` promised.
//!
//! A stream that breaks ends in an error, upon which hyper closes the connection with FIN: containerd then resumes with
//! a range, where a reset would fail the whole pull. So a short, long or stalled stream is always turned into an error
//! here, never into a body that only looks complete.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};

use super::{content::Bytestream, record::Record};

/// The body of every answer.
pub(super) struct Body {
    source: Source,
    /// Bytes not yet handed to hyper.
    remaining: u64,
    /// Counts and logs; dropped with the body, which is when the answer is over.
    record: Option<Record>,
    /// Why the body must end, once what was sent before has been given a chance to leave.
    broken: Option<io::Error>,
    /// The share of the memory budget that a manifest occupies until it is sent.
    _permit: Option<OwnedSemaphorePermit>,
}

enum Source {
    Full(Bytes),
    Stream { stream: Bytestream, idle: Duration, alarm: Option<Pin<Box<Sleep>>> },
}

impl Body {
    /// A body of bytes at hand.
    pub(super) fn full(bytes: Bytes) -> Self {
        let remaining = bytes.len() as u64;
        Self { source: Source::Full(bytes), remaining, record: None, broken: None, _permit: None }
    }

    /// No bytes.
    pub(super) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// A body of exactly `length` bytes from `stream`, which may pause for up to `idle` at a time.
    pub(super) fn stream(stream: Bytestream, length: u64, idle: Duration) -> Self {
        let source = Source::Stream { stream, idle, alarm: None };
        Self { source, remaining: length, record: None, broken: None, _permit: None }
    }

    /// Keeps `permit` until the body is sent or dropped.
    pub(super) fn holding(mut self, permit: OwnedSemaphorePermit) -> Self {
        self._permit = Some(permit);
        self
    }

    /// Counts what is sent of this body, and logs it at the end.
    pub(super) fn recorded(mut self, mut record: Record) -> Self {
        record.promise(self.remaining);
        self.record = Some(record);
        self
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let (stream, idle, alarm) = match &mut self.source {
            Source::Full(bytes) => return Poll::Ready(Ok(std::mem::take(bytes))),
            Source::Stream { stream, idle, alarm } => (stream, *idle, alarm),
        };
        loop {
            match stream.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(bytes))) if bytes.is_empty() => {}
                Poll::Ready(Some(item)) => {
                    *alarm = None;
                    return Poll::Ready(item);
                }
                Poll::Ready(None) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Pending => {
                    let alarm = alarm.get_or_insert_with(|| Box::pin(sleep(idle)));
                    return alarm.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = self.get_mut();
        if body.remaining == 0 {
            return Poll::Ready(None);
        }
        if let Some(error) = body.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let result = match std::task::ready!(body.poll_bytes(cx)) {
            Ok(bytes) if bytes.len() as u64 > body.remaining => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than the blob has"))
            }
            other => other,
        };
        match result {
            Ok(bytes) => {
                let length = bytes.len() as u64;
                body.remaining -= length;
                if let Some(record) = &mut body.record {
                    record.sent(length);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(error) => {
                if let Some(record) = &mut body.record {
                    record.failed(&error);
                }
                // hyper throws away what it has buffered, even the head, when a body fails; it flushes when one pauses.
                body.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    const IDLE: Duration = Duration::from_secs(3600);

    fn parts(parts: &[&'static str]) -> Bytestream {
        let items: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        stream::iter(items).boxed()
    }

    #[tokio::test]
    async fn a_body_is_exactly_as_long_as_promised_or_an_error() {
        let exact = Body::stream(parts(&["ab", "", "c"]), 3, IDLE).collect().await.unwrap();
        assert_eq!(exact.to_bytes(), "abc");
        let short = Body::stream(parts(&["ab"]), 3, IDLE).collect().await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let long = Body::stream(parts(&["ab", "cd"]), 3, IDLE).collect().await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_stalled_stream_becomes_an_error() {
        let stalled = parts(&["ab"]).chain(stream::pending()).boxed();
        let error = Body::stream(stalled, 3, Duration::from_millis(1)).collect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
