//! Two permits would be two answers to one question: each is asked for when the other is spent.
use rpcrdma_proto::rpcrdma::requester::{ConnectionId, Requester};

fn main() {
    let mut requester = Requester::new(ConnectionId(1), 8);
    requester.receive_posted();
    let first = requester.permit();
    let second = requester.permit();
    drop((first, second));
}
