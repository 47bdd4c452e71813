//! Memory that was posted belongs to the queue pair until its completion.
use rpcrdma_fabric::{QueuePair, Region, Work};

fn receive(qp: &mut dyn QueuePair) {
    let mut buf = Region::alloc(4096);
    let _ = qp.post_recv(buf);
    buf.fill(0);
}

fn send(qp: &mut dyn QueuePair) {
    let buf = Region::alloc(4096);
    let _ = qp.post(Work::Send { id: 0, buf, len: 4096, invalidate: None });
    println!("{}", buf[0]);
}

fn main() {
    let _ = (receive, send);
}
