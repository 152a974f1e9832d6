//! A connection whose other end may answer anything.
//!
//! tonic panics when a status comes with details that are not base64 (<https://github.com/grpc/grpc-rust/pull/2618>),
//! and a panic is the end of the process. What answers at an address, which may not be a node at all, must not be able
//! to end a node or a client: such details are dropped before tonic sees them, and the status stays.

use std::task::{Context, Poll};

use futures_util::{TryFutureExt as _, future::MapOk};
use http_body_util::BodyExt as _;
use tonic::{
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
    metadata::MetadataMap,
    transport::{self, channel::ResponseFuture},
};

const DETAILS: &str = "grpc-status-details-bin";

/// A [`transport::Channel`] that answers nothing that tonic cannot read.
#[derive(Debug, Clone)]
pub struct Channel(transport::Channel);

impl From<transport::Channel> for Channel {
    fn from(channel: transport::Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = MapOk<ResponseFuture, fn(Response<Body>) -> Response<Body>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(readable_response)
    }
}

fn readable_response(mut response: Response<Body>) -> Response<Body> {
    make_readable(response.headers_mut());
    response.map(|body| {
        Body::new(body.map_frame(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                make_readable(trailers);
            }
            frame
        }))
    })
}

/// Drops the details of a status when they cannot be decoded.
pub fn make_readable(headers: &mut HeaderMap) {
    let Some(details) = headers.get(DETAILS) else { return };
    // Decoded as tonic will do it: only the result counts.
    let mut alone = HeaderMap::new();
    alone.insert(DETAILS, details.clone());
    let alone = MetadataMap::from_headers(alone);
    if alone.get_bin(DETAILS).is_none_or(|value| value.to_bytes().is_err()) {
        headers.remove(DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::{Code, Status, codegen::http::HeaderValue};

    fn status(details: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static("5"));
        headers.insert("grpc-message", HeaderValue::from_static("nobody"));
        headers.insert(DETAILS, HeaderValue::from_static(details));
        headers
    }

    #[test]
    fn details_that_are_not_base64_are_dropped_and_the_status_stays() {
        for (given, details) in
            [("AQID", &[1, 2, 3][..]), ("AQ", &[1]), ("AR", &[]), ("}", &[]), ("A", &[]), ("é", &[])]
        {
            let mut headers = status("");
            headers.insert(DETAILS, HeaderValue::from_bytes(given.as_bytes()).expect("a header"));
            make_readable(&mut headers);
            let status = Status::from_header_map(&headers).expect("a status");
            assert_eq!(
                (status.code(), status.message(), status.details()),
                (Code::NotFound, "nobody", details),
                "{given}"
            );
        }
    }

    #[tokio::test]
    async fn headers_and_trailers_are_made_readable() {
        let mut response =
            Response::new(Body::new(Body::empty().with_trailers(std::future::ready(Some(Ok(status("}")))))));
        *response.headers_mut() = status("}");
        let (head, body) = readable_response(response).into_parts();
        let trailers = body.collect().await.expect("a body").trailers().cloned().expect("trailers");
        for headers in [head.headers, trailers] {
            assert!(headers.contains_key("grpc-status") && !headers.contains_key(DETAILS));
        }
    }
}
