//! What only a directory of the machine can show: other processes that change it, restarts, mounts, identities.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rpcrdma_nfs::v3::CreateMode;

use super::super::conformance::{Names, is_root, key, local, open_directory, with_mode};
use super::*;

fn me() -> Caller {
    Caller::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw(), &[])
}

fn find(export: &LocalExport, dir: &Handle, name: &str) -> Result<Handle, Status> {
    export.lookup(&me(), dir, name.as_bytes()).result.map(|found| found.handle)
}

fn walk(export: &LocalExport, path: &str) -> Handle {
    path.split('/').fold(export.root(), |dir, name| find(export, &dir, name).unwrap())
}

fn read(export: &LocalExport, file: &Handle) -> Result<Vec<u8>, Status> {
    let mut buf = vec![0; 100];
    let done = export.read(&me(), file, 0, &mut buf, Patience::Wait).unwrap().result?;
    buf.truncate(done.count);
    Ok(buf)
}

fn names(export: &LocalExport, dir: &Handle) -> Result<Vec<String>, Status> {
    let mut names = Names::new(usize::MAX);
    let from = ReadDir { cookie: 0, verifier: Default::default(), plus: true, room: 4096 };
    export.readdir(&me(), dir, &from, &mut names).result?;
    let mut names: Vec<_> = names.taken.into_iter().map(|entry| entry.name).collect();
    names.sort();
    Ok(names)
}

fn temp() -> tempfile::TempDir {
    open_directory(&std::env::temp_dir())
}

/// Every way to find objects again that this process can use.
fn resolutions() -> [Resolution; 2] {
    [Resolution::Auto, Resolution::Search]
}

fn with(resolution: Resolution) -> impl FnOnce(&mut LocalOptions) {
    move |options| {
        options.resolution = resolution;
        options.recheck = Duration::ZERO;
    }
}

#[test]
fn symlinks_of_other_processes_lead_nowhere() {
    let dir = temp();
    fs::create_dir(dir.path().join("sub")).unwrap();
    symlink("/etc", dir.path().join("absolute")).unwrap();
    symlink("..", dir.path().join("sub/up")).unwrap();
    for resolution in resolutions() {
        let export = local(dir.path(), with(resolution));
        for link in [find(&export, &export.root(), "absolute"), find(&export, &walk(&export, "sub"), "up")] {
            let link = link.unwrap();
            assert_eq!(export.getattr(&me(), &link).unwrap().file_type, FileType::Symlink);
            assert_eq!(find(&export, &link, "passwd"), Err(Status::NOTDIR));
            assert_eq!(find(&export, &link, ".."), Err(Status::NOTDIR));
            assert_eq!(names(&export, &link), Err(Status::NOTDIR));
        }
        // A directory that becomes a symlink while a client holds its handle is still that directory, elsewhere.
        let sub = walk(&export, "sub");
        fs::rename(dir.path().join("sub"), dir.path().join("moved")).unwrap();
        symlink("/etc", dir.path().join("sub")).unwrap();
        assert_eq!(names(&export, &sub), Ok(vec![".".into(), "..".into(), "up".into()]));
        assert_eq!(find(&export, &sub, "passwd"), Err(Status::NOENT));
        fs::remove_file(dir.path().join("sub")).unwrap();
        fs::rename(dir.path().join("moved"), dir.path().join("sub")).unwrap();
    }
}

#[test]
fn a_directory_that_was_moved_out_is_out() {
    for resolution in resolutions() {
        let outer = temp();
        let inside = outer.path().join("export");
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        let export = local(&inside, with(resolution));
        let (a, b) = (walk(&export, "a"), walk(&export, "a/b"));
        fs::rename(inside.join("a"), outer.path().join("a")).unwrap();
        for dir in [&a, &b] {
            assert_eq!(find(&export, dir, ".."), Err(Status::STALE));
            assert_eq!(find(&export, dir, "b"), Err(Status::STALE));
            assert_eq!(names(&export, dir), Err(Status::STALE));
            let how = CreateMode::Guarded(with_mode(0o644));
            assert_eq!(export.create(&me(), dir, b"new", &how).status(), Status::STALE);
            assert_eq!(export.getattr(&me(), dir), Err(Status::STALE));
        }
        assert!(!outer.path().join("a/new").exists());
        if resolution == Resolution::Auto && is_root() {
            fs::rename(outer.path().join("a"), inside.join("back")).unwrap();
            assert_eq!(find(&export, &a, "b"), Ok(b), "and back in");
        }
    }
}

