//! Servers that do not keep the rules: each has a defined outcome at the client, which keeps every rule all the while.
#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rpcrdma::{
    client::{CallError, Mount},
    error::Error,
    fabric::{Region, Stag},
    proto::rpcrdma::{Body, ChunkLists, Credits, Header, RdmaError, Segment, WriteChunk, Xid},
};
use rpcrdma_sim::{
    odd::{self, Draft, Tamper},
    rig::{ODD_SERVER, Outcome, Scenario, World, client, run},
    workload,
};

/// Runs a workload on a mount of a server with this tamper, and a good one on a good server beside it.
fn with<F>(seed: u64, tamper: impl Fn(u64) -> Tamper + Send + Sync + 'static, workload: F) -> Outcome
where
    F: AsyncFnOnce(Arc<World>, Mount) -> Result<(), String>,
{
    let outcome = run(Scenario::quiet(seed), async |w: Arc<World>| {
        w.log.checker(|c| c.odd(ODD_SERVER.ip()));
        let server = tokio::spawn(odd::serve(w.sim.clone(), ODD_SERVER, Arc::clone(&w.service), tamper));
        let neighbour = tokio::spawn(workload::tiny(Arc::clone(&w)));
        let mount = loop {
            let mut config = w.config();
            config.rdma.seed = Some(0x7700_0000);
            if let Ok(mount) = w.try_mount(client(2), ODD_SERVER, config).await {
                break mount;
            }
        };
        let metrics = Arc::clone(mount.metrics());
        workload(Arc::clone(&w), mount).await?;
        if (metrics.early_sends.get(), metrics.overruns.get()) != (0, 0) {
            return Err("the client has counted a broken rule".to_owned());
        }
        neighbour.await.unwrap().map_err(|e| format!("the neighbour: {e}"))?;
        server.abort();
        Ok(())
    });
    outcome.check();
    outcome
}

/// A tamper that changes each Reply, given its number, and sends it.
fn each(mut change: impl FnMut(u64, &mut Draft) + Send + 'static) -> Tamper {
    let mut nth = 0;
    Box::new(move |draft| {
        let mut drafts: Vec<Draft> = draft.into_iter().collect();
        for d in &mut drafts {
            nth += 1;
            change(nth, d);
        }
        drafts
    })
}

async fn many(w: Arc<World>, mount: Mount) -> Result<(), String> {
    workload::rounds(&w, &mount, 6, 3).await
}

#[test]
fn a_grant_that_changes_with_every_reply() {
    for (seed, grants) in [
        (1, &[1u32, 16, 2, 8, 1, 3][..]),
        (2, &[0, 5, 0, 0, 9]),
        (3, &[u32::MAX, 1, u32::MAX, 0]),
        (4, &[0]),
        (5, &[1]),
    ] {
        let outcome = with(
            seed,
            move |_| each(move |nth, d| d.header.credit = Credits(grants[nth as usize % grants.len()])),
            many,
        );
        assert_eq!(outcome.calls.1, 0, "no Call had to be sent again");
    }
}

#[test]
fn another_grant_on_every_connection() {
    let connections = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&connections);
    let outcome = with(
        6,
        move |nth| {
            seen.store(nth + 1, Ordering::Relaxed);
            // From 16 down to 1; a connection ends after so many Replies.
            let grant = 16u32.saturating_sub(nth as u32 * 3).max(1);
            let mut left = 12;
            Box::new(move |draft| {
                let mut drafts: Vec<Draft> = draft.into_iter().collect();
                for d in &mut drafts {
                    d.header.credit = Credits(grant);
                    left -= 1;
                    if left == 0 {
                        // Invalidating what is not exposed ends it.
                        d.invalidate = Some(Stag(0));
                    }
                }
                drafts
            })
        },
        many,
    );
    assert!(outcome.calls.1 > 0 && connections.load(Ordering::Relaxed) > 5, "connections were lost");
}

#[test]
fn replies_out_of_order() {
    let outcome = with(
        7,
        |_| {
            let mut kept = Vec::new();
            Box::new(move |draft: Option<Draft>| {
                let due = draft.is_none() || kept.len() >= 4;
                kept.extend(draft);
                if due { kept.drain(..).rev().collect() } else { Vec::new() }
            })
        },
        many,
    );
    assert_eq!(outcome.calls.1, 0);
}

