use alloc::string::ToString;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::hex;

const NOBODY: [&[u8]; 0] = [];

fn encoded(v: &impl Encode) -> Vec<u8> {
    let mut w = Writer::new();
    v.encode(&mut w);
    w.into_parts().0
}

#[test]
fn the_mnt_call_and_reply_are_byte_exact() {
    // Arguments behind a 64-byte call header, results behind a 24-byte reply header.
    let args = hex("000000072f6578706f727400");
    let mut r = Reader::new(&args);
    let path = DirPath::decode(&mut r).unwrap();
    assert_eq!((path.0, r.remaining()), (&b"/export"[..], 0));
    assert_eq!(encoded(&path), args);

    let result = hex("00000000000000080102030405060708000000020000000100000000");
    let mut r = Reader::new(&result);
    let decoded = MntResult::decode(&mut r).unwrap();
    assert_eq!(r.remaining(), 0);
    let ok = decoded.0.unwrap();
    assert_eq!(ok.handle.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ok.flavors.as_slice(), [AUTH_SYS, AUTH_NONE]);
    assert!(ok.flavors.takes(AUTH_SYS) && ok.flavors.takes(AUTH_NONE) && !ok.flavors.takes(6));
    assert_eq!(encoded(&decoded), result);
    for n in 0..result.len() {
        assert!(MntResult::decode(&mut Reader::new(&result[..n])).is_err(), "{n} bytes");
    }
}

#[test]
fn a_failed_mnt_is_a_status_alone() {
    let r = MntResult(Err(MountStatus::ACCES));
    assert_eq!(encoded(&r), [0, 0, 0, 13]);
    assert_eq!(MntResult::decode(&mut Reader::new(&[0, 0, 0, 13])), Ok(r));
    assert_eq!(encoded(&MntResult(Err(MountStatus::OK))), [0, 0, 0x27, 0x16]);
    assert_eq!(MntResult::decode(&mut Reader::new(&[0; 12])), Err(XdrError::Empty));
}

#[test]
fn flavors_beyond_the_limit_are_dropped_and_a_wild_count_is_refused() {
    let mut w = Writer::new();
    w.u32(0);
    w.opaque(&[1]);
    w.u32(20);
    (0..20).for_each(|i| w.u32(i));
    let ok = MntResult::decode(&mut Reader::new(w.as_slice())).unwrap().0.unwrap();
    assert_eq!(ok.flavors.as_slice().len(), FLAVORS_MAX);
    w.set_u32(12, u32::MAX);
    assert!(matches!(MntResult::decode(&mut Reader::new(w.as_slice())), Err(XdrError::TooLong { .. })));
    assert!(Flavors::new(&[]).takes(AUTH_NONE) && !Flavors::new(&[]).takes(AUTH_SYS));
}

#[test]
fn statuses_have_names_words_and_errnos() {
    for s in MountStatus::ALL {
        assert!(s.name().is_some());
        assert_eq!(s.errno() == 0, s.is_ok());
        assert_eq!(MountStatus::from(Status(s.0)), s);
    }
    assert_eq!(MountStatus::from(Status::STALE), MountStatus::SERVERFAULT);
    assert_eq!(MountStatus(70).errno(), 5);
    assert_eq!(MountStatus(70).to_string(), "unknown MOUNT status 70");
    assert_eq!(MountStatus::NOENT.to_string(), "no such export or directory (MNT3ERR_NOENT)");
    for (n, p) in Proc::ALL.into_iter().enumerate() {
        assert_eq!(Proc::from_u32(n as u32), Some(p));
    }
    assert_eq!(Proc::from_u32(6), None);
}

#[test]
fn exports_with_and_without_groups_are_listed() {
    let mut w = Writer::new();
    let long = [b'x'; PATH_MAX + 1];
    encode_exports(
        &mut w,
        [
            (&b"/a"[..], [&b"10.0.0.0/8"[..], &long[..NAME_MAX + 1]].to_vec()),
            (&long[..], [].to_vec()),
            (b"/b", NOBODY.to_vec()),
        ],
    );
    let bytes = w.as_slice();
    let list = Exports::decode(&mut Reader::new(bytes)).unwrap();
    let got: Vec<_> = list.map(|e| (e.path, e.groups.map(|g| g.0).collect::<Vec<_>>())).collect();
    assert_eq!(got, [(&b"/a"[..], [&b"10.0.0.0/8"[..]].to_vec()), (&b"/b"[..], [].to_vec())]);
    assert_eq!(encoded(&list), bytes);
    for n in 0..bytes.len() {
        assert!(Exports::decode(&mut Reader::new(&bytes[..n])).is_err(), "{n} bytes");
    }
}

proptest! {
    #[test]
    fn dumps_round_trip(
        items in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..40)), 0..8)
    ) {
        let mut w = Writer::new();
        encode_mounts(&mut w, items.iter().map(|(h, p)| (h.as_slice(), p.as_slice())));
        let mut r = Reader::new(w.as_slice());
        let list = Mounts::decode(&mut r).unwrap();
        prop_assert_eq!(r.remaining(), 0);
        let got: Vec<_> = list.map(|m| (m.host.to_vec(), m.path.to_vec())).collect();
        prop_assert_eq!(got, items);
        prop_assert_eq!(encoded(&list), w.as_slice());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..200)) {
        let _ = DirPath::decode(&mut Reader::new(&bytes));
        let _ = MntResult::decode(&mut Reader::new(&bytes));
        if let Ok(list) = Exports::decode(&mut Reader::new(&bytes)) {
            list.for_each(|e| e.groups.for_each(drop));
        }
        if let Ok(list) = Mounts::decode(&mut Reader::new(&bytes)) {
            list.for_each(drop);
        }
    }
}
