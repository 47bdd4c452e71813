//! The header of a Call is written through a permit and by no other way.
use core::time::Duration;
use rpcrdma_proto::rpcrdma::{Xid, requester::{CallChunks, ConnectionId, Requester}};

fn main() {
    let mut out = [0; 4096];
    let mut requester = Requester::new(ConnectionId(1), 8);
    requester.receive_posted();
    let _ = requester.send(Xid(1), 0, CallChunks::default(), Duration::ZERO, &mut out);
}