#[test]
fn going_up_is_checked_at_once_even_if_other_looks_are_remembered() {
    let outer = temp();
    let inside = outer.path().join("export");
    fs::create_dir_all(inside.join("a/b")).unwrap();
    let export = local(&inside, |options| options.recheck = Duration::from_secs(3600));
    let b = walk(&export, "a/b");
    fs::rename(inside.join("a/b"), outer.path().join("b")).unwrap();
    assert_eq!(find(&export, &b, ".."), Err(Status::STALE));
    assert_eq!(names(&export, &b), Err(Status::STALE), "and then it is known");
}

#[test]
fn handles_survive_a_restart() {
    for resolution in resolutions() {
        let dir = temp();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "content").unwrap();
        fs::write(dir.path().join("gone"), "").unwrap();
        let first = local(dir.path(), with(resolution));
        let [file, b, gone] = ["a/b/file", "a/b", "gone"].map(|path| walk(&first, path));
        let root = first.root();
        let verifier = first.verifier();
        drop(first);
        // Meanwhile others work there.
        fs::rename(dir.path().join("a/b"), dir.path().join("moved")).unwrap();
        fs::remove_file(dir.path().join("gone")).unwrap();
        fs::write(dir.path().join("gone"), "another").unwrap();
        let second = local(dir.path(), with(resolution));
        assert_eq!(second.root(), root);
        assert_eq!(read(&second, &file), Ok(b"content".to_vec()));
        assert_eq!(find(&second, &b, "file"), Ok(file));
        assert_eq!(find(&second, &b, ".."), Ok(root));
        assert_eq!(second.getattr(&me(), &gone), Err(Status::STALE));
        assert_eq!(second.getattr(&me(), &gone), Err(Status::STALE));
        assert_ne!(second.verifier(), verifier, "unstable data may be lost");

        let stranger =
            LocalExport::open(dir.path(), &HandleKey::from_bytes([1; 16]), LocalOptions::default());
        assert_eq!(stranger.unwrap().getattr(&me(), &file), Err(Status::BADHANDLE));
    }
}

#[test]
fn handles_mean_the_same_to_servers_that_find_objects_differently() {
    let dir = temp();
    fs::write(dir.path().join("file"), "content").unwrap();
    let [one, other] = resolutions().map(|resolution| local(dir.path(), with(resolution)));
    if one.naming == other.naming {
        let file = walk(&one, "file");
        assert_eq!(read(&other, &file), Ok(b"content".to_vec()));
        assert_eq!(walk(&other, "file"), file);
    }
    let elsewhere = local(dir.path(), |options| options.name = Some("/elsewhere".to_owned()));
    assert_eq!(elsewhere.getattr(&me(), &walk(&one, "file")), Err(Status::STALE));
}

#[test]
fn a_file_that_another_process_replaced_is_gone() {
    for resolution in resolutions() {
        let dir = temp();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        let export = local(dir.path(), with(resolution));
        let old = walk(&export, "file");
        assert_eq!(read(&export, &old), Ok(b"old".to_vec()));
        fs::write(dir.path().join("new"), "new").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        // Its descriptor is still open, and must not keep it alive for clients.
        assert_eq!(read(&export, &old), Err(Status::STALE));
        assert!(!locked(&export.files).contains(&(export.codec.decode(&old).unwrap(), false)));
        assert_eq!(read(&export, &walk(&export, "file")), Ok(b"new".to_vec()));
    }
}

#[test]
fn nothing_stays_open_for_a_removed_file() {
    let dir = temp();
    let export = local(dir.path(), |_| {});
    let how = CreateMode::Guarded(with_mode(0o644));
    let made = export.create(&me(), &export.root(), b"file", &how).result.unwrap().handle.unwrap();
    assert_eq!(read(&export, &made), Ok(vec![]));
    let id = export.codec.decode(&made).unwrap();
    assert!(locked(&export.objects).contains(&id) && locked(&export.files).contains(&(id, true)));
    assert_eq!(export.remove(&me(), &export.root(), b"file").status(), Status::OK);
    assert!(!locked(&export.objects).contains(&id) && !locked(&export.files).contains(&(id, true)));
}

