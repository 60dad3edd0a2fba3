//! One request of an open upload: `PATCH`, `PUT`, `GET` or `DELETE` where it goes on.

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{CONTENT_RANGE, HeaderValue},
};
use shoal_proto::digest::Digest;

use super::{
    super::{
        Inner,
        body::Body,
        error::{Code, Failure},
        route::Target,
    },
    Asked, Call, accepted, created, empty, keep, payload, place, refused, request, send,
    uploads::State,
};
use crate::origin::{Kind, Payload, Pushed, Step};

/// A request whose turn it is: nobody else asks anything of its upload meanwhile.
pub(super) struct Turn<'a> {
    pub(super) inner: &'a Inner,
    pub(super) target: &'a Target,
    pub(super) asked: &'a Asked,
    /// The number of the upload.
    pub(super) id: &'a str,
    /// What the blob must be, if this ends the upload.
    pub(super) digest: Option<Digest>,
    pub(super) method: &'a Method,
}

impl Turn<'_> {
    pub(super) async fn take(&self, state: &mut State, call: &mut Call<'_>) -> Result<Response<Body>, Failure> {
        let brings = matches!(*self.method, Method::PATCH | Method::PUT);
        if *self.method == Method::PUT && self.digest.is_none() {
            return Err(Failure::bad_request(Code::DigestInvalid, "the digest of the blob is missing"));
        }
        let range = if brings { content_range(call.headers, call.length())? } else { None };
        if let (Some((first, _)), Some(have)) = (range, state.have)
            && first != have
        {
            let why = format!("the next byte of this upload is {have}, not {first}");
            let failure = Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, why);
            return Ok(self.out_of_order(&failure, have.checked_sub(1)));
        }
        let payload = if brings { payload(self.inner, call, &state.kept).await } else { Payload::Empty };
        let location = state.location.clone();
        let step = Step::Go { method: self.method.clone(), location, digest: self.digest };
        let mut push = request(self.target, step, payload, call.headers);
        if brings {
            push.content_type = Some(HeaderValue::from_static("application/octet-stream"));
            push.content_range = range;
        }
        // Until the origin has answered, nobody knows what it has; this stays so if we are dropped before.
        let before = if brings { state.have.take() } else { state.have };
        let sent = send(self.inner, push).await;
        if brings && sent.as_ref().map_or(true, |pushed| !pushed.status.is_success()) {
            state.kept.give_up().await;
        }
        self.answered(state, before, &sent?, call.headers).await
    }

    /// Takes the origin's answer in. `before` is how much it had then.
    async fn answered(
        &self,
        state: &mut State,
        before: Option<u64>,
        pushed: &Pushed,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Failure> {
        if let Some(location) = &pushed.location {
            state.location = location.clone();
        }
        match pushed.status {
            StatusCode::CREATED => {
                self.inner.uploads.remove(self.id);
                if let (Some(draft), Some(digest)) = (state.kept.take().await, self.digest) {
                    keep(self.inner, draft, self.target.want(&digest, Kind::Blob), headers).await;
                }
                Ok(created(self.asked, self.target, pushed, self.digest))
            }
            status if status.is_success() && *self.method == Method::DELETE => {
                self.inner.uploads.remove(self.id);
                Ok(empty(StatusCode::NO_CONTENT))
            }
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                let have = pushed.last.map(|last| last.saturating_add(1));
                if *self.method != Method::GET {
                    state.kept.must_have(have).await;
                    state.have = have;
                } else if have != Some(1) {
                    // Of an empty upload registries say `0-0`, as of one with a byte.
                    state.have = have;
                }
                Ok(accepted(self.asked, self.target, self.id, pushed, Some(pushed.status)))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                state.have = before;
                Ok(self.out_of_order(&refused(self.target, pushed, Code::BlobUploadInvalid), pushed.last))
            }
            StatusCode::NOT_FOUND => {
                self.inner.uploads.remove(self.id);
                Err(refused(self.target, pushed, Code::BlobUploadUnknown))
            }
            _ => Err(refused(self.target, pushed, Code::BlobUploadInvalid)),
        }
    }

    /// A refusal that says where the upload is, up to its `last` byte.
    fn out_of_order(&self, failure: &Failure, last: Option<u64>) -> Response<Body> {
        let mut response = failure.response();
        place(&mut response, self.asked, self.target, self.id, last);
        response
    }
}

/// `Content-Range: first-last` of a chunk, which must agree with its length.
fn content_range(headers: &HeaderMap, length: Option<u64>) -> Result<Option<(u64, u64)>, Failure> {
    let malformed = || Failure::bad_request(Code::BlobUploadInvalid, "the Content-Range is malformed");
    let mut values = headers.get_all(CONTENT_RANGE).iter();
    let (value, None) = (values.next(), values.next()) else { return Err(malformed()) };
    let Some(value) = value else { return Ok(None) };
    let number = |text: &str| -> Option<u64> {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let range = value.to_str().ok().and_then(|text| text.split_once('-'));
    let range = range.and_then(|(first, last)| Some((number(first)?, number(last)?)));
    let (first, last) = range.filter(|(first, last)| first <= last).ok_or_else(malformed)?;
    if length.is_some_and(|length| length.checked_sub(1) != Some(last - first)) {
        return Err(Failure::bad_request(Code::SizeInvalid, "the Content-Range is not as long as the body"));
    }
    Ok(Some((first, last)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_two_numbers_that_fit_the_body() {
        let read = |values: &[&str], length| {
            let headers = values.iter().map(|value| (CONTENT_RANGE, HeaderValue::from_str(value).unwrap())).collect();
            content_range(&headers, length).map_err(|failure| (failure.status.as_u16(), failure.code))
        };
        assert_eq!(read(&[], Some(5)), Ok(None));
        assert_eq!(read(&["0-4"], Some(5)), Ok(Some((0, 4))));
        assert_eq!(read(&["10-10"], Some(1)), Ok(Some((10, 10))));
        assert_eq!(read(&["0-4"], None), Ok(Some((0, 4))));
        for text in
            ["", "-", "0-", "-4", "4-0", "0-4-5", "+0-4", "0 - 4", "bytes 0-4/5", "0x0-4", "0-99999999999999999999"]
        {
            assert_eq!(read(&[text], None), Err((400, Code::BlobUploadInvalid)), "{text}");
        }
        assert_eq!(read(&["0-4", "0-4"], None), Err((400, Code::BlobUploadInvalid)));
        for length in [0, 4, 6] {
            assert_eq!(read(&["0-4"], Some(length)), Err((400, Code::SizeInvalid)), "{length}");
        }
        assert_eq!(read(&["0-18446744073709551615"], Some(1)), Err((400, Code::SizeInvalid)));
    }
}
