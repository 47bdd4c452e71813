//! Long lives and odd moments: thousands of reconnects, a server that is away, callers that give up, memory that cannot
//! be registered.
#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

use std::{
    future::Future,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rpcrdma::{
    client::CallError,
    error::Error,
    fabric::{
        Region,
        sim::{Fault, Faults, Step, What, When},
    },
    nfs::v3::{CreateMode, Proc, SetAttributes},
};
use rpcrdma_sim::{
    plan::Cuts,
    rig::{ODD_SERVER, SERVER, Scenario, World, client, run},
    workload,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn ten_thousand_reconnects_leave_nothing_behind() {
    let mut scenario = Scenario::quiet(1);
    scenario.patience = Duration::from_secs(1_000_000);
    let cuts = Cuts::every(NonZeroU64::new(37).unwrap());
    scenario.plan = cuts.in_words();
    scenario.faults = Box::new(cuts);
    let outcome = run(scenario, async |w: Arc<World>| {
        let mount = w.mount(client(1)).await;
        let metrics = Arc::clone(mount.metrics());
        let mut early = None;
        let mut round = 0;
        while metrics.connects.get() < 10_000 {
            workload::rounds(&w, &mount, 2, 1).await?;
            round += 1;
            if metrics.connects.get() > 2000 && early.is_none() {
                early = Some(resident());
            }
            let census = w.sim.census();
            // One connection, and others on their way out.
            if census.ends > 12 || census.exposed > 0 || mount.pools().in_use() > 0 {
                return Err(format!(
                    "after round {round}: {census:?}, {} bytes in use",
                    mount.pools().in_use()
                ));
            }
        }
        let grown = resident().saturating_sub(early.unwrap_or(0));
        if grown > 8 << 20 {
            return Err(format!("{grown} bytes more after 10,000 connections than after 2,000"));
        }
        if metrics.early_sends.get() + metrics.overruns.get() > 0 {
            return Err("the client has counted a broken rule".to_owned());
        }
        Ok(())
    });
    outcome.check();
    println!(
        "{} connections, {} Calls, {} of them again",
        outcome.connections, outcome.calls.0, outcome.calls.1
    );
}

/// The attempts of a client to reach a server that is not there: the waits between them grow to the cap, and one
/// success later they start over.
#[test]
fn the_waits_between_attempts_grow_and_start_over() {
    let mut scenario = Scenario::quiet(2);
    scenario.patience = Duration::from_secs(10_000);
    scenario.client.rdma.backoff.first = Duration::from_millis(10);
    scenario.client.rdma.backoff.cap = Duration::from_secs(2);
    let outcome = run(scenario, async |w: Arc<World>| {
        let mount = w.mount(client(1)).await;
        let metrics = Arc::clone(mount.metrics());
        for _ in 0..2 {
            let before = (metrics.connects.get(), metrics.connect_failures.get());
            w.sim.remove_device(SERVER.ip(), 60_000);
            let start = Instant::now();
            w.operation(mount.null()).await.map_err(|e| e.to_string())?;
            let took = start.elapsed();
            let failures = metrics.connect_failures.get() - before.1;
            // Each attempt takes up to its time-out of a second, and a wait of one to two when it has grown; without waits
            // there would be sixty.
            if took < Duration::from_secs(59) || !(20..=40).contains(&failures) {
                return Err(format!("{failures} attempts in {took:?}"));
            }
            // It worked, so the next loss is followed by an attempt at once.
            w.sim.remove_device(client(1), 0);
            let start = Instant::now();
            w.operation(mount.null()).await.map_err(|e| e.to_string())?;
            if start.elapsed() > Duration::from_millis(100) {
                return Err(format!("{:?} to come back after a single loss", start.elapsed()));
            }
        }
        Ok(())
    });
    outcome.check();
}

/// A soft mount gives up in its time: while no connection can be made, and on a connection that says nothing.
#[test]
fn a_soft_mount_gives_up_in_time() {
    for silent in [false, true] {
        let mut scenario = Scenario::quiet(3);
        scenario.patience = Duration::from_secs(10_000);
        scenario.client.rdma.give_up = Some(Duration::from_secs(5));
        scenario.client.rdma.call_timeout = Duration::from_secs(60);
        let outcome = run(scenario, async move |w: Arc<World>| {
            let mount = w.mount(client(1)).await;
            mount.null().await.map_err(|e| e.to_string())?;
            if silent {
                w.sim.set_faults(Box::new(Once(What::Silence)));
            } else {
                w.sim.remove_device(SERVER.ip(), 100_000);
            }
            let start = Instant::now();
            let (first, second) = tokio::join!(w.operation(mount.null()), w.operation(mount.null()));
            for done in [first, second] {
                if !matches!(done, Err(Error::Call(CallError::TimedOut { .. }))) {
                    return Err(format!("a soft Call ended with {done:?}"));
                }
            }
            let took = start.elapsed();
            if took < Duration::from_secs(5) || took > Duration::from_secs(8) {
                return Err(format!("5 seconds took {took:?}"));
            }
            // The server is back: so is the mount.
            sleep(Duration::from_secs(100)).await;
            w.operation(mount.null()).await.map_err(|e| e.to_string())
        });
        outcome.check();
    }
}

/// Breaks once, at the next step.
struct Once(What);

impl Faults for Once {
    fn at(&mut self, _: &Step) -> Option<Fault> {
        let what = std::mem::replace(&mut self.0, What::Refuse);
        (what != What::Refuse).then_some(Fault { when: When::Before, what })
    }
}

/// A registration that fails now is tried again soon, even if nothing else is under way that could wake anybody.
#[test]
fn a_failed_registration_is_tried_again_soon() {
    let mut scenario = Scenario::quiet(4);
    scenario.profile.registration_fails = 2;
    scenario.client.rdma.call_timeout = Duration::from_secs(60);
    let outcome = run(scenario, async |w: Arc<World>| {
        let mount = w.mount(client(1)).await;
        let file = workload::create(&w, &mount, "x").await?;
        let data = workload::pattern(1, 9000);
        workload::write(&w, &mount, file, 0, &data).await?;
        let start = Instant::now();
        for _ in 0..100 {
            workload::read(&w, &mount, file, 0, &data).await?;
        }
        match start.elapsed() {
            took if took > Duration::from_secs(10) => Err(format!("100 READs took {took:?}")),
            _ => Ok(()),
        }
    });
    outcome.check();
}

/// Callers that stop waiting at any moment: what they leave behind is ended and cleared away, others are not touched.
#[test]
fn callers_that_give_up() {
    for seed in 0..50 {
        let mut scenario = Scenario::from_seed(seed);
        scenario.client.nconnect = 1;
        let outcome = run(scenario, async move |w: Arc<World>| {
            let mount = w.mount(client(1)).await;
            let data = workload::pattern(seed, 9000);
            let file = workload::create(&w, &mount, "x").await?;
            workload::write(&w, &mount, file, 0, &data).await?;
            for patience in 0..60 {
                let read = mount.read(file, 0, 9000, Region::alloc(9000));
                let how = CreateMode::Guarded(SetAttributes::default());
                let name = format!("n{patience}");
                let create = mount.create(mount.root(), name.as_bytes(), how);
                // Some are answered in this time, most are not.
                let _ = timeout(Duration::from_millis(patience), async { tokio::join!(read, create) }).await;
            }
            workload::read(&w, &mount, file, 0, &data).await?;
            let in_use = mount.pools().in_use();
            drop(mount);
            if in_use > 0 { Err(format!("{in_use} bytes of the pools are in use")) } else { Ok(()) }
        });
        outcome.check();
    }
}

/// Callers that do not look at their answers for a while keep nobody else from being answered.
#[test]
fn callers_that_do_not_collect_their_answers() {
    let mut scenario = Scenario::quiet(5);
    scenario.client.rdma.credits = 1;
    scenario.client.calls = 200;
    let outcome = run(scenario, async |w: Arc<World>| {
        let mount = w.mount(client(1)).await;
        let mut slow: Vec<_> = (0..150).map(|_| Box::pin(mount.null())).collect();
        for call in &mut slow {
            // Started, and not looked at again before the end.
            let started =
                std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_pending()));
            if !started.await {
                return Err("a Call was answered before it was sent".to_owned());
            }
        }
        for _ in 0..20 {
            mount.null().await.map_err(|e| e.to_string())?;
        }
        for call in slow {
            call.await.map_err(|e| e.to_string())?;
        }
        Ok(())
    });
    outcome.check();
}

