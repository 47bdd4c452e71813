use std::{
    future::pending,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rpcrdma_nfs::v3::{SetAttributes, Stable};
use rpcrdma_proto::xdr::{Hole, Writer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, tcp::OwnedWriteHalf},
    task::JoinSet,
};

use super::*;
use crate::{
    client::{
        Mount, MountConfig, Target, Transport,
        backoff::BackoffConfig,
        channel::{Channel, Xids, channel},
        servers::Servers,
    },
    error::Error,
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions},
    server::{Offload, Service, rpc::RpcService, tcp as server},
};

fn quick() -> RdmaConfig {
    let backoff = BackoffConfig { first: Duration::from_millis(1), cap: Duration::from_millis(5) };
    RdmaConfig { backoff, ..RdmaConfig::default() }
}

/// A server of `/mem`, on loopback.
async fn serve() -> SocketAddr {
    let mut exports = Exports::new();
    let options = MemoryOptions { name: "/mem".into(), ..MemoryOptions::default() };
    let export = MemoryExport::new(HandleKey::from_bytes([1; 16]), options);
    exports.add("/mem", Arc::new(export), ExportRules::default()).unwrap();
    let service: Arc<dyn Service> = Arc::new(RpcService::new(exports));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let limits = server::Limits::default();
    tokio::spawn(server::serve_tcp(
        listener,
        service,
        Pools::new(16),
        Offload::default(),
        limits,
        Arc::default(),
        pending(),
    ));
    at
}

async fn mount(at: SocketAddr, config: MountConfig) -> Mount {
    let target: Target = format!("nfs://{at}/mem").parse().unwrap();
    Mount::new(&Transport::Tcp, &target, config).await.unwrap()
}

fn region(mount: &Mount, bytes: &[u8]) -> Region {
    let mut region = mount.pools().take(bytes.len()).unwrap();
    region[..bytes.len()].copy_from_slice(bytes);
    region
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(seed.wrapping_mul(2) + 1) >> 3) as u8).collect()
}

async fn create(mount: &Mount, name: &[u8]) -> v3::Handle {
    let how = v3::CreateMode::Guarded(SetAttributes { mode: Some(0o666), ..SetAttributes::default() });
    mount.create(mount.root(), name, how).await.unwrap().object.unwrap()
}

#[tokio::test]
async fn data_of_any_size_goes_there_and_back() {
    let mount = mount(serve().await, MountConfig::default()).await;
    let file = create(&mount, b"f").await;
    for (n, len) in [0, 1, 3, 4, 500, 600, 16 << 10, 100_001, 1 << 20].into_iter().enumerate() {
        let data = pattern(n as u64, len);
        let offset = (n as u64) << 24;
        let (done, _) = mount.write(file, offset, len as u32, region(&mount, &data), Stable::Unstable).await;
        assert_eq!(done.unwrap().count as usize, len);
        let (done, buf) = mount.read(file, offset, len as u32, region(&mount, &vec![0; len + 8])).await;
        assert_eq!(done.unwrap().len as usize, len);
        let buf = buf.unwrap();
        assert_eq!(&buf[..len], data);
        assert!(buf[len..len + 8].iter().all(|b| *b == 0), "the pad is not data");
    }
    let (done, buf) = mount.read(file, 1 << 40, 100, region(&mount, &[0; 100])).await;
    let done = done.unwrap();
    assert_eq!((done.len, done.eof, buf.is_some()), (0, true, true));
}

