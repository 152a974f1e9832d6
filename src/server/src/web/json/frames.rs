//! gRPC's framing: length-prefixed messages, and the status of the call after them.

use axum::body::Body;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tonic::{Code, Status};

use proto::PREFIX_BYTES;

/// The messages of an answer.
pub(super) struct Frames {
    body: Body,
    buffer: BytesMut,
}

impl Frames {
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next message; `None` after the last one of a successful call.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            let frame = match self.body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err(Status::unavailable(format!("the answer broke off: {error}"))),
                None => return Err(Status::unavailable("the answer broke off")),
            };
            match frame.into_data() {
                Ok(data) => self.buffer.put(data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let status = Status::from_header_map(&trailers);
                    return match status {
                        Some(status) if status.code() == Code::Ok && self.buffer.is_empty() => Ok(None),
                        Some(status) if status.code() != Code::Ok => Err(status),
                        _ => Err(Status::internal("the answer ended in the middle of a message")),
                    };
                }
            }
        }
    }

    /// The only message of a unary call.
    pub(super) async fn only(&mut self) -> Result<Bytes, Status> {
        let message = self.next().await?.ok_or_else(|| Status::internal("the answer is empty"))?;
        match self.next().await? {
            None => Ok(message),
            Some(_) => Err(Status::internal("the answer has more than one message")),
        }
    }

    fn buffered(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((&[compressed, a, b, c, d], rest)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        if compressed != 0 {
            return Err(Status::internal("the answer is compressed, which was not asked for"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// The bytes of a message with its length prefix.
    fn framed(message: &[u8]) -> Bytes {
        [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat().into()
    }

    /// An answer in these pieces, with this status.
    fn answer(pieces: &[&[u8]], status: Option<&'static str>) -> Frames {
        let mut frames: Vec<_> = pieces.iter().map(|piece| Frame::data(Bytes::copy_from_slice(piece))).collect();
        if let Some(status) = status {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            frames.push(Frame::trailers(trailers));
        }
        let frames = frames.into_iter().map(Ok::<_, std::convert::Infallible>);
        Frames::new(Body::new(StreamBody::new(stream::iter(frames))))
    }

    #[tokio::test]
    async fn messages_are_put_together_however_they_come() {
        let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for size in 1..=bytes.len() {
            let mut frames = answer(&bytes.chunks(size).collect::<Vec<_>>(), Some("0"));
            let mut messages = Vec::new();
            while let Some(message) = frames.next().await.unwrap() {
                messages.push(message);
            }
            assert_eq!(messages, [&b"one"[..], b"", b"three"], "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_whole_is_no_answer() {
        let one = framed(b"one");
        assert_eq!(answer(&[&one], Some("0")).only().await.unwrap(), "one");
        let code = async |pieces: &[&[u8]], status| answer(pieces, status).only().await.unwrap_err().code();
        assert_eq!(code(&[&one], Some("5")).await, Code::NotFound);
        assert_eq!(code(&[], Some("5")).await, Code::NotFound);
        assert_eq!(code(&[&one], None).await, Code::Unavailable, "no status");
        assert_eq!(code(&[&one[..4]], Some("0")).await, Code::Internal, "cut off");
        assert_eq!(code(&[&one, &one], Some("0")).await, Code::Internal, "one too many");
        assert_eq!(code(&[], Some("0")).await, Code::Internal, "none");
        assert_eq!(code(&[b"\x01\0\0\0\0"], Some("0")).await, Code::Internal, "compressed");
    }
}
