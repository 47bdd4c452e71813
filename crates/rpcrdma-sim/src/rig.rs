//! Runs a workload on the real client and server in a simulated world.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic,
    pin::Pin,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rpcrdma::{
    client::{BackoffConfig, Identity, Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    fabric::{
        QpLimits,
        sim::{Face, Faults, NoFaults, Profile, Sim},
    },
    memory::Pools,
    nfs::v3::Proc,
    proto::drc,
    server::{
        Offload, RpcService, Server, ServerConfig, Service,
        service::{IncomingCall, OutgoingReply, Patience, Served},
    },
};
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    coverage::Coverage,
    plan::{Dice, Kinds},
    record::{Keep, Log},
    timeline::Timeline,
};

/// Where the server listens.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 20049);

/// Where a server listens that does not keep the rules, if there is one.
pub const ODD_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 20049);

/// The address of a client.
#[must_use]
pub fn client(nth: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, nth))
}

/// Everything that shapes a run.
pub struct Scenario {
    /// Seed of the world and of the clients.
    pub seed: u64,
    /// How the fabric behaves.
    pub profile: Profile,
    /// How the server behaves.
    pub server: ServerConfig,
    /// Milliseconds that the execution of a Call takes at most. 0: it is done at once.
    pub execution: u64,
    /// How clients behave.
    pub client: MountConfig,
    /// What breaks.
    pub faults: Box<dyn Faults>,
    /// The plan in words.
    pub plan: String,
    /// How long, in virtual time, a workload may take after the last fault.
    pub patience: Duration,
    /// Events to keep for the timeline.
    pub keep: Keep,
    /// Arguments of `rpcrdma sim` that run this scenario, if there are any.
    pub replay: Option<String>,
}

impl Scenario {
    /// A small and quick world in which nothing breaks.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        let mut client = MountConfig {
            identity: Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "simulated".to_owned() },
            ..MountConfig::default()
        };
        client.rdma.seed = Some(seed);
        client.rdma.credits = 8;
        client.rdma.call_timeout = Duration::from_secs(3);
        client.rdma.connect_timeout = Duration::from_secs(1);
        client.calls = 32;
        let mut server = ServerConfig { transfers: 8, ..ServerConfig::default() };
        server.rdma.grant = 8;
        Self {
            seed,
            profile: Profile::default(),
            server,
            execution: 0,
            client,
            faults: Box::new(NoFaults),
            plan: "nothing breaks".to_owned(),
            patience: Duration::from_secs(100),
            keep: Keep::for_tests(),
            replay: None,
        }
    }

    /// A world whose every property, and every fault, comes from the seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut it = Self::quiet(seed);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5ce0_a710);
        let pick = |rng: &mut SmallRng, from: &[u64]| from[rng.random_range(0..from.len())];
        let latency = pick(&mut rng, &[1, 2, 5, 20]);
        it.profile = Profile {
            face: if rng.random() {
                Face::Iwarp
            } else {
                Face::InfiniBand { rnr_retry: rng.random_range(0..=7), rnr_timer: pick(&mut rng, &[1, 10]) }
            },
            latency: pick(&mut rng, &[0, 1])..=latency,
            per_kib: pick(&mut rng, &[0, 0, 0, 1]),
            fragment: pick(&mut rng, &[256, 1024, 4096, 1 << 20]) as usize,
            device: 0..=pick(&mut rng, &[0, 1, 3]),
            completion: 0..=pick(&mut rng, &[0, 2, 20]),
            laggard: if rng.random_range(0..3) == 0 { (20, 200) } else { (0, 0) },
            notification: (pick(&mut rng, &[0, 0, 8]) as u32, pick(&mut rng, &[3, 40])),
            invalidation: 0..=pick(&mut rng, &[0, 1, 10]),
            flush: 0..=pick(&mut rng, &[0, 2, 20]),
            batch: pick(&mut rng, &[1, 2, 16]) as usize,
            limits: QpLimits {
                exposed: pick(&mut rng, &[3, 8, 2048]) as usize,
                sends: pick(&mut rng, &[2, 4, 16, 2048]) as usize,
                outbound_reads: pick(&mut rng, &[1, 2, 32]) as u32,
                inbound_reads: pick(&mut rng, &[1, 4, 128]) as u32,
                ..QpLimits::default()
            },
            remote_invalidation: rng.random(),
            registration_fails: pick(&mut rng, &[0, 0, 10]) as u32,
            late_ready: rng.random(),
            transport_timeout: 2000,
        };
        it.server.rdma.grant = pick(&mut rng, &[1, 2, 4, 16]) as u32;
        it.server.rdma.inline = pick(&mut rng, &[1024, 4096]) as u32;
        it.server.rdma.remote_invalidation = rng.random_range(0..4) > 0;
        it.execution = pick(&mut rng, &[0, 0, 3, 60]);
        it.server.transfers = pick(&mut rng, &[1, 4]) as usize;
        it.client.rdma.credits = pick(&mut rng, &[1, 3, 16]) as u32;
        it.client.rdma.inline = pick(&mut rng, &[1024, 4096]) as u32;
        it.client.rdma.remote_invalidation = rng.random_range(0..4) > 0;
        it.client.rdma.backoff =
            BackoffConfig { first: Duration::from_millis(10), cap: Duration::from_secs(1) };
        it.client.nconnect = pick(&mut rng, &[1, 1, 2, 3]) as usize;
        it.client.calls = pick(&mut rng, &[2, 8, 32]) as usize;
        let one_in = pick(&mut rng, &[15, 40, 100, 300]) as u32;
        let left = rng.random_range(0..=20);
        let kinds = Kinds {
            reset: 10,
            silence: rng.random_range(0..=2),
            remove: rng.random_range(0..=1),
            refusal: rng.random_range(0..=5),
        };
        it.faults = Box::new(Dice::new(rng.random(), one_in, left, kinds));
        let Kinds { reset, silence, remove, refusal } = kinds;
        it.plan = format!(
            "at most {left} faults, one step in {one_in}: resets to silence to removals to refusals as \
             {reset} to {silence} to {remove} to {refusal}"
        );
        it
    }
}

