//! Workloads with peers that do as they like, by the dice: a server that does not keep the rules, clients that do not,
//! and a server that stops and starts. Whoever keeps the rules beside them must not suffer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rpcrdma::{
    client::Mount,
    fabric::{Access, Region, Shutdown, Stag},
    nfs::v3::{Handle, Stable},
    proto::rpcrdma::{Body, ChunkLists, Credits, Header, RdmaError, ReadSegment, Segment, WriteChunk, Xid},
    server::Server,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    odd::{self, Draft, Raw, Tamper},
    rig::{ODD_SERVER, SERVER, World, client},
    workload::{self, Result},
};

/// Clients of a server that changes its Replies, their order and their number, and of the usual one.
///
/// # Errors
/// In words, if a client of the usual server fails.
pub async fn fickle(w: Arc<World>) -> Result {
    w.log.checker(|c| c.odd(ODD_SERVER.ip()));
    let seed = w.seed;
    let good = w.mount(client(3)).await;
    let file = workload::create(&w, &good, "large").await?;
    workload::write(&w, &good, file, 0, &workload::pattern(1, 20_000)).await?;
    let service = Arc::clone(&w.service);
    let server = tokio::spawn(odd::serve(w.sim.clone(), ODD_SERVER, service, move |nth| {
        whim(seed ^ nth << 20, nth == 0)
    }));
    let neighbour = tokio::spawn(workload::tiny(Arc::clone(&w)));
    let leaving = tokio::spawn(leave(Arc::clone(&w), ODD_SERVER));
    let mut config = w.config();
    config.rdma.give_up = Some(Duration::from_secs(20));
    let using = async {
        let mount = w.mount_of(client(2), ODD_SERVER, config).await;
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            tasks.spawn(use_fickle(Arc::clone(&w), mount.clone(), file));
        }
        workload::join(&mut tasks).await
    };
    // Nobody has to wait for such a server for longer than that.
    if let Ok(done) = timeout(Duration::from_secs(60), using).await {
        done?;
    }
    neighbour.await.map_err(|e| format!("the neighbour died: {e}"))??;
    leaving.await.map_err(|e| format!("a client that leaves died: {e}"))?;
    server.abort();
    Ok(())
}

/// Calls of all shapes to a server of which nothing is expected.
async fn use_fickle(w: Arc<World>, mount: Mount, file: Handle) -> Result {
    for round in 0..4 {
        let read = w.operation(mount.read(file, 0, 20_000, Region::alloc(20_000))).await;
        if read.0.is_ok() && read.1.is_none() {
            return Err("READ does not give its memory back".to_owned());
        }
        // Whatever the server makes of these.
        let _ = w.operation(mount.getattr(file)).await;
        let _ = w.operation(mount.readdirplus(mount.root(), 0, Default::default(), 16_384)).await;
        if round == 2 {
            let _ = w.operation(mount.null()).await;
        }
    }
    Ok(())
}

/// Changes Replies by the dice; on the first connection not the first ones, which let the client mount.
fn whim(seed: u64, first: bool) -> Tamper {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut kept: Vec<Draft> = Vec::new();
    let mut silent = false;
    let mut replies = 0;
    let mut change = move |draft: Option<Draft>| {
        if silent {
            return Vec::new();
        }
        let Some(mut d) = draft else {
            let mut due = std::mem::take(&mut kept);
            if !first && rng.random_range(0..4) == 0 {
                due.extend((0..rng.random_range(1..12)).map(|_| unasked(&mut rng)));
            }
            return due;
        };
        replies += 1;
        if replies > 1 {
            let grants = [0, 1, 2, 3, 8, 16, 16, u32::MAX];
            d.header.credit = Credits(grants[rng.random_range(0..grants.len())]);
        }
        let mut extra = Draft { writes: Vec::new(), ..d.clone() };
        match if first && replies < 3 { 99 } else { rng.random_range(0..60) } {
            0..=9 => {
                kept.push(d);
                if kept.len() < 4 {
                    return Vec::new();
                }
                return kept.drain(..).rev().collect();
            }
            10..=12 => {
                // Nobody waits for these.
                extra.address(Xid(0xdead_0000));
                let count = if rng.random() { 1 } else { rng.random_range(2..16) };
                return std::iter::repeat_n(extra, count).chain([d]).collect();
            }
            13 => return vec![d, extra],
            14 | 15 => {
                // No list, no message.
                extra.header.body = Body::Nomsg(ChunkLists::default());
                extra.payload.clear();
                return vec![extra, d];
            }
            16 | 17 => {
                extra.header.body = Body::Msg(ChunkLists::default());
                extra.payload = odd::rpc(extra.header.xid, 0);
                return vec![extra, d];
            }
            18..=21 => {
                d.writes.clear();
                d.payload.clear();
                d.header.body = Body::Error(RdmaError::Chunk);
            }
            22..=25 => {
                // The chunks that were offered are not returned, or others are.
                d.header.body = Body::Msg(if d.writes.is_empty() {
                    let chunk: WriteChunk = [segment(1, 8)].into_iter().collect();
                    ChunkLists { write: [chunk].into_iter().collect(), ..ChunkLists::default() }
                } else {
                    ChunkLists::default()
                });
            }
            26 => {
                let other = kept.first().and_then(|k| k.offered.handles().next());
                d.invalidate = Some(Stag(other.unwrap_or(0)));
            }
            // Memory of this Call, closed by what is no answer to it.
            29 | 30 => {
                extra.address(Xid(0xdead_0000));
                extra.invalidate = d.offered.handles().next().map(Stag);
                return if rng.random() { vec![extra, d] } else { vec![d, extra] };
            }
            27 => silent = true,
            28 => d.payload.resize(5000, 0),
            _ => {}
        }
        vec![d]
    };
    let mut dice = SmallRng::seed_from_u64(seed ^ 0xb0);
    Box::new(move |draft| {
        let mut drafts = change(draft);
        // More of them than there are Receives to spare, and what comes behind finds few.
        if !first && !drafts.is_empty() && dice.random_range(0..6) == 0 {
            let strays = (0..dice.random_range(3..9)).map(|_| unasked(&mut dice));
            drafts.splice(0..0, strays.collect::<Vec<_>>());
        }
        drafts
    })
}

