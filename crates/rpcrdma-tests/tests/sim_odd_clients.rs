//! Clients that do not keep the rules: each has a defined outcome at the server, and a client beside it that keeps them
//! sees nothing of it.

use std::{sync::Arc, time::Duration};

use rpcrdma::{
    fabric::{
        Access, Lost, Region, Stag,
        sim::{Census, Face},
    },
    nfs::v3::{Handle, Proc},
    proto::{
        rpc::{AuthSys, CallHeader, Flavor, Groups, OpaqueAuth},
        rpcrdma::{Body, ChunkLists, Credits, Header, RdmaError, ReadSegment, Segment, WriteChunk, Xid},
        xdr::{Encode as _, Writer},
    },
};
use rpcrdma_sim::{
    odd::{self, Raw, null},
    rig::{Outcome, SERVER, Scenario, World, client, run},
    workload,
};

/// Runs a script of a hostile client, and a client that keeps the rules beside it.
fn beside<F>(scenario: Scenario, script: F) -> Outcome
where
    F: AsyncFnOnce(Arc<World>, Handle) -> Result<(), String>,
{
    let outcome = run(scenario, async |w: Arc<World>| {
        w.log.checker(|c| c.odd(client(66)));
        let mount = w.mount(client(1)).await;
        let root = mount.root();
        let good = tokio::spawn({
            let (w, mount) = (Arc::clone(&w), mount.clone());
            async move { workload::rounds(&w, &mount, 3, 3).await }
        });
        script(Arc::clone(&w), root).await?;
        good.await.map_err(|e| e.to_string())??;
        match (mount.metrics().losses.get(), mount.metrics().retransmissions.get()) {
            (0, 0) => Ok(()),
            (losses, _) => Err(format!("the neighbour lost {losses} connections")),
        }
    });
    outcome.check();
    outcome
}

async fn raw(w: &World) -> Result<Raw, String> {
    Raw::connect(&w.sim, client(66), SERVER, 256).await
}

fn infiniband(seed: u64) -> Scenario {
    let mut s = Scenario::quiet(seed);
    s.profile.face = Face::InfiniBand { rnr_retry: 7, rnr_timer: 2 };
    s
}

/// A NULL Call that must be answered, with a grant in bounds.
async fn ping(raw: &mut Raw, xid: u32) -> Result<(), String> {
    raw.send(&null(xid, 8, ChunkLists::default()), None);
    let reply = raw.reply().await?;
    let credits = reply.credit.0;
    if reply.xid != Xid(xid) || !matches!(reply.body, Body::Msg(_)) || !(1..=8).contains(&credits) {
        return Err(format!("the answer to a NULL Call is {reply:?}"));
    }
    Ok(())
}

#[test]
fn a_flood_beyond_the_grant_ends_its_own_connection_on_iwarp() {
    beside(Scenario::quiet(1), async |w, _| {
        for round in 0..5 {
            let mut raw = raw(&w).await?;
            for xid in 0..200 {
                raw.send(&null(round * 1000 + xid, 8, ChunkLists::default()), None);
            }
            match raw.end().await? {
                Lost::Terminated(_) => {}
                other => return Err(format!("the flood ended with: {other}")),
            }
        }
        Ok(())
    });
}

#[test]
fn a_flood_is_answered_where_the_fabric_holds_it_back() {
    beside(infiniband(2), async |w, _| {
        let mut raw = raw(&w).await?;
        for xid in 0..200 {
            raw.send(&null(xid, 8, ChunkLists::default()), None);
        }
        for _ in 0..200 {
            let grant = raw.reply().await?.credit.0;
            if !(1..=8).contains(&grant) {
                return Err(format!("a grant of {grant}"));
            }
        }
        Ok(())
    });
}