#[test]
fn replies_to_nobody_and_replies_twice() {
    let strays = |_| -> Tamper {
        let mut nth = 0;
        Box::new(move |draft: Option<Draft>| {
            let Some(draft) = draft else { return Vec::new() };
            nth += 1;
            let mut extra = draft.clone();
            extra.writes.clear();
            match nth % 12 {
                // An XID that nobody waits for.
                3 => extra.header.xid = Xid(0xdead_0000 + nth),
                // A Reply twice; the second copy finds its Call answered.
                6 => {}
                // Too short for a header.
                9 => {
                    extra.header.body = Body::Error(RdmaError::Chunk);
                    extra.header.xid = Xid(1);
                }
                // A Call in the reverse direction.
                0 => {
                    extra.header.body = Body::Msg(ChunkLists::default());
                    extra.payload = odd::rpc(extra.header.xid, 0);
                    return vec![extra, draft];
                }
                _ => return vec![draft],
            }
            vec![draft, extra]
        })
    };
    let outcome = with(8, strays, async |w: Arc<World>, mount: Mount| {
        let metrics = Arc::clone(mount.metrics());
        workload::rounds(&w, &mount, 2, 6).await?;
        if metrics.strays.get() < 5 { Err(format!("{} strays", metrics.strays.get())) } else { Ok(()) }
    });
    assert_eq!(outcome.calls.1, 0, "strays cost nothing");
}

/// A file of 20000 bytes, read under a tamper of the Reply that brings it.
fn read_with(seed: u64, spoil: impl Fn(&mut Draft) + Clone + Send + Sync + 'static) -> String {
    let told = Arc::new(std::sync::Mutex::new(String::new()));
    let tell = Arc::clone(&told);
    let tamper = move |_| {
        let spoil = spoil.clone();
        each(move |_, d| {
            // Only the Reply of the READ has that much in a Write chunk.
            if d.writes.iter().any(|(data, _)| data.len() > 19_000) {
                spoil(d);
            }
        })
    };
    let outcome = with(seed, tamper, async move |w: Arc<World>, mount: Mount| {
        let file = workload::create(&w, &mount, "x").await?;
        workload::write(&w, &mount, file, 0, &workload::pattern(1, 20_000)).await?;
        let (done, room) = w.operation(mount.read(file, 0, 20_000, Region::alloc(20_000))).await;
        *tell.lock().unwrap() = match done {
            Ok(_) => "read".to_owned(),
            Err(e) => e.to_string(),
        };
        if room.is_none_or(|room| room.len() != 20_000) {
            return Err("READ does not give its memory back".to_owned());
        }
        // The same connection goes on.
        mount.null().await.map_err(|e| e.to_string())?;
        if mount.metrics().connects.get() == 1 { Ok(()) } else { Err("the connection was lost".to_owned()) }
    });
    assert_eq!(outcome.calls.1, 0);
    let told = told.lock().unwrap();
    told.clone()
}

fn change_segment(d: &mut Draft, change: impl Fn(&mut Segment)) {
    let (Body::Msg(lists) | Body::Nomsg(lists)) = &mut d.header.body else { return };
    lists.write = lists
        .write
        .iter()
        .map(|chunk| {
            chunk
                .iter()
                .map(|s| {
                    let mut s = *s;
                    change(&mut s);
                    s
                })
                .collect::<WriteChunk>()
        })
        .collect();
}

#[test]
fn a_returned_segment_that_grew() {
    let why = read_with(9, |d| change_segment(d, |s| s.length += 100_000));
    assert!(why.contains("returns 120000 bytes in a segment of 20000"), "{why}");
}

#[test]
fn a_returned_segment_of_other_memory() {
    let why = read_with(10, |d| change_segment(d, |s| s.handle ^= 1));
    assert!(why.contains("other memory"), "{why}");
    let why = read_with(11, |d| change_segment(d, |s| s.offset += 8));
    assert!(why.contains("other memory"), "{why}");
}

#[test]
fn a_returned_chunk_that_is_shorter_than_the_data_it_brings() {
    let why = read_with(12, |d| change_segment(d, |s| s.length = 5));
    assert!(why.contains("5 bytes does not match"), "{why}");
}

#[test]
fn a_chunk_that_is_not_used_or_not_returned() {
    let inline = read_with(13, |d| {
        let data = d.writes.remove(0).0;
        change_segment(d, |s| s.length = 0);
        // As much of it as a message holds.
        d.payload.extend_from_slice(&data[..3000]);
    });
    assert!(inline.contains("came inline although it had a Write chunk"), "{inline}");
    let missing = read_with(14, |d| d.header.body = Body::Msg(ChunkLists::default()));
    assert!(missing.contains("returns 0 Write chunks where 1 were offered"), "{missing}");
}

