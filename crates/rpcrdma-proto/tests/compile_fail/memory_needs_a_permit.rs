//! Memory can be named in a Call only if it was registered under a permit of that connection.
use rpcrdma_proto::rpcrdma::{Segment, requester::CallChunks};

fn main() {
    let segment = Segment { handle: 1, length: 4096, offset: 0 };
    let _by_hand = CallChunks { result: Some(segment), ..CallChunks::default() };
}
