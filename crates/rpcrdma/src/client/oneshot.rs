//! One RPC over a TCP connection of its own: MOUNT and rpcbind.
//!
//! Nothing is retried. As root the connection comes from a privileged port, because many servers want that of a client
//! that mounts.

use std::{io, net::SocketAddr, time::Duration};

use rpcrdma_proto::{
    rpc::{CallHeader, OpaqueAuth, ReplyHeader},
    xdr::{Encode, Reader, Writer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::channel::Xids;
use crate::error::Error;

const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is taken.
const MAX_REPLY: usize = 1 << 20;
const LAST: u32 = 1 << 31;

/// A procedure of some program.
#[derive(Clone, Copy)]
pub(crate) struct Procedure {
    pub(crate) prog: u32,
    pub(crate) vers: u32,
    pub(crate) proc: u32,
    /// For error messages.
    pub(crate) what: &'static str,
}

/// Calls `procedure` at `to` and returns the Reply, of which the header has been checked, and the offset of its results.
pub(crate) async fn call(
    to: SocketAddr,
    procedure: Procedure,
    cred: OpaqueAuth<'_>,
    args: &impl Encode,
) -> Result<(Vec<u8>, usize), Error> {
    let Procedure { prog, vers, proc, what } = procedure;
    let xid = Xids::of_process().next();
    let mut w = Writer::new();
    w.u32(0);
    CallHeader { xid, prog, vers, proc, cred, verf: OpaqueAuth::NONE }.encode(&mut w);
    args.encode(&mut w);
    w.set_u32(0, LAST | (w.len() as u32 - 4));
    let reply = timeout(TIMEOUT, exchange(to, w.as_slice()))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| Error::Tcp { to, what, error })?;
    let mut r = Reader::new(&reply);
    let header = ReplyHeader::decode(&mut r)?;
    if header.xid != xid {
        return Err(Error::BadReply(format!("{what} answered XID {} instead of {xid}", header.xid)));
    }
    header.status.map_err(Error::Rpc)?;
    let at = r.position();
    Ok((reply, at))
}

async fn exchange(to: SocketAddr, record: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(record).await?;
    let mut reply = Vec::new();
    loop {
        let mark = stream.read_u32().await?;
        let len = (mark & !LAST) as usize;
        if len > MAX_REPLY - reply.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the Reply is too long"));
        }
        let at = reply.len();
        reply.resize(at + len, 0);
        stream.read_exact(&mut reply[at..]).await?;
        if mark & LAST != 0 {
            return Ok(reply);
        }
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty fragment"));
        }
    }
}

pub(super) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    for port in (600..1024).rev().step_by(7) {
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0; 4], port).into(),
            SocketAddr::V6(_) => ([0; 16], port).into(),
        };
        match socket.bind(any) {
            Ok(()) => match socket.connect(to).await {
                Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
                done => return done,
            },
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            // Not root.
            Err(_) => break,
        }
    }
    TcpStream::connect(to).await
}