/// A world with a server in it, as a workload sees it.
pub struct World {
    /// The fabric.
    pub sim: Sim,
    /// The server's service.
    pub service: Arc<RpcService>,
    /// The record.
    pub log: Log,
    /// The seed, for the dice of workloads.
    pub seed: u64,
    config: MountConfig,
    /// How servers behave, and whether they execute at once.
    server: (ServerConfig, bool),
    /// Numbers for mounts.
    mounts: AtomicU64,
    /// Operations under way, and finished.
    pub operations: (AtomicU64, AtomicU64),
    /// Operations asked for that must not be repeated, by procedure.
    issued: [AtomicU64; Proc::ALL.len()],
}

impl World {
    /// How clients behave.
    #[must_use]
    pub fn config(&self) -> MountConfig {
        self.config.clone()
    }

    /// Starts a server of the world's files.
    #[must_use]
    pub fn serve(&self, at: SocketAddr) -> Server {
        let (config, at_once) = self.server.clone();
        let patient = Patient { service: Arc::clone(&self.service), at_once, log: self.log.clone() };
        let mut server = Server::new(Arc::new(patient), config);
        server.listen_rdma(Box::new(self.sim.listen(at)));
        server
    }

    /// Mounts the server from a client's node, again and again until it works.
    pub async fn mount(&self, node: IpAddr) -> Mount {
        self.mount_of(node, SERVER, self.config()).await
    }