/// A message that no Call asked for.
fn unasked(rng: &mut SmallRng) -> Draft {
    let xid = Xid(0xdead_0000);
    let header = Header::new(xid, Credits(16), Body::Msg(ChunkLists::default()));
    let mut draft = Draft { payload: odd::rpc(xid, 0), ..Draft::bare(header) };
    match rng.random_range(0..8) {
        // A Call in the reverse direction.
        0 => {}
        1 => draft.payload.clear(),
        2 => draft.invalidate = Some(Stag(0)),
        // Replies.
        _ => draft.payload[7] = 1,
    }
    draft
}

fn segment(handle: u32, length: u32) -> Segment {
    Segment { handle, length, offset: 0x1000 }
}

/// Clients that send what they like, beside one that keeps the rules.
///
/// # Errors
/// In words, if the one that keeps the rules fails.
pub async fn hostile(w: Arc<World>) -> Result {
    let mut rng = SmallRng::seed_from_u64(w.seed ^ 0x4057_11e0);
    let node = client(66);
    w.log.checker(|c| c.odd(node));
    let neighbour = tokio::spawn(workload::tiny(Arc::clone(&w)));
    // Another server, which does not stay.
    let restarting = tokio::spawn(restart(w.serve(ODD_SERVER), Arc::clone(&w), 12, 150));
    for _ in 0..10 {
        let server = if rng.random() { SERVER } else { ODD_SERVER };
        let Ok(mut raw) = Raw::connect(&w.sim, node, server, 64).await else { continue };
        let well_behaved = rng.random_range(0..4);
        for xid in 0..well_behaved {
            raw.send(&odd::null(xid, 8, ChunkLists::default()), None);
            if !answers(&mut raw).await {
                break;
            }
        }
        for _ in 0..rng.random_range(1..6) {
            let count = [1, 1, 2, 6, 40, 200][rng.random_range(0..6)];
            let nuisance = rng.random_range(0..14);
            for nth in 0..count {
                nuisance_of(nuisance, 1000 + nth, &mut raw);
            }
            if rng.random() && !answers(&mut raw).await {
                break;
            }
        }
        match rng.random_range(0..4) {
            0 => raw.qp.shutdown(Shutdown::Graceful),
            1 => raw.qp.shutdown(Shutdown::Abort),
            2 => drop(timeout(Duration::from_millis(50), raw.receive()).await),
            _ => {}
        }
        if rng.random() {
            // Whether it comes to an end or not.
            drop(timeout(Duration::from_millis(500), raw.end()).await);
        }
    }
    let other = restarting.await.map_err(|e| format!("the other server died: {e}"))?;
    other.stop().await;
    neighbour.await.map_err(|e| format!("the neighbour died: {e}"))?
}

/// Stops a server in good order and starts it again, so often.
async fn restart(mut server: Server, w: Arc<World>, times: u32, longest: u64) -> Server {
    let mut rng = SmallRng::seed_from_u64(w.seed ^ 0x0e57_a475);
    for _ in 0..times {
        sleep(Duration::from_millis(rng.random_range(1..longest))).await;
        server.stop().await;
        sleep(Duration::from_millis(rng.random_range(0..30))).await;
        server = w.serve(ODD_SERVER);
    }
    server
}

