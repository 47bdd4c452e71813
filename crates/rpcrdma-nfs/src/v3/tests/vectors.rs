//! Hand-checked messages, decoded and encoded back. The handle in them is the bytes 1 to 8, without RPC headers.

use super::*;
use crate::hex;
use crate::v3::args::*;
use crate::v3::dirlist::{DirWriter, Entry, EntryPlus, Push};
use crate::v3::results::*;

const FH: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const NEW_FH: [u8; 8] = [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
/// 2023-11-14, near midnight.
const THEN: u32 = 0x6553_f100;

fn fh() -> Handle {
    Handle::new(&FH).unwrap()
}

fn new_fh() -> Handle {
    Handle::new(&NEW_FH).unwrap()
}

fn args(bytes: &str, want: Args<'_>) {
    let bytes = hex(bytes);
    let mut r = Reader::new(&bytes);
    assert_eq!(Args::decode(want.proc(), &mut r), Ok(want));
    assert_eq!(r.remaining(), 0);
    assert_eq!(encoded(&want), bytes);
}

fn results(bytes: &str, want: Results<'_>) {
    let bytes = hex(bytes);
    let mut r = Reader::new(&bytes);
    assert_eq!(Results::decode(want.proc(), &mut r), Ok(want));
    assert_eq!(r.remaining(), 0);
    assert_eq!(encoded(&want), bytes);
}

#[test]
fn getattr() {
    args("000000080102030405060708", Args::GetAttr(GetAttrArgs { object: fh() }));
    let t = NfsTime::new(THEN, 0);
    results(
        "0000000000000002000001ed000000020000000000000000000000000000100000000000000010000000000000000000
         000000000000002a00000000000000026553f100000000006553f100000000006553f10000000000",
        Results::GetAttr(GetAttrResult::ok(Attributes {
            file_type: FileType::Directory,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            size: 4096,
            used: 4096,
            rdev: (0, 0),
            fsid: 0x2a,
            fileid: 2,
            atime: t,
            mtime: t,
            ctime: t,
        })),
    );
}

#[test]
fn lookup() {
    args(
        "00000008010203040506070800000005612e747874000000",
        Args::Lookup(LookupArgs { what: DirOp { dir: fh(), name: b"a.txt" } }),
    );
    results(
        "000000000000000811121314151617180000000000000000",
        Results::Lookup(LookupResult::ok(LookupOk {
            object: new_fh(),
            attributes: None,
            dir_attributes: None,
        })),
    );
    results("0000000200000000", Results::Lookup(LookupResult::fail(Status::NOENT, None)));
}

#[test]
fn read() {
    args(
        "000000080102030405060708000000000001000000001000",
        Args::Read(ReadArgs { file: fh(), offset: 0x10000, count: 0x1000 }),
    );
    results(
        "000000000000000000000005000000010000000568656c6c6f000000",
        Results::Read(ReadResult::ok(ReadOk { attributes: None, eof: true, data: Data::Here(b"hello") })),
    );
}

#[test]
fn write() {
    args(
        "000000080102030405060708000000000000000000000005000000020000000568656c6c6f000000",
        Args::Write(WriteArgs {
            file: fh(),
            offset: 0,
            stable: Stable::FileSync,
            data: Data::Here(b"hello"),
        }),
    );
    let t = NfsTime::new(THEN, 1);
    results(
        "000000000000000100000000000000006553f100000000016553f10000000001000000000000000500000002
         6500000000000001",
        Results::Write(WriteResult::ok(WriteOk {
            wcc: WccData { before: Some(WccAttr { size: 0, mtime: t, ctime: t }), after: None },
            count: 5,
            committed: Stable::FileSync,
            verifier: WriteVerifier([0x65, 0, 0, 0, 0, 0, 0, 1]),
        })),
    );
}

#[test]
fn create() {
    let at = DirOp { dir: fh(), name: b"new" };
    args(
        "000000080102030405060708000000036e6577000000000200c0ffee00001234",
        Args::Create(CreateArgs {
            at,
            how: CreateMode::Exclusive(CreateVerifier([0, 0xc0, 0xff, 0xee, 0, 0, 0x12, 0x34])),
        }),
    );
    args(
        "000000080102030405060708000000036e6577000000000000000001000001a400000000000000000000000100000000
         000000000000000000000000",
        Args::Create(CreateArgs {
            at,
            how: CreateMode::Unchecked(SetAttributes {
                mode: Some(0o644),
                size: Some(0),
                ..SetAttributes::default()
            }),
        }),
    );
    let t = NfsTime::new(THEN, 1);
    results(
        "0000000000000001000000081112131415161718000000000000000100000000000000006553f100000000016553f100
         0000000100000000",
        Results::Create(CreateResult::ok(CreateOk {
            object: Some(new_fh()),
            attributes: None,
            dir_wcc: WccData { before: Some(WccAttr { size: 0, mtime: t, ctime: t }), after: None },
        })),
    );
}

#[test]
fn setattr() {
    args(
        "000000080102030405060708000000000000000000000000000000010000000000001000000000010000000265
         53f1000000000000000000",
        Args::SetAttr(SetAttrArgs {
            object: fh(),
            new: SetAttributes {
                size: Some(4096),
                atime: SetTime::Server,
                mtime: SetTime::Client(NfsTime::new(THEN, 0)),
                ..SetAttributes::default()
            },
            guard: None,
        }),
    );
}

#[test]
fn readdirplus() {
    args(
        "000000080102030405060708000000000000000000000000000000000000100000008000",
        Args::ReadDirPlus(ReadDirPlusArgs {
            dir: fh(),
            cookie: 0,
            verifier: CookieVerifier([0; 8]),
            dircount: 0x1000,
            maxcount: 0x8000,
        }),
    );
    let bytes = hex(
        "0000000000000000000000000000000000000001000000000000000b00000005612e7478740000000000000000000001
         00000000000000010000000801020304050607080000000000000001",
    );
    let Results::ReadDirPlus(r) = Results::decode(Proc::ReadDirPlus, &mut Reader::new(&bytes)).unwrap()
    else {
        panic!("results of another procedure")
    };
    assert_eq!(encoded(&r), bytes);
    let list = r.0.unwrap();
    assert_eq!((list.attributes, list.verifier, list.eof), (None, CookieVerifier([0; 8]), true));
    let entry = EntryPlus {
        entry: Entry { fileid: 11, name: b"a.txt", cookie: 1 },
        attributes: None,
        handle: Some(fh()),
    };
    assert_eq!(list.entries.collect::<Vec<_>>(), [entry]);
    assert_eq!(list.entries.last_cookie(), Some(1));

    let mut w = Writer::new();
    let mut list = DirWriter::readdirplus(&mut w, None, CookieVerifier([0; 8]), 0x1000, 0x8000);
    assert_eq!(list.push_plus(&entry), Push::Added);
    assert_eq!(list.finish(true), Status::OK);
    assert_eq!(w.as_slice(), bytes);
}

#[test]
fn fsinfo() {
    results(
        "0000000000000000001000000010000000001000001000000010000000001000001000007fffffffffffffff00000000
         000000010000001b",
        Results::FsInfo(FsInfoResult::ok(FsInfoOk {
            attributes: None,
            info: FsInfo {
                rtmax: 1 << 20,
                rtpref: 1 << 20,
                rtmult: 4096,
                wtmax: 1 << 20,
                wtpref: 1 << 20,
                wtmult: 4096,
                dtpref: 1 << 20,
                maxfilesize: i64::MAX as u64,
                time_delta: NfsTime::new(0, 1),
                properties: FsInfo::FSF_LINK
                    | FsInfo::FSF_SYMLINK
                    | FsInfo::FSF_HOMOGENEOUS
                    | FsInfo::FSF_CANSETTIME,
            },
        })),
    );
}
