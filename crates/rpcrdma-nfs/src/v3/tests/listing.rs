//! Directory listings against a naive twin that only adds up lengths.

use alloc::string::String;

use super::*;
use crate::v3::dirlist::{DirWriter, Entry, EntryPlus, Push};
use crate::v3::results::{ReadDirPlusResult, ReadDirResult};

/// Bytes of the attributes when they are there, of the verifier, and of the two words at the end.
const POST_OP: usize = 88;
const VERIFIER: usize = 8;
const TAIL: usize = 8;

fn up4(n: usize) -> usize {
    n.div_ceil(4) * 4
}

/// How many of `sizes`, pairs of all bytes and directory bytes, fit behind `head` bytes.
fn how_many(sizes: &[(usize, usize)], head: usize, count: usize, dircount: usize) -> usize {
    let (mut all, mut dir) = (head + TAIL, 0);
    sizes
        .iter()
        .take_while(|(a, d)| {
            all += a;
            dir += d;
            all <= count && dir <= dircount
        })
        .count()
}

proptest! {
    #[test]
    fn readdir_fills_the_budget_exactly(
        names in prop::collection::vec("[a-z]{1,30}", 0..20),
        attributes in prop::option::of(arbitrary::attributes()),
        count in 0u32..900,
        before in 0usize..3,
    ) {
        let mut w = Writer::new();
        (0..before).for_each(|_| w.u32(0xdead));
        let mut list = DirWriter::readdir(&mut w, attributes, CookieVerifier([3; 8]), count);
        let mut pushed = 0;
        for (i, name) in names.iter().enumerate() {
            let entry = Entry { fileid: 5, name: name.as_bytes(), cookie: i as u64 + 1 };
            if list.push(&entry) == Push::Full {
                break;
            }
            pushed += 1;
        }
        let status = list.finish(pushed == names.len());

        let sizes: Vec<_> = names.iter().map(|n| (24 + up4(n.len()), 0)).collect();
        let with = attributes.is_some() && POST_OP + VERIFIER + TAIL <= count as usize;
        let head = if with { POST_OP } else { 4 } + VERIFIER;
        let want = how_many(&sizes, head, count as usize, usize::MAX);
        prop_assert_eq!(pushed, want);
        let fits = head + TAIL <= count as usize && (want > 0 || names.is_empty());
        prop_assert_eq!(status.is_ok(), fits, "{}", status);

        prop_assert_eq!(&w.as_slice()[..before * 4], &[0, 0, 0xde, 0xad].repeat(before)[..]);
        let bytes = &w.as_slice()[before * 4..];
        let r: ReadDirResult<'_> = decoded(bytes);
        match r.0 {
            Ok(ok) => {
                prop_assert!(bytes.len() - 4 <= count as usize);
                prop_assert_eq!(ok.eof, want == names.len());
                prop_assert_eq!(ok.attributes, attributes.filter(|_| with));
                let got: Vec<_> = ok.entries.map(|e| String::from_utf8(e.name.to_vec()).unwrap()).collect();
                prop_assert_eq!(&got[..], &names[..want]);
            }
            Err(f) => {
                prop_assert_eq!(f.status, Status::TOOSMALL);
                prop_assert_eq!(f.info, attributes);
            }
        }
    }

    #[test]
    fn readdirplus_obeys_both_budgets(
        entries in prop::collection::vec(
            ("[a-z]{1,30}", prop::option::of(arbitrary::attributes()), prop::option::of(arbitrary::handle())), 0..12),
        dircount in 0u32..400,
        maxcount in 0u32..2000,
    ) {
        let mut w = Writer::new();
        let mut list = DirWriter::readdirplus(&mut w, None, CookieVerifier::default(), dircount, maxcount);
        let mut pushed = 0;
        for (i, (name, attributes, handle)) in entries.iter().enumerate() {
            let entry = Entry { fileid: 5, name: name.as_bytes(), cookie: i as u64 + 1 };
            if list.push_plus(&EntryPlus { entry, attributes: *attributes, handle: *handle }) == Push::Full {
                break;
            }
            pushed += 1;
        }
        let any = list.any();
        let status = list.finish(pushed == entries.len());

        let sizes: Vec<_> = entries
            .iter()
            .map(|(n, a, h)| {
                let dir = 20 + up4(n.len());
                let more = a.map_or(4, |_| POST_OP) + h.map_or(4, |h| 8 + up4(h.len()));
                (4 + dir + more, dir)
            })
            .collect();
        let want = how_many(&sizes, 4 + VERIFIER, maxcount as usize, dircount as usize);
        prop_assert_eq!(pushed, want);
        prop_assert_eq!(any, want > 0);
        let fits = 4 + VERIFIER + TAIL <= maxcount as usize && (want > 0 || entries.is_empty());
        prop_assert_eq!(status.is_ok(), fits);
        let r: ReadDirPlusResult<'_> = decoded(w.as_slice());
        match r.0 {
            Ok(ok) => {
                prop_assert!(w.len() - 4 <= maxcount as usize);
                prop_assert_eq!(ok.entries.last_cookie(), (want > 0).then_some(want as u64));
                let got: Vec<_> = ok.entries.map(|e| (e.attributes, e.handle)).collect();
                let sent: Vec<_> = entries[..want].iter().map(|(_, a, h)| (*a, *h)).collect();
                prop_assert_eq!(got, sent);
            }
            Err(f) => prop_assert_eq!(f.status, Status::TOOSMALL),
        }
    }
}

#[test]
fn an_entry_that_was_refused_keeps_the_listing_open() {
    let mut w = Writer::new();
    let mut list = DirWriter::readdir(&mut w, None, CookieVerifier::default(), 4 + 8 + 28 + 8);
    assert_eq!(list.push(&Entry { fileid: 1, name: b"ab", cookie: 1 }), Push::Added);
    assert_eq!(list.push(&Entry { fileid: 1, name: b"cd", cookie: 2 }), Push::Full);
    // Even a shorter one may not overtake it.
    assert_eq!(list.push(&Entry { fileid: 1, name: b"", cookie: 3 }), Push::Full);
    assert_eq!(list.finish(true), Status::OK);
    let r: ReadDirResult<'_> = decoded(w.as_slice());
    assert!(!r.0.unwrap().eof);
}

#[test]
fn a_listing_given_up_leaves_only_the_failure() {
    let mut w = Writer::new();
    w.u32(7);
    let mut list = DirWriter::readdir(&mut w, None, CookieVerifier::default(), 4096);
    assert_eq!(list.push(&Entry { fileid: 1, name: b"ab", cookie: 1 }), Push::Added);
    assert_eq!(list.fail(Status::STALE), Status::STALE);
    assert_eq!(w.as_slice(), [0, 0, 0, 7, 0, 0, 0, 70, 0, 0, 0, 0]);
    // Nothing to list and not the end would loop forever.
    let mut w = Writer::new();
    let list = DirWriter::readdir(&mut w, None, CookieVerifier::default(), 4096);
    assert_eq!(list.finish(false), Status::TOOSMALL);
}
