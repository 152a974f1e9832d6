//! `chatctl certs`: certificates for operators without their own certificate authority.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use serde_json::json;

use crate::{context::Context, failure::Failure};
use net::tls::issue::{Authority, IssueError};

/// Additional names in every node's certificate, for clients on the same machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Create a certificate authority, if there is none, and certificates for nodes (NODE.pem, NODE.key), valid for the
/// node's name, localhost and further hosts
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory for the files; the authority is ca.pem and ca.key (keep ca.key secret)
    dir: PathBuf,
    /// Names of nodes, with further host names and addresses if needed, such as n1=n1.example.org,10.0.0.1
    #[arg(required = true, value_name = "NODE[=HOST,...]")]
    named: Vec<NodeHosts>,
    /// Validity of the certificates in days
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
}

/// A node and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeHosts {
    name: String,
    /// Further names and addresses.
    hosts: Vec<String>,
}

impl FromStr for NodeHosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hosts) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() || name.contains(['/', ',']) || name == "ca" {
            return Err(format!("{name:?} is no name of a node"));
        }
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), hosts })
    }
}

pub(super) fn run(context: &mut Context, Arguments { dir, named, days }: Arguments) -> Result<(), Failure> {
    let failed = |error: IssueError| Failure::Usage(error.to_string());
    let authority = Authority::open(&dir).map_err(failed)?;
    let ca = dir.join("ca.pem");
    let verb = if authority.is_new() { "made" } else { "kept" };
    context.output.print(
        || json!({ "authority": ca.display().to_string(), "new": authority.is_new() }),
        || format!("{}: {verb}", ca.display()),
    )?;
    for node in named {
        let mut hosts = vec![node.name.clone()];
        for host in LOCAL.into_iter().map(str::to_owned).chain(node.hosts) {
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
