//! `chatctl certs`: certificates for operators without their own certificate authority.

use std::path::Path;

use serde_json::json;

use super::{
    ctl::{Context, Failure},
    ctl_args::NodeHosts,
};
use crate::net::tls::issue::Authority;

/// Additional names in every node's certificate, for clients on the same machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

pub(super) fn certs(context: &mut Context, dir: &Path, nodes: &[NodeHosts], days: u64) -> Result<(), Failure> {
    let failed = |error: crate::net::tls::issue::IssueError| Failure::Usage(error.to_string());
    let authority = Authority::open(dir).map_err(failed)?;
    let ca = dir.join("ca.pem");
    let verb = if authority.is_new() { "made" } else { "kept" };
    context.output.print(
        || json!({ "authority": ca.display().to_string(), "new": authority.is_new() }),
        || format!("{}: {verb}", ca.display()),
    )?;
    for node in nodes {
        let mut hosts = vec![node.name.clone()];
        let more = LOCAL.into_iter().map(str::to_owned).chain(node.hosts.iter().cloned());
        for host in more {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let files = authority.issue(&node.name, &hosts, days).map_err(failed)?;
        context.output.print(
            || {
                json!({ "node": node.name, "certificate": files.certificate.display().to_string(),
                        "key": files.key.display().to_string(), "hosts": hosts, "days": days })
            },
            || format!("{}: for {}, {days} days", files.certificate.display(), hosts.join(", ")),
        )?;
    }
    Ok(())
}
