//! Reads a capture file and puts its TCP connections back together.
//!
//! # Operation
//! [`connections`] takes a classic pcap file of Ethernet frames, picks out TCP over IPv4, and follows each connection
//! from its SYN. What it yields is, per connection, the bytes of both directions in the order in which they became
//! complete at the capturing machine, so a reader of the result sees requests before their answers.
//!
//! # When it breaks
//! Anything that cannot be followed (a snapped packet, a hole, bytes that differ when they are sent again) is a
//! panic: these are recorded files, not input.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of one direction that became available together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) from_client: bool,
    pub(crate) bytes: Vec<u8>,
}

/// A TCP connection; the client is who sent the SYN.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddrV4,
    pub(crate) server: SocketAddrV4,
    pub(crate) deliveries: Vec<Delivery>,
    /// Segments that brought nothing new.
    pub(crate) retransmissions: usize,
}

/// The connections of a capture file, in the order of their SYNs.
pub(crate) fn connections(file: &[u8]) -> Vec<Connection> {
    let mut all = Vec::new();
    let mut live: HashMap<(SocketAddrV4, SocketAddrV4), Live> = HashMap::new();
    for frame in frames(file) {
        if let Some(segment) = TcpSegment::parse(frame) {
            take(segment, &mut live, &mut all);
        }
    }
    for live in live.values() {
        for (d, name) in live.directions.iter().zip(["client", "server"]) {
            assert!(d.early.is_empty(), "{}: the capture misses bytes of the {name}", all[live.index].server);
        }
    }
    all
}

/// A connection that may still go on.
struct Live {
    index: usize,
    /// From the client, from the server.
    directions: [Direction; 2],
}

#[derive(Default)]
struct Direction {
    /// Sequence number of stream offset 0, once known.
    start: Option<u32>,
    /// Everything delivered so far.
    stream: Vec<u8>,
    /// What came ahead of a hole, by stream offset.
    early: BTreeMap<usize, Vec<u8>>,
}

fn take(
    segment: TcpSegment<'_>,
    live: &mut HashMap<(SocketAddrV4, SocketAddrV4), Live>,
    all: &mut Vec<Connection>,
) {
    let forward = (segment.from, segment.to);
    let backward = (segment.to, segment.from);
    if segment.syn && !segment.ack {
        let index = all.len();
        let fresh =
            live.get(&forward).is_none_or(|l| l.directions[0].start != Some(segment.seq.wrapping_add(1)));
        if fresh {
            live.insert(forward, Live { index, directions: <[Direction; 2]>::default() });
            all.push(Connection {
                client: segment.from,
                server: segment.to,
                deliveries: Vec::new(),
                retransmissions: 0,
            });
        }
    }
    let (key, from_client) = if live.contains_key(&forward) { (forward, true) } else { (backward, false) };
    // A connection that was open before the capture began cannot be followed.
    let Some(Live { index, directions }) = live.get_mut(&key) else { return };
    let connection = &mut all[*index];
    let d = &mut directions[usize::from(!from_client)];
    if segment.syn {
        d.start = Some(segment.seq.wrapping_add(1));
        return;
    }
    let Some(start) = d.start.filter(|_| !segment.payload.is_empty()) else { return };
    // Sequence numbers wrap; what is behind the stream's end is less than half the number space away.
    let distance = segment.seq.wrapping_sub(start).wrapping_sub(d.stream.len() as u32) as i32;
    let offset =
        usize::try_from(d.stream.len() as i64 + i64::from(distance)).expect("a byte before the first");
    let known = d.stream.len().saturating_sub(offset).min(segment.payload.len());
    if known > 0 {
        assert_eq!(segment.payload[..known], d.stream[offset..offset + known], "sent again, and different");
    }
    if known == segment.payload.len() {
        connection.retransmissions += 1;
        return;
    }
    let longer = d.early.get(&(offset + known)).is_none_or(|e| e.len() < segment.payload.len() - known);
    if longer {
        d.early.insert(offset + known, segment.payload[known..].to_vec());
    }
    let mut bytes = Vec::new();
    while let Some(entry) = d.early.first_entry().filter(|e| *e.key() <= d.stream.len()) {
        let (at, piece) = entry.remove_entry();
        if let Some(new) = piece.get(d.stream.len() - at..) {
            d.stream.extend_from_slice(new);
            bytes.extend_from_slice(new);
        }
    }
    if !bytes.is_empty() {
        connection.deliveries.push(Delivery { from_client, bytes });
    }
}

