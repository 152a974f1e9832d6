//! A bot that answers each message with the same text:
//! `cargo run -p quorum-chat-client --example bot -- NODES NAME PASSWORD`.
//!
//! It answers each message once, also when it is killed in between: the id of the answer is made from the id of the
//! message, and the service stores a message with the same id only once.

use std::env;

use quorum_chat_client::{Client, EventKind, Message, Options};
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [nodes, name, password] = &arguments[..] else {
        return Err("usage: bot NODES NAME PASSWORD".into());
    };
    // Deliveries are acknowledged after the answer, not when the message arrives.
    let options = Options { acknowledge: false, ..Options::default() };
    let client = Client::connect(nodes.split(',').map(str::to_owned), options).await?;
    client.login(name, password).await?;
    // Without a revision, the stream begins with the messages that were not acknowledged yet.
    let mut events = client.events(None);
    while let Some(event) = events.next().await {
        let EventKind::Message(message) = event?.kind else { continue };
        // Only own messages have it.
        if message.client_message_id.is_some() {
            continue;
        }
        let answer = format!("you said: {}", message.body);
        client.send_message_with_id(id_of_answer(&message), &message.sender, &answer).await?;
        client.acknowledge_delivery(&[(message.conversation_id, message.seq)]).await?;
    }
    Ok(())
}

/// A UUID that depends on nothing but the message (version 8: custom).
fn id_of_answer(message: &Message) -> Uuid {
    uuid::Builder::from_custom_bytes(u128::from(message.message_id).to_be_bytes()).into_uuid()
}
