use rpcrdma_proto::xdr::Hole;

use super::*;

mod connection;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn hard_and_soft_mounts() {
    let soft = RdmaConfig::default().soft(secs(2), 3);
    assert_eq!((soft.call_timeout, soft.give_up, soft.credits), (secs(2), Some(secs(8)), 128));
    assert_eq!(RdmaConfig::default().soft(Duration::MAX, u32::MAX).give_up, Some(Duration::MAX));
    let hard = soft.hard(secs(7));
    assert_eq!((hard.call_timeout, hard.give_up), (secs(7), None));
    let same = hard.within_give_up();
    assert_eq!((same.call_timeout, same.connect_timeout), (secs(7), secs(10)));
    let short = RdmaConfig { give_up: Some(secs(3)), ..same }.within_give_up();
    assert_eq!((short.call_timeout, short.connect_timeout), (secs(3), secs(3)));
}

#[test]
fn losses_say_why() {
    let to: SocketAddr = "10.0.0.2:20049".parse().unwrap();
    for (loss, words) in [
        (Loss::Fabric(Lost::PeerClosed), "closed the connection"),
        (Loss::Silent(secs(60)), "no Reply for 60 s"),
        (Loss::TimeIsUp(Duration::from_millis(1500)), "1.5 s"),
        (Loss::Moved(to), "10.0.0.2:20049"),
        (Loss::Refused(RejectReason::QueueFull), "full"),
        (Loss::Misbehaved(PeerMisbehaved::ForeignInvalidation { stag: 6 }), "6"),
    ] {
        assert!(loss.to_string().contains(words), "{loss}");
    }
}

#[test]
fn connections_have_numbers_of_their_own() {
    assert_ne!(next_connection(), next_connection());
}

#[test]
fn tags_are_spread() {
    let hash = |stag: u32, bytes: &[u8]| {
        let mut h = StagHasher::default();
        h.write_u32(stag);
        h.write(bytes);
        h.finish()
    };
    let mut seen: Vec<u64> = (0..1000).map(|stag| hash(stag, &[])).collect();
    seen.extend((0..=255).map(|byte| hash(7, &[byte, 1])));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 1256);
    let high: std::collections::BTreeSet<_> = (0..1000).map(|stag| hash(stag, &[]) >> 56).collect();
    assert!(high.len() > 200, "the table looks at the high bits: {}", high.len());
}

#[test]
fn the_inline_part_of_a_call() {
    let call = |hole: Option<Hole>, argument: Option<&[u8]>| Call {
        message: b"headtail".to_vec(),
        hole,
        argument: argument.map(Region::from),
        result: None,
        result_max: 0,
        reply_max: 0,
    };
    let written = |form, call: &Call| {
        let mut out = [0xee; 32];
        let len = write_inline(form, call, &mut out);
        assert!(out[len..].iter().all(|b| *b == 0xee), "nothing beyond");
        out[..len].to_vec()
    };
    let hole = Some(Hole { at: 4, len: 5 });
    let with = call(hole, Some(b"datum and what is not of it"));
    assert_eq!(written(CallForm::Short, &with), b"headdatum\0\0\0tail", "with its pad");
    assert_eq!(written(CallForm::Long, &with), b"", "all of it is a chunk");
    assert_eq!(written(CallForm::Chunked, &call(hole, None)), b"headtail", "the argument is a chunk");
    assert_eq!(written(CallForm::Short, &call(None, None)), b"headtail");
}
