//! Duplicates that come while the first copy of a Call is being executed.

use std::{
    sync::{Condvar, Mutex},
    thread,
};

use super::*;
use crate::export::Clock;

/// A clock that stands still, and holds up whoever looks at it while it is closed.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting: bool,
}

impl Gate {
    fn set(&self, closed: bool) {
        self.0.0.lock().unwrap().closed = closed;
        self.0.1.notify_all();
    }

    fn wait_for_somebody(&self) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |s| !s.waiting).unwrap());
    }
}

impl Clock for Gate {
    fn now(&self) -> NfsTime {
        let mut state = self.0.0.lock().unwrap();
        state.waiting = state.closed;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |s| s.closed).unwrap());
        NfsTime { seconds: 1, nanos: 0 }
    }
}

#[test]
fn a_duplicate_waits_for_the_first_copy_and_gets_its_reply() {
    let gate = Gate::default();
    let options = MemoryOptions { clock: Box::new(gate.clone()), ..MemoryOptions::default() };
    let export = Arc::new(MemoryExport::new(HandleKey::from_bytes([7; 16]), options));
    let mut exports = Exports::new();
    exports.add("/memory", export.clone(), ExportRules::default()).unwrap();
    let service = RpcService::new(exports);
    let pools = Pools::new(1);
    let args =
        MkDirArgs { at: DirOp { dir: export.root(), name: b"dir" }, attributes: SetAttributes::default() };
    let message = nfs_call(7, &args);
    let serve = |port: u16, patience| {
        let origin = Origin { peer: ([192, 0, 2, 1], port).into(), carrier: Carrier::Rdma };
        let mut reply = OutgoingReply::default();
        let call = IncomingCall { origin, message: &message, chunks: &[] };
        let served = service.serve(&call, patience, &pools, &mut reply);
        (served, whole(reply))
    };
    gate.set(true);
    thread::scope(|scope| {
        let first = scope.spawn(|| serve(1, Patience::Wait));
        gate.wait_for_somebody();
        assert_eq!(
            serve(2, Patience::Now),
            (Served::WouldBlock, vec![]),
            "no thread is held up that may not be"
        );
        let second = scope.spawn(|| serve(2, Patience::Wait));
        gate.set(false);
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(first.0, Served::Reply);
        assert_eq!(first, second, "the same answer, byte for byte");
        assert_eq!(results(7, &first.1)[..4], [0; 4], "and it is OK, not EXIST");
    });
    assert_eq!(serve(3, Patience::Now).0, Served::Reply, "later copies are answered at once");
}