    /// Mounts any server as [`World::mount`] does the usual one.
    pub async fn mount_of(&self, node: IpAddr, server: SocketAddr, mut config: MountConfig) -> Mount {
        loop {
            // The XIDs of no two mounts overlap.
            let nth = self.mounts.fetch_add(1, Ordering::Relaxed);
            config.rdma.seed = Some(self.seed.wrapping_mul(0x1_0001).wrapping_add(nth << 24) & 0xffff_ffff);
            if let Ok(mount) = self.try_mount(node, server, config.clone()).await {
                return mount;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Mounts a server once.
    ///
    /// # Errors
    /// As [`Mount::new`].
    pub async fn try_mount(
        &self,
        node: IpAddr,
        server: SocketAddr,
        config: MountConfig,
    ) -> Result<Mount, rpcrdma::error::Error> {
        let target = Target::new(server.ip().to_string(), Some(server.port()), "/mem");
        let connector = Arc::new(self.sim.connector(node));
        Mount::new(&Transport::Rdma(connector), &target, config).await
    }

    /// How often the server has executed a procedure.
    #[must_use]
    pub fn executed(&self, proc: Proc) -> u64 {
        self.service.counters().nfs[proc as usize].load(Ordering::Relaxed)
    }

    /// An operation that must be executed once, from its start to its end.
    pub async fn once<T>(&self, proc: Proc, future: impl Future<Output = T>) -> T {
        self.issued[proc as usize].fetch_add(1, Ordering::Relaxed);
        self.operation(future).await
    }

    /// Checks that the server has executed what was asked for with [`World::once`] as often as it was asked for.
    ///
    /// # Errors
    /// In words.
    pub fn executed_once(&self) -> Result<(), String> {
        for proc in Proc::ALL {
            let (issued, executed) =
                (self.issued[proc as usize].load(Ordering::Relaxed), self.executed(proc));
            if issued > 0 && issued != executed {
                return Err(format!("{issued} {proc} were asked for, {executed} were executed"));
            }
        }
        Ok(())
    }

    /// Checks that nothing of that kind was executed more often than it was asked for.
    ///
    /// # Errors
    /// In words.
    pub fn executed_at_most_once(&self) -> Result<(), String> {
        for proc in Proc::ALL {
            let (issued, executed) =
                (self.issued[proc as usize].load(Ordering::Relaxed), self.executed(proc));
            if issued > 0 && executed > issued {
                return Err(format!("{issued} {proc} were asked for, {executed} were executed"));
            }
        }
        Ok(())
    }

    /// One operation from its start to its end. When none is under way any more, nothing may be exposed.
    pub async fn operation<T>(&self, future: impl Future<Output = T>) -> T {
        let (under_way, finished) = &self.operations;
        under_way.fetch_add(1, Ordering::Relaxed);
        let result = future.await;
        finished.fetch_add(1, Ordering::Relaxed);
        if under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.log.checker(|c| {
                let exposed = c.exposed();
                if exposed > 0 {
                    c.fail(format!(
                        "{exposed} regions are exposed although every Call has ended (RFC 8166 section 4.4.1)"
                    ));
                }
            });
        }
        result
    }
}

/// How a run ended.
#[derive(Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The plan in words.
    pub plan: String,
    /// What went wrong, if anything did.
    pub verdict: Result<(), String>,
    /// The hash of everything that happened.
    pub hash: u64,
    /// Steps made.
    pub steps: u64,
    /// Faults among them.
    pub faults: u64,
    /// Connections asked for.
    pub connections: u64,
    /// Calls sent, and how many of them again.
    pub calls: (u64, u64),
    /// Events on the fabric.
    pub events: u64,
    /// The last of them.
    pub timeline: Timeline,
    /// Pairs of states and events that it reached.
    pub coverage: Coverage,
    /// Arguments of `rpcrdma sim` that run this again, if there are any.
    pub replay: Option<String>,
}

impl Outcome {
    /// Panics, with all that it takes to run it again, if something went wrong.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn check(&self) {
        if let Err(why) = &self.verdict {
            panic!("{why}\n{self}");
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}; {}", self.seed, self.plan)?;
        writeln!(
            f,
            "{} steps, {} faults, {} connections, {} Calls, {} of them again",
            self.steps, self.faults, self.connections, self.calls.0, self.calls.1
        )?;
        if let Some(replay) = &self.replay {
            writeln!(f, "again: rpcrdma sim {replay} --timeline")?;
        }
        write!(f, "{}", self.timeline)
    }
}

/// The service without threads: what would block is done at once, because the file system is in memory, or in a while.
struct Patient {
    service: Arc<RpcService>,
    at_once: bool,
    log: Log,
}

impl Service for Patient {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        if patience == Patience::Now && !self.at_once {
            return Served::WouldBlock;
        }
        let served = self.service.serve(call, Patience::Wait, pools, reply);
        self.log.watcher(|w| w.served(call.origin.peer, call.message, served));
        served
    }
}

/// Executes Calls after a while, in virtual time and in any order.
fn later(seed: u64, most: u64) -> Offload {
    let rng = Mutex::new(SmallRng::seed_from_u64(seed ^ 0x1a7e_0000));
    Offload::new(move |job| {
        let wait = rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..=most);
        tokio::spawn(async move {
            sleep(Duration::from_millis(wait)).await;
            job();
        });
    })
}

/// Moves a world along with the runtime's clock.
struct Driver {
    sim: Sim,
    epoch: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Driver {
    fn new(sim: Sim, epoch: Instant) -> Self {
        Self { sim, epoch, sleep: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Poll::Ready(due) = self.sim.poll_due(cx) else { return Poll::Pending };
        let due = self.epoch + due;
        if due > Instant::now() {
            self.sleep.as_mut().reset(due);
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.sim.step();
        // Whoever was woken by that gets a turn before the next step.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

thread_local! {
    static PANICKED: Cell<u64> = const { Cell::new(0) };
}

/// Counts the panics of this thread: those of spawned tasks are otherwise seen by nobody.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICKED.with(|n| n.set(n.get() + 1));
            before(info);
        }));
    });
}

