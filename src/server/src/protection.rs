//! Protection of a node's peer port.
//!
//! A node with other members starts only with a secret that all nodes share or with certificates, unless the
//! configuration trusts every host. In that case a log line and a metric report it.

use std::sync::Arc;

use super::ServerError;
use crate::{config::Config, telemetry::metrics::Metrics};
use net::{
    Dialer,
    tls::{Tls, TlsError},
};
use trace::blocking;

/// The certificates of the peer port: the configured ones, or those derived from the secret.
pub(super) async fn peer_tls(config: &Config) -> Result<Option<Arc<Tls>>, ServerError> {
    if let Some(tls) = &config.peer_tls {
        return Ok(Some(Arc::clone(tls)));
    }
    let Some(secrets) = config.peer_secrets.clone() else { return Ok(None) };
    let file = config.peer_secret_file.clone();
    let made = blocking::run(move || Tls::shared(secrets, file)).await;
    Ok(Some(made.map_err(|error| ServerError::Task(error.to_string()))??))
}

/// The dialer for connections to the other nodes.
pub(super) fn dialer(tls: Option<&Arc<Tls>>, plain: impl FnOnce() -> Dialer) -> Result<Dialer, TlsError> {
    match tls {
        Some(tls) => Ok(tls.connector()?.into()),
        None => Ok(plain()),
    }
}

/// Rejects an unprotected peer port if other hosts can reach it or the configuration names other nodes. Returns whether
/// every host is trusted. Members that only the data directory contains are checked later, when Raft has read its log.
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