/// A TCP segment over IPv4.
struct TcpSegment<'a> {
    from: SocketAddrV4,
    to: SocketAddrV4,
    seq: u32,
    syn: bool,
    ack: bool,
    payload: &'a [u8],
}

impl<'a> TcpSegment<'a> {
    /// `None` for anything else. An Ethernet frame may be padded, so the lengths inside count.
    fn parse(frame: &'a [u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        let ip = &frame[14..];
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let ip_header = usize::from(ip[0] & 0x0f) * 4;
        if ip[0] >> 4 != 4 || ip[9] != 6 {
            return None;
        }
        assert_eq!(u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff, 0, "an IP fragment");
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let tcp = &ip[ip_header..total];
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        Some(Self {
            from: SocketAddrV4::new(address(12), port(0)),
            to: SocketAddrV4::new(address(16), port(2)),
            seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            syn: tcp[13] & 0x02 != 0,
            ack: tcp[13] & 0x10 != 0,
            payload: &tcp[usize::from(tcp[12] >> 4) * 4..],
        })
    }
}

/// The frames of a pcap file, in either byte order.
fn frames(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let magic: [u8; 4] = file[..4].try_into().unwrap();
    let little = match magic {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => true,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => false,
        _ => panic!("not a pcap file: it starts with {magic:02x?}"),
    };
    let word = move |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap();
        (if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }) as usize
    };
    assert_eq!(word(&file[20..24]), 1, "the frames are not Ethernet's");
    let mut rest = &file[24..];
    std::iter::from_fn(move || {
        let (header, behind) = rest.split_at_checked(16)?;
        let (kept, sent) = (word(&header[8..12]), word(&header[12..16]));
        assert_eq!(kept, sent, "a frame was not kept whole");
        let (frame, behind) = behind.split_at(kept);
        rest = behind;
        Some(frame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: u16 = 700;
    const SERVER: u16 = 20049;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// A pcap record around a segment; the Ethernet frame has pad that is not TCP's.
    fn record(from: u16, to: u16, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        for port in [from, to] {
            frame.extend([10, 0]);
            frame.extend(port.to_be_bytes());
        }
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend(seq.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame.extend([0xee; 6]);
        let mut out = vec![0; 8];
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend(frame);
        out
    }

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out =
            vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0];
        records.iter().for_each(|r| out.extend(r));
        out
    }

    #[test]
    fn segments_are_put_in_order_and_repetitions_dropped() {
        // Sequence numbers wrap inside the data.
        let start = u32::MAX - 2;
        let data = |at: u32, bytes: &[u8]| record(CLIENT, SERVER, start.wrapping_add(1 + at), ACK, bytes);
        let all = connections(&file(&[
            record(CLIENT, SERVER, start, SYN, b""),
            record(SERVER, CLIENT, 99, SYN | ACK, b""),
            record(CLIENT, SERVER, start, SYN, b""),
            data(0, b"ab"),
            data(4, b"ef"),
            data(4, b"efg"),
            data(0, b"abc"),
            record(SERVER, CLIENT, 100, ACK, b"yes"),
            data(3, b"de"),
            data(2, b"cde"),
            data(7, b"h"),
        ]));
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].client.port(), all[0].server.port()), (CLIENT, SERVER));
        let got: Vec<_> = all[0].deliveries.iter().map(|d| (d.from_client, d.bytes.as_slice())).collect();
        let want: [(bool, &[u8]); 5] =
            [(true, b"ab"), (true, b"c"), (false, b"yes"), (true, b"defg"), (true, b"h")];
        assert_eq!(got, want);
        assert_eq!(all[0].retransmissions, 1);
    }

    #[test]
    fn a_new_connection_between_the_same_ports_is_another_one() {
        let all = connections(&file(&[
            record(CLIENT, SERVER, 5, SYN, b""),
            record(CLIENT, SERVER, 6, ACK, b"one"),
            record(CLIENT, SERVER, 5000, SYN, b""),
            record(CLIENT, SERVER, 5001, ACK, b"two"),
            record(9, 10, 1, ACK, b"never opened here"),
        ]));
        let got: Vec<_> = all.iter().map(|c| c.deliveries[0].bytes.as_slice()).collect();
        assert_eq!(got, [b"one", b"two"]);
    }

    #[test]
    #[should_panic = "misses bytes"]
    fn a_hole_is_noticed() {
        connections(&file(&[record(CLIENT, SERVER, 5, SYN, b""), record(CLIENT, SERVER, 8, ACK, b"late")]));
    }
}
