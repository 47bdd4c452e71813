//! What every export has to do, whatever it is made of: each case runs against each kind of export.

mod data;
mod listing;
mod model;
mod names;
mod rights;

use std::ops::ControlFlow;
use std::path::Path;

use rpcrdma_nfs::v3::{
    Attributes, CookieVerifier, CreateMode, Handle, SetAttributes, Stable, Status, WccData,
};

use super::*;

/// An export to test, and somebody who may do there what he likes.
pub(super) struct Fixture {
    pub(super) export: Box<dyn Export>,
    pub(super) me: Caller,
    /// Whether callers are told apart.
    pub(super) identities: bool,
    /// How many entries a large directory has.
    pub(super) many: usize,
    /// Keeps the directory for as long as the export.
    _dir: Option<tempfile::TempDir>,
}

/// A key that all fixtures share.
pub(super) fn key() -> HandleKey {
    HandleKey::from_bytes(*b"a key for tests.")
}

pub(super) fn local(dir: &Path, change: impl FnOnce(&mut LocalOptions)) -> LocalExport {
    let mut options = LocalOptions { sync: false, apart: false, ..LocalOptions::default() };
    change(&mut options);
    LocalExport::open(dir, &key(), options).unwrap()
}

/// A directory that everybody may write.
pub(super) fn open_directory(within: &Path) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir_in(within).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Fixture {
    pub(super) fn memory() -> Self {
        let export = MemoryExport::new(key(), MemoryOptions::default());
        Self { export: Box::new(export), me: Caller::superuser(), identities: true, many: 10_000, _dir: None }
    }

    pub(super) fn local_in(within: &Path, change: impl FnOnce(&mut LocalOptions)) -> Self {
        let dir = open_directory(within);
        let mut many = 10_000;
        let export = local(dir.path(), |options| {
            change(options);
            if options.sync || options.places < 10_000 {
                many = 300;
            }
        });
        let uid = rustix::process::geteuid().as_raw();
        let me = Caller::new(uid, rustix::process::getegid().as_raw(), &[]);
        Self { export: Box::new(export), me, identities: uid == 0, many, _dir: Some(dir) }
    }

    pub(super) fn root(&self) -> Handle {
        self.export.root()
    }

    pub(super) fn file(&self, dir: &Handle, name: &str) -> Handle {
        self.file_as(&self.me, dir, name, 0o644)
    }

    pub(super) fn file_as(&self, caller: &Caller, dir: &Handle, name: &str, mode: u32) -> Handle {
        let how = CreateMode::Guarded(with_mode(mode));
        let made = self.export.create(caller, dir, name.as_bytes(), &how);
        made.result.unwrap_or_else(|status| panic!("create {name}: {status}")).handle.unwrap()
    }

    pub(super) fn dir(&self, dir: &Handle, name: &str) -> Handle {
        self.dir_as(&self.me, dir, name, 0o755)
    }

    pub(super) fn dir_as(&self, caller: &Caller, dir: &Handle, name: &str, mode: u32) -> Handle {
        let made = self.export.mkdir(caller, dir, name.as_bytes(), &with_mode(mode));
        made.result.unwrap_or_else(|status| panic!("mkdir {name}: {status}")).handle.unwrap()
    }

    pub(super) fn find(&self, dir: &Handle, name: &str) -> Result<Handle, Status> {
        self.export.lookup(&self.me, dir, name.as_bytes()).result.map(|found| found.handle)
    }

    pub(super) fn attrs(&self, object: &Handle) -> Attributes {
        self.export.getattr(&self.me, object).unwrap()
    }

    pub(super) fn set(&self, object: &Handle, set: SetAttributes) -> Status {
        self.export.setattr(&self.me, object, &set, None).status()
    }

    pub(super) fn put(&self, file: &Handle, offset: u64, data: &[u8]) {
        let written = self.export.write(&self.me, file, offset, data, Stable::Unstable).result.unwrap();
        assert_eq!(written.count, data.len());
    }

    pub(super) fn get(&self, file: &Handle, offset: u64, len: usize) -> (Vec<u8>, bool) {
        let mut buf = vec![0xee; len];
        let done =
            self.export.read(&self.me, file, offset, &mut buf, Patience::Wait).unwrap().result.unwrap();
        buf.truncate(done.count);
        (buf, done.eof)
    }

    pub(super) fn list(&self, dir: &Handle) -> Vec<String> {
        let mut names = Names::new(usize::MAX);
        let from = ReadDir { cookie: 0, verifier: CookieVerifier::default(), plus: false, room: 4096 };
        assert_eq!(self.export.readdir(&self.me, dir, &from, &mut names).result, Ok(true));
        let mut names: Vec<String> = names.taken.into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }
}

pub(super) fn with_mode(mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::default() }
}

/// One entry as it was taken.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) fileid: u64,
    pub(super) cookie: u64,
    pub(super) attrs: Option<Attributes>,
    pub(super) handle: Option<Handle>,
}

