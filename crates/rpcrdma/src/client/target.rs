//! What a client connects to: `nfs://host[:port]/path`.

use std::{fmt, net::IpAddr, str::FromStr};

/// A server and a path on it. The text form is `nfs://host[:port]/path`; an IPv6 address stands in brackets, and `%xx`
/// stands for the byte with that value, for the path's odd characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// NFS port, if it is not the default of the transport.
    pub port: Option<u16>,
    /// Absolute path on the server.
    pub path: Vec<u8>,
}

/// Text that is not an NFS URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseTargetError {
    text: String,
    why: &'static str,
}

impl fmt::Display for ParseTargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a URL of the form nfs://host[:port]/path: {}", self.text, self.why)
    }
}

impl std::error::Error for ParseTargetError {}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        let fail = |why| ParseTargetError { text: text.to_owned(), why };
        let rest = text.strip_prefix("nfs://").ok_or_else(|| fail("it does not start with nfs://"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(|| fail("the bracket is not closed"))?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(|| fail("text follows the bracket"))?),
            };
            (host, port)
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() {
            return Err(fail("the host is missing"));
        }
        let port = match port {
            None => None,
            Some(p) => Some(
                p.parse()
                    .ok()
                    .filter(|p| *p != 0)
                    .ok_or_else(|| fail("the port is not a number from 1 to 65535"))?,
            ),
        };
        let path = if path.is_empty() {
            b"/".to_vec()
        } else {
            unescape(path).ok_or_else(|| fail("a % is not followed by two hex digits"))?
        };
        if path.contains(&0) {
            return Err(fail("the path contains a zero byte"));
        }
        Ok(Self { host: host.to_owned(), port, path })
    }
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
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(a)) => write!(f, "nfs://[{a}]")?,
            _ => write!(f, "nfs://{}", self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
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
        ] {
            let e = bad.parse::<Target>().unwrap_err().to_string();
            assert!(e.contains(bad), "{e}");
        }
    }
}
