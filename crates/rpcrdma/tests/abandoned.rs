//! Work of a connection that is gone is not begun: peers that come and go cannot pile it up.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    future::poll_fn,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rpcrdma::{
    memory::Pools,
    server::{
        Server, ServerConfig,
        service::{IncomingCall, OutgoingReply, Patience, Served, Service},
    },
};
use rpcrdma_fabric::{Connector as _, Listener as _, Region, Shutdown, Start, Work};

/// Blocks every Call until the gate is opened, and counts those that began.
#[derive(Default)]
struct Slow {
    begun: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Service for Slow {
    fn serve(&self, _: &IncomingCall<'_>, patience: Patience, _: &Pools, _: &mut OutgoingReply) -> Served {
        if patience == Patience::Now {
            return Served::WouldBlock;
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        Served::Silent
    }
}

/// An RDMA_MSG without chunks and a NULL Call.
fn message(xid: u32) -> Region {
    let words = [xid, 1, 1, 0, 0, 0, 0, xid, 0, 2, 100_003, 3, 0, 0, 0, 0, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
    Region::from(&bytes[..])
}

#[test]
fn calls_of_a_lost_connection_are_not_begun() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let service = Arc::new(Slow::default());
        let mut server = Server::new(service.clone(), ServerConfig::default());
        let listener =
            softiwarp::Listener::bind(([127, 0, 0, 1], 0).into(), softiwarp::Config::default()).unwrap();
        let at = listener.local_addr();
        server.listen_rdma(Box::new(listener));

        let connector = softiwarp::Connector::new(softiwarp::Config::default());
        let mut qp = connector.connect(at, Start::default()).await.unwrap();
        for xid in 1..=5 {
            let buf = message(xid);
            qp.post(Work::Send { id: 0, len: buf.len(), buf, invalidate: None }).unwrap();
        }
        let metrics = server.metrics();
        let mut done = Vec::new();
        while metrics.calls.get() < 5 || service.begun.load(Ordering::SeqCst) == 0 {
            poll_fn(|cx| {
                let _ = qp.poll(cx, &mut done);
                std::task::Poll::Ready(())
            })
            .await;
            tokio::task::yield_now().await;
        }
        qp.shutdown(Shutdown::Abort);
        drop(qp);
        while metrics.closed.get() == 0 {
            tokio::task::yield_now().await;
        }
        *service.open.lock().unwrap() = true;
        service.opened.notify_all();
        // The one blocking thread comes to this behind all that the connection left.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert_eq!(service.begun.load(Ordering::SeqCst), 1, "only the Call that was under way");
    });
}
