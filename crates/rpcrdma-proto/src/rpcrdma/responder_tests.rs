//! The Responder against hand-made Calls.

use alloc::{format, string::String, vec, vec::Vec};

use super::*;
use crate::rpcrdma::{ChunkLists, RdmaError, Segment};

fn responder(posted: u32) -> Responder {
    let mut r = Responder::new(4, 1024, true, Limits::default());
    (0..posted).for_each(|_| r.receive_posted());
    r
}

fn call(xid: u32, lists: ChunkLists) -> Vec<u8> {
    let header = Header::new(Xid(xid), Credits(8), Body::Msg(lists));
    let mut out = vec![0; header.encoded_len()];
    header.encode_into(&mut out).unwrap();
    out.extend(xid.to_be_bytes());
    out.extend([0; 36]);
    out
}

fn chunk(handle: u32, length: u32) -> WriteChunk {
    WriteChunk::from_iter([Segment { handle, length, offset: 64 }])
}

fn held(r: &mut Responder, message: &[u8]) -> HeldCall {
    match r.receive(message) {
        Arrived::Call(call) => call,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_is_answered_with_a_covered_grant() {
    let mut r = responder(1);
    let c = held(&mut r, &call(7, ChunkLists::default()));
    assert_eq!((c.xid(), c.payload()), (Xid(7), 28));
    let Err(ReplyFault::NoReceive(c)) = r.reply(c, 100, None) else { panic!("no Receive is posted") };
    r.receive_posted();
    let plan = r.reply(c, 100, None).unwrap();
    assert_eq!(plan.header.credit, Credits(1), "one Receive, one credit, whatever we would like to grant");
    assert_eq!(plan.invalidate, None);
    assert_eq!(r.receives_wanted(), 5, "4 and 2 to spare, and 1 is posted");
}

#[test]
fn a_result_goes_to_its_write_chunk_and_one_handle_is_invalidated() {
    let mut r = responder(5);
    let mut lists = ChunkLists::default();
    lists.write.push(chunk(9, 5000));
    let c = held(&mut r, &call(7, lists));
    let plan = r.reply(c, 128, Some(4096)).unwrap();
    assert_eq!(plan.result_chunk(), Some(&chunk(9, 4096)));
    assert_eq!(plan.reply_chunk(), None);
    assert_eq!(plan.invalidate, Some(9));
    assert_eq!(plan.header.credit, Credits(4));
}

#[test]
fn the_message_of_a_long_call_is_held_against_its_header() {
    let mut r = responder(5);
    let c = held(&mut r, &call(7, ChunkLists::default()));
    assert_eq!(c.check(&[0, 0, 0, 7, 0, 0, 0, 0]), Ok(()));
    assert!(c.check(&[0, 0, 0, 8, 0, 0, 0, 0]).is_err());
}

#[test]
fn a_changed_grant_is_what_later_replies_carry() {
    let mut r = responder(5);
    let c = held(&mut r, &call(7, ChunkLists::default()));
    assert_eq!(r.receives_wanted(), 1, "4 and 2 to spare; 4 are posted, and 1 is in hand");
    assert_eq!(r.receives_wanted_to_answer(), 2);
    r.set_grant(2);
    assert_eq!(r.receives_wanted_to_answer(), 0);
    assert_eq!(r.reply(c, 100, None).unwrap().header.credit, Credits(2));
}

#[test]
fn without_mutual_consent_nothing_is_invalidated() {
    let mut r = Responder::new(4, 1024, false, Limits::default());
    (0..5).for_each(|_| r.receive_posted());
    let mut lists = ChunkLists::default();
    lists.write.push(chunk(9, 5000));
    let c = held(&mut r, &call(7, lists));
    assert_eq!(r.reply(c, 128, Some(10)).unwrap().invalidate, None);
}

#[test]
fn a_long_reply_goes_to_the_reply_chunk() {
    let mut r = responder(5);
    let lists = ChunkLists { reply: Some(chunk(9, 5000)), ..ChunkLists::default() };
    let c = held(&mut r, &call(7, lists));
    assert_eq!(r.long_reply(&c, 3000, None), 3000, "to be gathered first");
    assert_eq!(r.long_reply(&c, 100, None), 0, "inline");
    assert_eq!(r.long_reply(&c, 3000, Some(1001)), 4004, "with the item and its pad");
    assert_eq!(r.long_reply(&c, 6000, None), 0, "no room");
    let plan = r.reply(c, 3000, None).unwrap();
    assert_eq!(plan.reply_chunk(), Some(&chunk(9, 3000)));
    assert!(matches!(plan.header.body, Body::Nomsg(_)));
}

#[test]
fn a_reply_without_room_becomes_err_chunk() {
    let mut r = responder(5);
    let c = held(&mut r, &call(7, ChunkLists::default()));
    let Err(ReplyFault::NoRoom(c, _)) = r.reply(c, 3000, None) else { panic!("1024 bytes are the most") };
    let header = r.refuse(Responder::error(c)).unwrap();
    assert_eq!(header.xid, Xid(7));
    assert_eq!(header.body, Body::Error(RdmaError::Chunk));
    assert_eq!(r.promises().held(), 0, "an error retires its Call");
}

#[test]
fn bad_headers_are_refused_or_dropped() {
    let mut r = responder(5);
    let mut bad = call(7, ChunkLists::default());
    bad[7] = 2;
    let Arrived::Refused(refusal, _) = r.receive(&bad) else { panic!("version 2") };
    assert_eq!(r.refuse(refusal).unwrap().body, Body::Error(RdmaError::Vers { low: 1, high: 1 }));
    assert!(matches!(r.receive(&bad[..20]), Arrived::Dropped(_)));
    let mut reply = call(7, ChunkLists::default());
    reply[35] = 1;
    assert!(matches!(r.receive(&reply), Arrived::Dropped(DroppedMessage::NotACall(Xid(7)))));
    assert_eq!(r.promises().held(), 0);
    assert_eq!(r.promises().posted(), 2, "each of the three took a Receive");
}

#[test]
fn a_flood_is_counted() {
    let mut r = responder(4);
    let _one = held(&mut r, &call(1, ChunkLists::default()));
    assert_eq!(r.overruns(), 0);
    let _two = held(&mut r, &call(2, ChunkLists::default()));
    assert_eq!(r.overruns(), 1, "the first Reply has not granted more than one");
}

#[test]
fn a_call_that_is_forgotten_gives_its_place_back() {
    let mut r = responder(4);
    let c = held(&mut r, &call(1, ChunkLists::default()));
    r.forget(c);
    assert_eq!(r.promises().held(), 0);
}

#[test]
fn every_stage_and_step() {
    let mut table = String::new();
    for stage in Stage::ALL {
        for step in Step::ALL {
            if let Some(next) = stage.next(step) {
                table += &format!("{stage:?} + {step:?} = {next:?}\n");
            }
        }
    }
    assert_eq!(
        table,
        "NeedBuffer + ReadsPosted = Reading\n\
         NeedBuffer + Complete = Executing\n\
         NeedBuffer + Flushed = Done\n\
         Reading + Complete = Executing\n\
         Reading + Flushed = Done\n\
         Executing + Replied = Sending\n\
         Executing + Sent = Done\n\
         Executing + Flushed = Done\n\
         Sending + Sent = Done\n\
         Sending + Flushed = Done\n"
    );
}
