//! See memory_needs_a_permit.rs.
use rpcrdma_proto::rpcrdma::{Segment, requester::{ConnectionId, Registered}};

fn main() {
    let segment = Segment { handle: 1, length: 4096, offset: 0 };
    let _made_up = Registered { connection: ConnectionId(1), segment };
}