/// A server that stops in good order and starts again, over and over, while clients are at work: they wait for it, and
/// nothing is lost or repeated.
#[test]
fn a_server_that_stops_and_starts() {
    for seed in 0..20 {
        let mut scenario = Scenario::quiet(seed);
        scenario.client.rdma.backoff.cap = Duration::from_secs(1);
        scenario.execution = 20 * (seed % 2);
        let outcome = run(scenario, async |w: Arc<World>| {
            let mut server = w.serve(ODD_SERVER);
            let mut config = w.config();
            config.nconnect = 2;
            let mount = w.try_mount(client(1), ODD_SERVER, config).await.map_err(|e| e.to_string())?;
            let work = tokio::spawn({
                let (w, mount) = (Arc::clone(&w), mount.clone());
                async move { workload::rounds(&w, &mount, 4, 6).await }
            });
            for pause in 0..8 {
                sleep(Duration::from_millis(30 + pause * 17)).await;
                server.stop().await;
                sleep(Duration::from_millis(pause * 400)).await;
                server = w.serve(ODD_SERVER);
            }
            work.await.map_err(|e| e.to_string())??;
            let metrics = Arc::clone(mount.metrics());
            drop(mount);
            // Until the goodbyes are said.
            sleep(Duration::from_secs(5)).await;
            server.stop().await;
            if metrics.losses.get() < 4 {
                return Err(format!("only {} connections were lost", metrics.losses.get()));
            }
            w.executed_once()
        });
        outcome.check();
    }
}