#[test]
fn credits_of_nothing_and_of_four_billion() {
    beside(Scenario::quiet(3), async |w, _| {
        let mut raw = raw(&w).await?;
        for (xid, credits) in [(1, 0), (2, u32::MAX), (3, 4_000_000_000), (4, 0)] {
            raw.send(&null(xid, credits, ChunkLists::default()), None);
            let grant = raw.reply().await?.credit.0;
            if !(1..=8).contains(&grant) {
                return Err(format!("a grant of {grant} to a client that asked for {credits}"));
            }
        }
        Ok(())
    });
}

/// MKDIR, which must not be executed twice.
fn mkdir(xid: u32, root: Handle) -> Vec<u8> {
    let mut cred = Writer::new();
    AuthSys { stamp: 1, machine_name: b"odd", uid: 0, gid: 0, groups: Groups::truncated(&[]) }
        .encode(&mut cred);
    let (cred, _) = cred.into_parts();
    let mut w = Writer::new();
    CallHeader {
        xid: Xid(xid),
        prog: rpcrdma::nfs::v3::PROGRAM,
        vers: rpcrdma::nfs::v3::VERSION,
        proc: Proc::MkDir as u32,
        cred: OpaqueAuth { flavor: Flavor::SYS, body: &cred },
        verf: OpaqueAuth::NONE,
    }
    .encode(&mut w);
    root.encode(&mut w);
    w.opaque(b"made-once");
    // No attributes.
    (0..6).for_each(|_| w.u32(0));
    let header = Header::new(Xid(xid), Credits(8), Body::Msg(ChunkLists::default()));
    odd::message(&header, &w.into_parts().0)
}

#[test]
fn a_call_sent_again_on_a_connection_that_lives() {
    beside(Scenario::quiet(4), async |w, root| {
        let mut raw = raw(&w).await?;
        ping(&mut raw, 1).await?;
        let before = w.executed(Proc::MkDir);
        raw.send(&mkdir(7, root), None);
        raw.send(&mkdir(7, root), None);
        let (first, _) = raw.receive().await?;
        let (second, _) = raw.receive().await?;
        // All but the credits are the same.
        if first[12..] != second[12..] {
            return Err("the copies of a Call have different Replies".to_owned());
        }
        let status = &first[28 + 24..][..4];
        let executed = w.executed(Proc::MkDir) - before;
        if (status, executed) == (&[0; 4], 1) {
            Ok(())
        } else {
            Err(format!("executed {executed} times, status {status:?}"))
        }
    });
}

fn segment(handle: u32, length: u32) -> Segment {
    Segment { handle, length, offset: 0x1000 }
}

#[test]
fn thousands_of_segments() {
    let mut scenario = Scenario::quiet(5);
    scenario.server.rdma.inline = 65536;
    beside(scenario, async |w, _| {
        let mut raw = raw(&w).await?;
        ping(&mut raw, 1).await?;
        let reads = (0..2000).map(|i| ReadSegment { position: 44, segment: segment(i, 1) }).collect();
        let chunk: WriteChunk = (0..2000).map(|i| segment(i, 1)).collect();
        let many = ChunkLists { read: reads, ..ChunkLists::default() };
        let wide = ChunkLists { reply: Some(chunk.clone()), ..ChunkLists::default() };
        let deep = ChunkLists { write: [chunk].into_iter().collect(), ..ChunkLists::default() };
        let list = ChunkLists {
            write: (0..500).map(|i| [segment(i, 1)].into_iter().collect()).collect(),
            ..ChunkLists::default()
        };
        let huge = ChunkLists {
            read: [ReadSegment { position: 44, segment: segment(1, u32::MAX) }].into_iter().collect(),
            ..ChunkLists::default()
        };
        // More than the largest transfer, but less than two.
        let large = ChunkLists {
            read: [ReadSegment { position: 44, segment: segment(1, (1 << 20) + (32 << 10)) }]
                .into_iter()
                .collect(),
            ..ChunkLists::default()
        };
        for (xid, lists) in (10..).zip([many, wide, deep, list, huge, large]) {
            raw.send(&null(xid, 8, lists), None);
            let reply = raw.reply().await?;
            if (reply.xid, &reply.body) != (Xid(xid), &Body::Error(RdmaError::Chunk)) {
                return Err(format!("the answer to list {} is {reply:?}", xid - 10));
            }
            ping(&mut raw, xid + 100).await?;
        }
        Ok(())
    });
}

