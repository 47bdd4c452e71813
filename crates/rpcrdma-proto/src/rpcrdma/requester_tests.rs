//! The Requester against hand-made Replies.

use alloc::{string::ToString as _, vec, vec::Vec};

use super::*;

const NOW: Duration = Duration::ZERO;

fn requester(posted: u32) -> Requester {
    let mut r = Requester::new(ConnectionId(1), 8);
    (0..posted).for_each(|_| r.receive_posted());
    r
}

fn send(r: &mut Requester, xid: u32, chunks: CallChunks) -> Result<Vec<u8>, SendError> {
    let mut out = vec![0; 256];
    let len = r.permit().expect("a permit").send(Xid(xid), xid as usize, chunks, NOW, &mut out)?;
    out.truncate(len);
    Ok(out)
}

fn reply(xid: u32, grant: u32, lists: ChunkLists) -> Vec<u8> {
    let header = Header::new(Xid(xid), Credits(grant), Body::Msg(lists));
    let mut out = vec![0; header.encoded_len()];
    header.encode_into(&mut out).unwrap();
    out.extend(xid.to_be_bytes());
    out.extend(1u32.to_be_bytes());
    out.extend([0; 16]);
    out
}

fn segment(handle: u32, length: u32) -> Segment {
    Segment { handle, length, offset: 0x1000 }
}

#[test]
fn a_reply_ends_its_call_and_opens_the_window() {
    let mut r = requester(4);
    let call = send(&mut r, 7, CallChunks::default()).unwrap();
    assert_eq!(call.len(), 28);
    assert!(r.permit().is_none(), "one Call until the first Reply");
    let got = r.receive(&reply(7, 3, ChunkLists::default()), None);
    assert_eq!(got, Received::Reply { key: 7, message: ReplyMessage::Inline(28), result: None });
    assert_eq!(r.receives_wanted(), 2, "a window of 3, 2 to spare, and 3 left posted");
    for xid in 8..11 {
        send(&mut r, xid, CallChunks::default()).unwrap();
    }
    assert!(r.permit().is_none());
}

#[test]
fn memory_of_another_connection_is_refused_and_costs_no_permit() {
    let mut old = Requester::new(ConnectionId(0), 8);
    old.receive_posted();
    let mut r = requester(1);
    let stale =
        CallChunks { result: old.permit().map(|p| p.registered(segment(5, 100))), ..CallChunks::default() };
    assert_eq!(send(&mut r, 1, stale), Err(SendError::ForeignMemory));
    assert_eq!(r.account().outstanding(), 0);
    assert!(r.permit().is_some());
}

#[test]
fn a_header_that_does_not_fit_costs_no_permit() {
    let mut r = requester(1);
    let failed = r.permit().unwrap().send(Xid(1), 1, CallChunks::default(), NOW, &mut [0; 27]);
    assert_eq!(failed, Err(SendError::NoRoom));
    assert!(r.permit().is_some());
    assert_eq!(r.lost(), []);
}

#[test]
fn an_xid_is_outstanding_once() {
    let mut r = requester(4);
    send(&mut r, 1, CallChunks::default()).unwrap();
    r.receive(&reply(1, 8, ChunkLists::default()), None);
    send(&mut r, 2, CallChunks::default()).unwrap();
    assert_eq!(send(&mut r, 2, CallChunks::default()), Err(SendError::XidInUse(Xid(2))));
}

#[test]
fn returned_chunks_are_checked() {
    for (returned, want) in [
        (segment(5, 60), Ok(60)),
        (segment(5, 101), Err(PeerMisbehaved::SegmentGrew { offered: 100, returned: 101 })),
        (segment(6, 60), Err(PeerMisbehaved::SegmentChanged { index: 0 })),
    ] {
        let mut r = requester(1);
        let room = r.permit().unwrap().registered(segment(5, 100));
        send(&mut r, 1, CallChunks { result: Some(room), ..CallChunks::default() }).unwrap();
        let mut lists = ChunkLists::default();
        lists.write.push(WriteChunk::from_iter([returned]));
        let want = match want {
            Ok(n) => Received::Reply { key: 1, message: ReplyMessage::Inline(52), result: Some(n) },
            Err(rule) => Received::Failed { key: 1, why: CallFault::Misbehaved(rule) },
        };
        assert_eq!(r.receive(&reply(1, 1, lists), None), want);
        assert_eq!(r.account().outstanding(), 0, "a bad Reply retires its Call too");
    }
}

