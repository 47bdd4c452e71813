//! A Call in a Responder's hands is answered once, and nobody can make a second one of it.
use rpcrdma_proto::rpcrdma::{Limits, responder::{Arrived, Responder}};

fn main() {
    let mut responder = Responder::new(8, 4096, false, Limits::default());
    responder.receive_posted();
    let Arrived::Call(held) = responder.receive(&[]) else { return };
    let _first = responder.reply(held, 24, None);
    let _second = responder.reply(held, 24, None);
}