#[test]
fn messages_that_make_no_sense_cost_no_receive() {
    beside(Scenario::quiet(6), async |w, _| {
        let mut raw = raw(&w).await?;
        ping(&mut raw, 1).await?;
        // Far more than there are Receives.
        for round in 0..20 {
            raw.send(b"too short", None);
            let header = |body| Header::new(Xid(round), Credits(8), body);
            // An answer to nothing: never answered.
            raw.send(&odd::message(&header(Body::Error(RdmaError::Chunk)), &[]), None);
            ping(&mut raw, 1000 + round).await?;
            // Another version: answered.
            let mut version = null(2000 + round, 8, ChunkLists::default());
            version[7] = 9;
            raw.send(&version, None);
            let reply = raw.reply().await?;
            if reply.body != Body::Error(RdmaError::Vers { low: 1, high: 1 }) {
                return Err(format!("the answer to another version is {reply:?}"));
            }
            // Retired and unknown types.
            for (proc, answered) in [(2, true), (3, false), (77, true)] {
                let mut odd = null(3000 + round, 8, ChunkLists::default());
                odd[15] = proc;
                raw.send(&odd, None);
                if answered {
                    let reply = raw.reply().await?;
                    if reply.body != Body::Error(RdmaError::Chunk) {
                        return Err(format!("the answer to type {proc} is {reply:?}"));
                    }
                }
            }
            ping(&mut raw, 4000 + round).await?;
        }
        Ok(())
    });
}

#[test]
fn memory_that_is_not_there() {
    beside(Scenario::quiet(7), async |w, _| {
        // A Call whose argument is in memory that was never exposed, and one that is not for reading.
        for exposed in [false, true] {
            let mut raw = raw(&w).await?;
            ping(&mut raw, 1).await?;
            let mut handle = 0x1234;
            if exposed {
                let e = raw
                    .qp
                    .expose(Region::alloc(4096), 4096, Access::RemoteWrite)
                    .map_err(|e| e.to_string())?;
                handle = e.stag.0;
            }
            let read = [ReadSegment { position: 44, segment: segment(handle, 100) }].into_iter().collect();
            raw.send(&null(2, 8, ChunkLists { read, ..ChunkLists::default() }), None);
            raw.end().await?;
        }
        Ok(())
    });
}

#[test]
fn a_message_longer_than_its_receive_and_one_that_invalidates() {
    beside(Scenario::quiet(8), async |w, _| {
        let mut first = raw(&w).await?;
        first.send(&[0; 5000], None);
        first.end().await?;
        let mut second = raw(&w).await?;
        second.send(&null(1, 8, ChunkLists::default()), Some(Stag(5)));
        second.end().await?;
        Ok(())
    });
}

/// Hundreds of clients that connect and leave, or connect and say nothing: the server keeps nothing of them.
#[test]
fn clients_that_come_and_go() {
    let mut scenario = Scenario::quiet(9);
    scenario.patience = Duration::from_secs(2000);
    let outcome = beside(scenario, async |w, _| {
        let mut silent = Vec::new();
        for nth in 0..300 {
            let mut raw = raw(&w).await?;
            match nth % 3 {
                0 => drop(raw),
                1 => ping(&mut raw, 1).await?,
                _ => silent.push(raw),
            }
        }
        // The silent ones are closed in the end, which they notice.
        for mut raw in silent {
            let closed = async { while raw.end().await.is_err() {} };
            tokio::time::timeout(Duration::from_secs(1000), closed)
                .await
                .map_err(|_| "a connection on which nothing happens is kept".to_owned())?;
        }
        let Census { ends, .. } = w.sim.census();
        // The neighbour's two ends, or one more that is on its way out.
        if ends <= 4 { Ok(()) } else { Err(format!("{ends} ends are left")) }
    });
    assert!(outcome.connections > 300);
}
