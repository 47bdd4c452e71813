//! A permit is good for one connection: it cannot be kept when that is lost, and used on the next.
use rpcrdma_proto::rpcrdma::requester::{ConnectionId, Requester};

fn main() {
    let mut first = Requester::new(ConnectionId(1), 8);
    first.receive_posted();
    let permit = first.permit().unwrap();
    let _unanswered = first.lost();
    drop(permit);
}