#[tokio::test]
async fn links_listings_and_failures_come_back_too() {
    let mount = mount(serve().await, MountConfig::default()).await;
    let root = mount.root();
    for target in [&b"x"[..], b"some/where/else", &[b'y'; 3000]] {
        let made = mount.symlink(root, b"link", target, SetAttributes::default()).await.unwrap();
        assert_eq!(mount.readlink(made.object.unwrap()).await.unwrap(), target);
        mount.remove(root, b"link").await.unwrap();
    }
    for i in 0..300 {
        create(&mount, format!("file-{i}").as_bytes()).await;
    }
    let page = mount.readdirplus(root, 0, v3::CookieVerifier::default(), 1 << 20).await.unwrap();
    assert_eq!((page.entries.len(), page.eof), (300, true));
    let failed = mount.lookup(root, b"none").await;
    assert!(matches!(failed, Err(Error::Nfs { status: Status::NOENT, .. })));
    let (failed, buf) = mount.read(root, 0, 10, region(&mount, &[0; 10])).await;
    assert!(matches!(failed, Err(Error::Nfs { .. })) && buf.is_some());
}

/// Passes connections on to `to`, and cuts each one some way into what the server says: at first soon, later further
/// on, so that something gets through.
async fn cutter(to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let cuts = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&cuts);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let n = counter.load(Ordering::Relaxed);
            let limit = if n < 100 { 300 + n * n * 217 } else { u64::MAX };
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let server = TcpStream::connect(to).await.unwrap();
                let (mut from_client, mut to_client) = stream.into_split();
                let (from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
                let _ = copy(&mut from_server.take(limit), &mut to_client).await;
                counter.fetch_add(1, Ordering::Relaxed);
                up.abort();
            });
        }
    });
    (at, cuts)
}

