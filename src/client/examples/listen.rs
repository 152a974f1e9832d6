//! Prints what happens in the conversations of an account:
//! `cargo run -p quorum-chat-client --example listen -- NODES NAME PASSWORD`.
//!
//! The stream goes on while nodes stop and start. A program that ends keeps [`EventStream::cursor`], and passes it to
//! [`Client::events`] when it starts again: then it misses nothing.
//!
//! [`EventStream::cursor`]: quorum_chat_client::EventStream::cursor

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::env;

use quorum_chat_client::{Client, EventKind, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [nodes, name, password] = &arguments[..] else {
        return Err("usage: listen NODES NAME PASSWORD".into());
    };
    let client = Client::connect(nodes.split(',').map(str::to_owned), Options::default()).await?;
    client.login(name, password).await?;
    let mut events = client.events(None);
    while let Some(event) = events.next().await {
        match event?.kind {
            EventKind::Message(message) => println!("{}: {}", message.sender, message.body),
            EventKind::Receipt(receipt) => {
                println!(
                    "({} received up to {}, read up to {})",
                    receipt.member, receipt.delivered_seq, receipt.read_seq
                );
            }
            EventKind::Deletion(deletion) => println!("({} messages were deleted)", deletion.seqs.len()),
            EventKind::AccountDeleted(gone) => println!("({} has left)", gone.member),
        }
    }
    Ok(())
}