#[test]
fn a_transport_error_of_each_kind_ends_its_call_only() {
    let chunk = read_with(15, |d| {
        d.writes.clear();
        d.payload.clear();
        d.header.body = Body::Error(RdmaError::Chunk);
    });
    assert!(chunk.contains("ERR_CHUNK"), "{chunk}");
    let vers = read_with(16, |d| {
        d.writes.clear();
        d.payload.clear();
        d.header = Header::error_vers(d.header.xid, 1, d.header.credit);
        d.header.body = Body::Error(RdmaError::Vers { low: 2, high: 3 });
    });
    assert!(vers.contains("versions 2 to 3"), "{vers}");
}

#[test]
fn an_error_names_its_call_as_the_one_that_failed() {
    with(
        17,
        |_| {
            each(|nth, d| {
                if nth == 4 {
                    d.payload.clear();
                    d.header.body = Body::Error(RdmaError::Chunk);
                }
            })
        },
        async |w: Arc<World>, mount: Mount| {
            // MNT and FSINFO were the first two.
            for nth in 3..8 {
                let done = w.operation(mount.null()).await;
                match (nth, done) {
                    (4, Err(Error::Call(CallError::Transport(_)))) | (3 | 5.., Ok(())) => {}
                    (nth, done) => return Err(format!("Call {nth}: {done:?}")),
                }
            }
            Ok(())
        },
    );
}

/// The server's Send invalidates the memory of another Call, or of none: the client gives the connection up, because
/// that Call could wait forever, and all Calls are answered on the next one.
#[test]
fn an_invalidation_of_the_wrong_memory() {
    let outcome = with(
        18,
        |nth| {
            let mut kept: VecDeque<Draft> = VecDeque::new();
            Box::new(move |draft: Option<Draft>| {
                let Some(draft) = draft else { return kept.drain(..).collect() };
                if nth > 0 || draft.offered.write.is_empty() {
                    return vec![draft];
                }
                // Two READs at a time; the first answer takes the other's memory away.
                kept.push_back(draft);
                if kept.len() < 2 {
                    return Vec::new();
                }
                let other = kept[1].offered.write[0][0].handle;
                let mut first = kept.pop_front().unwrap();
                first.invalidate = Some(Stag(other));
                vec![first]
            })
        },
        async |w: Arc<World>, mount: Mount| {
            let data = workload::pattern(3, 9000);
            let file = workload::create(&w, &mount, "x").await?;
            workload::write(&w, &mount, file, 0, &data).await?;
            let (a, b) = tokio::join!(
                workload::read(&w, &mount, file, 0, &data),
                workload::read(&w, &mount, file, 0, &data)
            );
            a.and(b)?;
            if mount.metrics().losses.get() == 1 {
                Ok(())
            } else {
                Err("no connection was given up".to_owned())
            }
        },
    );
    assert!(outcome.calls.1 >= 2, "both READs were sent again");
}

#[test]
fn a_server_that_says_nothing_any_more() {
    let outcome = with(
        19,
        |nth| {
            let mut replies = 0;
            Box::new(move |draft: Option<Draft>| {
                replies += draft.iter().len();
                if nth < 2 && replies > 6 { Vec::new() } else { draft.into_iter().collect() }
            })
        },
        many,
    );
    assert!(outcome.calls.1 > 0, "what was not answered was sent again");
}

#[test]
fn a_reply_longer_than_any_receive() {
    with(
        20,
        |nth| {
            each(move |reply, d| {
                if nth < 3 && reply > 8 {
                    d.payload.resize(5000, 0);
                }
            })
        },
        many,
    );
}

/// A server that never answers what one Call asks for must not keep the others from being answered.
#[test]
fn a_call_that_ends_every_connection_starves_nobody() {
    with(
        21,
        |_| {
            each(|_, d| {
                if d.writes.iter().any(|(data, _)| data.len() > 19_000) {
                    d.invalidate = Some(Stag(0));
                }
            })
        },
        async |w: Arc<World>, mount: Mount| {
            let file = workload::create(&w, &mount, "x").await?;
            workload::write(&w, &mount, file, 0, &workload::pattern(1, 20_000)).await?;
            let poison = tokio::spawn({
                let (w, mount) = (Arc::clone(&w), mount.clone());
                async move { w.operation(mount.read(file, 0, 20_000, Region::alloc(20_000))).await.0.is_ok() }
            });
            for _ in 0..20 {
                w.operation(mount.null()).await.map_err(|e| e.to_string())?;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            poison.abort();
            let _ = poison.await;
            Ok(())
        },
    );
}