#[tokio::test]
async fn calls_survive_any_number_of_connections() {
    let (at, cuts) = cutter(serve().await).await;
    let mount = mount(at, MountConfig { rdma: quick(), ..MountConfig::default() }).await;
    let mut tasks = JoinSet::new();
    for task in 0..16u64 {
        let mount = mount.clone();
        tasks.spawn(async move {
            let name = format!("f{task}").into_bytes();
            let file = create(&mount, &name).await;
            for round in 0..12 {
                let data = pattern(task * 100 + round, 40_000 + (task as usize) * 1111);
                let len = data.len() as u32;
                let (done, _) =
                    mount.write(file, round << 20, len, region(&mount, &data), Stable::Unstable).await;
                assert_eq!(done.unwrap().count, len);
                let (done, buf) =
                    mount.read(file, round << 20, len, region(&mount, &vec![0; data.len()])).await;
                assert_eq!(done.unwrap().len, len);
                assert_eq!(buf.unwrap()[..data.len()], data);
                // Neither may be executed twice.
                mount
                    .mkdir(mount.root(), &[&name[..], b"d"].concat(), SetAttributes::default())
                    .await
                    .unwrap();
                mount.rmdir(mount.root(), &[&name[..], b"d"].concat()).await.unwrap();
            }
            mount.remove(mount.root(), &name).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(cuts.load(Ordering::Relaxed) > 5);
    let metrics = mount.metrics();
    assert!(metrics.connects.get() - metrics.losses.get() <= 1);
    assert!(metrics.retransmissions.get() > 0);
    let page = mount.readdir(mount.root(), 0, v3::CookieVerifier::default(), 4096).await.unwrap();
    assert!(page.entries.is_empty() && page.eof);
}

/// A channel whose task talks to a peer made by hand.
struct Rig {
    channel: Channel,
    listener: TcpListener,
    metrics: Arc<ClientMetrics>,
}

impl Rig {
    async fn new(config: RdmaConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (channel, inbox) = channel(8, Xids::of_process());
        let metrics = Arc::<ClientMetrics>::default();
        let servers = Arc::new(Servers::only(at));
        let link = Link::new(servers, config.backoff, config.seed, Arc::clone(&metrics));
        tokio::spawn(run(config, link, inbox, None, Arc::clone(&metrics)));
        Self { channel, listener, metrics }
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Sends a Call that looks like this procedure of NFS.
    fn call(&self, proc: Proc, room: Option<usize>) -> tokio::task::JoinHandle<Finished> {
        let channel = self.channel.clone();
        let mut w = Writer::new();
        [0, 0, 2, v3::PROGRAM, 3, proc as u32, 0, 0, 0, 0].iter().for_each(|word| w.u32(*word));
        tokio::spawn(async move {
            let call = Call {
                message: w.into_parts().0,
                hole: None,
                argument: None,
                result: room.map(Region::alloc),
                result_max: room.unwrap_or(0) as u32,
                reply_max: 128,
            };
            channel.call(call).await
        })
    }
}

/// Receives a Call; its XID.
async fn called(stream: &mut (impl AsyncReadExt + Unpin)) -> u32 {
    let len = stream.read_u32().await.unwrap() & 0x7fff_ffff;
    let mut message = vec![0; len as usize];
    stream.read_exact(&mut message).await.unwrap();
    Reader::new(&message).u32().unwrap()
}

/// The Reply to a READ of this data, without attributes.
fn read_reply(xid: u32, data: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    rpc::success(Xid(xid), &mut w);
    [0, 0, data.len() as u32, 1].iter().for_each(|word| w.u32(*word));
    w.opaque(data);
    w.into_parts().0
}

async fn send(stream: &mut OwnedWriteHalf, bytes: &[u8], last: bool) {
    stream.write_u32(bytes.len() as u32 | if last { 1 << 31 } else { 0 }).await.unwrap();
    stream.write_all(bytes).await.unwrap();
}

#[tokio::test]
async fn replies_may_be_cut_anywhere() {
    let rig = Rig::new(quick()).await;
    let data = pattern(3, 1501);
    let first = rig.call(Proc::Read, Some(2000));
    let (mut from, mut to) = rig.accept().await.into_split();
    to.set_nodelay();
    let xid = called(&mut from).await;
    let reply = read_reply(xid, &data);
    for byte in [&(reply.len() as u32 | 1 << 31).to_be_bytes()[..], &reply].concat() {
        to.write_all(&[byte]).await.unwrap();
    }
    let done = first.await.unwrap();
    assert_eq!(done.outcome.unwrap().placed, Some(1501));
    assert_eq!(done.result.unwrap()[..1501], data);

    for cut in [0, 4, 40, 44, 45, 500, 1000, 1544] {
        let call = rig.call(Proc::Read, Some(2000));
        let reply = read_reply(called(&mut from).await, &data);
        send(&mut to, &reply[..cut], false).await;
        send(&mut to, &reply[cut..], true).await;
        let done = call.await.unwrap();
        assert_eq!((done.outcome.unwrap().placed, &done.result.unwrap()[..1501]), (Some(1501), &data[..]));
    }
    // The same procedure with room that is too small, and another one: the Reply comes whole.
    for (proc, room) in [(Proc::Read, Some(1500)), (Proc::Read, None), (Proc::GetAttr, Some(2000))] {
        let call = rig.call(proc, room);
        let reply = read_reply(called(&mut from).await, &data);
        send(&mut to, &reply[..700], false).await;
        send(&mut to, &reply[700..], true).await;
        let got = call.await.unwrap().outcome.unwrap();
        assert_eq!((got.placed, got.message()), (None, &reply[..]));
    }
}

trait NoDelay {
    fn set_nodelay(&self);
}

impl NoDelay for OwnedWriteHalf {
    fn set_nodelay(&self) {
        self.as_ref().set_nodelay(true).unwrap();
    }
}

#[tokio::test]
async fn what_answers_nothing_is_dropped() {
    let rig = Rig::new(quick()).await;
    let call = rig.call(Proc::GetAttr, None);
    let (mut from, mut to) = rig.accept().await.into_split();
    let xid = called(&mut from).await;
    send(&mut to, &read_reply(xid ^ 1, &[7; 3000]), true).await;
    // A Call in the other direction, and bytes that are no message at all.
    send(&mut to, &[&xid.to_be_bytes()[..], &[0; 40]].concat(), true).await;
    send(&mut to, &[0xff; 12], true).await;
    let reply = read_reply(xid, b"");
    send(&mut to, &reply, true).await;
    send(&mut to, &reply, true).await;
    assert_eq!(call.await.unwrap().outcome.unwrap().message(), reply);
    let next = rig.call(Proc::GetAttr, None);
    let xid = called(&mut from).await;
    send(&mut to, &read_reply(xid, b""), true).await;
    assert!(next.await.unwrap().outcome.is_ok());
    assert_eq!((rig.metrics.strays.get(), rig.metrics.replies.get()), (4, 2));
}

#[tokio::test]
async fn a_garbled_stream_is_a_loss_and_the_call_goes_on() {
    let rig = Rig::new(quick()).await;
    let call = rig.call(Proc::Read, Some(100_000));
    let (mut xids, mut last) = (Vec::new(), None);
    let data = pattern(9, 90_000);
    for bad in 0..4 {
        let (mut from, mut to) = rig.accept().await.into_split();
        let xid = called(&mut from).await;
        xids.push(xid);
        match bad {
            0 => to.write_u32(u32::MAX).await.unwrap(),
            1 => send(&mut to, &[0; 9], true).await,
            // In the middle of the data.
            2 => {
                let reply = read_reply(xid, &data);
                to.write_u32(reply.len() as u32 | 1 << 31).await.unwrap();
                to.write_all(&reply[..50_000]).await.unwrap();
            }
            _ => {
                send(&mut to, &read_reply(xid, &data), true).await;
                last = Some((from, to));
            }
        }
    }
    let done = call.await.unwrap();
    assert_eq!(done.outcome.unwrap().placed, Some(90_000));
    assert_eq!(done.result.unwrap()[..90_000], data);
    assert!(xids.iter().all(|x| *x == xids[0]), "the XID stays");
    assert_eq!((rig.metrics.losses.get(), rig.metrics.retransmissions.get()), (3, 3));
    drop(last);
}

#[tokio::test]
async fn a_reply_shorter_than_it_says_is_told_to_the_caller() {
    let rig = Rig::new(quick()).await;
    let call = rig.call(Proc::Read, Some(2000));
    let (mut from, mut to) = rig.accept().await.into_split();
    let reply = read_reply(called(&mut from).await, &[5; 1000]);
    send(&mut to, &reply[..reply.len() - 400], true).await;
    assert_eq!(call.await.unwrap().outcome.unwrap().placed, Some(600));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_costs_the_connection() {
    let rig = Rig::new(quick()).await;
    let call = rig.call(Proc::Null, None);
    let mut silent = rig.accept().await;
    let first = called(&mut silent).await;
    let (mut from, mut to) = rig.accept().await.into_split();
    let xid = called(&mut from).await;
    assert_eq!(xid, first);
    send(&mut to, &read_reply(xid, b""), true).await;
    assert!(call.await.unwrap().outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_soft_mount_gives_up() {
    let rig = Rig::new(RdmaConfig { give_up: Some(Duration::from_secs(90)), ..quick() }).await;
    let call = rig.call(Proc::Read, Some(10));
    let mut streams = Vec::new();
    let accept = async {
        loop {
            streams.push(rig.accept().await);
        }
    };
    let done = tokio::select! {
        done = call => done.unwrap(),
        () = accept => unreachable!("accepts forever"),
    };
    assert!(matches!(done.outcome, Err(CallError::TimedOut { .. })));
    assert!(done.result.is_some(), "the memory comes back");
}

#[tokio::test]
async fn closing_the_channel_ends_calls() {
    let rig = Rig::new(quick()).await;
    let call = rig.call(Proc::Read, Some(10));
    let mut stream = rig.accept().await;
    called(&mut stream).await;
    rig.channel.close();
    let done = call.await.unwrap();
    assert!(matches!(done.outcome, Err(CallError::Closed)) && done.result.is_some());
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_call_that_is_not_whole_is_refused_without_a_connection() {
    let rig = Rig::new(quick()).await;
    let call = Call {
        message: vec![0; 40],
        hole: Some(Hole { at: 40, len: 100 }),
        argument: Some(Region::alloc(99)),
        result: None,
        result_max: 0,
        reply_max: 100,
    };
    let done = rig.channel.call(call).await;
    assert!(done.outcome.is_err() && done.argument.is_some());
}
