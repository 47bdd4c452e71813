//! Where to listen, as people write it: `PORT`, `:PORT`, `HOST`, `HOST:PORT`, with IPv6 addresses in brackets where a
//! port follows.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    str::FromStr,
};

/// A host, or all addresses of this machine; a port, or the default one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenAt {
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
}

impl ListenAt {
    /// Binds to the first address that can be had. All addresses are IPv6 with IPv4, or else IPv4 alone.
    ///
    /// # Errors
    /// What went wrong, and where: with the name, where it cannot be resolved.
    pub(crate) fn bind<L>(
        &self,
        default_port: u16,
        bind: impl Fn(SocketAddr) -> io::Result<L>,
    ) -> Result<L, (String, io::Error)> {
        let port = self.port.unwrap_or(default_port);
        let candidates: Vec<SocketAddr> = match &self.host {
            None => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
            Some(host) => (host.as_str(), port).to_socket_addrs().map_err(|e| (host.clone(), e))?.collect(),
        };
        let mut failed = None;
        for addr in candidates {
            match bind(addr) {
                Ok(listener) => return Ok(listener),
                // Another server has the port: to share its machine with it would only confuse clients.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err((addr.to_string(), e)),
                Err(e) => failed = Some((addr.to_string(), e)),
            }
        }
        Err(failed.unwrap_or_else(|| (self.to_string(), io::ErrorKind::AddrNotAvailable.into())))
    }
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a port from 0 to 65535"));
        let host = |host: &str| Some(host.to_owned()).filter(|h| !h.is_empty());
        if let Some(ip) = literal(text) {
            return Ok(Self { host: Some(ip), port: None });
        }
        if let Some(inner) = text.strip_prefix('[') {
            let (ip, after) = inner.split_once(']').ok_or("the bracket is not closed")?;
            let ip = literal(ip).filter(|ip| ip.contains(':'));
            let ip = ip.ok_or_else(|| format!("{text:?} has no IPv6 address in its brackets"))?;
            let port = match after.strip_prefix(':') {
                None if after.is_empty() => None,
                None => return Err("only :PORT may follow the bracket".to_owned()),
                Some(text) => Some(port(text)?),
            };
            return Ok(Self { host: Some(ip), port });
        }
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                Err("an IPv6 address with a port needs brackets".to_owned())
            }
            Some((name, text)) => Ok(Self { host: host(name), port: Some(port(text)?) }),
            None if text.is_empty() => Err("it is empty".to_owned()),
            None if text.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Self { host: None, port: Some(port(text)?) })
            }
            None => Ok(Self { host: host(text), port: None }),
        }
    }
}

/// An address that is no name: of IPv6 perhaps with the interface that it is good for, as in `fe80::1%eth0`.
fn literal(text: &str) -> Option<String> {
    match text.split_once('%') {
        Some((ip, scope)) => {
            let ip: Ipv6Addr = ip.parse().ok()?;
            (!scope.is_empty()).then(|| format!("{ip}%{scope}"))
        }
        None => text.parse().ok().map(|ip: IpAddr| ip.to_string()),
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host.as_deref().unwrap_or("all addresses"))?;
        self.port.map_or(Ok(()), |port| write!(f, ", port {port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms() {
        let cases = [
            ("20049", None, Some(20049)),
            (":0", None, Some(0)),
            ("127.0.0.1", Some("127.0.0.1"), None),
            ("127.0.0.1:7", Some("127.0.0.1"), Some(7)),
            ("::1", Some("::1"), None),
            ("[::1]", Some("::1"), None),
            ("[::1]:7", Some("::1"), Some(7)),
            ("fe80::1%lo", Some("fe80::1%lo"), None),
            ("[fe80::1%lo]", Some("fe80::1%lo"), None),
            ("[fe80::1%2]:7", Some("fe80::1%2"), Some(7)),
            ("localhost", Some("localhost"), None),
            ("localhost:7", Some("localhost"), Some(7)),
        ];
        for (text, host, port) in cases {
            let want = ListenAt { host: host.map(str::to_owned), port };
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in ["", "host:", "host:x", ":70000", "70000", "[::1", "[::1]7", "[1.2.3.4]:7", "a:b:c"] {
            assert!(text.parse::<ListenAt>().is_err(), "{text}");
        }
        for text in ["[fe80::1%]:7", "[1.2.3.4%lo]:7", "[%lo]:7", "fe80::1%", "[lo%fe80::1]"] {
            assert!(text.parse::<ListenAt>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_of_a_link_is_bound_with_its_interface() {
        let at: ListenAt = "[fe80::1%lo]:7".parse().unwrap();
        let Ok(SocketAddr::V6(bound)) = at.bind(9, Ok) else { panic!("no address of IPv6") };
        assert_eq!((bound.ip().to_string().as_str(), bound.port()), ("fe80::1", 7));
        assert_ne!(bound.scope_id(), 0);
        let nowhere: ListenAt = "fe80::1%no-such-interface".parse().unwrap();
        assert_eq!(nowhere.bind(9, Ok).err().map(|(at, _)| at).as_deref(), Some("fe80::1%no-such-interface"));
    }

    #[test]
    fn the_second_address_is_tried_when_the_first_does_not_exist_but_not_when_it_is_taken() {
        let all = ListenAt { host: None, port: None };
        let bound = all.bind(7, |a| if a.is_ipv4() { Ok(a) } else { Err(io::ErrorKind::Unsupported.into()) });
        assert_eq!(bound.ok(), Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7))));
        let taken = all.bind(7, |_| Err::<(), _>(io::ErrorKind::AddrInUse.into()));
        assert_eq!(taken.err().map(|(at, _)| at).as_deref(), Some("[::]:7"));
        let local = ListenAt { host: Some("localhost".to_owned()), port: Some(9) };
        assert!(local.bind(7, Ok).is_ok_and(|a| a.ip().is_loopback() && a.port() == 9));
    }
}
