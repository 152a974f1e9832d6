//! Compression of answers on request.
//!
//! Does not cover: which answers may be compressed. An answer that contains a secret and a stranger's text must not be
//! compressed, because its length shows how similar they are (BREACH).

use std::io::Write as _;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

/// Whether the caller accepts gzip (RFC 9110, 12.5.3). A wildcard does not count, because callers that want gzip name
/// it.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let is_refused = parts.any(|parameter| {
            let weight = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.parse().is_ok_and(|weight: f32| weight <= 0.0))
        });
        is_gzip && !is_refused
    })
}

/// Compresses `bytes`.
pub(super) fn gzip(bytes: &[u8], level: Compression) -> Bytes {
    let mut packer = GzEncoder::new(Vec::new(), level);
    packer.write_all(bytes).and_then(|()| packer.finish()).expect("written to memory").into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn gzip_is_for_those_that_name_it() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            accepts_gzip(&headers)
        };
        for taken in ["gzip", "deflate, GZIP;q=0.5", "gzip, br", "gzip;q=1"] {
            assert!(accepts(&[taken]), "{taken}");
        }
        assert!(accepts(&["br", "gzip"]));
        for refused in ["", "identity", "*", "gzip;q=0", "gzip; q=0.000", "xgzip", "br"] {
            assert!(!accepts(&[refused]), "{refused}");
        }
        assert!(!accepts(&[]));
    }
}
