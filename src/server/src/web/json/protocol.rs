//! The methods, and the conversion of their messages between JSON and bytes.

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MethodDescriptor, Value};
use serde::de::Error as _;
use tonic::Status;

use proto::PUBLIC_DESCRIPTORS;

/// The descriptors of the protocol files.
pub(super) struct Protocol {
    pool: DescriptorPool,
}

/// A method of the public services.
#[derive(Debug, Clone)]
pub(super) struct Method(MethodDescriptor);

impl Protocol {
    /// # Panics
    /// The compiled-in descriptors are broken.
    pub(super) fn new() -> Self {
        let mut pool = DescriptorPool::decode(PUBLIC_DESCRIPTORS).expect("made by the build");
        // The details of errors.
        pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET).expect("made by a library");
        Self { pool }
    }

    pub(super) fn method(&self, service: &str, name: &str) -> Option<Method> {
        let service = self.pool.get_service_by_name(service)?;
        let method = service.methods().find(|method| method.name() == name)?;
        // No method has a stream of requests.
        (!method.is_client_streaming()).then_some(Method(method))
    }

    /// A message of any known kind as JSON.
    pub(super) fn json(&self, name: &str, bytes: &[u8]) -> Option<serde_json::Value> {
        let descriptor = self.pool.get_message_by_name(name)?;
        let message = DynamicMessage::decode(descriptor, bytes).ok()?;
        serde_json::to_value(&message).ok()
    }
}

impl Method {
    /// The name as in the address: `SendMessage`.
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    pub(super) fn is_stream(&self) -> bool {
        self.0.is_server_streaming()
    }

    /// A request, from the canonical JSON of its message. An empty body is an empty message. Unknown fields are
    /// ignored, as those of later versions are in general.
    pub(super) fn read(&self, json: &[u8]) -> Result<DynamicMessage, serde_json::Error> {
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(DynamicMessage::new(self.0.input()));
        }
        let mut text = serde_json::Deserializer::from_slice(json);
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let message = DynamicMessage::deserialize_with_options(self.0.input(), &mut text, &options)?;
        text.end()?;
        if is_rounded(&message, json) {
            return Err(serde_json::Error::custom("a number is too large for its field"));
        }
        Ok(message)
    }

    /// An answer as the canonical JSON of its message.
    pub(super) fn decode(&self, message: &[u8]) -> Result<Vec<u8>, Status> {
        let broken =
            |error: &dyn std::fmt::Display| Status::internal(format!("the answer cannot be encoded as JSON: {error}"));
        let message = DynamicMessage::decode(self.0.output(), message).map_err(|error| broken(&error))?;
        serde_json::to_vec(&message).map_err(|error| broken(&error))
    }
}

/// Whether a number exceeds its field and was rounded to the largest value. 2^64 is the first number that is not a u64.
/// The library accepts it, because as a floating-point number it equals the largest u64.
fn is_rounded(message: &DynamicMessage, json: &[u8]) -> bool {
    fn has_largest(value: &Value) -> bool {
        match value {
            Value::U64(number) => *number == u64::MAX,
            Value::List(values) => values.iter().any(has_largest),
            Value::Message(message) => message.fields().any(|(_, value)| has_largest(value)),
            _ => false,
        }
    }
    let largest = u64::MAX.to_string();
    message.fields().any(|(_, value)| has_largest(value))
        && !json.windows(largest.len()).any(|part| part == largest.as_bytes())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use proto::chat::v1 as pb;

    fn encode(method: &str, json: &[u8]) -> Vec<u8> {
        self::method(method).read(json).unwrap().encode_to_vec()
    }

    fn method(name: &str) -> Method {
        Protocol::new().method("chat.v1.ChatService", name).expect("a method")
    }

    #[test]
    fn only_the_public_services_are_there() {
        let protocol = Protocol::new();
        for (service, name) in [
            ("chat.v1.AdminService", "RemoveNode"),
            ("raft.v1.RaftService", "Vote"),
            ("chat.v1.ChatService", "sendMessage"),
            ("grpc.health.v1.Health", "Check"),
        ] {
            assert!(protocol.method(service, name).is_none(), "{service}/{name}");
        }
        assert!(method("Subscribe").is_stream() && !method("Login").is_stream());
        assert!(protocol.method("chat.v1.ClusterService", "GetLeader").is_some());
    }

    #[test]
    fn requests_are_the_bytes_of_grpc() {
        let json = br#"{"recipient": "bob", "body": "h\u00ef\n", "clientMessageId": "x", "of a later version": [1]}"#;
        let expected = pb::SendMessageRequest {
            to: Some(pb::send_message_request::To::Recipient("bob".into())),
            body: "hï\n".into(),
            client_message_id: "x".into(),
        };
        assert_eq!(encode("SendMessage", json), expected.encode_to_vec());
        // The field names of the protocol files are accepted as well. Numbers that JavaScript cannot represent are
        // strings.
        let json = br#"{"after_revision": "18446744073709551615"}"#;
        let expected = pb::SubscribeRequest { after_revision: Some(u64::MAX), consistency: None };
        assert_eq!(encode("Subscribe", json), expected.encode_to_vec());
        assert_eq!(encode("Subscribe", br#"{"afterRevision": 18446744073709551615}"#), expected.encode_to_vec());
        for too_large in
            ["18446744073709551616", "\"18446744073709551616\"", "1.8446744073709552e19", "1e30", "-1", "0.5"]
        {
            for (method_name, json) in [
                ("Subscribe", format!(r#"{{"afterRevision": {too_large}}}"#)),
                ("DeleteMessages", format!(r#"{{"messageIds": [1, {too_large}]}}"#)),
                ("ListAccounts", format!(r#"{{"consistency": {{"atLeastRevision": {too_large}}}}}"#)),
            ] {
                assert!(method(method_name).read(json.as_bytes()).is_err(), "{json}");
            }
        }
        assert!(encode("Logout", b" ").is_empty());
        for bad in
            [&b"{"[..], b"[]", b"1", b"{} {}", br#"{"body": 1}"#, br#"{"recipient": "a", "conversationId": "1"}"#]
        {
            assert!(method("SendMessage").read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn answers_are_canonical() {
        let answer = pb::SendMessageResponse { message_id: u64::MAX, seq: 1, ..Default::default() };
        let json: serde_json::Value =
            serde_json::from_slice(&method("SendMessage").decode(&answer.encode_to_vec()).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "messageId": "18446744073709551615", "seq": "1" }));
        assert!(method("SendMessage").decode(b"\xff").is_err());
    }
}
