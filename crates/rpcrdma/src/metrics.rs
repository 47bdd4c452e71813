//! What clients and servers count.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that many read and few write.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Raises it to `n` if it is lower.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a client, over all of its connections.
#[derive(Debug, Default)]
pub struct ClientMetrics {
    /// Calls sent, each transmission counted.
    pub calls: Counter,
    /// Replies received, transport errors included.
    pub replies: Counter,
    /// Connections made.
    pub connects: Counter,
    /// Attempts to connect in vain.
    pub connect_failures: Counter,
    /// Connections lost.
    pub losses: Counter,
    /// Outages that ended: the first Reply after a loss with Calls pending, or after attempts in vain.
    pub recoveries: Counter,
    /// Connections made to another address than the one before, of a server with several.
    pub failovers: Counter,
    /// Milliseconds of outages that ended, from the loss, or the first Call that found no connection, to the Reply.
    pub outage_ms: Counter,
    /// The longest of these outages in milliseconds.
    pub longest_outage_ms: Counter,
    /// Calls given up because their time was over, as on a soft mount.
    pub timed_out: Counter,
    /// Calls sent again, on a later connection than before.
    pub retransmissions: Counter,
    /// Connections on which exactly one Call was outstanding until the first Reply (RFC 8166 section 3.3.3).
    pub single_starts: Counter,
    /// Connections on which more were. Always 0; here so that anybody can see that it is.
    pub early_sends: Counter,
    /// Most Calls outstanding at one time on one connection.
    pub most_outstanding: Counter,
    /// The largest grant received.
    pub most_granted: Counter,
    /// Calls for which the number outstanding passed the grant. Always 0.
    pub overruns: Counter,
    /// Messages that answered nothing.
    pub strays: Counter,
    /// Bytes that peers placed in registered memory or sent inline as results.
    pub bytes_in: Counter,
    /// Bytes of arguments sent, inline or as chunks.
    pub bytes_out: Counter,
}

/// Counters of a server, over all of its connections.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// RDMA connections made.
    pub connections: Counter,
    /// RDMA connections that have ended.
    pub closed: Counter,
    /// Of those, the ones whose peer broke a rule of the transport: a bad CRC, STag, bound, queue or frame.
    pub misbehaved: Counter,
    /// Connection requests that did not become a connection.
    pub refused: Counter,
    /// Calls received over RDMA.
    pub calls: Counter,
    /// Replies sent over RDMA.
    pub replies: Counter,
    /// Messages answered with RDMA_ERROR because their header is bad.
    pub refused_calls: Counter,
    /// Calls answered with ERR_CHUNK because their Reply had no room.
    pub no_room: Counter,
    /// Messages dropped without an answer.
    pub dropped: Counter,
    /// Calls that came beyond the grant.
    pub overruns: Counter,
    /// Bytes pulled by RDMA Read.
    pub bytes_in: Counter,
    /// Bytes of bulk results sent.
    pub bytes_out: Counter,
}
