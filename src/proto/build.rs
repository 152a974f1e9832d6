//! Generates the gRPC code from `proto/` with a compiler written in Rust: nothing has to be installed for it.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const PROTO: &str = "../../proto";
const PROTOS: [&str; 6] = [
    "chat/v1/chat.proto",
    "chat/v1/cluster.proto",
    "chat/v1/admin.proto",
    "chat/v1/accounts.proto",
    "raft/v1/raft.proto",
    "log/v1/command.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let all = protox::compile(PROTOS, [PROTO])?;
    // Reflection is for clients: what the nodes say to each other is not part of it.
    let public = protox::compile(&PROTOS[..2], [PROTO])?;
    fs::write(out.join("public_descriptors.bin"), public.encode_to_vec())?;
    // With the comments: a test sees to it that there is one for everything.
    fs::write(out.join("all_descriptors.bin"), all.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&all))?;
    tonic_prost_build::configure()
        // Payloads are handed on as reference-counted slices of what was received, not copied.
        .bytes(".log.v1.Entry.batch")
        .bytes(".raft.v1.SnapshotChunk.data")
        .compile_fds(all)?;
    Ok(())
}

/// Returns the Rust code of a list of the methods of `chat.v1`, by their full names.
fn methods(files: &FileDescriptorSet) -> String {
    let public = files.file.iter().filter(|file| file.package() == "chat.v1");
    let services = public.flat_map(|file| &file.service);
    let full = services.flat_map(|service| {
        service.method.iter().map(|method| format!("chat.v1.{}/{}", service.name(), method.name()))
    });
    format!("&{:?}", full.collect::<Vec<_>>())
}