/// A sink with room for so many entries.
pub(super) struct Names {
    room: usize,
    pub(super) begun: Option<(Option<Attributes>, CookieVerifier)>,
    pub(super) taken: Vec<Entry>,
}

impl Names {
    pub(super) fn new(room: usize) -> Self {
        Self { room, begun: None, taken: Vec::new() }
    }
}

impl EntrySink for Names {
    fn begin(&mut self, dir: Option<Attributes>, verifier: CookieVerifier) {
        assert!(self.begun.is_none() && self.taken.is_empty(), "a listing begins once, and first");
        self.begun = Some((dir, verifier));
    }

    fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()> {
        assert!(self.begun.is_some(), "a listing begins before its first entry");
        if self.taken.len() == self.room {
            return ControlFlow::Break(());
        }
        self.taken.push(Entry {
            name: String::from_utf8(entry.name.to_vec()).unwrap(),
            fileid: entry.fileid,
            cookie: entry.cookie,
            attrs: entry.attrs,
            handle: entry.handle,
        });
        ControlFlow::Continue(())
    }
}

/// Attributes around an operation that changed something, both present.
pub(super) fn assert_moved(wcc: &WccData) {
    let (before, after) = (wcc.before.unwrap(), wcc.after.unwrap());
    assert!(after.ctime >= before.ctime, "{before:?} {after:?}");
}

/// Attributes around an operation that changed nothing.
pub(super) fn assert_same(wcc: &WccData) {
    assert_eq!(wcc.before.unwrap(), wcc.after.unwrap().wcc());
}

/// A user without any rights runs the case, in a thread of its own, and the export finds out what it may do.
fn unprivileged(case: fn(&Fixture)) {
    const NOBODY: u32 = 65534;
    let test = move || {
        if is_root() {
            use rustix::process::{Gid, Uid};
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        case(&Fixture::local_in(&std::env::temp_dir(), |_| {}));
    };
    std::thread::spawn(test).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

macro_rules! cases {
    ($($module:ident::$case:ident)+) => {
        mod in_memory {
            $(#[test] fn $case() { super::$module::$case(&super::Fixture::memory()) })+
        }
        /// On whatever filesystem temporary files are on, with all rights that the tests have.
        mod local_disk {
            $(#[test] fn $case() {
                super::$module::$case(&super::Fixture::local_in(&std::env::temp_dir(), |_| {}))
            })+
        }
        /// The same with changes made durable at once.
        mod local_sync {
            $(#[test] fn $case() {
                super::$module::$case(&super::Fixture::local_in(&std::env::temp_dir(), |o| o.sync = true))
            })+
        }
        mod local_tmpfs {
            $(#[test] fn $case() {
                let shm = std::path::Path::new("/dev/shm");
                if shm.is_dir() {
                    super::$module::$case(&super::Fixture::local_in(shm, |_| {}))
                }
            })+
        }
        /// With next to no room for what is kept, so that everything is found again all the time.
        mod local_forgetful {
            $(#[test] fn $case() {
                super::$module::$case(&super::Fixture::local_in(&std::env::temp_dir(), |o| {
                    o.max_descriptors = 1;
                    o.recheck = std::time::Duration::ZERO;
                }))
            })+
        }
        mod local_search {
            $(#[test] fn $case() {
                super::$module::$case(&super::Fixture::local_in(&std::env::temp_dir(), |o| {
                    o.resolution = super::Resolution::Search;
                }))
            })+
        }
        mod local_search_forgetful {
            $(#[test] fn $case() {
                super::$module::$case(&super::Fixture::local_in(&std::env::temp_dir(), |o| {
                    o.resolution = super::Resolution::Search;
                    (o.max_descriptors, o.places) = (1, 4);
                }))
            })+
        }
        mod local_unprivileged {
            $(#[test] fn $case() { super::unprivileged(super::$module::$case) })+
        }
    };
}

cases! {
    data::reading_and_writing
    data::the_end_of_a_file
    data::holes_and_large_files
    data::what_has_no_data
    data::stable_writes_and_commit
    data::setting_the_size
    data::removed_files_are_stale
    names::looking_up
    names::bad_names
    names::creating_files
    names::creating_exclusively
    names::making_directories
    names::symlinks
    names::special_files
    names::removing
    names::renaming
    names::renaming_over
    names::renaming_into_itself
    names::hard_links
    names::handles_are_authenticated
    names::moving_a_directory_keeps_what_is_inside
    listing::entries_and_dots
    listing::one_entry_at_a_time
    listing::ten_thousand_entries_while_others_come_and_go
    listing::bad_listings
    rights::setting_attributes
    rights::guards
    rights::read_only_callers
    rights::permissions
    rights::owners_keep_their_data
    rights::sticky_directories
    rights::group_inheritance
    rights::set_id_bits
    rights::what_access_says
    rights::limits_and_totals
}
