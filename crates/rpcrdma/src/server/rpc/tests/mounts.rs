//! MOUNT.

use rpcrdma_nfs::mount::{AUTH_SYS, DirPath, Exports, MntResult, MountStatus, Mounts, PROGRAM, Proc};

use super::*;

impl Rig {
    fn mount(&mut self, proc: Proc, args: &impl Encode) -> Vec<u8> {
        let xid = self.xid();
        let reply = self.answer(&call_as(0, xid, (PROGRAM, 3, proc as u32), args));
        results(xid, &reply).to_vec()
    }

    fn mnt(&mut self, path: &[u8]) -> Result<Handle, MountStatus> {
        let bytes = self.mount(Proc::Mnt, &DirPath(path));
        let mut r = Reader::new(&bytes);
        let result = MntResult::decode(&mut r).unwrap().0;
        assert_eq!(r.remaining(), 0);
        result.map(|ok| {
            assert_eq!(ok.flavors.as_slice(), [AUTH_SYS]);
            ok.handle
        })
    }

    fn dump(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let bytes = self.mount(Proc::Dump, &NullArgs {});
        let list = Mounts::decode(&mut Reader::new(&bytes)).unwrap();
        list.map(|m| (m.host.to_vec(), m.path.to_vec())).collect()
    }
}

#[test]
fn exports_and_directories_inside_them_are_mounted() {
    let mut rig = Rig::new();
    assert_eq!(rig.mnt(b"/main"), Ok(rig.main.root()));
    assert_eq!(rig.mnt(b"/main/"), Ok(rig.main.root()));
    assert_eq!(rig.mnt(b"/ro"), Ok(rig.ro.root()));
    let args =
        MkDirArgs { at: DirOp { dir: rig.root(), name: b"sub" }, attributes: SetAttributes::default() };
    let bytes = rig.call(&args);
    let sub = ok(CreateResult::decode(&mut Reader::new(&bytes))).object.unwrap();
    assert_eq!(rig.mnt(b"/main/sub"), Ok(sub));
    assert_eq!(rig.mnt(b"/main/none"), Err(MountStatus::NOENT));
    rig.file(b"f", b"");
    assert_eq!(rig.mnt(b"/main/f"), Err(MountStatus::NOTDIR));
    assert_eq!(rig.mnt(b"/nothing"), Err(MountStatus::ACCES));
    assert_eq!(rig.mnt(b""), Err(MountStatus::ACCES));
}

#[test]
fn a_peer_that_is_not_served_cannot_mount() {
    let mut rig = Rig::new();
    assert_eq!(rig.mnt(b"/private"), Err(MountStatus::ACCES));
    assert_eq!(rig.dump(), []);
    rig.origin = origin("10.0.0.1:9");
    assert_eq!(rig.mnt(b"/private"), Ok(rig.private.root()));
}

#[test]
fn mounts_are_remembered_until_they_are_given_up() {
    let mut rig = Rig::new();
    for path in [&b"/main"[..], b"/ro", b"/main"] {
        rig.mnt(path).unwrap();
    }
    rig.origin = origin("10.0.0.1:9");
    rig.mnt(b"/main").unwrap();
    let line = |host: &str, path: &str| (host.as_bytes().to_vec(), path.as_bytes().to_vec());
    let (a, b, c) = (line("192.0.2.1", "/main"), line("192.0.2.1", "/ro"), line("10.0.0.1", "/main"));
    assert_eq!(rig.dump(), [a.clone(), b.clone(), c]);
    assert!(rig.mount(Proc::Umnt, &DirPath(b"/main")).is_empty());
    assert_eq!(rig.dump(), [a, b]);
    rig.origin = origin("192.0.2.1:1");
    assert!(rig.mount(Proc::UmntAll, &NullArgs {}).is_empty());
    assert_eq!(rig.dump(), []);
    assert!(rig.mount(Proc::Umnt, &DirPath(b"/never")).is_empty());
}

#[test]
fn the_list_of_mounts_is_bounded() {
    let mut rig = Rig::new();
    for host in 0..1030u32 {
        rig.origin = origin(&format!("10.1.{}.{}:700", host >> 8, host & 255));
        rig.mnt(b"/main").unwrap();
    }
    let dump = rig.dump();
    assert_eq!((dump.len(), &dump[0].0[..]), (1024, &b"10.1.0.6"[..]));
}

#[test]
fn exports_are_listed_with_their_networks() {
    let mut rig = Rig::new();
    let bytes = rig.mount(Proc::Export, &NullArgs {});
    let list: Vec<_> = Exports::decode(&mut Reader::new(&bytes))
        .unwrap()
        .map(|e| (e.path.to_vec(), e.groups.map(|g| g.0.to_vec()).collect::<Vec<_>>()))
        .collect();
    let none: Vec<Vec<u8>> = vec![];
    let want = [
        (b"/main".to_vec(), none.clone()),
        (b"/private".to_vec(), vec![b"10.0.0.0/8".to_vec()]),
        (b"/ro".to_vec(), none),
    ];
    assert_eq!(list, want);
}

#[test]
fn a_path_that_is_too_long_is_garbage() {
    let rig = Rig::new();
    let long = [b'/'; 1025];
    let message = call_as(0, 1, (PROGRAM, 3, Proc::Mnt as u32), &DirPath(&long));
    let reply = rig.answer(&message);
    assert_eq!(ReplyHeader::decode(&mut Reader::new(&reply)).unwrap().status, Err(Fault::GarbageArgs));
    let message = call_as(0, 1, (PROGRAM, 3, Proc::Null as u32), &NullArgs {});
    assert!(results(1, &rig.answer(&message)).is_empty());
}
