//! Which addresses a registry may send us to. A redirect or a token realm must not reach into the machine or the
//! network around it, unless the registry lives there itself.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// How far an address can be reached from, wide to narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reach {
    Public = 0,
    /// RFC 1918, RFC 6598, unique local.
    Private = 1,
    /// This machine, however written.
    Loopback = 2,
    /// Link-local (metadata services), multicast, broadcast, reserved.
    Link = 3,
}

impl Reach {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let octets = address.octets();
                if address.is_loopback() || octets[0] == 0 {
                    Self::Loopback
                } else if address.is_link_local() || octets[0] >= 224 || octets[..3] == [192, 0, 0] {
                    Self::Link
                } else if address.is_private() || (octets[0] == 100 && octets[1] & 0xc0 == 64) {
                    Self::Private
                } else {
                    Self::Public
                }
            }
            IpAddr::V6(address) => {
                if address.is_loopback() || address.is_unspecified() {
                    Self::Loopback
                } else if address.is_unicast_link_local() || address.is_multicast() {
                    Self::Link
                } else if address.is_unique_local() {
                    Self::Private
                } else if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
                    // NAT64 leads to the address inside.
                    Self::of(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)).into())
                } else {
                    Self::Public
                }
            }
        }
    }

    const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Public,
            1 => Self::Private,
            2 => Self::Loopback,
            _ => Self::Link,
        }
    }
}

/// The address of a URL's host, if it is written as one.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Whether a URL names this machine in its own text.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        _ => literal(url).is_some_and(|address| Reach::of(address) == Reach::Loopback),
    }
}

/// A name or address that a registry pointed at, but must not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused to follow to {0}: it is on a private, loopback or link-local address and the registry is not")]
pub(super) struct Refused(pub(super) String);

/// Where one upstream is, hence where it may point.
#[derive(Debug)]
pub(super) struct Guard {
    /// Where the upstream was at its last look-up.
    home: AtomicU8,
    allow_private: bool,
}

impl Guard {
    pub(super) fn new(upstream: &Url, allow_private: bool) -> Self {
        let home = match literal(upstream) {
            Some(address) => Reach::of(address),
            None if is_loopback(upstream) => Reach::Loopback,
            None => Reach::Public,
        };
        Self { home: AtomicU8::new(home as u8), allow_private }
    }

    pub(super) fn permits(&self, address: IpAddr) -> bool {
        let home = Reach::from_u8(self.home.load(Ordering::Relaxed));
        match Reach::of(address) {
            Reach::Public => true,
            Reach::Private => self.allow_private || matches!(home, Reach::Private | Reach::Loopback),
            target @ (Reach::Loopback | Reach::Link) => home == target,
        }
    }

    fn settle(&self, addresses: &[SocketAddr]) {
        let home = addresses.iter().map(|address| Reach::of(address.ip())).find(|reach| *reach != Reach::Public);
        self.home.store(home.unwrap_or(Reach::Public) as u8, Ordering::Relaxed);
    }
}

/// Looks up the upstream's own name and notes where it is.
#[derive(Debug)]
pub(super) struct HomeResolver {
    pub(super) guard: Arc<Guard>,
    pub(super) host: String,
}

impl Resolve for HomeResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = (name.as_str() == self.host).then(|| Arc::clone(&self.guard));
        Box::pin(async move {
            let addresses = lookup(name.as_str()).await?;
            // A proxy's name passes here too and says nothing about the upstream.
            if let Some(guard) = guard {
                guard.settle(&addresses);
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Looks up names that an upstream pointed at and drops the addresses that it may not point at. Behind a proxy the proxy looks
/// names up, and must guard its own network.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    pub(super) guard: Arc<Guard>,
    pub(super) proxies: Vec<String>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.guard);
        let is_proxy = self.proxies.iter().any(|proxy| proxy == name.as_str());
        Box::pin(async move {
            let mut addresses = lookup(name.as_str()).await?;
            if !is_proxy {
                addresses.retain(|address| guard.permits(address.ip()));
            }
            if addresses.is_empty() {
                return Err(Refused(name.as_str().to_owned()).into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

async fn lookup(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    let addresses: Vec<_> = tokio::net::lookup_host((name, 0)).await?.collect();
    if addresses.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Host names of the proxies that the environment sets: the operator chose them, they may be anywhere.
pub(super) fn proxy_names() -> Vec<String> {
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .filter_map(|variable| std::env::var(variable).ok())
        .filter_map(|value| {
            Url::parse(&value).or_else(|_| Url::parse(&format!("http://{value}"))).ok()?.host_str().map(str::to_owned)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn guard(upstream: &str, allow_private: bool) -> Guard {
        Guard::new(&Url::parse(upstream).unwrap(), allow_private)
    }

    fn permits(guard: &Guard, address: &str) -> bool {
        guard.permits(address.parse().unwrap())
    }

    #[test]
    fn a_public_registry_points_at_public_addresses_only() {
        let guard = guard("https://registry.example.com", false);
        for address in ["93.184.216.34", "2606:2800:220:1::1", "100.128.0.1", "172.32.0.1"] {
            assert!(permits(&guard, address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
        ] {
            assert!(!permits(&guard, address), "{address}");
        }
    }

    #[test]
    fn a_registry_may_point_at_its_own_kind_of_network() {
        let private = guard("https://10.0.0.1", false);
        assert!(permits(&private, "192.168.3.4"));
        assert!(!permits(&private, "127.0.0.1"));
        assert!(!permits(&private, "169.254.169.254"));
        let loopback = guard("http://127.0.0.1:5000", false);
        assert!(permits(&loopback, "127.0.0.2"));
        assert!(permits(&loopback, "10.0.0.1"));
        assert!(!permits(&loopback, "169.254.169.254"));
        let configured = guard("https://registry.example.com", true);
        assert!(permits(&configured, "10.0.0.1"));
        assert!(!permits(&configured, "127.0.0.1"));
        assert!(!permits(&configured, "169.254.169.254"));
    }

    #[tokio::test]
    async fn names_are_judged_by_the_addresses_behind_them() {
        let public =
            GuardedResolver { guard: Arc::new(guard("https://registry.example.com", false)), proxies: Vec::new() };
        let error = public.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.is::<Refused>(), "{error}");
        let proxied = GuardedResolver { proxies: vec!["localhost".to_owned()], ..public };
        assert!(proxied.resolve("localhost".parse().unwrap()).await.is_ok());
    }

    #[tokio::test]
    async fn a_registry_found_on_loopback_by_name_may_point_at_loopback() {
        let guard = Arc::new(guard("http://registry.example.com", false));
        assert!(!permits(&guard, "127.0.0.1"));
        let resolver = HomeResolver { guard: Arc::clone(&guard), host: "localhost".to_owned() };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok());
        assert!(permits(&guard, "127.0.0.1"));
    }
}