/// A file system in memory, and the service in front of it.
#[expect(clippy::expect_used, reason = "the first export of a server always has its name")]
fn service(seed: u64) -> RpcService {
    let mut exports = Exports::new();
    let key = HandleKey::from_bytes([seed as u8; 16]);
    let memory = MemoryExport::new(key, MemoryOptions::default());
    let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
    exports.add("/mem", Arc::new(memory), rules).expect("the first name is free");
    // Small enough to be full soon, and more than enough for what is outstanding.
    RpcService::with_cache(
        exports,
        drc::Limits { max_entries: 512, max_bytes: 1 << 20, ..drc::Limits::default() },
    )
}

/// Runs a workload to its end and everything after it down to the last connection.
///
/// # Panics
/// If the runtime cannot start, for which there is no reason but a system out of memory.
#[expect(clippy::expect_used, reason = "a runtime without I/O needs nothing but memory")]
pub fn run<F>(scenario: Scenario, workload: F) -> Outcome
where
    F: AsyncFnOnce(Arc<World>) -> Result<(), String>,
{
    watch_panics();
    PANICKED.with(|n| n.set(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    let Scenario {
        seed,
        profile,
        server: mut server_config,
        execution,
        client,
        faults,
        plan,
        patience,
        keep,
        replay,
    } = scenario;
    let log = Log::new(keep);
    let (verdict, census) = runtime.block_on(async {
        let epoch = Instant::now();
        let clock = Box::new(move || epoch.elapsed());
        let sim = Sim::new(seed, profile, clock, faults, Some(log.observer()));
        let driver = tokio::spawn(Driver::new(sim.clone(), epoch));
        let service = Arc::new(service(seed));
        server_config.offload = later(seed, execution);
        let at_once = execution == 0;
        let world = Arc::new(World {
            sim: sim.clone(),
            service,
            log: log.clone(),
            seed,
            config: client,
            server: (server_config, at_once),
            mounts: AtomicU64::new(0),
            operations: Default::default(),
            issued: Default::default(),
        });
        let server = world.serve(SERVER);
        let mut verdict = tokio::select! {
            biased;
            done = workload(Arc::clone(&world)) => done,
            why = watch(&world, epoch, patience) => Err(why),
        };
        // Mounts are dropped by now; the connections follow.
        sim.set_faults(Box::new(NoFaults));
        if verdict.is_ok() {
            verdict = drain(&world, &server).await;
        }
        let census = sim.census();
        log.close();
        drop(world);
        if verdict.is_ok() {
            server.stop().await;
        } else {
            drop(server);
        }
        driver.abort();
        (verdict, census)
    });
    drop(runtime);
    let mut verdict = verdict;
    if let Some(broken) = log.checker(|c| {
        if verdict.is_ok() {
            c.end();
        }
        c.verdict().map(str::to_owned)
    }) {
        verdict = Err(broken);
    }
    let panics = PANICKED.with(Cell::get);
    if panics > 0 {
        verdict = Err(format!("{panics} tasks panicked; {}", verdict.err().unwrap_or_default()));
    }
    Outcome {
        seed,
        plan,
        verdict,
        hash: log.hash(),
        steps: census.steps,
        faults: census.faults,
        connections: census.made,
        calls: log.checker(|c| c.calls),
        events: log.events(),
        timeline: log.take_timeline(),
        coverage: log.watcher(|w| w.coverage().clone()),
        replay,
    }
}

/// Ends when the workload takes too long after the last fault, or a rule was broken.
async fn watch(world: &World, epoch: Instant, patience: Duration) -> String {
    loop {
        sleep(Duration::from_millis(500)).await;
        if let Some(broken) = world.log.checker(|c| c.verdict().map(str::to_owned)) {
            return broken;
        }
        let census = world.sim.census();
        if epoch.elapsed() > census.last_fault + patience {
            return format!(
                "{} operations are not finished {} s after the last fault: something waits forever",
                world.operations.0.load(Ordering::Relaxed),
                patience.as_secs()
            );
        }
    }
}

/// Waits until all connections are gone, and looks what is left.
async fn drain(world: &World, server: &Server) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(3600);
    while world.sim.census().ends > 0 {
        if Instant::now() > end {
            return Err(format!("an hour later there still is {:?}", world.sim.census()));
        }
        sleep(Duration::from_millis(500)).await;
    }
    // Tasks see the end of their connection, and drop what they hold.
    sleep(Duration::from_millis(500)).await;
    match server.pools().in_use() {
        0 => Ok(()),
        left => Err(format!("{left} bytes of the server's pools are in use after the last connection")),
    }
}
