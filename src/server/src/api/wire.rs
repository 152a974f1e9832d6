//! Replaces tonic's own rejections of a request with the codes and details that the protocol documents.
//!
//! The codec rejects a body that is not valid UTF-8 or no protobuf as INTERNAL, and one that is too large as
//! OUT_OF_RANGE, before any code of this crate runs. Both are the caller's mistakes.

use axum::response::Response;
use tonic::{Code, Status};

use super::status;

const NOT_DECODED: &str = "failed to decode Protobuf message: ";
const TOO_LARGE: &str = "Error, decoded message length too large";

/// Replaces such a response; passes all others on.
pub(super) async fn rename_refusals(response: Response) -> Response {
    // The statuses of this crate carry details; those of the codec do not.
    if response.headers().contains_key("grpc-status-details-bin") {
        return response;
    }
    let renamed = Status::from_header_map(response.headers()).and_then(|refusal| rename(&refusal));
    renamed.map_or(response, Status::into_http)
}

fn rename(refusal: &Status) -> Option<Status> {
    match refusal.code() {
        Code::Internal => {
            let path = refusal.message().strip_prefix(NOT_DECODED)?;
            Some(status::undecodable(field(path), path))
        }
        Code::OutOfRange if refusal.message().starts_with(TOO_LARGE) => Some(status::too_large(refusal.message())),
        _ => None,
    }
}

/// The innermost field of `Message.field: Message.field: problem`.
fn field(path: &str) -> Option<&str> {
    let fields = path.split(": ").map_while(|part| {
        let (message, field) = part.split_once('.')?;
        let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (word(message) && word(field)).then_some(field)
    });
    // The codec reports a oneof by its own name. These are the fields with the text.
    fields.last().map(|field| match field {
        "to" => "recipient",
        "conversation" => "partner",
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use proto::chat::v1 as pb;

    /// The codec's error for these bytes, replaced.
    fn refusal<M: prost::Message + Default>(bytes: &[u8]) -> Status {
        let error = M::decode(bytes).err().expect("not a message");
        rename(&Status::internal(error.to_string())).expect("renamed")
    }

    fn wrong_field(status: &Status) -> Option<String> {
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        details.bad_request().map(|bad| bad.field_violations[0].field.clone())
    }

    /// A message whose only field, `number`, holds a byte that is not UTF-8.
    fn not_utf8(number: u8) -> [u8; 3] {
        [number << 3 | 2, 1, 0xff]
    }

    #[test]
    fn text_that_is_not_utf8_is_blamed_on_its_field() {
        let of = |number| wrong_field(&refusal::<pb::SendMessageRequest>(&not_utf8(number)));
        assert_eq!(of(1).as_deref(), Some("recipient"));
        assert_eq!(of(3).as_deref(), Some("body"));
        assert_eq!(wrong_field(&refusal::<pb::ReadConversationRequest>(&not_utf8(1))).as_deref(), Some("partner"));
        assert_eq!(wrong_field(&refusal::<pb::LoginRequest>(&not_utf8(1))).as_deref(), Some("username"));
    }

    #[test]
    fn garbage_is_the_callers_mistake() {
        assert_eq!(wrong_field(&refusal::<pb::LoginRequest>(&[0xff; 20])), None);
    }

    #[test]
    fn only_the_codecs_refusals_are_renamed() {
        assert!(rename(&Status::internal("else")).is_none());
        assert!(rename(&Status::out_of_range("else")).is_none());
        let large = rename(&Status::out_of_range(format!("{TOO_LARGE}: found 10 bytes"))).expect("renamed");
        assert_eq!(large.code(), Code::ResourceExhausted);
        assert!(large.get_error_details().error_info().is_some_and(|info| info.reason == "REQUEST_TOO_LARGE"));
    }
}
