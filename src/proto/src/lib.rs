//! The generated protocol types of the files in `proto/`, and the connection that their clients use.

mod channel;
mod framing;

pub use channel::Channel;
pub use channel::make_readable;
pub use framing::{PREFIX_BYTES, framed};

/// The public protocol: `proto/chat/v1`.
pub mod chat {
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("chat.v1");
    }
}

/// The protocol between the nodes: `proto/raft/v1`.
pub mod raft {
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("raft.v1");
    }
}

/// The records on disk: `proto/log/v1`.
pub mod log {
    #[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("log.v1");
    }
}

/// Every method of `chat.v1`, as `chat.v1.ChatService/SendMessage`, from the descriptors.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Descriptors of the public protocol, for gRPC reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