/// Whether a Reply comes soon.
async fn answers(raw: &mut Raw) -> bool {
    matches!(timeout(Duration::from_millis(300), raw.reply()).await, Ok(Ok(_)))
}

/// Sends something that no client should send; which, `kind` says.
fn nuisance_of(kind: u32, xid: u32, raw: &mut Raw) {
    let header = |body| Header::new(Xid(xid), Credits(8), body);
    let plain = || odd::null(xid, 8, ChunkLists::default());
    match kind {
        // Too many, as like as not.
        0..=2 => raw.send(&plain(), None),
        3 => raw.send(b"too short", None),
        4 => raw.send(&odd::message(&header(Body::Error(RdmaError::Chunk)), &[]), None),
        // Another version, a type that nobody knows.
        5 | 6 => {
            let mut message = plain();
            message[if kind == 5 { 7 } else { 15 }] = 77;
            raw.send(&message, None);
        }
        // Memory that is not there, and memory that is only for writing.
        7 | 8 => {
            let mut handle = 0x1234;
            let mut offset = 0x1000;
            if kind == 8
                && let Ok(e) = raw.qp.expose(Region::alloc(64), 64, Access::RemoteWrite)
            {
                (handle, offset) = (e.stag.0, e.offset);
            }
            let segment = Segment { handle, length: 64, offset };
            let read = [ReadSegment { position: 44, segment }].into_iter().collect();
            raw.send(&odd::null(xid, 8, ChunkLists { read, ..ChunkLists::default() }), None);
        }
        // More segments than anybody needs.
        9 => {
            let read = (0..200).map(|i| ReadSegment { position: 44, segment: segment(i, 1 << 20) }).collect();
            raw.send(&odd::null(xid, 8, ChunkLists { read, ..ChunkLists::default() }), None);
        }
        10 => raw.send(&[0; 5000], None),
        // A Long Call whose message has another XID.
        11 => {
            let message = odd::rpc(Xid(xid ^ 1), 0);
            let len = message.len() as u32;
            if let Ok(e) = raw.qp.expose(Region::from(&message[..]), len, Access::RemoteRead) {
                let segment = Segment { handle: e.stag.0, length: len, offset: e.offset };
                let read = [ReadSegment { position: 0, segment }].into_iter().collect();
                let lists = ChunkLists { read, ..ChunkLists::default() };
                raw.send(&odd::message(&header(Body::Nomsg(lists)), &[]), None);
            }
        }
        // A Call that ends in the middle of its header.
        12 => {
            let call = odd::rpc(Xid(xid), 0);
            raw.send(&odd::message(&header(Body::Msg(ChunkLists::default())), &call[..16]), None);
        }
        _ => raw.send(&plain(), Some(Stag(5))),
    }
}

/// A server that stops in good order and starts again, under clients that stay and clients that leave in a hurry.
///
/// # Errors
/// In words, if an operation of those that stay fails.
pub async fn restarts(w: Arc<World>) -> Result {
    let restarting = tokio::spawn(restart(w.serve(ODD_SERVER), Arc::clone(&w), 6, 120));
    let leaving = tokio::spawn(leave(Arc::clone(&w), SERVER));
    let mount = w.mount_of(client(2), ODD_SERVER, w.config()).await;
    let working = tokio::spawn(async move { workload::rounds(&w, &mount, 5, 3).await });
    let server = restarting.await.map_err(|e| format!("the server died: {e}"))?;
    leaving.await.map_err(|e| format!("a client that leaves died: {e}"))?;
    let done = working.await.map_err(|e| format!("a worker died: {e}"))?;
    server.stop().await;
    done
}

/// Clients that ask for something and go before they are answered.
async fn leave(w: Arc<World>, server: SocketAddr) {
    let mut rng = SmallRng::seed_from_u64(w.seed ^ 0x001e_a7e5);
    for _ in 0..6 {
        // A server that does as it likes may never answer.
        let Ok(mount) = timeout(Duration::from_secs(5), w.mount_of(client(4), server, w.config())).await
        else {
            continue;
        };
        let mut asking = JoinSet::new();
        for nth in 0..8 {
            let (w, mount) = (Arc::clone(&w), mount.clone());
            asking.spawn(async move {
                if nth % 2 == 0 {
                    let page = mount.readdirplus(mount.root(), 0, Default::default(), 16_384);
                    let _ = w.operation(page).await;
                } else {
                    // The root is no file, which the server says when it has pulled the data.
                    let data = Region::alloc(20_000);
                    let _ = w.operation(mount.write(mount.root(), 0, 20_000, data, Stable::Unstable)).await;
                }
            });
        }
        // Now and then for as long as a transport waits for its peer.
        let most = if rng.random_range(0..4) == 0 { 2500 } else { 12 };
        sleep(Duration::from_millis(rng.random_range(0..most))).await;
        drop(asking);
        drop(mount);
    }
}
