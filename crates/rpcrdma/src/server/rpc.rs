//! The RPC service: NFS version 3 and MOUNT version 3 behind any transport.
//!
//! # Operation
//! A Call's header is checked in the order that Linux checks it, then its program's module decodes the arguments,
//! executes and encodes. A Reply is a header and a whole result, or a fault and nothing else: faults are found before
//! the first byte of a result is written.
//!
//! What changes something goes through the duplicate request cache. A Call is looked up just before it is executed, on
//! the thread that executes it, and its entry is finished or forgotten by that same thread; one that is only found to
//! need another thread leaves no trace. No lock is held while an export works.
//!
//! NFSACL is not served; its clients are told so (PROG_UNAVAIL) and do without ACLs.
//!
//! # Ownership
//! Nothing of a Call is kept, except its Reply in the cache.
//!
//! # Limits
//! Those of the cache ([`drc::Limits`]). GETATTR, LOOKUP, ACCESS, READ and WRITE allocate nothing here.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rpcrdma_nfs::{
    mount,
    v3::{self, Proc, args::Args, binding},
};
use rpcrdma_proto::{
    drc::{self, Begin, Ticket},
    rpc::{self, Call, Fault, Program, Refusal, Xid},
    xdr::{Reader, Writer},
};
use tokio::time::Instant;

use crate::{
    export::Exports,
    memory::Pools,
    server::{
        mount::Mounts,
        nfs3,
        service::{Carrier, IncomingCall, OutgoingReply, Patience, Served, Service},
    },
};

/// What is served, with versions and the number of their procedures.
const PROGRAMS: &[Program] = &[
    Program { number: v3::PROGRAM, versions: &[(v3::VERSION, Proc::ALL.len() as u32)] },
    Program { number: mount::PROGRAM, versions: &[(mount::VERSION, mount::Proc::ALL.len() as u32)] },
];

/// Parts of the duplicate request cache, each with a lock of its own. XIDs of one client mostly count up, so
/// consecutive Calls go to different ones.
const SHARDS: usize = 8;

/// How long a duplicate waits for the first copy of its Call. A client that has waited longer sends it once more.
const DUPLICATE_PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks by itself: the first copy may be given up without a word.
const DUPLICATE_LOOK: Duration = Duration::from_millis(50);

