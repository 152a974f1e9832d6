//! Parses strings into a checked [`Config`], and collects all mistakes.
//!
//! Each value is parsed separately first. Checks between values use only those that parsed, so that one wrong key
//! neither hides nor causes another mistake.

use std::net::SocketAddr;

use super::{
    Config, ConfigErrors, Mistake,
    checker::Checker,
    formats::Listen,
    keys::{self, Fallback},
    otel,
    table::{Loaded, Parsed},
};

pub(super) fn load(source: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
    let source: Vec<(String, String)> = source.into_iter().collect();
    let mut checker = Checker::select(&source);
    let config = checker.check();
    let traced = otel::load(&source, config.as_ref().map_or("", |config| &config.name));
    checker.mistakes.extend(traced.mistakes);
    match config {
        Some(config) if checker.mistakes.is_empty() => {
            Ok(Config { warnings: checker.warnings, traces: traced.settings, otel: traced.effective, ..config })
        }
        _ => Err(ConfigErrors(checker.mistakes)),
    }
}

pub(super) fn metrics_listen(source: impl IntoIterator<Item = (String, String)>) -> Result<SocketAddr, Mistake> {
    const NAME: &str = "METRICS_LISTEN";
    let source: Vec<(String, String)> = source.into_iter().collect();
    let mut checker = Checker::select(&source);
    let default = keys::find(NAME).map_or(Fallback::Fixed(""), |key| key.default);
    let listen = checker.value(NAME, default, &Listen { advertised: true });
    listen.ok_or_else(|| checker.mistakes.remove(0))
}

impl Checker {
    /// Parses each key, derives the defaults that depend on others, and checks what has to fit together. `None` only
    /// after a mistake.
    fn check(&mut self) -> Option<Config> {
        let mut parsed = Parsed::read(self);
        self.name(&mut parsed);
        self.listeners(&mut parsed);
        let own_entry = self.own_entry(&parsed);
        self.advertised(&mut parsed, own_entry.as_deref());
        self.founders(&mut parsed);
        self.secret_files(&mut parsed);
        self.protection(&parsed);
        self.timing(&parsed);
        let (tls, peer_tls) = (self.tls(&parsed), self.peer_tls(&parsed));
        self.open_listeners(&parsed, tls.is_some());
        let proxies = self.proxies(&parsed)?;
        parsed.complete(Loaded { tls, peer_tls, proxies })
    }
}
