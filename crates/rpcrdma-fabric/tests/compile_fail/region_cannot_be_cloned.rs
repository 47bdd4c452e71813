//! A region has one owner.
use rpcrdma_fabric::Region;

fn main() {
    let region = Region::alloc(4096);
    let _two = (region.clone(), region);
}
