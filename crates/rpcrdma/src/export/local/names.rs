//! Names: making, removing, renaming and linking.
//!
//! The change itself is one system call on the directory's descriptor and a single name, under the caller's identity,
//! so that the kernel decides whether it is allowed and whom the new object belongs to. What surrounds it, finding out
//! what the name stands for and handing out its handle, is done with the server's own rights.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use rpcrdma_nfs::v3::{Attributes, CreateMode, FileType, Handle, NodeKind, SetAttributes, Status, WccData};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::super::{
    Caller, Changed, Created, Outcome, VerifierTimes, check_new_name, check_rename, check_set, check_target,
    wcc,
};
use super::objects::{Object, open_name, status};
use super::{LocalExport, Resolver};

/// Mode of what a client gives none.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// An exclusive CREATE brings no mode; the client sets one next, and until then the file is the owner's alone.
const EXCLUSIVE_MODE: u32 = 0o600;

/// What is left to set on an object that was made with its mode: nobody but the superuser gives it to others.
fn rest_of(caller: &Caller, set: &SetAttributes) -> SetAttributes {
    let owner = caller.uid() == 0;
    SetAttributes { mode: None, uid: set.uid.filter(|_| owner), gid: set.gid.filter(|_| owner), ..*set }
}

impl LocalExport {
    /// A directory whose names change.
    fn directory_changed<T>(
        &self,
        caller: &Caller,
        dir: &Handle,
        check: Result<(), Status>,
        change: impl FnOnce(&Arc<Object>) -> Result<T, Status>,
    ) -> Changed<T> {
        self.changed(caller, dir, check, |dir, _| {
            if !dir.is_directory() {
                return Err(Status::NOTDIR);
            }
            let done = change(dir)?;
            self.make_durable(dir)?;
            Ok(done)
        })
    }

