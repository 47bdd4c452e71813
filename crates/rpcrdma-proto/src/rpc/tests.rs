//! Byte vectors, refusals and properties of RPC headers.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::hex;

const PROGRAMS: &[Program] = &[
    Program { number: 100_003, versions: &[(4, 2), (3, 22)] },
    Program { number: 100_005, versions: &[(3, 6)] },
];

fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    write(&mut w);
    w.into_parts().0
}

fn getattr() -> Vec<u8> {
    hex("00000011 00000000 00000002 000186a3 00000003 00000001 00000001 00000018 00000000 00000001 63000000
         00000000 00000000 00000000 00000000 00000000 00000008 01020304 05060708")
}

fn set(mut bytes: Vec<u8>, words: &[(usize, u32)]) -> Vec<u8> {
    for (at, word) in words {
        bytes[*at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

fn refusal(bytes: &[u8]) -> Refusal {
    receive(&mut Reader::new(bytes), PROGRAMS).expect_err("a Call that should be refused")
}

fn answered(bytes: &[u8]) -> Fault {
    match refusal(bytes) {
        Refusal::Answer { xid: Xid(0x11), fault } => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_decodes_and_encodes_to_its_bytes() {
    let bytes = getattr();
    let mut r = Reader::new(&bytes);
    let call = receive(&mut r, PROGRAMS).unwrap();
    let auth = AuthSys { stamp: 0, machine_name: b"c", uid: 0, gid: 0, groups: Groups::default() };
    assert_eq!(call.auth, Auth::Sys(auth));
    let h = call.header;
    assert_eq!((h.xid, h.prog, h.vers, h.proc, h.verf), (Xid(0x11), 100_003, 3, 1, OpaqueAuth::NONE));
    assert_eq!(r.position(), 64);
    assert_eq!(r.opaque(64), Ok(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
    assert_eq!(h.encoded_len(), 64);
    assert_eq!(written(|w| h.encode(w)), bytes[..64]);
    assert_eq!(written(|w| auth.encode(w)), call.header.cred.body);
    assert_eq!(peek(&bytes), Some((Xid(0x11), MessageType::Call)));
}

#[test]
fn the_null_call_is_forty_bytes() {
    let null = CallHeader {
        xid: Xid(7),
        prog: 100_003,
        vers: 3,
        proc: 0,
        cred: OpaqueAuth::NONE,
        verf: OpaqueAuth::NONE,
    };
    let bytes = written(|w| null.encode(w));
    assert_eq!(bytes.len(), MIN_CALL);
    let call = receive(&mut Reader::new(&bytes), PROGRAMS).unwrap();
    assert_eq!((call.header, call.auth), (null, Auth::None));
}

#[test]
fn error_replies() {
    let x = Xid(0x11);
    #[rustfmt::skip]
    let vectors = [
        (Fault::ProgMismatch { low: 3, high: 4 }, "0000001100000001000000000000000000000000000000020000000300000004"),
        (Fault::Auth(AuthStat::TOO_WEAK), "0000001100000001000000010000000100000005"),
        (Fault::RpcMismatch { low: 2, high: 2 }, "000000110000000100000001000000000000000200000002"),
        (Fault::GarbageArgs, "00000011 00000001 00000000 00000000 00000000 00000004"),
        (Fault::ProgUnavail, "00000011 00000001 00000000 00000000 00000000 00000001"),
        (Fault::ProcUnavail, "00000011 00000001 00000000 00000000 00000000 00000003"),
        (Fault::SystemErr, "00000011 00000001 00000000 00000000 00000000 00000005"),
    ];
    for (fault, bytes) in vectors {
        let bytes = hex(bytes);
        assert_eq!(written(|w| fault.reply(x, w)), bytes);
        let mut r = Reader::new(&bytes);
        let reply = ReplyHeader { xid: x, verf: OpaqueAuth::NONE, status: Err(fault) };
        assert_eq!(ReplyHeader::decode(&mut r), Ok(reply));
        assert_eq!(r.remaining(), 0);
        for len in 0..bytes.len() {
            let cut = ReplyHeader::decode(&mut Reader::new(&bytes[..len]));
            assert!(matches!(cut, Err(ReplyError::Xdr(XdrError::Short { .. }))), "{fault} at {len}: {cut:?}");
        }
    }
}

#[test]
fn a_successful_reply() {
    let bytes = written(|w| success(Xid(0x11), w));
    assert_eq!(bytes, hex("00000011 00000001 00000000 00000000 00000000 00000000"));
    assert_eq!(bytes.len(), REPLY_HEADER);
    assert_eq!(peek(&bytes), Some((Xid(0x11), MessageType::Reply)));
    let with_verifier =
        hex("00000011 00000001 00000000 00000006 00000005 6869206d 65000000 00000000 000000ff");
    let mut r = Reader::new(&with_verifier);
    let reply = ReplyHeader::decode(&mut r).unwrap();
    assert_eq!(reply.verf, OpaqueAuth { flavor: Flavor::GSS, body: b"hi me" });
    assert_eq!((reply.status, r.u32()), (Ok(()), Ok(0xff)));
}

#[test]
fn replies_that_are_none() {
    let decode = |text| ReplyHeader::decode(&mut Reader::new(&hex(text))).unwrap_err();
    assert_eq!(decode("00000011 00000000 00000002"), ReplyError::NotAReply { msg_type: 0 });
    assert_eq!(decode("00000011 00000001 00000002"), ReplyError::Xdr(XdrError::BadEnum(2)));
    assert_eq!(decode("00000011 00000001 00000001 00000002"), ReplyError::Xdr(XdrError::BadEnum(2)));
    assert_eq!(
        decode("00000011 00000001 00000000 00000000 00000000 00000006"),
        ReplyError::Xdr(XdrError::BadEnum(6))
    );
    assert_eq!(
        decode("00000011 00000001 00000000 00000000 00000191"),
        ReplyError::Xdr(XdrError::TooLong { len: 401, max: 400 })
    );
}

#[test]
fn what_is_no_call_is_not_answered() {
    assert_eq!(refusal(&getattr()[..20]), Refusal::Close { have: 20 });
    assert_eq!(refusal(&[]), Refusal::Close { have: 0 });
    assert_eq!(refusal(&set(getattr(), &[(4, 1)])), Refusal::NotACall { msg_type: 1 });
    assert_eq!(refusal(&set(getattr(), &[(4, 9)])), Refusal::NotACall { msg_type: 9 });
    assert_eq!(peek(&hex("00000011 00000002")), None);
    assert_eq!(peek(&hex("00000011 000000")), None);
}

#[test]
fn faults_come_in_order() {
    // Everything is wrong at first; one repair after the other lets the next fault show.
    let mut bytes = set(getattr(), &[(8, 3), (12, 100_004), (16, 5), (20, 22), (24, 9), (56, 1)]);
    let mut repair = |at, word| {
        bytes = set(bytes.clone(), &[(at, word)]);
        answered(&bytes)
    };
    assert_eq!(repair(20, 23), Fault::RpcMismatch { low: 2, high: 2 });
    assert_eq!(repair(8, 2), Fault::Auth(AuthStat::BAD_CRED));
    assert_eq!(repair(24, 1), Fault::Auth(AuthStat::BAD_VERF));
    assert_eq!(repair(56, 0), Fault::ProgUnavail);
    assert_eq!(repair(12, 100_003), Fault::ProgMismatch { low: 3, high: 4 });
    assert_eq!(repair(16, 3), Fault::ProcUnavail);
    assert_eq!(repair(20, 22), Fault::ProcUnavail);
    assert!(receive(&mut Reader::new(&set(bytes, &[(20, 21)])), PROGRAMS).is_ok());
}

#[test]
fn credentials_are_held_to_their_limits() {
    let bad_cred = Fault::Auth(AuthStat::BAD_CRED);
    let bad_verf = Fault::Auth(AuthStat::BAD_VERF);
    let call = |flavor: u32, body: &[u8], verf: &str| {
        let mut bytes = hex("00000011 00000000 00000002 000186a3 00000003 00000000");
        bytes.extend(written(|w| {
            w.u32(flavor);
            w.opaque(body);
        }));
        bytes.extend(hex(verf));
        receive(&mut Reader::new(&bytes), PROGRAMS).map(|c| c.header.cred.body.len()).map_err(|e| match e {
            Refusal::Answer { fault, .. } => fault,
            other => panic!("{other:?}"),
        })
    };
    let sys = |name: &[u8], groups: u32| {
        written(|w| {
            w.u32(1);
            w.opaque(name);
            w.u32(1000);
            w.u32(100);
            w.u32(groups);
            (0..groups).for_each(|g| w.u32(g));
        })
    };
    let none = "00000000 00000000";
    assert_eq!(call(0, &[], none), Ok(0));
    assert_eq!(call(0, &[0; 4], none), Err(bad_cred));
    for flavor in [2, 3, 6, 7, 390_003] {
        assert_eq!(call(flavor, &[], none), Err(bad_cred), "flavor {flavor}");
    }
    assert_eq!(call(1, &sys(&[b'a'; 255], 16), none), Ok(340));
    assert_eq!(call(1, &sys(&[b'a'; 256], 0), none), Err(bad_cred));
    assert_eq!(call(1, &sys(b"a", 17), none), Err(bad_cred));
    assert_eq!(call(1, &[0; 404], none), Err(bad_cred));
    let body = sys(b"host", 3);
    for len in 0..body.len() {
        assert_eq!(call(1, &body[..len], none), Err(bad_cred), "body of {len}");
    }
    // What follows the groups within the body is ignored.
    let longer = [&body[..], &[0; 8]].concat();
    assert_eq!(call(1, &longer, none), Ok(body.len() + 8));

    assert_eq!(call(1, &body, "00000001 00000000"), Err(bad_verf));
    assert_eq!(call(1, &body, "00000000 00000004 00000000"), Err(bad_verf));
    assert_eq!(call(1, &body, "00000000"), Err(bad_verf));
    assert_eq!(call(1, &body, ""), Err(bad_verf));
    assert_eq!(call(0, &[], ""), Err(Fault::GarbageArgs));
    assert_eq!(call(0, &[], "00000000"), Err(bad_verf));
}

#[test]
fn a_call_cut_anywhere_is_refused() {
    let bytes = getattr();
    for len in 0..64 {
        match refusal(&bytes[..len]) {
            Refusal::Close { have } => assert!(have == len && len < 24),
            Refusal::Answer { fault: Fault::GarbageArgs, .. } => assert!((24..36).contains(&len)),
            Refusal::Answer { fault: Fault::Auth(AuthStat::BAD_CRED), .. } => {
                assert!((36..56).contains(&len))
            }
            Refusal::Answer { fault: Fault::Auth(AuthStat::BAD_VERF), .. } => {
                assert!((56..64).contains(&len))
            }
            other => panic!("{other:?} at {len}"),
        }
    }
}

#[test]
fn groups_beyond_sixteen_are_left_out() {
    let many: Vec<u32> = (0..20).collect();
    assert_eq!(Groups::truncated(&many).as_slice(), &many[..16]);
    assert_eq!(Groups::truncated(&many[..3]).as_slice(), &many[..3]);
    let auth =
        AuthSys { stamp: 1, machine_name: &[b'x'; 300], uid: 2, gid: 3, groups: Groups::truncated(&many) };
    let body = written(|w| auth.encode(w));
    let decoded = AuthSys::decode(&body).unwrap();
    assert_eq!((decoded.machine_name.len(), decoded.groups), (255, auth.groups));
}

proptest! {
    #[test]
    fn calls_round_trip(
        (xid, proc, uid, gid, stamp) in any::<(u32, u32, u32, u32, u32)>(),
        name in prop::collection::vec(any::<u8>(), 0..=255),
        groups in prop::collection::vec(any::<u32>(), 0..=16),
        args in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let auth = AuthSys { stamp, machine_name: &name, uid, gid, groups: Groups::truncated(&groups) };
        let body = written(|w| auth.encode(w));
        let cred = OpaqueAuth { flavor: Flavor::SYS, body: &body };
        let header = CallHeader { xid: Xid(xid), prog: 9, vers: 1, proc, cred, verf: OpaqueAuth::NONE };
        let mut bytes = written(|w| header.encode(w));
        prop_assert_eq!(bytes.len(), header.encoded_len());
        bytes.extend(&args);
        let mut r = Reader::new(&bytes);
        let programs = [Program { number: 9, versions: &[(1, u32::MAX)] }];
        if proc == u32::MAX {
            return Ok(());
        }
        prop_assert_eq!(receive(&mut r, &programs), Ok(Call { header, auth: Auth::Sys(auth) }));
        prop_assert_eq!(r.rest(), &args[..]);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..120)) {
        let _ = receive(&mut Reader::new(&bytes), PROGRAMS);
        let _ = ReplyHeader::decode(&mut Reader::new(&bytes));
        let mut call = vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2];
        call.extend(&bytes);
        let _ = receive(&mut Reader::new(&call), PROGRAMS);
        call[7] = 1;
        call.truncate(8);
        call.extend(&bytes);
        let _ = ReplyHeader::decode(&mut Reader::new(&call));
    }
}
