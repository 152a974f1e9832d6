//! Which proxies in front of the node are trusted.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::parse::{Checker, Raw};
use crate::net::proxies::Proxies;

/// Most networks of proxies: each caller's address is compared with all of them.
const NETWORKS_MAX: usize = 64;

impl Checker {
    /// Checks both keys.
    pub(super) fn proxies(&mut self, raw: &mut Raw) -> Option<Arc<Proxies>> {
        let networks = self.networks(raw.trusted_proxies.take());
        let speak_first = self.switch("PROXY_PROTOCOL", raw.proxy_protocol.take());
        let (networks, speak_first) = (networks?, speak_first?);
        if speak_first && networks.is_empty() {
            self.mistake("PROXY_PROTOCOL", "1", "0, or the addresses of the proxies in CHAT_TRUSTED_PROXIES");
            return None;
        }
        Some(Arc::new(Proxies { networks, speak_first }))
    }

    fn networks(&mut self, value: Option<String>) -> Option<Vec<IpNet>> {
        let Some(text) = value else { return Some(Vec::new()) };
        let network = |item: &str| {
            let item = item.trim();
            item.parse().ok().or_else(|| item.parse().ok().map(|ip: IpAddr| IpNet::from(ip.to_canonical())))
        };
        let networks: Option<Vec<IpNet>> = text.split(',').map(network).collect();
        let networks = networks.filter(|networks| networks.len() <= NETWORKS_MAX);
        if networks.is_none() {
            let expected =
                format!("1-{NETWORKS_MAX} addresses or networks separated by commas, such as 10.0.0.7,192.0.2.0/24");
            self.mistake("TRUSTED_PROXIES", &text, expected);
        }
        networks
    }
}
