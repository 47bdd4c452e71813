//! rpcbind, program 100000: which port serves which program (RFC 1833), in its version 2 (portmap, plain port
//! numbers) and its versions 3 and 4 (universal addresses, RFC 5665).
//!
//! # Operation
//! Only the types: [`Mapping`] is argument and result item of version 2, [`Binding`] of versions 3 and 4;
//! [`UniversalAddress`] is the text in which the latter name an address. Lists (DUMP) are read with [`List`] without
//! being stored.
//!
//! # Limits
//! Strings of a binding have at most [`MAX_STRING`] bytes. A list is as long as the message that carries it.

use core::fmt;
use core::marker::PhantomData;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

use crate::xdr::{Decode, Encode, Reader, Writer, XdrError};

/// Program number of rpcbind.
pub const PROGRAM: u32 = 100_000;

/// Port of rpcbind, TCP and UDP.
pub const PORT: u16 = 111;

/// Most bytes in a string of a [`Binding`].
pub const MAX_STRING: usize = 256;

/// Protocol number of TCP in a [`Mapping`].
pub const PROT_TCP: u32 = 6;

/// Protocol number of UDP in a [`Mapping`].
pub const PROT_UDP: u32 = 17;

/// Procedures of version 2.
pub mod v2 {
    /// Version number.
    pub const VERSION: u32 = 2;
    /// Does nothing.
    pub const NULL: u32 = 0;
    /// [`super::Mapping`] to bool: register.
    pub const SET: u32 = 1;
    /// [`super::Mapping`] to bool: unregister; protocol and port are not looked at.
    pub const UNSET: u32 = 2;
    /// [`super::Mapping`] to port, 0 if not registered; the port of the query is not looked at.
    pub const GETPORT: u32 = 3;
    /// Nothing to a [`super::List`] of [`super::Mapping`].
    pub const DUMP: u32 = 4;
}

/// Procedures of version 3; version 4 has them too.
pub mod v3 {
    /// Version number.
    pub const VERSION: u32 = 3;
    /// Version number of rpcbind version 4.
    pub const VERSION_4: u32 = 4;
    /// Does nothing.
    pub const NULL: u32 = 0;
    /// [`super::Binding`] to bool: register. Accepted from the same host only.
    pub const SET: u32 = 1;
    /// [`super::Binding`] to bool: unregister.
    pub const UNSET: u32 = 2;
    /// [`super::Binding`] to a universal address as a string, empty if not registered.
    pub const GETADDR: u32 = 3;
    /// Nothing to a [`super::List`] of [`super::Binding`].
    pub const DUMP: u32 = 4;
    /// Version 4: as [`GETADDR`], but only for exactly this version of the program.
    pub const GETVERSADDR: u32 = 9;
}

/// A registration in version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Program number.
    pub prog: u32,
    /// Its version.
    pub vers: u32,
    /// [`PROT_TCP`] or [`PROT_UDP`].
    pub prot: u32,
    /// The port, 0 in a query.
    pub port: u32,
}

impl Encode for Mapping {
    fn encode(&self, w: &mut Writer) {
        for word in [self.prog, self.vers, self.prot, self.port] {
            w.u32(word);
        }
    }
}

impl<'a> Decode<'a> for Mapping {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self { prog: r.u32()?, vers: r.u32()?, prot: r.u32()?, port: r.u32()? })
    }
}

/// A registration in versions 3 and 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding<'a> {
    /// Program number.
    pub prog: u32,
    /// Its version.
    pub vers: u32,
    /// Transport: tcp, tcp6, udp, udp6, rdma, rdma6, local.
    pub netid: &'a str,
    /// A [`UniversalAddress`], empty in a query.
    pub addr: &'a str,
    /// Who registered it.
    pub owner: &'a str,
}

impl Encode for Binding<'_> {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.prog);
        w.u32(self.vers);
        for text in [self.netid, self.addr, self.owner] {
            w.opaque(text.as_bytes());
        }
    }
}

impl<'a> Decode<'a> for Binding<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self {
            prog: r.u32()?,
            vers: r.u32()?,
            netid: r.string(MAX_STRING)?,
            addr: r.string(MAX_STRING)?,
            owner: r.string(MAX_STRING)?,
        })
    }
}

/// The items of an XDR linked list, read one by one. Ends after the list's end or the first error.
#[derive(Clone, Debug)]
pub struct List<'a, T> {
    reader: Option<Reader<'a>>,
    item: PhantomData<T>,
}

