//! A permit is used up by the Call that it lets out.
use core::time::Duration;
use rpcrdma_proto::rpcrdma::{Xid, requester::{CallChunks, ConnectionId, Requester}};

fn main() {
    let mut out = [0; 4096];
    let mut requester = Requester::new(ConnectionId(1), 8);
    requester.receive_posted();
    let permit = requester.permit().unwrap();
    let _ = permit.send(Xid(1), 0, CallChunks::default(), Duration::ZERO, &mut out);
    let _ = permit.send(Xid(2), 0, CallChunks::default(), Duration::ZERO, &mut out);
}