    fn as_caller<T>(&self, caller: &Caller, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Status> {
        let _assumed = self.identity.assume(caller).map_err(status)?;
        call().map_err(status)
    }

    fn created(&self, object: &Arc<Object>) -> Created {
        self.keep(object);
        Created { handle: Some(self.handle_of(&object.id)), attrs: self.stat(object.as_fd()).ok() }
    }

    /// Sets what a new object did not get at birth, and gives it back what the process's umask hid.
    fn finish(
        &self,
        caller: &Caller,
        (object, attrs): (&Arc<Object>, &Attributes),
        mode: Option<u32>,
        set: &SetAttributes,
    ) -> Result<(), Status> {
        if let Some(mode) = mode {
            let hidden = mode & !attrs.mode & self.umask & 0o777;
            // A default access control list of the directory limits the mode for good reason.
            if hidden != 0 && !self.has_acl(object) {
                // With the server's rights: the kernel would take a set-group-id bit away from a caller who is not in
                // the group that the directory gave.
                self.change_mode(object, attrs.mode | hidden).map_err(status)?;
            }
        }
        self.set_attributes(caller, object, attrs, set)
    }

    fn has_acl(&self, object: &Object) -> bool {
        self.own_descriptors.is_some() && {
            let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
            rustix::fs::getxattr(path, c"system.posix_acl_access", &mut [0_u8; 0]).is_ok()
        }
    }

    /// CREATE.
    pub(super) fn create_file(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        how: &CreateMode,
    ) -> Changed<Created> {
        let check = check_new_name(name).and_then(|()| match how {
            CreateMode::Unchecked(set) | CreateMode::Guarded(set) => check_set(set),
            CreateMode::Exclusive(_) => Ok(()),
        });
        self.directory_changed(caller, dir, check, |dir| match how {
            CreateMode::Guarded(set) => {
                self.new_file(caller, dir, name, set.mode.unwrap_or(FILE_MODE), &rest_of(caller, set))
            }
            CreateMode::Unchecked(set) => {
                let mode = set.mode.unwrap_or(FILE_MODE);
                match self.new_file(caller, dir, name, mode, &rest_of(caller, set)) {
                    Err(Status::EXIST) => {
                        let (object, attrs) = self.existing_file(dir, name)?;
                        let size = SetAttributes { size: set.size, ..SetAttributes::default() };
                        self.set_attributes(caller, &object, &attrs, &size)?;
                        Ok(self.created(&object))
                    }
                    other => other,
                }
            }
            CreateMode::Exclusive(verifier) => {
                let times = VerifierTimes::new(*verifier);
                match self.new_file(caller, dir, name, EXCLUSIVE_MODE, &times.set()) {
                    Err(Status::EXIST) => {
                        let (object, attrs) = self.existing_file(dir, name)?;
                        if attrs.size == 0 && times.are_on(attrs.mtime, attrs.atime) {
                            Ok(self.created(&object))
                        } else {
                            Err(Status::EXIST)
                        }
                    }
                    other => other,
                }
            }
        })
    }

    fn existing_file(&self, dir: &Object, name: &[u8]) -> Result<(Arc<Object>, Attributes), Status> {
        let (object, attrs) = self.child(dir, name)?;
        if object.kind == FileType::Regular { Ok((object, attrs)) } else { Err(Status::EXIST) }
    }

    fn new_file(
        &self,
        caller: &Caller,
        dir: &Object,
        name: &[u8],
        mode: u32,
        set: &SetAttributes,
    ) -> Result<Created, Status> {
        let mode = mode & 0o7777;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = self.as_caller(caller, || open_name(dir.as_fd(), name, flags, Mode::from_raw_mode(mode)))?;
        let fd = Arc::new(fd);
        let id = super::id_of(self.naming, fd.as_fd()).map_err(status)?;
        let object = self.new_object(id, FileType::Regular, fd.clone());
        self.note_place(&id, &dir.id, name);
        // Its data can be written through this descriptor whatever its mode says, which is what its owner expects.
        self.keep_file(&object, true, &fd);
        let attrs = self.stat(fd.as_fd()).map_err(status)?;
        self.finish(caller, (&object, &attrs), Some(mode), set)?;
        self.make_durable(&object)?;
        Ok(self.created(&object))
    }

    /// Makes anything but a regular file: `make` does it, then it is looked up.
    fn new_object_by_name(
        &self,
        caller: &Caller,
        dir: &Object,
        name: &[u8],
        (mode, set): (Option<u32>, &SetAttributes),
        make: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Created, Status> {
        self.as_caller(caller, make)?;
        let (object, attrs) = match self.child(dir, name) {
            Ok(found) => found,
            // Made, and gone before anybody could look.
            Err(Status::NOENT) => return Ok(Created { handle: None, attrs: None }),
            Err(status) => return Err(status),
        };
        self.finish(caller, (&object, &attrs), mode, set)?;
        self.make_durable(&object)?;
        Ok(self.created(&object))
    }

    /// MKDIR.
    pub(super) fn make_directory(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        set: &SetAttributes,
    ) -> Changed<Created> {
        let check = check_new_name(name).and_then(|()| check_set(set));
        let mode = set.mode.unwrap_or(DIRECTORY_MODE) & 0o1777;
        let rest = SetAttributes { size: None, ..rest_of(caller, set) };
        self.directory_changed(caller, dir, check, |dir| {
            self.new_object_by_name(caller, dir, name, (Some(mode), &rest), || {
                rustix::fs::mkdirat(dir.as_fd(), name, Mode::from_raw_mode(mode))
            })
        })
    }

    /// SYMLINK.
    pub(super) fn make_symlink(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        set: &SetAttributes,
        target: &[u8],
    ) -> Changed<Created> {
        let check = check_new_name(name).and_then(|()| check_target(target)).and_then(|()| check_set(set));
        let rest = SetAttributes { size: None, ..rest_of(caller, set) };
        self.directory_changed(caller, dir, check, |dir| {
            self.new_object_by_name(caller, dir, name, (None, &rest), || {
                rustix::fs::symlinkat(target, dir.as_fd(), name)
            })
        })
    }

    /// MKNOD.
    pub(super) fn make_special(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        kind: &NodeKind,
    ) -> Changed<Created> {
        use rustix::fs::FileType as Kind;
        let (kind, set, device) = match *kind {
            NodeKind::Character(set, (major, minor)) => {
                (Kind::CharacterDevice, set, rustix::fs::makedev(major, minor))
            }
            NodeKind::Block(set, (major, minor)) => {
                (Kind::BlockDevice, set, rustix::fs::makedev(major, minor))
            }
            NodeKind::Socket(set) => (Kind::Socket, set, 0),
            NodeKind::Fifo(set) => (Kind::Fifo, set, 0),
            NodeKind::Other(_) => {
                return self.changed(caller, dir, Err(Status::BADTYPE), |_, _| Err(Status::BADTYPE));
            }
        };
        let check = check_new_name(name).and_then(|()| check_set(&set));
        let mode = set.mode.unwrap_or(FILE_MODE) & 0o7777;
        let rest = SetAttributes { size: None, ..rest_of(caller, &set) };
        self.directory_changed(caller, dir, check, |dir| {
            self.new_object_by_name(caller, dir, name, (Some(mode), &rest), || {
                rustix::fs::mknodat(dir.as_fd(), name, kind, Mode::from_raw_mode(mode), device)
            })
        })
    }

    /// REMOVE and RMDIR, except for the directory's attributes.
    pub(super) fn remove_name(
        &self,
        caller: &Caller,
        dir: &Arc<Object>,
        name: &[u8],
        directory: bool,
    ) -> Result<(), Status> {
        if !dir.is_directory() {
            return Err(Status::NOTDIR);
        }
        // Whose descriptors to close. The name may change hands meanwhile; then the loser's are closed for nothing,
        // and the other's when its lost link shows.
        let victim = self.child(dir, name).ok();
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.as_caller(caller, || rustix::fs::unlinkat(dir.as_fd(), name, flags))?;
        if let Some((victim, _)) = victim {
            self.forget(&victim.id);
        }
        self.make_durable(dir)
    }

    /// RENAME.
    pub(super) fn rename_name(
        &self,
        caller: &Caller,
        (from, from_name): (&Handle, &[u8]),
        (to, to_name): (&Handle, &[u8]),
    ) -> Outcome<(), (WccData, WccData)> {
        let dirs = || Ok((self.object(from)?, self.object(to)?));
        let (from, to) = match dirs() {
            Ok(dirs) => dirs,
            Err(status) => return Outcome::fail(status),
        };
        let same = from.id == to.id;
        let (from_under_way, to_under_way) = self.overlap.begin_both(&from.id, &to.id);
        let before = || Ok((self.attributes(&from)?, self.attributes(&to)?));
        let (from_before, to_before) = match before() {
            Ok(before) => before,
            Err(status) => return Outcome::fail(status),
        };
        let renamed = || {
            if caller.read_only() {
                return Err(Status::ROFS);
            }
            check_rename(from_name)?;
            check_rename(to_name)?;
            if !(from.is_directory() && to.is_directory()) {
                return Err(Status::NOTDIR);
            }
            let victim = self.child(&to, to_name).ok();
            self.as_caller(caller, || rustix::fs::renameat(from.as_fd(), from_name, to.as_fd(), to_name))?;
            if let Some((victim, _)) = victim {
                self.forget(&victim.id);
            }
            if matches!(self.resolver, Resolver::Search(_)) {
                // Looking it up notes its new place.
                let _moved = self.child(&to, to_name);
            }
            self.make_durable(&to)?;
            if same { Ok(()) } else { self.make_durable(&from) }
        };
        let result = renamed();
        let (from_after, to_after) = (self.stat(from.as_fd()).ok(), self.stat(to.as_fd()).ok());
        let from_alone = from_under_way.was_alone();
        let to_alone = to_under_way.as_ref().map_or(from_alone, |change| change.was_alone());
        let from_wcc = wcc(from_alone.then(|| from_before.wcc()), from_after);
        let to_wcc = wcc(to_alone.then(|| to_before.wcc()), to_after);
        Outcome::new(result, (from_wcc, to_wcc))
    }

    /// LINK.
    pub(super) fn link_name(
        &self,
        caller: &Caller,
        object: &Handle,
        dir: &Handle,
        name: &[u8],
    ) -> Outcome<(), (Option<Attributes>, WccData)> {
        let found = || {
            let object = self.object(object)?;
            self.attributes(&object)?;
            Ok(object)
        };
        let object = match found() {
            Ok(object) => object,
            Err(status) => return Outcome::fail(status),
        };
        let outcome = self.directory_changed(caller, dir, check_new_name(name), |dir| {
            if object.is_directory() {
                return Err(Status::INVAL);
            }
            let descriptors = self.own_descriptors.as_ref().ok_or(Status::NOTSUPP)?;
            let descriptor = object.as_fd().as_raw_fd().to_string();
            self.as_caller(caller, || {
                rustix::fs::linkat(descriptors, &descriptor, dir.as_fd(), name, AtFlags::SYMLINK_FOLLOW)
            })?;
            self.note_place(&object.id, &dir.id, name);
            self.make_durable(&object)
        });
        Outcome::new(outcome.result, (self.stat(object.as_fd()).ok(), outcome.attrs))
    }
}