impl<'a, T: Decode<'a>> List<'a, T> {
    /// The list that begins where `reader` stands.
    #[must_use]
    pub fn new(reader: Reader<'a>) -> Self {
        Self { reader: Some(reader), item: PhantomData }
    }
}

impl<'a, T: Decode<'a>> Iterator for List<'a, T> {
    type Item = Result<T, XdrError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let item = reader.option(T::decode).transpose();
        if !matches!(item, Some(Ok(_))) {
            self.reader = None;
        }
        item
    }
}

/// Writes `items` as an XDR linked list.
pub fn encode_list<T: Encode>(items: impl IntoIterator<Item = T>, w: &mut Writer) {
    for item in items {
        w.bool(true);
        item.encode(w);
    }
    w.bool(false);
}

/// An IP address and port as rpcbind writes them: the address in its usual text form, then the port's two bytes, each
/// in decimal behind a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UniversalAddress(pub SocketAddr);

impl fmt::Display for UniversalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [high, low] = self.0.port().to_be_bytes();
        write!(f, "{}.{high}.{low}", self.0.ip())
    }
}

/// Text that is not a universal address of IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a universal address (an IP address, then the port as two decimal bytes behind dots)")
    }
}

impl core::error::Error for NotAnAddress {}

impl FromStr for UniversalAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let byte = |text: &str| match text.as_bytes() {
            // `u8::from_str` takes a sign; an address has none.
            [b'0'..=b'9', ..] => text.parse::<u8>().map_err(|_| NotAnAddress),
            _ => Err(NotAnAddress),
        };
        let (rest, low) = text.rsplit_once('.').ok_or(NotAnAddress)?;
        let (ip, high) = rest.rsplit_once('.').ok_or(NotAnAddress)?;
        let port = u16::from_be_bytes([byte(high)?, byte(low)?]);
        let ip = match ip.parse::<Ipv4Addr>() {
            Ok(v4) => IpAddr::V4(v4),
            Err(_) => IpAddr::V6(ip.parse::<Ipv6Addr>().map_err(|_| NotAnAddress)?),
        };
        Ok(Self(SocketAddr::new(ip, port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;
    use crate::rpc::{CallHeader, OpaqueAuth, Program, ReplyHeader, Xid, receive, success};
    use crate::testing::hex;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const PROGRAMS: &[Program] = &[Program { number: PROGRAM, versions: &[(2, 6), (3, 9), (4, 13)] }];

    /// A record of one fragment around a message.
    fn framed(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::new();
        write(&mut w);
        let mut out = record::mark(w.len()).unwrap().to_vec();
        out.extend(w.as_slice());
        out
    }

    fn call(xid: u32, vers: u32, proc: u32) -> CallHeader<'static> {
        CallHeader {
            xid: Xid(xid),
            prog: PROGRAM,
            vers,
            proc,
            cred: OpaqueAuth::NONE,
            verf: OpaqueAuth::NONE,
        }
    }

    #[test]
    fn getport_vectors() {
        let query =
            hex("80000038000000120000000000000002000186a000000002000000030000000000000000000000000000000000
                         0186a5000000030000000600000000");
        let mapping = Mapping { prog: 100_005, vers: 3, prot: PROT_TCP, port: 0 };
        let ours = framed(|w| {
            call(0x12, v2::VERSION, v2::GETPORT).encode(w);
            mapping.encode(w);
        });
        assert_eq!(ours, query);
        let mut r = Reader::new(&query[4..]);
        assert_eq!(receive(&mut r, PROGRAMS).unwrap().header, call(0x12, 2, 3));
        assert_eq!(Mapping::decode(&mut r), Ok(mapping));
        for len in 0..16 {
            let start = query.len() - 16;
            assert!(Mapping::decode(&mut Reader::new(&query[start..start + len])).is_err());
        }

        let answer = hex("8000001c00000012000000010000000000000000000000000000000000004e50");
        let mut r = Reader::new(&answer[4..]);
        assert_eq!(ReplyHeader::decode(&mut r).unwrap().status, Ok(()));
        assert_eq!(r.u32(), Ok(20048));
        let ours = framed(|w| {
            success(Xid(0x12), w);
            w.u32(20048);
        });
        assert_eq!(ours, answer);
    }

    #[test]
    fn getaddr_vectors() {
        let query =
            hex("80000040000000130000000000000002000186a000000003000000030000000000000000000000000000000000
                         0186a3000000030000000472646d6100000000 00000000");
        let binding = Binding { prog: 100_003, vers: 3, netid: "rdma", addr: "", owner: "" };
        let ours = framed(|w| {
            call(0x13, v3::VERSION, v3::GETADDR).encode(w);
            binding.encode(w);
        });
        assert_eq!(ours, query);
        let mut r = Reader::new(&query[4..]);
        assert_eq!(receive(&mut r, PROGRAMS).unwrap().header, call(0x13, 3, 3));
        assert_eq!(Binding::decode(&mut r), Ok(binding));
        for len in 0..24 {
            let start = query.len() - 24;
            assert!(Binding::decode(&mut Reader::new(&query[start..start + len])).is_err());
        }

        let answer = hex(
            "8000002c0000001300000001000000000000000000000000000000000000000f3139322e302e322e322e37382e383100",
        );
        let mut r = Reader::new(&answer[4..]);
        assert_eq!(ReplyHeader::decode(&mut r).unwrap().status, Ok(()));
        let address: UniversalAddress = r.string(MAX_STRING).unwrap().parse().unwrap();
        assert_eq!(address.0.to_string(), "192.0.2.2:20049");
        let ours = framed(|w| {
            success(Xid(0x13), w);
            w.opaque(address.to_string().as_bytes());
        });
        assert_eq!(ours, answer);
    }

    #[test]
    fn universal_addresses() {
        for (text, address) in [
            ("0.0.0.0.78.81", "0.0.0.0:20049"),
            ("192.0.2.7.8.1", "192.0.2.7:2049"),
            ("127.0.0.1.0.111", "127.0.0.1:111"),
            ("::.78.80", "[::]:20048"),
            ("2001:db8::2.255.255", "[2001:db8::2]:65535"),
            ("::ffff:192.0.2.1.0.1", "[::ffff:192.0.2.1]:1"),
        ] {
            let parsed: UniversalAddress = text.parse().unwrap();
            assert_eq!(parsed.0.to_string(), address);
            assert_eq!(parsed.to_string(), text);
        }
        for text in [
            "",
            ".",
            "1.2",
            "1.2.3.4",
            "1.2.3.4.5",
            "1.2.3.4.5.256",
            "1.2.3.4.+5.6",
            "1.2.3.4..6",
            "::1.1",
            "a.b.c.d.1.2",
            "1.2.3.4.5.6.7",
        ] {
            assert_eq!(text.parse::<UniversalAddress>(), Err(NotAnAddress), "{text}");
        }
    }

    #[test]
    fn lists_end_where_they_say_or_at_the_first_error() {
        let items = [1, 2, 3].map(|n| Mapping { prog: n, vers: n, prot: PROT_UDP, port: n });
        let mut w = Writer::new();
        encode_list(items, &mut w);
        assert_eq!(w.len(), 3 * 20 + 4);
        let got: Result<Vec<_>, _> = List::<Mapping>::new(Reader::new(w.as_slice())).collect();
        assert_eq!(got.as_deref(), Ok(&items[..]));
        for len in 0..w.len() {
            let mut list = List::<Mapping>::new(Reader::new(&w.as_slice()[..len]));
            assert_eq!(list.by_ref().take_while(Result::is_ok).count(), len / 20);
            assert!(list.next().is_none(), "an ended list goes on");
        }
    }

    proptest! {
        #[test]
        fn addresses_round_trip(v6: bool, ip: u128, port: u16) {
            let ip = if v6 { IpAddr::V6(ip.into()) } else { IpAddr::V4((ip as u32).into()) };
            let address = UniversalAddress(SocketAddr::new(ip, port));
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[0-9a-f:.+]{0,30}") {
            if let Ok(address) = text.parse::<UniversalAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn bindings_round_trip(prog: u32, vers: u32, texts in prop::array::uniform3("\\PC{0,60}")) {
            let [netid, addr, owner]: &[String; 3] = &texts;
            let binding = Binding { prog, vers, netid, addr, owner };
            let mut w = Writer::new();
            encode_list([binding, binding], &mut w);
            let got: Result<Vec<_>, _> = List::<Binding<'_>>::new(Reader::new(w.as_slice())).collect();
            prop_assert_eq!(got, Ok(alloc::vec![binding; 2]));
        }

        #[test]
        fn arbitrary_lists_do_not_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..120)) {
            let _ = List::<Binding<'_>>::new(Reader::new(&bytes)).count();
            let _ = List::<Mapping>::new(Reader::new(&bytes)).count();
        }
    }
}
