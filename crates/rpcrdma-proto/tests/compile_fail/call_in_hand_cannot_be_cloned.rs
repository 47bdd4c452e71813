//! See call_is_answered_once.rs.
use rpcrdma_proto::rpcrdma::responder::HeldCall;

fn twice(held: HeldCall) -> (HeldCall, HeldCall) {
    (held.clone(), held)
}

fn main() {
    let _ = twice;
}
