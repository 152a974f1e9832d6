//! The trusted proxies in front of the node.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{checker::Checker, formats::List, table::Parsed};
use net::proxies::Proxies;

/// Addresses and networks of proxies. Each caller's address is compared with all of them.
pub(super) const NETWORKS: List<IpNet> = List {
    item: |text| {
        let network = text.parse().ok().map(canonical);
        network.or_else(|| text.parse().ok().map(|ip: IpAddr| ip.to_canonical().into()))
    },
    max: 64,
    what: "addresses or networks separated by commas, such as 10.0.0.7,192.0.2.0/24",
};

impl Checker {
    /// The proxies. It is a mistake to expect the protocol from none.
    pub(super) fn proxies(&mut self, parsed: &Parsed) -> Option<Arc<Proxies>> {
        let (networks, speak_first) = (parsed.trusted_proxies.clone()?, parsed.proxy_protocol?);
        if speak_first && networks.is_empty() {
            self.mistake("PROXY_PROTOCOL", "1", "0, or the addresses of the proxies in CHAT_TRUSTED_PROXIES");
            return None;
        }
        Some(Arc::new(Proxies { networks, speak_first }))
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
