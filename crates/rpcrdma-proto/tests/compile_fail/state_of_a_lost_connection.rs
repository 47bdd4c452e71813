//! Nothing of a connection is left when it is lost: neither its grant nor its Receives.
use rpcrdma_proto::rpcrdma::requester::{ConnectionId, Requester};

fn main() {
    let requester = Requester::new(ConnectionId(1), 8);
    let _unanswered = requester.lost();
    let _grant = requester.account().granted();
}
