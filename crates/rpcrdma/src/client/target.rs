//! What a client connects to: `nfs://host[:port][,host[:port]...]/path`.

use std::{fmt, net::IpAddr, str::FromStr};

/// A server, or several with the same files, and a path on it. The text form is `nfs://host[:port][,host[:port]...]/path`:
/// each host has its own port, an IPv6 address stands in brackets, and `%xx` stands for the byte with that value, for
/// the path's odd characters.
///
/// Several hosts are for gateways over the same files, whose file handles are the same. One of them is used at a time,
/// the first if it is there; the next one takes over when it cannot be reached or does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// NFS port, if it is not the default of the transport.
    pub port: Option<u16>,
    /// Further hosts with the same files, and their ports.
    pub also: Vec<(String, Option<u16>)>,
    /// Absolute path on the server.
    pub path: Vec<u8>,
}

impl Target {
    /// A path on one server.
    #[must_use]
    pub fn new(host: impl Into<String>, port: Option<u16>, path: impl Into<Vec<u8>>) -> Self {
        Self { host: host.into(), port, also: Vec::new(), path: path.into() }
    }

    /// All hosts and their ports, in the order in which they are tried.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, Option<u16>)> {
        let also = self.also.iter().map(|(host, port)| (host.as_str(), *port));
        std::iter::once((self.host.as_str(), self.port)).chain(also)
    }

    /// The hosts as they stand in a URL.
    #[must_use]
    pub fn authority(&self) -> String {
        let one = |(host, port): (&str, Option<u16>)| {
            let host = match host.parse::<IpAddr>() {
                Ok(IpAddr::V6(a)) => format!("[{a}]"),
                _ => host.to_owned(),
            };
            port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
        };
        self.hosts().map(one).collect::<Vec<_>>().join(",")
    }
}

/// Text that is not an NFS URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseTargetError {
    text: String,
    why: &'static str,
}

impl fmt::Display for ParseTargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a URL of the form nfs://host[:port][,host[:port]...]/path: {}",
            self.text, self.why
        )
    }
}

impl std::error::Error for ParseTargetError {}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        let fail = |why| ParseTargetError { text: text.to_owned(), why };
        let rest = text.strip_prefix("nfs://").ok_or_else(|| fail("it does not start with nfs://"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mut hosts = authority.split(',').map(|text| parse_host(text).map_err(fail));
        let (host, port) = hosts.next().unwrap_or(Err(fail(NO_HOST)))?;
        let also = hosts.collect::<Result<_, _>>()?;
        let path = if path.is_empty() {
            b"/".to_vec()
        } else {
            unescape(path).ok_or_else(|| fail("a % is not followed by two hex digits"))?
        };
        if path.contains(&0) {
            return Err(fail("the path contains a zero byte"));
        }
        Ok(Self { host, port, also, path })
    }
}

const NO_HOST: &str = "the host is missing";

/// Reads one `host[:port]`.
fn parse_host(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("the bracket is not closed")?;
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or("text follows the bracket")?),
        };
        (host, port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err(NO_HOST);
    }
    let number = |p: &str| p.parse().ok().filter(|p| *p != 0);
    let port = match port {
        None => None,
        Some(p) => Some(number(p).ok_or("the port is not a number from 1 to 65535")?),
    };
    Ok((host.to_owned(), port))
}

fn unescape(path: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        out.push(if b == b'%' {
            let digit = |b: Option<u8>| (b? as char).to_digit(16);
            (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
        } else {
            b
        });
    }
    Some(out)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs://{}", self.authority())?;
        for &b in &self.path {
            if b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&b) {
                write!(f, "{}", b as char)?;
            } else {
                write!(f, "%{b:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_round_trip() {
        for (text, host, port, path) in [
            ("nfs://server/export/dir", "server", None, &b"/export/dir"[..]),
            ("nfs://server:20050/x", "server", Some(20050), b"/x"),
            ("nfs://127.0.0.1:1/", "127.0.0.1", Some(1), b"/"),
            ("nfs://[::1]:20049/a%20b", "::1", Some(20049), b"/a b"),
            ("nfs://[fe80::2]/%FF%25", "fe80::2", None, b"/\xff%"),
        ] {
            let t: Target = text.parse().unwrap();
            assert_eq!((t.host.as_str(), t.port, t.path.as_slice()), (host, port, path));
            assert_eq!(t.to_string(), text);
        }
        assert_eq!("nfs://server".parse::<Target>().unwrap().path, b"/");
    }

    #[test]
    fn several_hosts_have_their_own_ports() {
        let text = "nfs://a,b:20050,[::1]:3,[fe80::2]/x";
        let t: Target = text.parse().unwrap();
        let hosts: Vec<_> = t.hosts().collect();
        assert_eq!(hosts, [("a", None), ("b", Some(20050)), ("::1", Some(3)), ("fe80::2", None)]);
        assert_eq!((t.to_string().as_str(), t.path.as_slice()), (text, &b"/x"[..]));
        assert_eq!("nfs://a/x".parse::<Target>().unwrap(), Target::new("a", None, "/x"));
    }

    #[test]
    fn other_text_is_refused_with_a_reason() {
        for bad in [
            "server:/x",
            "nfs:///x",
            "nfs://h:0/x",
            "nfs://h:99999/",
            "nfs://h:x/",
            "nfs://[::1/x",
            "nfs://[::1]x/",
            "nfs://h/%2",
            "nfs://h/%00",
            "nfs://a,/x",
            "nfs://,a/x",
            "nfs://a,,b/x",
            "nfs://a,b:0/x",
        ] {
            let e = bad.parse::<Target>().unwrap_err().to_string();
            assert!(e.contains(bad), "{e}");
        }
    }
}
