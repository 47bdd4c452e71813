//! Replays recorded traffic between Linux's own client and server through every decoder, and encodes what was
//! decoded again: start-up frames, FPDUs with their checksums, DDP and RDMAP headers, RPC-over-RDMA headers, RPC
//! messages, and NFSv3 and MOUNT in full, with the data of chunks put back in place. NFSv4 is followed to the RPC
//! level. `data/captures/README.md` says how the files were recorded.
//!
//! With `RPCRDMA_CAPTURES=DIR`, all `.pcap` files of a directory are replayed as well, and what they contained is
//! printed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a replay that cannot go on has failed")]

#[path = "support/pcap.rs"]
mod pcap;
#[path = "support/pcap_rdma.rs"]
mod pcap_rdma;
#[path = "support/pcap_rpc.rs"]
mod pcap_rpc;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pcap::{Connection, Delivery};
use pcap_rdma::{Counts, Link};
use pcap_rpc::{Seen, check_call, check_reply};
use rpcrdma_proto::record::{Piece, RecordReader, mark};
use rpcrdma_proto::rpc::{MessageType, peek};

const RDMA_PORT: u16 = 20049;

/// Captures that end in the middle of a connection.
const CUT: [&str; 1] = ["v3-write-read-1m-cut.pcap"];

/// What a capture contained.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    /// The RDMA connections, in order.
    rdma: Vec<Counts>,
    seen: Seen,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for counts in &self.rdma {
            write!(f, "  RDMA connection\n{counts}")?;
        }
        writeln!(f, "  Calls")?;
        for (name, n) in &self.seen.calls {
            writeln!(f, "    {name}: {n}")?;
        }
        writeln!(f, "  bytes read as they were written: {}", self.seen.compared)
    }
}

fn load(path: &Path) -> Vec<Connection> {
    pcap::connections(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

fn replay(connections: &[Connection], cut: bool) -> Summary {
    let mut summary = Summary::default();
    for connection in connections {
        if connection.server.port() == RDMA_PORT {
            let mut link = Link::new();
            connection.deliveries.iter().for_each(|d| link.feed(d, &mut summary.seen));
            summary.rdma.push(link.finish(cut));
        } else {
            replay_tcp(connection, &mut summary.seen);
        }
    }
    summary
}

/// Follows RPC with record marking.
fn replay_tcp(connection: &Connection, seen: &mut Seen) {
    let mut sides = [(); 2].map(|()| (RecordReader::new(1 << 20), Vec::new(), Vec::new()));
    let mut pending = HashMap::new();
    for delivery in &connection.deliveries {
        let (reader, consumed, record) = &mut sides[usize::from(!delivery.from_client)];
        let mut rest = delivery.bytes.as_slice();
        while !rest.is_empty() {
            let (piece, n) = reader.feed(rest).expect("records");
            consumed.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            match piece {
                Piece::More => {}
                Piece::Part(bytes) => record.extend_from_slice(bytes),
                Piece::End(bytes) => {
                    record.extend_from_slice(bytes);
                    assert_eq!(consumed[..4], mark(record.len()).unwrap(), "the mark encodes differently");
                    match peek(record).expect("an RPC message") {
                        (xid, MessageType::Call) => {
                            pending.insert(xid, check_call(record, &[], seen));
                        }
                        (xid, MessageType::Reply) => {
                            let asked = pending.remove(&xid).expect("a Call for the Reply");
                            check_reply(record, &[], &asked, seen);
                        }
                    }
                    consumed.clear();
                    record.clear();
                }
            }
        }
    }
    assert!(sides.iter().all(|(reader, ..)| reader.is_idle()) && pending.is_empty());
}

fn captures(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "pcap"))
        .collect();
    paths.sort();
    paths
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/captures")
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap()
}

fn is_cut(path: &Path) -> bool {
    CUT.contains(&name(path))
}

#[test]
fn every_capture_decodes_and_encodes_to_the_same_bytes() {
    let mut got = String::new();
    for path in captures(&data()) {
        println!("{}", path.display());
        let summary = replay(&load(&path), is_cut(&path));
        got += &format!("{}\n{summary}\n", name(&path));
    }
    let want = std::fs::read_to_string(data().join("contents.txt")).unwrap();
    assert!(got == want, "the captures contain something else than contents.txt says:\n{got}");
}

#[test]
fn captures_of_your_own_decode_too() {
    let Some(dir) = std::env::var_os("RPCRDMA_CAPTURES") else { return };
    for path in captures(Path::new(&dir)) {
        println!("{}", path.display());
        println!("{}", replay(&load(&path), is_cut(&path)));
    }
}

#[test]
fn how_the_stream_is_split_does_not_matter() {
    for file in ["v3-mount-umount-crc.pcap", "v3-mount-umount-p2p.pcap", "v41-backchannel-recall-crc.pcap"] {
        let mut connections = load(&data().join(file));
        let want = replay(&connections, false);
        for size in [1, 3, 1000] {
            for connection in &mut connections {
                let split = |d: &Delivery| {
                    let from_client = d.from_client;
                    let pieces = d.bytes.chunks(size).map(<[u8]>::to_vec);
                    pieces.map(move |bytes| Delivery { from_client, bytes }).collect::<Vec<_>>()
                };
                connection.deliveries = connection.deliveries.iter().flat_map(split).collect();
            }
            assert_eq!(replay(&connections, false), want, "{file} in pieces of {size}");
        }
    }
}

/// Flips a bit in the client's last message on the RDMA connection, so many bytes before its end.
fn with_a_flipped_bit(file: &str, before_end: usize) -> Vec<Connection> {
    let mut connections = load(&data().join(file));
    let rdma = connections.iter_mut().find(|c| c.server.port() == RDMA_PORT).unwrap();
    let last = rdma.deliveries.iter_mut().rev().find(|d| d.from_client).unwrap();
    let at = last.bytes.len() - 1 - before_end;
    last.bytes[at] ^= 0x20;
    connections
}

#[test]
#[should_panic = "a wrong CRC"]
fn a_flipped_bit_shows_where_there_are_checksums() {
    replay(&with_a_flipped_bit("v3-mount-umount-crc.pcap", 20), false);
}

#[test]
#[should_panic = "encodes differently"]
fn a_checksum_where_none_is_agreed_shows() {
    replay(&with_a_flipped_bit("v3-mount-umount.pcap", 0), false);
}
