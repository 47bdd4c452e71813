//! Registration with the rpcbind of this machine (RFC 1833), for clients that look ports up there.
//!
//! # Operation
//! [`register`] announces NFS and MOUNT with version 4 SET, over TCP on the loopback address, because that is whom an
//! rpcbind believes; most want a privileged port too, which takes root. [`Registration::unregister`] takes back what
//! was announced and nothing else: an entry that somebody else made stays theirs.
//!
//! # When it breaks
//! Nothing depends on it. A machine without an rpcbind is normal, and what could not be registered is logged in one
//! line. A server that is killed leaves its entries behind until the rpcbind is restarted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rpcrdma_nfs::{mount, v3};
use rpcrdma_proto::{
    rpc::OpaqueAuth,
    rpcbind::{self, Binding, UniversalAddress},
    xdr::Reader,
};

use crate::{
    client::oneshot::{self, Procedure},
    error::Error,
};

/// One line of an rpcbind's table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    prog: u32,
    vers: u32,
    netid: &'static str,
    addr: String,
}

impl Entry {
    fn binding(&self) -> Binding<'_> {
        Binding {
            prog: self.prog,
            vers: self.vers,
            netid: self.netid,
            addr: &self.addr,
            // An rpcbind puts the real owner in its place.
            owner: "rpcrdma",
        }
    }
}

/// What has been announced to an rpcbind. Dropping it changes nothing there.
#[derive(Debug)]
#[must_use = "what is registered should be taken back when the server stops"]
pub struct Registration {
    rpcbind: SocketAddr,
    entries: Vec<Entry>,
}

impl Registration {
    /// Entries that the rpcbind took.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes the entries back, as far as the rpcbind goes along.
    pub async fn unregister(self) {
        for entry in &self.entries {
            if let Err(error) = ask(self.rpcbind, rpcbind::v3::UNSET, entry).await {
                tracing::info!(%error, left = self.entries.len(), "cannot take entries back from rpcbind");
                return;
            }
        }
    }
}

/// Announces to the rpcbind of this machine that NFS and MOUNT version 3 are served over TCP at `tcp`, and NFS over
/// RDMA at `rdma`. A wildcard address of IPv6 is taken to serve IPv4 as well.
pub async fn register(tcp: Option<SocketAddr>, rdma: Option<SocketAddr>) -> Registration {
    register_at(SocketAddr::from((Ipv4Addr::LOCALHOST, rpcbind::PORT)), tcp, rdma).await
}

async fn register_at(rpcbind: SocketAddr, tcp: Option<SocketAddr>, rdma: Option<SocketAddr>) -> Registration {
    let mut entries = Vec::new();
    let mut taken = 0;
    for entry in wanted(tcp, rdma) {
        match ask(rpcbind, rpcbind::v3::SET, &entry).await {
            Ok(true) => entries.push(entry),
            Ok(false) => taken += 1,
            Err(error) => {
                tracing::info!(%error, "not registered with rpcbind");
                return Registration { rpcbind, entries };
            }
        }
    }
    if taken > 0 {
        tracing::warn!(
            registered = entries.len(),
            taken,
            "rpcbind refused entries: it knows another server, or wants a privileged user"
        );
    } else {
        tracing::info!(registered = entries.len(), "registered with rpcbind");
    }
    Registration { rpcbind, entries }
}

/// The entries that announce these addresses.
fn wanted(tcp: Option<SocketAddr>, rdma: Option<SocketAddr>) -> Vec<Entry> {
    const NFS: (u32, u32) = (v3::PROGRAM, v3::VERSION);
    const MOUNT: (u32, u32) = (mount::PROGRAM, mount::VERSION);
    let tcp = tcp.map(|at| (at, ["tcp", "tcp6"], &[NFS, MOUNT] as &[_]));
    let rdma = rdma.map(|at| (at, ["rdma", "rdma6"], &[NFS] as &[_]));
    let mut entries = Vec::new();
    for (at, [v4, v6], programs) in tcp.into_iter().chain(rdma) {
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        let dual = at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let also = dual.then(|| (SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port())), v4));
        for (at, netid) in also.into_iter().chain([(at, if at.is_ipv4() { v4 } else { v6 })]) {
            let addr = UniversalAddress(at).to_string();
            let new = |&(prog, vers): &(u32, u32)| Entry { prog, vers, netid, addr: addr.clone() };
            entries.extend(programs.iter().map(new));
        }
    }
    entries
}

