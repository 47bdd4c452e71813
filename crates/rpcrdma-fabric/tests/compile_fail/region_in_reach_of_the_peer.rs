//! Memory that the peer can reach can be neither read nor written nor exposed again before it comes back.
use rpcrdma_fabric::{Access, QueuePair, Region};

fn expose(qp: &mut dyn QueuePair) {
    let mut region = Region::alloc(4096);
    let exposed = qp.expose(region, 4096, Access::RemoteWrite);
    region[0] = 1;
    let _again = qp.expose(region, 4096, Access::RemoteRead);
    drop(exposed);
}

fn main() {
    let _ = expose;
}
