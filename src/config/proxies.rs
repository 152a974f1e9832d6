//! The trusted proxies in front of the node.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::parse::{Checker, Raw};
use crate::net::proxies::Proxies;

/// Most networks of proxies, as each caller's address is compared with all of them.
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
            item.parse().ok().map(canonical).or_else(|| item.parse().ok().map(|ip: IpAddr| ip.to_canonical().into()))
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

/// Converts a network of IPv4-mapped IPv6 addresses to IPv4, because callers are identified by their IPv4 addresses.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let mapped = match network {
        IpNet::V6(network) => network.addr().to_ipv4_mapped().zip(network.prefix_len().checked_sub(MAPPED_BITS)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(address, bits)| IpNet::new(address.into(), bits).ok()).unwrap_or(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_networks_are_those_of_ipv4() {
        let as_known = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(as_known("::ffff:0:0/96"), "0.0.0.0/0");
        assert_eq!(as_known("::ffff:10.1.0.0/112"), "10.1.0.0/16");
        for other in ["::/0", "::ffff:0:0/95", "2001:db8::/32", "10.0.0.0/8"] {
            assert_eq!(as_known(other), other.parse::<IpNet>().unwrap().to_string());
        }
    }
}
