//! Where clients reconnect to, and when they give a connection up: several servers with the same files, slow links,
//! servers that forget a Call, connections without RDMA Reads.
#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rpcrdma::{
    client::{CallError, Mount, MountConfig, Target, Transport},
    error::Error,
    fabric::Region,
    nfs::v3::Stable,
};
use rpcrdma_sim::{
    odd,
    rig::{ODD_SERVER, Scenario, World, client, run},
    workload,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// Two servers of the same files, which share their duplicate request cache: so what the one has executed is not executed
/// again by the other.
const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), 20049);
const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 4)), 20049);

/// Mounts two servers as one.
async fn mount_both(w: &World, config: MountConfig) -> Result<Mount, String> {
    let text = format!("nfs://{FIRST},{SECOND}/mem");
    let target: Target = text.parse().map_err(|e| format!("{text}: {e}"))?;
    let transport = Transport::Rdma(Arc::new(w.sim.connector(client(1))));
    Mount::new(&transport, &target, config).await.map_err(|e| e.to_string())
}

/// Work goes on at the second server when the first one goes, with a word or without.
fn fail_over(silent: bool, nconnect: usize) {
    let mut scenario = Scenario::quiet(nconnect as u64);
    scenario.client.nconnect = nconnect;
    let outcome = run(scenario, async move |w: Arc<World>| {
        let (first, second) = (w.serve(FIRST), w.serve(SECOND));
        let mount = mount_both(&w, w.config()).await?;
        let metrics = Arc::clone(mount.metrics());
        workload::rounds(&w, &mount, 4, 1).await?;
        if metrics.failovers.get() > 0 {
            return Err("the first server is there, and was not used".to_owned());
        }
        let work = tokio::spawn({
            let (w, mount) = (Arc::clone(&w), mount.clone());
            async move { workload::rounds(&w, &mount, 8, 12).await }
        });
        sleep(Duration::from_millis(40)).await;
        let start = Instant::now();
        if silent {
            w.sim.remove_device(FIRST.ip(), 10_000_000);
        } else {
            first.stop().await;
        }
        work.await.map_err(|e| e.to_string())??;
        let took = start.elapsed();
        // Silence is noticed after 3 seconds, and an attempt to connect takes one.
        if took > Duration::from_secs(if silent { 10 } else { 3 }) {
            return Err(format!("{took:?} until the other server had done it all"));
        }
        let connects = metrics.connects.get();
        let (failovers, recoveries) = (metrics.failovers.get(), metrics.recoveries.get());
        if failovers != nconnect as u64 || recoveries < 1 || connects != 2 * nconnect as u64 {
            return Err(format!("{connects} connections, {failovers} failovers, {recoveries} recoveries"));
        }
        if metrics.longest_outage_ms.get() == 0 || metrics.longest_outage_ms.get() > 10_000 {
            return Err(format!("the longest outage was of {} ms", metrics.longest_outage_ms.get()));
        }
        workload::rounds(&w, &mount, 4, 1).await?;
        if metrics.connects.get() != connects {
            return Err("the mount does not stay with the server that took over".to_owned());
        }
        drop(mount);
        sleep(Duration::from_secs(5)).await;
        second.stop().await;
        w.executed_once()
    });
    outcome.check();
}

#[test]
fn another_server_takes_over_from_one_that_is_gone() {
    for nconnect in [1, 3] {
        fail_over(false, nconnect);
        fail_over(true, nconnect);
    }
}

/// Servers that come and go: as long as one of them is there now and then, everything is done, once.
#[test]
fn two_servers_that_take_turns() {
    let failovers = Arc::new(AtomicU64::new(0));
    for seed in 0..20 {
        let count = Arc::clone(&failovers);
        let mut scenario = Scenario::quiet(seed);
        scenario.client.rdma.backoff.cap = Duration::from_secs(1);
        scenario.client.nconnect = 1 + seed as usize % 3;
        scenario.execution = 10 * (seed % 2);
        let outcome = run(scenario, async move |w: Arc<World>| {
            // It cuts the connections that do not go where the mount has moved.
            w.log.checker(|c| c.impatient());
            let mut servers = [Some(w.serve(FIRST)), Some(w.serve(SECOND))];
            let mount = mount_both(&w, w.config()).await?;
            let work = tokio::spawn({
                let (w, mount) = (Arc::clone(&w), mount.clone());
                async move { workload::rounds(&w, &mount, 4, 24).await }
            });
            for turn in 0..8 {
                sleep(Duration::from_millis(30 + turn * 17)).await;
                let (at, nth) = if turn % 2 == 0 { (FIRST, 0) } else { (SECOND, 1) };
                if let Some(server) = servers[nth].take() {
                    server.stop().await;
                }
                sleep(Duration::from_millis(turn * 100)).await;
                servers[nth] = Some(w.serve(at));
            }
            work.await.map_err(|e| e.to_string())??;
            let metrics = Arc::clone(mount.metrics());
            drop(mount);
            // Until the goodbyes are said.
            sleep(Duration::from_secs(5)).await;
            for server in servers.into_iter().flatten() {
                server.stop().await;
            }
            count.fetch_add(metrics.failovers.get(), Ordering::Relaxed);
            w.executed_once()
        });
        outcome.check();
    }
    let failovers = failovers.load(Ordering::Relaxed);
    assert!(failovers >= 40, "only {failovers} failovers in 20 worlds");
}

