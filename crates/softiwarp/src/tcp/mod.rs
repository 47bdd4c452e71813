//! iWARP on tokio's TCP sockets: the thin layer under the [engine](crate::engine).
//!
//! # What flows through
//! [`Connector`] and [`Listener`] exchange the start-up frames; then a queue pair moves bytes between its socket and
//! its engine, in [`QueuePair::poll`](rpcrdma_fabric::QueuePair::poll) and nowhere else.
//!
//! # When it breaks
//! A connection that ends with something left to say (the rest of an FPDU and a Terminate, or just the end of the
//! stream) hands its socket to a short-lived task, so that its user gets its memory back at once.
//!
//! # Limits
//! Start-up is bounded in time and in bytes. An established connection has no time limit of its own, except TCP's
//! ([`Config::user_timeout`]).

mod connect;
mod linger;
mod listen;
mod qp;

use std::time::Duration;

use rpcrdma_fabric::QpLimits;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::{
    engine::Options,
    mpa::setup::{Agreed, Local},
};

pub use connect::Connector;
pub use listen::Listener;

/// Settings of a provider. Those that matter to the peer are wishes: a connection gets what both sides can do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Ask for CRC32c in every FPDU. It is used if either side asks for it.
    pub crc: bool,
    /// MPA revision to connect with: 2, or 1 for peers without enhanced set-up. A listener takes both.
    pub revision: u8,
    /// Ask for the peer-to-peer model: the first frame is one of the provider's own. A listener does as it is asked.
    pub peer_to_peer: bool,
    /// The longest DDP segment to send, in bytes. Up to 65,535.
    pub max_ulpdu: usize,
    /// TCP congestion control for the connection, if the operating system permits it.
    pub congestion: Option<String>,
    /// After connecting, send up to six empty frames at growing intervals until the peer's first FPDU comes: some
    /// peers overlook an FPDU that arrives too early.
    pub nudge: bool,
    /// Mark Sends as solicited events, which wake peers that arm their completion queues for nothing else.
    pub solicited: bool,
    /// How long to look for bytes again and again before waiting for them. Waking up costs more than a short wait, but
    /// the thread is busy meanwhile, with everything that runs on it. Where looking finds nothing it is done less and
    /// less. `None` never does it.
    pub spin: Option<Duration>,
    /// How long the one that connects waits for the MPA Reply, and before that for TCP.
    pub reply_timeout: Duration,
    /// How long a listener waits for the MPA Request of a new connection.
    pub request_timeout: Duration,
    /// How long unacknowledged data may stay so before TCP gives up; the operating system's default if `None`.
    pub user_timeout: Option<Duration>,
    /// Size of the socket's send buffer in bytes; the operating system's choice if `None`.
    pub send_buffer: Option<usize>,
    /// Size of the socket's receive buffer in bytes; the operating system's choice if `None`.
    pub recv_buffer: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            crc: true,
            revision: 2,
            peer_to_peer: false,
            max_ulpdu: Options::default().max_ulpdu,
            congestion: Some("reno".to_owned()),
            nudge: true,
            solicited: false,
            spin: None,
            reply_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            user_timeout: None,
            send_buffer: None,
            recv_buffer: None,
        }
    }
}

impl Config {
    /// What start-up asks for.
    fn local(&self, limits: &QpLimits) -> Local {
        Local {
            revision: self.revision,
            crc: self.crc,
            peer_to_peer: self.peer_to_peer,
            ird: limits.inbound_reads,
            ord: limits.outbound_reads,
        }
    }

    fn options(&self) -> Options {
        Options { max_ulpdu: self.max_ulpdu, nudge: self.nudge, solicited: self.solicited }
    }

    /// Sets a socket's options. None of them is worth failing for.
    fn apply(&self, stream: &TcpStream) {
        let socket = SockRef::from(stream);
        let tried = [
            ("TCP_NODELAY", socket.set_tcp_nodelay(true)),
            (
                "TCP_CONGESTION",
                self.congestion.as_ref().map_or(Ok(()), |c| socket.set_tcp_congestion(c.as_bytes())),
            ),
            ("TCP_USER_TIMEOUT", self.user_timeout.map_or(Ok(()), |t| socket.set_tcp_user_timeout(Some(t)))),
            ("SO_SNDBUF", self.send_buffer.map_or(Ok(()), |n| socket.set_send_buffer_size(n))),
            ("SO_RCVBUF", self.recv_buffer.map_or(Ok(()), |n| socket.set_recv_buffer_size(n))),
        ];
        for (option, result) in tried {
            if let Err(error) = result {
                tracing::debug!(option, %error, "socket option not set");
            }
        }
    }
}

/// The provider in words, for people.
fn describe(agreed: &Agreed) -> String {
    let crc = if agreed.crc { "CRC32c" } else { "no CRC" };
    let model = if agreed.rtr.is_some() { ", peer-to-peer" } else { "" };
    format!("iWARP/TCP, {crc}{model}")
}
