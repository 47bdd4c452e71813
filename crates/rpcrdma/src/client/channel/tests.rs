use tokio::task::{JoinHandle, yield_now};

use super::*;

fn call(mark: u8) -> Call {
    Call { message: vec![mark; 40], hole: None, argument: None, result: None, result_max: 0, reply_max: 64 }
}

async fn begin(channel: &Channel, mark: u8) -> JoinHandle<Finished> {
    let channel = channel.clone();
    let begun = tokio::spawn(async move { channel.call(call(mark)).await });
    yield_now().await;
    begun
}

/// What the task does in one turn: returns what has ended, and takes what is new.
fn turn(inbox: &mut Inbox, ended: &mut Vec<Ended>) -> (bool, Vec<(usize, NewCall)>) {
    let mut new = Vec::new();
    let open =
        inbox.exchange(&mut Context::from_waker(Waker::noop()), ended, |key, call| new.push((key, call)));
    (open, new)
}

fn end(key: usize, buffer: Vec<u8>) -> Ended {
    let reply = Reply::new(Region::from(&b"a Reply"[..]), 2, 5, None);
    Ended { key, finished: Finished { outcome: Ok(reply), argument: None, result: None }, buffer }
}

#[tokio::test]
async fn room_is_taken_and_given_back() {
    let (channel, mut inbox) = channel(2, Xids::starting_at(7));
    {
        let state = channel.shared.state();
        assert!(state.slots.capacity() >= 2 && state.queue.capacity() >= 2, "nothing is allocated later");
    }
    assert_eq!(channel.free(), 2);
    let first = begin(&channel, 1).await;
    assert_eq!(channel.free(), 1);
    let second = begin(&channel, 2).await;
    let third = begin(&channel, 3).await;
    assert_eq!(channel.free(), 0);
    let (open, new) = turn(&mut inbox, &mut Vec::new());
    let taken: Vec<_> = new.iter().map(|(_, new)| (new.call.message[0], new.xid.0)).collect();
    assert_eq!((open, taken), (true, vec![(1, 7), (2, 8)]), "the third waits for its turn");
    let mut ended = new.into_iter().map(|(key, new)| end(key, new.call.message)).collect();
    turn(&mut inbox, &mut ended);
    assert!(ended.is_empty());
    for done in [first, second] {
        assert_eq!(done.await.unwrap().outcome.unwrap().message(), b"Reply");
    }
    yield_now().await;
    assert_eq!((turn(&mut inbox, &mut ended).1.len(), channel.free()), (1, 1));
    third.abort();
}

/// Message buffers go round.
#[tokio::test]
async fn buffers_are_used_again() {
    let (channel, mut inbox) = channel(2, Xids::starting_at(7));
    let done = begin(&channel, 1).await;
    let (_, new) = turn(&mut inbox, &mut Vec::new());
    turn(&mut inbox, &mut vec![end(new[0].0, Vec::with_capacity(1000))]);
    assert!(done.await.unwrap().outcome.is_ok());
    let (buffer, _) = channel.writer().into_parts();
    assert_eq!((buffer.capacity(), buffer.len()), (1000, 0));
    assert_eq!(channel.writer().into_parts().0.capacity(), 0, "there was only one");
}

/// A caller that goes away before its Call is taken takes only its own with it.
#[tokio::test]
async fn a_call_that_is_not_wanted_any_more_is_not_sent_and_others_are() {
    let (channel, mut inbox) = channel(4, Xids::starting_at(7));
    let mut calls = Vec::new();
    for mark in 1..=3 {
        calls.push(begin(&channel, mark).await);
    }
    calls[1].abort();
    yield_now().await;
    assert_eq!(channel.free(), 2);
    assert_eq!(Vec::from(channel.shared.state().queue.clone()).len(), 2);
    let (_, new) = turn(&mut inbox, &mut Vec::new());
    let marks: Vec<u8> = new.iter().map(|(_, new)| new.call.message[0]).collect();
    assert_eq!(marks, [1, 3]);
    // One that is sent goes on without its caller, until the task has it back.
    calls[0].abort();
    yield_now().await;
    assert!(inbox.is_orphan(new[0].0) && !inbox.is_orphan(new[1].0));
    assert_eq!(channel.free(), 2);
    turn(&mut inbox, &mut vec![end(new[0].0, Vec::new())]);
    assert_eq!(channel.free(), 3);
}

/// The time of a Call begins when it is asked for, whether there is room for it or not.
#[tokio::test(start_paused = true)]
async fn a_full_channel_is_not_waited_for_longer_than_a_reply() {
    let metrics = Arc::default();
    let (channel, mut inbox) = channel(1, Xids::starting_at(7));
    let channel = channel.with_patience(Some(Duration::from_secs(90)), &metrics);
    let begun = Instant::now();
    let first = begin(&channel, 1).await;
    let result = Some(Region::alloc(8));
    let late = channel.call(Call { result, ..call(2) }).await;
    assert_eq!(begun.elapsed().as_secs(), 90);
    assert!(matches!(late.outcome, Err(CallError::TimedOut { .. })) && late.result.is_some());
    assert_eq!(metrics.timed_out.get(), 1);
    let asked = Instant::now();
    let next = begin(&channel, 3).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    let (_, new) = turn(&mut inbox, &mut Vec::new());
    turn(&mut inbox, &mut vec![end(new[0].0, Vec::new())]);
    assert!(first.await.unwrap().outcome.is_ok());
    yield_now().await;
    let (_, new) = turn(&mut inbox, &mut Vec::new());
    assert_eq!(new[0].1.asked, asked, "a minute of its time is over");
    turn(&mut inbox, &mut vec![end(new[0].0, Vec::new())]);
    assert!(next.await.unwrap().outcome.is_ok());
    assert_eq!((channel.free(), metrics.timed_out.get()), (1, 1));
}

/// Whoever waits when the task is gone does not wait for ever, whether the Call was taken or not.
#[tokio::test]
async fn calls_end_with_the_task() {
    let (channel, mut inbox) = channel(2, Xids::starting_at(7));
    let taken = begin(&channel, 1).await;
    turn(&mut inbox, &mut Vec::new());
    let queued = begin(&channel, 2).await;
    let outside = begin(&channel, 3).await;
    drop(inbox);
    for call in [taken, queued, outside, begin(&channel, 4).await] {
        assert_eq!(call.await.unwrap().outcome.err(), Some(CallError::Closed));
    }
}

#[tokio::test]
async fn a_closed_channel_says_so_to_its_task_and_to_callers() {
    let (channel, mut inbox) = channel(1, Xids::starting_at(7));
    assert!(turn(&mut inbox, &mut Vec::new()).0);
    channel.close();
    assert!(!turn(&mut inbox, &mut Vec::new()).0);
    let result = Some(Region::alloc(8));
    let finished = channel.call(Call { result, ..call(1) }).await;
    assert!(finished.outcome.err() == Some(CallError::Closed) && finished.result.is_some());
}

#[test]
fn errors_say_what_happened() {
    let timed_out = CallError::TimedOut { after: Duration::from_secs(7), last: "no route".to_owned() };
    assert_eq!(timed_out.to_string(), "no Reply within 7 s (no route)");
    assert_eq!(CallError::Closed.to_string(), "the client was closed");
    assert!(CallError::NoReads.to_string().contains("RDMA Reads"));
}
