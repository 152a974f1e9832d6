//! What protects the peer port of a node.
//!
//! A node that has other members starts only with a secret of all nodes or with certificates, unless the configuration says
//! that every host is to be trusted; then the log and a metric say so.

use std::sync::Arc;

use super::ServerError;
use crate::{
    blocking,
    config::Config,
    net::{
        Dialer,
        tls::{Tls, TlsError},
    },
    telemetry::metrics::Metrics,
};

/// The certificates of the peer port: the configured ones, or some made from the secret.
pub(super) async fn peer_tls(config: &Config) -> Result<Option<Arc<Tls>>, ServerError> {
    if let Some(tls) = &config.peer_tls {
        return Ok(Some(Arc::clone(tls)));
    }
    let Some(secrets) = config.peer_secrets.clone() else { return Ok(None) };
    let file = config.peer_secret_file.clone();
    let made = blocking::run(move || Tls::shared(secrets, file)).await;
    Ok(Some(made.map_err(|error| ServerError::Task(error.to_string()))??))
}

/// How this node connects to the others.
pub(super) fn dialer(tls: Option<&Arc<Tls>>, plain: impl FnOnce() -> Dialer) -> Result<Dialer, TlsError> {
    match tls {
        Some(tls) => Ok(tls.connector()?.into()),
        None => Ok(plain()),
    }
}

/// Refuses to run without protection when other hosts reach the port or the configuration names other nodes. True: every host is
/// trusted. Members that only the data directory knows are looked for later, when Raft has read its log.
pub(super) fn check(config: &Config, is_protected: bool, metrics: &Metrics) -> Result<bool, ServerError> {
    let has_others = config.initial_nodes.len() > 1 || config.join.is_some();
    let is_exposed = !is_protected && (has_others || !config.peer_listen.ip().is_loopback());
    if is_exposed && !config.insecure_peers {
        return Err(ServerError::Unprotected);
    }
    let is_trusting = !is_protected && config.insecure_peers;
    metrics.set_peers_insecure(is_trusting);
    if is_trusting {
        tracing::warn!(
            address = %config.peer_listen,
            "The peer port is not protected (CHAT_INSECURE_PEERS=1): any host that reaches it can read and change \
             everything, and become a member"
        );
    }
    Ok(is_trusting)
}