/// SET or UNSET: whether the rpcbind did it.
async fn ask(rpcbind: SocketAddr, proc: u32, entry: &Entry) -> Result<bool, Error> {
    let procedure = Procedure { prog: rpcbind::PROGRAM, vers: rpcbind::v3::VERSION_4, proc, what: "rpcbind" };
    let (reply, at) = oneshot::call(rpcbind, procedure, OpaqueAuth::NONE, &entry.binding()).await?;
    Ok(Reader::new(reply.get(at..).unwrap_or_default()).bool()?)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use rpcrdma_proto::{
        rpc::{self, Program},
        xdr::Decode,
    };
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        memory::Pools,
        server::{
            service::{IncomingCall, OutgoingReply, Patience, Served, Service},
            tcp,
        },
    };

    type Table = BTreeMap<(u32, u32, String), String>;

    /// As much of an rpcbind as registration needs.
    #[derive(Default)]
    struct Rpcbind(Mutex<Table>);

    impl Service for Rpcbind {
        fn serve(
            &self,
            call: &IncomingCall<'_>,
            _: Patience,
            _: &Pools,
            reply: &mut OutgoingReply,
        ) -> Served {
            let mut r = Reader::new(call.message);
            let programs = [Program { number: rpcbind::PROGRAM, versions: &[(4, 13)] }];
            let header = rpc::receive(&mut r, &programs).unwrap().header;
            let b = Binding::decode(&mut r).unwrap();
            let key = (b.prog, b.vers, b.netid.to_owned());
            let mut table = self.0.lock().unwrap();
            let done = match header.proc {
                rpcbind::v3::SET if table.contains_key(&key) => false,
                rpcbind::v3::SET => table.insert(key, b.addr.to_owned()).is_none(),
                rpcbind::v3::UNSET => table.remove(&key).is_some(),
                proc => panic!("procedure {proc}"),
            };
            rpc::success(header.xid, &mut reply.message);
            reply.message.bool(done);
            Served::Reply
        }
    }

    async fn start() -> (SocketAddr, Arc<Rpcbind>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let rpcbind = Arc::new(Rpcbind::default());
        let service: Arc<dyn Service> = Arc::clone(&rpcbind) as _;
        let (limits, counters) = (tcp::Limits::default(), Arc::default());
        tokio::spawn(tcp::serve_tcp(
            listener,
            service,
            Pools::new(1),
            crate::server::Offload::default(),
            limits,
            counters,
            std::future::pending(),
        ));
        (at, rpcbind)
    }

    fn lines(rpcbind: &Rpcbind) -> Vec<String> {
        let table = rpcbind.0.lock().unwrap();
        table.iter().map(|((prog, vers, netid), addr)| format!("{prog} {vers} {netid} {addr}")).collect()
    }

    #[tokio::test]
    async fn what_is_served_is_announced_and_taken_back() {
        let (at, rpcbind) = start().await;
        let tcp = Some("0.0.0.0:2049".parse().unwrap());
        let rdma = Some("[::]:20049".parse().unwrap());
        let registration = register_at(at, tcp, rdma).await;
        assert_eq!(
            lines(&rpcbind),
            [
                "100003 3 rdma 0.0.0.0.78.81",
                "100003 3 rdma6 ::.78.81",
                "100003 3 tcp 0.0.0.0.8.1",
                "100005 3 tcp 0.0.0.0.8.1",
            ]
        );
        assert_eq!(registration.len(), 4);
        registration.unregister().await;
        assert_eq!(lines(&rpcbind), Vec::<String>::new());
    }

    #[tokio::test]
    async fn entries_of_others_stay() {
        let (at, rpcbind) = start().await;
        let theirs = ((v3::PROGRAM, 3, "tcp".to_owned()), "0.0.0.0.8.1".to_owned());
        rpcbind.0.lock().unwrap().extend([theirs]);
        let registration = register_at(at, Some("192.0.2.1:2050".parse().unwrap()), None).await;
        assert_eq!(lines(&rpcbind), ["100003 3 tcp 0.0.0.0.8.1", "100005 3 tcp 192.0.2.1.8.2"]);
        registration.unregister().await;
        assert_eq!(lines(&rpcbind), ["100003 3 tcp 0.0.0.0.8.1"]);
    }

    #[tokio::test]
    async fn a_machine_without_rpcbind_is_fine() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let registration = register_at(at, Some("0.0.0.0:2049".parse().unwrap()), None).await;
        assert!(registration.is_empty());
        registration.unregister().await;
    }
}
