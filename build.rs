//! Generates the gRPC code from `proto/` with a compiler written in Rust: nothing has to be installed for it.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 6] = [
    "chat/v1/chat.proto",
    "chat/v1/cluster.proto",
    "chat/v1/admin.proto",
    "chat/v1/accounts.proto",
    "raft/v1/raft.proto",
    "log/v1/command.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let all = protox::compile(PROTOS, ["proto"])?;
    // Reflection is for clients: what the nodes say to each other is not part of it.
    let public = protox::compile(&PROTOS[..2], ["proto"])?;
    fs::write(out.join("public_descriptors.bin"), public.encode_to_vec())?;
    // With the comments: a test sees to it that there is one for everything.
    fs::write(out.join("all_descriptors.bin"), all.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads are handed on as reference-counted slices of what was received, not copied.
        .bytes(".log.v1.Entry.batch")
        .bytes(".raft.v1.SnapshotChunk.data")
        .compile_fds(all)?;
    Ok(())
}
