//! The client's side of MOUNT: which handle a path has, and which paths there are.
//!
//! # Operation
//! A server like ours answers MOUNT wherever it answers NFS, so the connection for NFS is asked first; then the TCP port of
//! NFS; then the port that rpcbind knows. Where the user names a port, only that one is asked.
//!
//! # Limits
//! Nothing is sent again over TCP. UMNT is not sent: no server of today depends on it.

use std::net::SocketAddr;

use rpcrdma_nfs::{
    mount::{self, DirPath, Exports, MntResult, Proc},
    v3::{self, Handle},
};
use rpcrdma_proto::{
    rpc::{self, CallHeader, OpaqueAuth, ReplyHeader, Xid},
    rpcbind::{self, Mapping},
    xdr::{Decode, Encode, Reader, Writer, XdrError},
};

use super::{
    channel::{Call, Finished},
    mount::Inner,
    oneshot::{self, Procedure},
};
use crate::error::Error;

/// Bytes of the longest list of exports that is taken.
const EXPORTS_MAX: usize = 256 << 10;
/// Bytes behind the RPC header of the longest Reply to MNT: status, handle, list of flavors.
const MNT_MAX: usize = 4 + 68 + 4 + 4 * mount::FLAVORS_MAX;

/// A procedure without arguments.
struct Nothing;

impl Encode for Nothing {
    fn encode(&self, _: &mut Writer) {}
}

impl Inner {
    /// The handle of a path.
    pub(super) async fn mnt(&self, path: &[u8]) -> Result<Handle, Error> {
        let decode = |r: &mut Reader<'_>| MntResult::decode(r);
        let result = self.ask(Proc::Mnt, &DirPath(path), MNT_MAX, decode).await?;
        result.0.map(|ok| ok.handle).map_err(|status| {
            let path = String::from_utf8_lossy(path).into_owned();
            Error::Mount { path, status }
        })
    }

    /// All paths, in order.
    pub(super) async fn exports(&self) -> Result<Vec<Vec<u8>>, Error> {
        let decode = |r: &mut Reader<'_>| {
            let mut paths: Vec<_> = Exports::decode(r)?.map(|export| export.path.to_vec()).collect();
            paths.sort();
            Ok(paths)
        };
        self.ask(Proc::Export, &Nothing, EXPORTS_MAX, decode).await
    }

    /// Calls the MOUNT service, wherever it is.
    async fn ask<T>(
        &self,
        proc: Proc,
        args: &impl Encode,
        result_max: usize,
        decode: impl Fn(&mut Reader<'_>) -> Result<T, XdrError>,
    ) -> Result<T, Error> {
        let auth = self.auth();
        let procedure = Procedure {
            prog: mount::PROGRAM,
            vers: mount::VERSION,
            proc: proc as u32,
            what: "the MOUNT service",
        };
        let at = |port| SocketAddr::new(self.servers.route().to.ip(), port);
        let over_tcp = async |port| {
            let (reply, start) = oneshot::call(at(port), procedure, auth, args).await?;
            Ok::<T, Error>(decode(&mut Reader::new(reply.get(start..).unwrap_or_default()))?)
        };
        if let Some(port) = self.mount_port {
            return over_tcp(port).await;
        }
        let mut w = self.channel().writer();
        let Procedure { prog, vers, proc, .. } = procedure;
        CallHeader { xid: Xid(0), prog, vers, proc, cred: auth, verf: OpaqueAuth::NONE }.encode(&mut w);
        args.encode(&mut w);
        let (message, hole) = w.into_parts();
        let reply_max = rpc::REPLY_HEADER + result_max;
        let call = Call { message, hole, argument: None, result: None, result_max: 0, reply_max };
        let Finished { outcome, .. } = self.channel().call(call).await;
        let reply = outcome?;
        let mut r = Reader::new(reply.message());
        match ReplyHeader::decode(&mut r)?.status {
            Ok(()) => return Ok(decode(&mut r)?),
            Err(rpc::Fault::ProgUnavail | rpc::Fault::ProgMismatch { .. }) => {}
            Err(fault) => return Err(Error::Rpc(fault)),
        }
        match over_tcp(v3::PORT_TCP).await {
            Err(
                Error::Rpc(rpc::Fault::ProgUnavail | rpc::Fault::ProgMismatch { .. }) | Error::Tcp { .. },
            ) => {}
            answered => return answered,
        }
        let query = Mapping { prog, vers, prot: rpcbind::PROT_TCP, port: 0 };
        let getport = Procedure {
            prog: rpcbind::PROGRAM,
            vers: rpcbind::v2::VERSION,
            proc: rpcbind::v2::GETPORT,
            what: "rpcbind",
        };
        let port = match oneshot::call(at(rpcbind::PORT), getport, OpaqueAuth::NONE, &query).await {
            Ok((reply, start)) => Reader::new(reply.get(start..).unwrap_or_default()).u32()?,
            Err(_) => 0,
        };
        match u16::try_from(port) {
            Ok(port) if port != 0 => over_tcp(port).await,
            _ => Err(Error::NoMountService { host: self.host.clone() }),
        }
    }
}