/// Executions that mostly take longer than the client waits: it comes back for the answers on other connections, while
/// the first copies of its Calls are still to be executed.
#[test]
fn executions_longer_than_the_client_waits() {
    let mut again = 0;
    for seed in 0..40 {
        let mut scenario = Scenario::from_seed(seed);
        scenario.execution = 8000;
        scenario.client.rdma.call_timeout = Duration::from_secs(3);
        scenario.patience = Duration::from_secs(5000);
        let outcome = run(scenario, async |w: Arc<World>| {
            w.log.checker(|c| c.impatient());
            let mount = w.mount(client(1)).await;
            workload::rounds(&w, &mount, 3, 1).await?;
            w.executed_once()
        });
        outcome.check();
        again += outcome.calls.1;
    }
    assert!(again > 1000, "only {again} Calls were sent again");
}

/// Soft mounts in bad weather: a Call is answered or given up in its time, and is executed at most once either way.
#[test]
fn soft_mounts_in_bad_weather() {
    let mut given_up = 0;
    for seed in 100..160 {
        let mut scenario = Scenario::from_seed(seed);
        scenario.client.rdma.give_up = Some(Duration::from_millis(400));
        let timed_out = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&timed_out);
        let outcome = run(scenario, async move |w: Arc<World>| {
            w.log.checker(|c| c.impatient());
            let mount = w.mount(client(1)).await;
            let mut tasks = JoinSet::new();
            for worker in 0..6 {
                let (w, mount, count) = (Arc::clone(&w), mount.clone(), Arc::clone(&count));
                tasks.spawn(async move {
                    for nth in 0..10 {
                        let name = format!("{worker}-{nth}");
                        let start = Instant::now();
                        let how = CreateMode::Guarded(SetAttributes::default());
                        let done =
                            w.once(Proc::Create, mount.create(mount.root(), name.as_bytes(), how)).await;
                        match done {
                            Ok(_) => {}
                            Err(Error::Call(CallError::TimedOut { .. })) => {
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(e) => return Err(format!("CREATE {name} failed: {e}")),
                        }
                        // Its own time, that of an attempt to connect, and that of a wait between two.
                        if start.elapsed() > Duration::from_secs(3) {
                            return Err(format!("a Call of 400 ms took {:?}", start.elapsed()));
                        }
                    }
                    Ok(())
                });
            }
            workload::join(&mut tasks).await?;
            w.executed_at_most_once()
        });
        outcome.check();
        given_up += timed_out.load(Ordering::Relaxed);
    }
    assert!(given_up > 50, "only {given_up} Calls were given up");
}