/// A link that takes long for many large transfers is slow, not dead, as long as Replies come.
#[test]
fn a_slow_link_is_not_cut_while_replies_come() {
    let mut scenario = Scenario::quiet(7);
    scenario.profile.per_kib = 1;
    scenario.client.rdma.call_timeout = Duration::from_secs(3);
    let outcome = run(scenario, async |w: Arc<World>| {
        let mount = w.mount(client(1)).await;
        let file = workload::create(&w, &mount, "x").await?;
        const LEN: usize = 1 << 20;
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for nth in 0..8 {
            let mount = mount.clone();
            tasks.spawn(async move {
                let region = Region::alloc(LEN);
                let (done, _) =
                    mount.write(file, nth * LEN as u64, LEN as u32, region, Stable::Unstable).await;
                done.map(|_| ()).map_err(|e| e.to_string())
            });
        }
        workload::join(&mut tasks).await?;
        let took = start.elapsed();
        if took < Duration::from_secs(6) {
            return Err(format!("8 transfers in {took:?} are no trial"));
        }
        match mount.metrics().losses.get() {
            0 => Ok(()),
            n => Err(format!("{n} connections were lost")),
        }
    });
    outcome.check();
}

/// A server that answers everything but one Call, and two callers that go on for 30 seconds. Returns how many Calls were
/// given up, how long the longest took, and how many connections were lost.
fn forgetful(call_timeout: u64, give_up: Option<u64>) -> (u64, Duration, u64) {
    let mut scenario = Scenario::quiet(8);
    scenario.client.rdma.call_timeout = Duration::from_secs(call_timeout);
    scenario.client.rdma.give_up = give_up.map(Duration::from_secs);
    let seen = Arc::new(Mutex::new((0, Duration::ZERO, 0)));
    let told = Arc::clone(&seen);
    let outcome = run(scenario, async move |w: Arc<World>| {
        w.log.checker(|c| c.impatient());
        let server = tokio::spawn(odd::serve(w.sim.clone(), ODD_SERVER, Arc::clone(&w.service), |nth| {
            let mut count = 0;
            Box::new(move |draft| {
                count += u32::from(draft.is_some());
                // On the first connection one Call is executed and forgotten.
                let forgotten = nth == 0 && draft.is_some() && count == 6;
                if forgotten { Vec::new() } else { draft.into_iter().collect() }
            })
        }));
        let mount = w.try_mount(client(1), ODD_SERVER, w.config()).await.map_err(|e| e.to_string())?;
        let mut tasks = JoinSet::new();
        for worker in 0..2 {
            let (mount, told) = (mount.clone(), Arc::clone(&told));
            tasks.spawn(async move {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_secs(30) {
                    let start = Instant::now();
                    let done = mount.null().await;
                    let failed = match done {
                        Ok(()) => 0,
                        Err(Error::Call(CallError::TimedOut { .. })) => 1,
                        Err(e) => return Err(e.to_string()),
                    };
                    {
                        let mut told = told.lock().unwrap();
                        told.0 += failed;
                        told.1 = told.1.max(start.elapsed());
                    }
                    sleep(Duration::from_millis(100 + worker)).await;
                }
                Ok(())
            });
        }
        workload::join(&mut tasks).await?;
        told.lock().unwrap().2 = mount.metrics().losses.get();
        drop(mount);
        sleep(Duration::from_secs(5)).await;
        server.abort();
        Ok(())
    });
    outcome.check();
    *seen.lock().unwrap()
}

/// Others' Replies do not keep a forgotten Call waiting for ever: it is sent again.
#[test]
fn a_call_that_is_forgotten_is_sent_again_although_others_are_answered() {
    let (given_up, longest, losses) = forgetful(3, None);
    assert_eq!((given_up, losses), (0, 1));
    assert!(longest >= Duration::from_secs(3) && longest < Duration::from_secs(8), "{longest:?}");
}

/// On a soft mount it fails when its time is up, to the moment.
#[test]
fn a_forgotten_call_of_a_soft_mount_fails_in_time_although_others_are_answered() {
    let (given_up, longest, losses) = forgetful(60, Some(4));
    assert_eq!((given_up, losses), (1, 1));
    assert!(longest >= Duration::from_secs(4) && longest < Duration::from_millis(4100), "{longest:?}");
}

/// Without RDMA Reads a server cannot fetch large arguments. That is an error, not a reason to connect again and again;
/// what fits inline works.
#[test]
fn a_connection_without_rdma_reads_refuses_large_writes() {
    for (inbound, outbound) in [(0, 32), (128, 0)] {
        let mut scenario = Scenario::quiet(9);
        scenario.profile.limits.inbound_reads = inbound;
        scenario.profile.limits.outbound_reads = outbound;
        let outcome = run(scenario, async move |w: Arc<World>| {
            let mount = w.mount(client(1)).await;
            let file = workload::create(&w, &mount, "x").await?;
            let region = Region::alloc(100_000);
            let (done, region) = w.operation(mount.write(file, 0, 100_000, region, Stable::Unstable)).await;
            match done {
                Err(Error::Call(CallError::NoReads | CallError::Transport(_))) => {}
                other => return Err(format!("a large WRITE without Reads ended with {other:?}")),
            }
            if region.is_none() {
                return Err("the memory did not come back".to_owned());
            }
            workload::write(&w, &mount, file, 0, &workload::pattern(1, 2000)).await?;
            workload::read(&w, &mount, file, 0, &workload::pattern(1, 2000)).await?;
            match mount.metrics().connects.get() {
                1 => Ok(()),
                n => Err(format!("{n} connections")),
            }
        });
        outcome.check();
    }
}