#[test]
fn only_the_answered_calls_memory_may_be_invalidated() {
    let mut r = requester(2);
    let room = r.permit().unwrap().registered(segment(5, 100));
    send(&mut r, 1, CallChunks { result: Some(room), ..CallChunks::default() }).unwrap();
    let mut lists = ChunkLists::default();
    lists.write.push(WriteChunk::from_iter([segment(5, 0)]));
    assert_eq!(
        r.receive(&reply(1, 1, lists), Some(6)),
        Received::Fatal(PeerMisbehaved::ForeignInvalidation { stag: 6 })
    );
    let mut r = requester(1);
    assert!(matches!(r.receive(b"garbage", Some(1)), Received::Fatal(_)));
}

#[test]
fn an_error_fails_its_call_and_counts_as_a_reply() {
    let mut r = requester(2);
    send(&mut r, 1, CallChunks::default()).unwrap();
    let header = Header::error_chunk(Xid(1), Credits(5));
    let mut message = vec![0; header.encoded_len()];
    header.encode_into(&mut message).unwrap();
    let got = r.receive(&message, None);
    assert_eq!(got, Received::Failed { key: 1, why: CallFault::Error(RdmaError::Chunk) });
    assert_eq!(r.account().window(), 5);
}

#[test]
fn strays_are_dropped_and_change_no_grant() {
    let mut r = requester(4);
    send(&mut r, 1, CallChunks::default()).unwrap();
    let got = r.receive(&reply(9, 8, ChunkLists::default()), None);
    assert_eq!(got, Received::Dropped(Dropped::Stray(PeerMisbehaved::ReplyToUnknownXid(Xid(9)))));
    let mut call = reply(1, 8, ChunkLists::default());
    call[32..36].fill(0);
    let got = r.receive(&call, None);
    assert_eq!(got, Received::Dropped(Dropped::Stray(PeerMisbehaved::UnexpectedCall(Xid(1)))));
    assert!(matches!(r.receive(&[0; 9], None), Received::Dropped(Dropped::Header(_))));
    assert_eq!(r.account().granted(), None);
    assert_eq!((r.account().outstanding(), r.account().posted()), (1, 1));
}

#[test]
fn what_is_lost_comes_back_in_the_order_of_sending() {
    let mut r = requester(8);
    send(&mut r, 10, CallChunks::default()).unwrap();
    r.receive(&reply(10, 8, ChunkLists::default()), None);
    for xid in [5, 4, 3, 2] {
        send(&mut r, xid, CallChunks::default()).unwrap();
    }
    r.receive(&reply(5, 8, ChunkLists::default()), None);
    assert_eq!(r.lost(), [4, 3, 2]);
}

#[test]
fn the_longest_wait_and_the_latest_answer_are_known() {
    let mut r = requester(8);
    assert_eq!((r.oldest(), r.latest_answered()), (None, None));
    let at = |secs| Duration::from_secs(secs);
    let mut out = [0; 256];
    let mut send = |r: &mut Requester, xid: u32| {
        let permit = r.permit().expect("a permit");
        permit.send(Xid(xid), 0, CallChunks::default(), at(xid.into()), &mut out).unwrap();
    };
    send(&mut r, 1);
    assert_eq!((r.oldest(), r.latest_answered()), (Some(at(1)), None));
    r.receive(&reply(1, 8, ChunkLists::default()), None);
    assert_eq!((r.oldest(), r.latest_answered()), (None, Some(at(1))));
    (2..=4).for_each(|xid| send(&mut r, xid));
    r.receive(&reply(4, 8, ChunkLists::default()), None);
    r.receive(&reply(3, 8, ChunkLists::default()), None);
    assert_eq!((r.oldest(), r.latest_answered()), (Some(at(2)), Some(at(4))), "the latest one stays so");
}

#[test]
fn errors_say_what_is_wrong() {
    for (error, word) in [
        (SendError::ForeignMemory, "another connection"),
        (SendError::XidInUse(Xid(0x1234)), "1234"),
        (SendError::NoRoom, "does not fit"),
    ] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let rule = PeerMisbehaved::ForeignInvalidation { stag: 6 };
    assert_eq!(CallFault::Misbehaved(rule).to_string(), rule.to_string());
    assert_eq!(CallFault::Error(RdmaError::Chunk).to_string(), RdmaError::Chunk.to_string());
    assert!(!rule.to_string().is_empty());
}
