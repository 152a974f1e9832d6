//! Sends one message:
//! `cargo run -p quorum-chat-client --example send -- NODES NAME PASSWORD RECIPIENT TEXT`.
//!
//! `NODES` are addresses of nodes, separated by commas; some of them are enough.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::env;

use quorum_chat_client::{Client, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [nodes, name, password, recipient, text] = &arguments[..] else {
        return Err("usage: send NODES NAME PASSWORD RECIPIENT TEXT".into());
    };
    let client = Client::connect(nodes.split(',').map(str::to_owned), Options::default()).await?;
    client.login(name, password).await?;
    let sent = client.send_message(recipient, text).await?;
    println!("on disk on a majority of the nodes, as number {} of the conversation", sent.seq);
    client.logout(false).await?;
    Ok(())
}