#[test]
fn changes_of_other_processes_show_at_once() {
    let dir = temp();
    let path = dir.path().join("file");
    fs::write(&path, "one").unwrap();
    let export = local(dir.path(), |_| {});
    let file = walk(&export, "file");
    assert_eq!(read(&export, &file), Ok(b"one".to_vec()));
    fs::write(&path, "three").unwrap();
    assert_eq!(read(&export, &file), Ok(b"three".to_vec()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    assert_eq!(export.getattr(&me(), &file).unwrap().mode, 0o604);
    assert_eq!(export.getattr(&me(), &file).unwrap().fileid, fs::metadata(&path).unwrap().ino());
}

#[test]
fn a_search_ends_at_its_limit_and_is_not_repeated() {
    let dir = temp();
    for n in 0..20 {
        fs::create_dir(dir.path().join(format!("dir{n}"))).unwrap();
        fs::write(dir.path().join(format!("dir{n}/file")), "content").unwrap();
    }
    let search = |options: &mut LocalOptions| options.resolution = Resolution::Search;
    let files: Vec<_> = {
        let export = local(dir.path(), search);
        (0..20).map(|n| walk(&export, &format!("dir{n}/file"))).collect()
    };
    let export = local(dir.path(), |options| {
        search(options);
        options.search_limit = 10;
    });
    assert!(files.iter().all(|file| read(&export, file) == Err(Status::STALE)), "they all lie too deep");
    let export = local(dir.path(), search);
    assert!(files.iter().all(|file| export.may_block(Proc::GetAttr, file, Stable::Unstable)));
    let mut buf = [0; 1];
    assert_eq!(export.read(&me(), &files[0], 0, &mut buf, Patience::Now), Err(WouldBlock));
    assert!(files.iter().all(|file| read(&export, file) == Ok(b"content".to_vec())));
    assert!(!files.iter().any(|file| export.may_block(Proc::GetAttr, file, Stable::Unstable)));
    // Gone is gone until it is seen again.
    let path = dir.path().join("dir7/file");
    let hidden = temp();
    let fresh = local(dir.path(), search);
    fs::rename(&path, hidden.path().join("file")).unwrap();
    assert_eq!(read(&fresh, &files[7]), Err(Status::STALE));
    fs::rename(hidden.path().join("file"), &path).unwrap();
    assert_eq!(walk(&fresh, "dir7/file"), files[7]);
    assert_eq!(read(&fresh, &files[7]), Ok(b"content".to_vec()));
}

#[test]
fn failed_write_outs_change_the_verifier() {
    let dir = temp();
    let export = local(dir.path(), |_| {});
    let before = export.verifier();
    assert_eq!(export.verifier(), before);
    export.lost_data(Errno::IO);
    assert_ne!(export.verifier(), before);
}

#[test]
fn a_listing_is_whole_after_one_that_began_at_the_end() {
    let dir = temp();
    fs::write(dir.path().join("file"), "").unwrap();
    let first = local(dir.path(), |_| {});
    let list = |export: &LocalExport, cookie| {
        let mut names = Names::new(usize::MAX);
        let from = ReadDir { cookie, verifier: Default::default(), plus: true, room: 4096 };
        assert_eq!(export.readdir(&me(), &export.root(), &from, &mut names).result, Ok(true));
        names.taken
    };
    let end = list(&first, 0).last().unwrap().cookie;
    // It has nothing open yet.
    let second = local(dir.path(), |_| {});
    assert_eq!(list(&second, end).len(), 0);
    assert_eq!(names(&second, &second.root()), Ok(vec![".".into(), "..".into(), "file".into()]));
}

#[test]
fn what_may_wait() {
    let dir = temp();
    fs::write(dir.path().join("file"), "content").unwrap();
    let export = local(dir.path(), |options| options.sync = true);
    if export.in_memory {
        return;
    }
    let file = walk(&export, "file");
    let blocks = |proc, stable| export.may_block(proc, &file, stable);
    for proc in [Proc::GetAttr, Proc::Lookup, Proc::Access, Proc::Read, Proc::FsInfo, Proc::ReadLink] {
        assert_eq!(blocks(proc, Stable::Unstable), !is_root() && export.needs_search(&file), "{proc}");
    }
    assert!(!blocks(Proc::Write, Stable::Unstable));
    assert!(blocks(Proc::Write, Stable::DataSync) && blocks(Proc::Write, Stable::FileSync));
    assert!(blocks(Proc::Commit, Stable::Unstable) && blocks(Proc::Create, Stable::Unstable));
}

#[test]
fn threads_that_may_not_wait_need_not_act_as_callers() {
    let dir = temp();
    fs::write(dir.path().join("file"), "content").unwrap();
    let export = local(dir.path(), |options| options.apart = true);
    let file = walk(&export, "file");
    if !is_root() {
        // There is no identity to take.
        return;
    }
    let (somebody, before) = (Caller::new(1000, 1000, &[]), identity::ACTED.get());
    for proc in Proc::ALL {
        if export.may_block(proc, &file, Stable::Unstable) {
            continue;
        }
        match proc {
            Proc::Null => {}
            Proc::GetAttr => drop(export.getattr(&somebody, &file)),
            Proc::ReadLink => drop(export.readlink(&somebody, &file, &mut Vec::new())),
            Proc::FsStat => drop(export.fsstat(&somebody, &file)),
            Proc::FsInfo => drop(export.fsinfo(&somebody, &file)),
            Proc::PathConf => drop(export.pathconf(&somebody, &file)),
            other => panic!("{other} is served where it is received"),
        }
    }
    // This alone may find out that it would wait.
    let now = export.read(&somebody, &file, 0, &mut [0; 7], Patience::Now);
    assert!(
        now.is_err() && identity::ACTED.get() == before,
        "a thread that receives has acted as somebody else"
    );
    let wait = export.read(&somebody, &file, 0, &mut [0; 7], Patience::Wait);
    assert!(wait.unwrap().result.is_ok() && identity::ACTED.get() > before);
}

#[test]
fn what_cannot_be_served_says_why() {
    let dir = temp();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.as_path(), Path::new("/nowhere/at/all")] {
        let error = LocalExport::open(path, &key(), LocalOptions::default()).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn an_unprivileged_server_opens_its_own_files_whatever_their_mode() {
    // As a user without rights: the file belongs to him, and its mode forbids everything.
    let test = || {
        if is_root() {
            use rustix::process::{Gid, Uid};
            let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let dir = temp();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        let export = local(dir.path(), |_| {});
        assert!(export.describe().contains("found by searching"), "{}", export.describe());
        let file = walk(&export, "file");
        let written = export.write(&me(), &file, 0, b"CON", Stable::Unstable);
        assert_eq!(written.status(), Status::OK);
        assert_eq!(read(&export, &file), Ok(b"CONtent".to_vec()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o440, "and the mode is as it was");
        // A directory it may not enter stays closed.
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("x"), "").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(find(&export, &walk(&export, "closed"), "x"), Err(Status::ACCES));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    };
    std::thread::spawn(test).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn callers_are_never_mixed_up() {
    if !is_root() {
        return;
    }
    for resolution in resolutions() {
        let dir = temp();
        let export = local(dir.path(), with(resolution));
        let root = export.root();
        std::thread::scope(|scope| {
            for thread in 0..8_u32 {
                let (export, root) = (&export, &root);
                scope.spawn(move || {
                    for n in 0..50_u32 {
                        // Root among them, who must not lend his rights to anybody.
                        let uid = if n % 5 == 0 { 0 } else { 2000 + thread * 100 + n % 7 };
                        let caller = Caller::new(uid, uid + 1, &[uid + 2]);
                        let name = format!("{thread}-{n}");
                        let how = CreateMode::Guarded(with_mode(0o600));
                        let made = export.create(&caller, root, name.as_bytes(), &how).result.unwrap();
                        let (file, attrs) = (made.handle.unwrap(), made.attrs.unwrap());
                        assert_eq!((attrs.uid, attrs.gid), (uid, uid + 1));
                        let stranger = Caller::new(uid + 10_000, uid + 10_000, &[]);
                        let mut buf = [0; 1];
                        let mut read =
                            |who| export.read(who, &file, 0, &mut buf, Patience::Wait).unwrap().status();
                        assert_eq!((read(&caller), read(&stranger)), (Status::OK, Status::ACCES));
                        let written = export.write(&caller, &file, 0, b"x", Stable::Unstable);
                        assert_eq!(written.status(), Status::OK);
                    }
                });
            }
        });
        let nobody = Caller::new(u32::MAX, u32::MAX, &[]);
        let how = CreateMode::Guarded(with_mode(0o644));
        assert_eq!(export.create(&nobody, &root, b"nobody", &how).status(), Status::PERM);
        assert!(!dir.path().join("nobody").exists(), "an id of -1 is not root");
    }
}

#[test]
fn a_server_that_runs_everything_as_itself_tells_nobody_apart() {
    let dir = temp();
    let export = local(dir.path(), |options| options.run_as = RunAs::Server);
    let how = CreateMode::Guarded(with_mode(0o600));
    let made = export.create(&Caller::new(4711, 4711, &[]), &export.root(), b"file", &how).result.unwrap();
    assert_eq!(made.attrs.unwrap().uid, rustix::process::geteuid().as_raw());
    assert_eq!(read(&export, &made.handle.unwrap()), Ok(vec![]));
}

/// A filesystem mounted for the length of a test.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path) -> Option<Self> {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", at, "tmpfs", flags, None).ok().map(|()| Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn mounts_are_not_crossed() {
    for resolution in resolutions() {
        let dir = temp();
        let (covered, later) = (dir.path().join("covered"), dir.path().join("later"));
        for path in [&covered, &later] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("underneath"), "").unwrap();
        }
        let Some(_mounted) = Mounted::new(&covered) else { return };
        fs::write(covered.join("mounted"), "").unwrap();
        let export = local(dir.path(), with(resolution));
        let inside = walk(&export, "covered");
        assert_eq!(names(&export, &inside).unwrap(), [".", "..", "underneath"]);
        assert_eq!(find(&export, &inside, "mounted"), Err(Status::NOENT));
        assert_eq!(find(&export, &inside, ".."), Ok(export.root()));
        // Who may not have a view of his own sees that there is a mount, and is not let in.
        let unprivileged = || {
            let uid = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let export = local(dir.path(), |_| {});
            assert_eq!(names(&export, &export.root()).unwrap(), [".", "..", "covered", "later"]);
            assert_eq!(find(&export, &export.root(), "covered"), Err(Status::ACCES));
            let later = walk(&export, "later");
            assert_eq!(names(&export, &later).unwrap(), [".", "..", "underneath"]);
        };
        std::thread::scope(|scope| scope.spawn(unprivileged).join()).unwrap();
        // What is mounted later either does not show or cannot be entered.
        let Some(_mounted) = Mounted::new(&later) else { return };
        fs::write(later.join("mounted"), "").unwrap();
        match find(&export, &export.root(), "later") {
            Ok(inside) => assert_eq!(names(&export, &inside).unwrap(), [".", "..", "underneath"]),
            Err(status) => assert_eq!(status, Status::ACCES),
        }
        assert_eq!(names(&export, &export.root()).unwrap(), [".", "..", "covered", "later"]);
    }
}

#[test]
fn access_control_lists_count() {
    use rustix::fs::XattrFlags;
    if !is_root() {
        return;
    }
    let dir = temp();
    let path = dir.path().join("file");
    fs::write(&path, "content").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let export = local(dir.path(), |_| {});
    let file = walk(&export, "file");
    let mut buf = [0; 7];
    let mut read =
        |uid| export.read(&Caller::new(uid, uid, &[]), &file, 0, &mut buf, Patience::Wait).unwrap().status();
    assert_eq!(read(1000), Status::ACCES);
    // user::rw-, user:1000:r--, group::---, mask::r--, other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    if rustix::fs::setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty()).is_err() {
        return;
    }
    assert_eq!((read(1000), read(1001)), (Status::OK, Status::ACCES));
    rustix::fs::removexattr(&path, "system.posix_acl_access").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read(1000), Status::ACCES);
}

#[test]
fn durable_changes_where_nothing_can_be_opened() {
    // Others may make entries in a drop box, but not read it; its own owner neither.
    let test = || {
        if is_root() {
            use rustix::process::Uid;
            let uid = Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let dir = temp();
        let drop_box = dir.path().join("box");
        fs::create_dir(&drop_box).unwrap();
        fs::set_permissions(&drop_box, fs::Permissions::from_mode(0o300)).unwrap();
        let export = local(dir.path(), |options| options.sync = true);
        let drop_box = walk(&export, "box");
        let how = CreateMode::Guarded(with_mode(0o200));
        let verifier = export.verifier();
        assert_eq!(export.create(&me(), &drop_box, b"file", &how).status(), Status::OK);
        assert_eq!(export.mkdir(&me(), &drop_box, b"dir", &with_mode(0o300)).status(), Status::OK);
        assert_eq!(export.remove(&me(), &drop_box, b"file").status(), Status::OK);
        assert_eq!(export.rmdir(&me(), &drop_box, b"dir").status(), Status::OK);
        assert_eq!(export.verifier(), verifier);
    };
    std::thread::spawn(test).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