/// What happened so far.
#[derive(Debug)]
pub struct Counters {
    /// NFS Calls that were executed or answered with an NFS status, by procedure number.
    pub nfs: [AtomicU64; Proc::ALL.len()],
    /// MOUNT Calls.
    pub mount: AtomicU64,
    /// Calls whose header was refused: unknown program, version or procedure, bad credentials.
    pub refused: AtomicU64,
    /// Calls whose arguments did not decode.
    pub garbage: AtomicU64,
    /// Messages that are no Calls, or too short for one.
    pub not_calls: AtomicU64,
    /// Duplicates answered from the cache.
    pub replayed: AtomicU64,
    /// Duplicates that came while the first copy was being executed.
    pub in_progress: AtomicU64,
    /// NFS Calls of peers that the export does not serve, or with handles that are none.
    pub turned_away: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            nfs: std::array::from_fn(|_| zero()),
            mount: zero(),
            refused: zero(),
            garbage: zero(),
            not_calls: zero(),
            replayed: zero(),
            in_progress: zero(),
            turned_away: zero(),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A part of the duplicate request cache.
#[derive(Debug)]
struct Shard {
    cache: Mutex<drc::Cache>,
    /// A Call in it has been finished.
    finished: Condvar,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, drc::Cache> {
        // The cache is a cache: one that a panic left odd can at worst answer a duplicate with an older Reply's bytes,
        // and it has no code that panics between two writes.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a table of exports. One per server process: all transports share it, because a retransmission may come on
/// any connection.
#[derive(Debug)]
pub struct RpcService {
    exports: Exports,
    mounts: Mounts,
    cache: [Shard; SHARDS],
    /// Time of the cache counts from here.
    start: Instant,
    counters: Counters,
}

impl RpcService {
    /// A service for these exports with a cache of the default size.
    #[must_use]
    pub fn new(exports: Exports) -> Self {
        Self::with_cache(exports, drc::Limits::default())
    }

    /// A service for these exports. The limits are those of the whole cache.
    #[must_use]
    pub fn with_cache(exports: Exports, limits: drc::Limits) -> Self {
        let seed = [RandomState::new().hash_one(0), RandomState::new().hash_one(1)];
        let share = drc::Limits {
            max_entries: limits.max_entries.div_ceil(SHARDS),
            max_bytes: limits.max_bytes.div_ceil(SHARDS),
            lifetime: limits.lifetime,
        };
        Self {
            exports,
            mounts: Mounts::default(),
            cache: std::array::from_fn(|_| Shard {
                cache: Mutex::new(drc::Cache::new(share, seed)),
                finished: Condvar::new(),
            }),
            start: Instant::now(),
            counters: Counters::default(),
        }
    }

    /// What is served.
    #[must_use]
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn nfs(&self, call: &Call<'_>, mut r: Reader<'_>, job: &mut Job<'_, '_>) -> Served {
        let xid = call.header.xid;
        let Some(proc) = Proc::from_u32(call.header.proc) else { return job.fault(xid, Fault::ProcUnavail) };
        let inline = r.rest();
        let args = match Args::decode(proc, &mut r).and_then(|args| r.finish().map(|()| args)) {
            Ok(args) => args,
            Err(error) => {
                count(&self.counters.garbage);
                tracing::debug!(peer = %job.call.origin.peer, %proc, %error, "arguments do not decode");
                return job.fault(xid, Fault::GarbageArgs);
            }
        };
        let peer = job.call.origin.peer.ip();
        let place = nfs3::object(&args).map(|object| nfs3::place(&self.exports, object, peer, &call.auth));
        let place = match place {
            // NULL is about nothing, and anybody may call it.
            None => {
                count(&self.counters.nfs[Proc::Null as usize]);
                rpc::success(xid, &mut job.reply.message);
                return Served::Reply;
            }
            Some(Err(status)) => {
                count(&self.counters.turned_away);
                rpc::success(xid, &mut job.reply.message);
                nfs3::refuse(proc, status, &mut job.reply.message);
                return Served::Reply;
            }
            Some(Ok(place)) => place,
        };
        if job.patience == Patience::Now && nfs3::may_block(&place, &args) {
            return Served::WouldBlock;
        }

        let mut ticket = None;
        if binding::cached(proc) {
            match self.begin(call, inline, job) {
                Ok(new) => ticket = Some(new),
                Err(served) => return served,
            }
        }
        let OutgoingReply { message, data } = &mut *job.reply;
        rpc::success(xid, message);
        if nfs3::execute(&place, &args, job.patience, job.pools, message, data).is_err() {
            message.truncate(0);
            return Served::WouldBlock;
        }
        count(&self.counters.nfs[proc as usize]);
        if let Some(ticket) = ticket {
            let shard = self.shard(xid);
            shard.lock().finish(ticket, message.as_slice(), self.now());
            shard.finished.notify_all();
        }
        Served::Reply
    }

    fn mount(&self, call: &Call<'_>, r: Reader<'_>, job: &mut Job<'_, '_>) -> Served {
        let xid = call.header.xid;
        let Some(proc) = mount::Proc::from_u32(call.header.proc) else {
            return job.fault(xid, Fault::ProcUnavail);
        };
        if job.patience == Patience::Now && super::mount::may_block(proc) {
            return Served::WouldBlock;
        }
        let peer = job.call.origin.peer.ip();
        let begin = |w: &mut Writer| rpc::success(xid, w);
        match super::mount::execute(&self.exports, &self.mounts, peer, proc, r, &mut job.reply.message, begin)
        {
            Ok(()) => {
                count(&self.counters.mount);
                Served::Reply
            }
            Err(_) => {
                count(&self.counters.garbage);
                job.fault(xid, Fault::GarbageArgs)
            }
        }
    }

    /// Looks a Call up in the cache. If it has been seen before, the outcome of the second copy.
    fn begin(&self, call: &Call<'_>, inline: &[u8], job: &mut Job<'_, '_>) -> Result<Ticket, Served> {
        let chunks: u64 = job.call.chunks.iter().map(|c| c.data.len() as u64).sum();
        let address = match job.call.origin.peer.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let transport = match job.call.origin.carrier {
            Carrier::Rdma => 0,
            Carrier::Tcp => 1,
        };
        let client = drc::Client { address, transport };
        let shard = self.shard(call.header.xid);
        let mut cache = shard.lock();
        let key = cache.key(&call.header, inline, inline.len() as u64 + chunks, client);
        let start = self.now();
        loop {
            match cache.begin(&key, self.now()) {
                Begin::New(ticket) => return Ok(ticket),
                Begin::Done(reply) => {
                    count(&self.counters.replayed);
                    job.reply.message.bytes(reply);
                    return Err(Served::Reply);
                }
                Begin::InProgress if job.patience == Patience::Now => {
                    count(&self.counters.in_progress);
                    return Err(Served::WouldBlock);
                }
                Begin::InProgress if self.now() - start > DUPLICATE_PATIENCE => return Err(Served::Silent),
                // The first copy's Reply goes to the connection it came on, which may be gone; so this one waits for
                // the result and takes it to its own.
                Begin::InProgress => {
                    let waited = shard.finished.wait_timeout(cache, DUPLICATE_LOOK);
                    cache = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn shard(&self, xid: Xid) -> &Shard {
        &self.cache[xid.0 as usize % SHARDS]
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// One Call on its way through the service.
struct Job<'a, 'c> {
    call: &'a IncomingCall<'c>,
    patience: Patience,
    pools: &'a Pools,
    reply: &'a mut OutgoingReply,
}

impl Job<'_, '_> {
    fn fault(&mut self, xid: Xid, fault: Fault) -> Served {
        fault.reply(xid, &mut self.reply.message);
        Served::Reply
    }
}

impl Service for RpcService {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        let mut job = Job { call, patience, pools, reply };
        let mut r = Reader::with_chunks(call.message, call.chunks);
        match rpc::receive(&mut r, PROGRAMS) {
            Ok(call) if call.header.prog == v3::PROGRAM => self.nfs(&call, r, &mut job),
            Ok(call) => self.mount(&call, r, &mut job),
            Err(Refusal::Answer { xid, fault }) => {
                count(&self.counters.refused);
                tracing::debug!(peer = %call.origin.peer, %xid, %fault, "call refused");
                job.fault(xid, fault)
            }
            Err(Refusal::NotACall { .. }) => {
                count(&self.counters.not_calls);
                Served::Silent
            }
            Err(Refusal::Close { .. }) => {
                count(&self.counters.not_calls);
                Served::Close
            }
        }
    }
}

#[cfg(test)]
mod tests;
