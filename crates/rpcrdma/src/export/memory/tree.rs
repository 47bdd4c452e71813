//! The objects of a filesystem in memory, and what its callers may do with them.
//!
//! Permissions are those that Linux would give: owner, group and other bits, sticky directories, set-group-id
//! inheritance, hard links only to files that the caller could write, and the superuser above all. As NFS has no
//! open files, an owner may always read and write the data of a file.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use rpcrdma_nfs::v3::{Attributes, FileType, NfsTime, SetAttributes, SetTime, Status};

use super::super::Caller;
use super::pages::Pages;

/// Number of the root directory.
pub(super) const ROOT: u64 = 1;
/// Cookies of the two dots; entries have larger ones.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// What an object counts for besides its data.
const OBJECT_COST: u64 = 512;
/// Most links to one object.
pub(super) const LINK_MAX: u32 = 65_000;
/// No file grows beyond this.
pub(super) const FILE_MAX: u64 = i64::MAX as u64;

pub(super) const MAY_READ: u32 = 4;
pub(super) const MAY_WRITE: u32 = 2;
pub(super) const MAY_EXEC: u32 = 1;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// A directory's entries, by name and by cookie. An entry keeps its cookie for as long as it keeps its name, and no
/// cookie is used twice, so a listing can go on from any cookie at any time.
#[derive(Debug)]
pub(super) struct Directory {
    names: BTreeMap<Arc<[u8]>, (u64, u64)>,
    cookies: BTreeMap<u64, (Arc<[u8]>, u64)>,
    next_cookie: u64,
    pub(super) parent: u64,
}

impl Directory {
    fn new(parent: u64) -> Self {
        Self { names: BTreeMap::new(), cookies: BTreeMap::new(), next_cookie: DOT_DOT + 1, parent }
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<u64> {
        self.names.get(name).map(|&(_, object)| object)
    }

    fn insert(&mut self, name: &[u8], object: u64) {
        let name: Arc<[u8]> = name.into();
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.names.insert(name.clone(), (cookie, object));
        self.cookies.insert(cookie, (name, object));
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((cookie, _)) = self.names.remove(name) {
            self.cookies.remove(&cookie);
        }
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Entries after a cookie, the dots included, as cookie, name, object.
    pub(super) fn after(&self, cookie: u64, this: u64) -> impl Iterator<Item = (u64, &[u8], u64)> {
        let dots = [(DOT, b".".as_slice(), this), (DOT_DOT, b"..".as_slice(), self.parent)];
        let rest = self.cookies.range((Bound::Excluded(cookie), Bound::Unbounded));
        dots.into_iter()
            .filter(move |(at, ..)| *at > cookie)
            .chain(rest.map(|(at, (name, object))| (*at, &**name, *object)))
    }
}

#[derive(Debug)]
pub(super) enum Node {
    File(Pages),
    Directory(Directory),
    Symlink(Vec<u8>),
    Device(FileType, (u32, u32)),
    Other(FileType),
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) node: Node,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: NfsTime,
    pub(super) mtime: NfsTime,
    pub(super) ctime: NfsTime,
}

impl Inode {
    pub(super) fn file_type(&self) -> FileType {
        match &self.node {
            Node::File(_) => FileType::Regular,
            Node::Directory(_) => FileType::Directory,
            Node::Symlink(_) => FileType::Symlink,
            Node::Device(kind, _) | Node::Other(kind) => *kind,
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory(_))
    }

    pub(super) fn directory(&self) -> Result<&Directory, Status> {
        match &self.node {
            Node::Directory(directory) => Ok(directory),
            _ => Err(Status::NOTDIR),
        }
    }

    pub(super) fn file(&self) -> Result<&Pages, Status> {
        match &self.node {
            Node::File(pages) => Ok(pages),
            Node::Directory(_) => Err(Status::ISDIR),
            _ => Err(Status::INVAL),
        }
    }

    fn file_mut(&mut self) -> Result<&mut Pages, Status> {
        match &mut self.node {
            Node::File(pages) => Ok(pages),
            Node::Directory(_) => Err(Status::ISDIR),
            _ => Err(Status::INVAL),
        }
    }

    /// Which of the rights in `want` the caller has, as Linux decides it.
    pub(super) fn rights(&self, caller: &Caller, want: u32) -> u32 {
        if caller.uid() == 0 {
            let executable = self.is_directory() || self.mode & 0o111 != 0;
            return want & if executable { 7 } else { MAY_READ | MAY_WRITE };
        }
        let shift = if caller.uid() == self.uid {
            6
        } else if caller.in_group(self.gid) {
            3
        } else {
            0
        };
        want & (self.mode >> shift)
    }

    pub(super) fn check(&self, caller: &Caller, want: u32) -> Result<(), Status> {
        if self.rights(caller, want) == want { Ok(()) } else { Err(Status::ACCES) }
    }

    /// Whether the caller may read or write the data: its owner may whatever the mode says, and who may execute a
    /// file may read it.
    pub(super) fn check_data(&self, caller: &Caller, want: u32) -> Result<(), Status> {
        if caller.uid() == self.uid || want == MAY_READ && self.rights(caller, MAY_EXEC) != 0 {
            return Ok(());
        }
        self.check(caller, want)
    }

    fn owned_by(&self, caller: &Caller) -> Result<(), Status> {
        if caller.uid() == 0 || caller.uid() == self.uid { Ok(()) } else { Err(Status::PERM) }
    }

    /// Data changed by somebody who is not the superuser: the file no longer lends its owner's identity.
    fn drop_set_id(&mut self, caller: &Caller) {
        if caller.uid() != 0 {
            self.mode &= !SET_UID;
            if self.mode & 0o010 != 0 || !caller.in_group(self.gid) {
                self.mode &= !SET_GID;
            }
        }
    }
}

/// All objects, by number. Numbers are never used twice, so a handle needs no generation.
#[derive(Debug)]
pub(super) struct Tree {
    objects: BTreeMap<u64, Inode>,
    next: u64,
    capacity: u64,
    used: u64,
    fsid: u64,
}

impl Tree {
    pub(super) fn new(fsid: u64, capacity: u64, mode: u32, owner: (u32, u32), now: NfsTime) -> Self {
        let root = Inode {
            node: Node::Directory(Directory::new(ROOT)),
            mode,
            nlink: 2,
            uid: owner.0,
            gid: owner.1,
            atime: now,
            mtime: now,
            ctime: now,
        };
        let objects = BTreeMap::from([(ROOT, root)]);
        Self { objects, next: ROOT + 1, capacity, used: OBJECT_COST, fsid }
    }

    pub(super) fn get(&self, number: u64) -> Result<&Inode, Status> {
        self.objects.get(&number).ok_or(Status::STALE)
    }

    fn get_mut(&mut self, number: u64) -> Result<&mut Inode, Status> {
        self.objects.get_mut(&number).ok_or(Status::STALE)
    }

    /// Total bytes, free bytes, total objects, free objects.
    pub(super) fn room(&self) -> (u64, u64, u64, u64) {
        let free = self.capacity.saturating_sub(self.used);
        let objects = self.objects.len() as u64;
        let free_objects = free / OBJECT_COST;
        (self.capacity, free, objects.saturating_add(free_objects), free_objects)
    }

    pub(super) fn attributes(&self, number: u64) -> Option<Attributes> {
        let inode = self.objects.get(&number)?;
        let (size, used, rdev) = match &inode.node {
            Node::File(pages) => (pages.len(), pages.used(), (0, 0)),
            Node::Directory(directory) => (directory.names.len() as u64 * 32, 0, (0, 0)),
            Node::Symlink(target) => (target.len() as u64, 0, (0, 0)),
            Node::Device(_, numbers) => (0, 0, *numbers),
            Node::Other(_) => (0, 0, (0, 0)),
        };
        Some(Attributes {
            file_type: inode.file_type(),
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            size,
            used,
            rdev,
            fsid: self.fsid,
            fileid: number,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
        })
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), Status> {
        if bytes > self.capacity.saturating_sub(self.used) {
            return Err(Status::NOSPC);
        }
        self.used += bytes;
        Ok(())
    }

    /// A directory in which the caller may look up names.
    pub(super) fn searchable(&self, caller: &Caller, dir: u64) -> Result<&Directory, Status> {
        let inode = self.get(dir)?;
        let directory = inode.directory()?;
        inode.check(caller, MAY_EXEC)?;
        Ok(directory)
    }

    /// Where a new entry may go: the directory can be searched, has no such name, and can be written.
    fn vacant(&self, caller: &Caller, dir: u64, name: &[u8]) -> Result<(), Status> {
        if self.searchable(caller, dir)?.get(name).is_some() {
            return Err(Status::EXIST);
        }
        self.get(dir)?.check(caller, MAY_WRITE)
    }

    fn touch_directory(&mut self, dir: u64, now: NfsTime) {
        if let Some(inode) = self.objects.get_mut(&dir) {
            inode.mtime = now;
            inode.ctime = now;
        }
    }

    fn directory_mut(&mut self, dir: u64) -> Result<&mut Directory, Status> {
        match &mut self.get_mut(dir)?.node {
            Node::Directory(directory) => Ok(directory),
            _ => Err(Status::NOTDIR),
        }
    }

    /// Makes an object. `node` is asked for only when nothing stands against it.
    pub(super) fn make(
        &mut self,
        caller: &Caller,
        (dir, name): (u64, &[u8]),
        node: Node,
        mode: u32,
        now: NfsTime,
    ) -> Result<u64, Status> {
        self.vacant(caller, dir, name)?;
        if matches!(node, Node::Device(..)) && caller.uid() != 0 {
            return Err(Status::PERM);
        }
        let parent = self.get(dir)?;
        let inherits = parent.mode & SET_GID != 0;
        let gid = if inherits { parent.gid } else { caller.gid() };
        let is_directory = matches!(node, Node::Directory(_));
        if is_directory && parent.nlink >= LINK_MAX {
            return Err(Status::MLINK);
        }
        let mut mode = mode & 0o7777;
        if is_directory {
            mode &= 0o1777;
            if inherits {
                mode |= SET_GID;
            }
        } else if inherits && mode & 0o2010 == 0o2010 && caller.uid() != 0 && !caller.in_group(gid) {
            mode &= !SET_GID;
        }
        let extra = if let Node::Symlink(target) = &node { target.len() as u64 } else { 0 };
        self.reserve(OBJECT_COST + extra + name.len() as u64)?;
        let number = self.next;
        self.next += 1;
        let node = match node {
            Node::Directory(_) => Node::Directory(Directory::new(dir)),
            other => other,
        };
        let nlink = if is_directory { 2 } else { 1 };
        let uid = caller.uid();
        self.objects
            .insert(number, Inode { node, mode, nlink, uid, gid, atime: now, mtime: now, ctime: now });
        self.directory_mut(dir)?.insert(name, number);
        if is_directory {
            self.get_mut(dir)?.nlink += 1;
        }
        self.touch_directory(dir, now);
        Ok(number)
    }

    pub(super) fn new_directory() -> Node {
        Node::Directory(Directory::new(ROOT))
    }

    /// Whether the caller may take an entry out of a directory, in the order Linux checks it.
    fn may_delete(&self, caller: &Caller, dir: u64, victim: u64, as_directory: bool) -> Result<(), Status> {
        let (parent, inode) = (self.get(dir)?, self.get(victim)?);
        parent.check(caller, MAY_WRITE | MAY_EXEC)?;
        let uid = caller.uid();
        if parent.mode & STICKY != 0 && uid != 0 && uid != inode.uid && uid != parent.uid {
            return Err(Status::PERM);
        }
        match (as_directory, inode.is_directory()) {
            (true, false) => Err(Status::NOTDIR),
            (false, true) => Err(Status::ISDIR),
            _ => Ok(()),
        }
    }

    /// Takes an entry away, and its object when that was the last link. An object that is a directory is empty.
    fn detach(&mut self, dir: u64, name: &[u8], now: NfsTime) -> Result<(), Status> {
        let directory = self.directory_mut(dir)?;
        let victim = directory.get(name).ok_or(Status::NOENT)?;
        directory.remove(name);
        self.used = self.used.saturating_sub(name.len() as u64);
        self.touch_directory(dir, now);
        let inode = self.get_mut(victim)?;
        inode.ctime = now;
        if inode.is_directory() {
            inode.nlink = 0;
            self.get_mut(dir)?.nlink -= 1;
        } else {
            inode.nlink -= 1;
        }
        if self.get(victim)?.nlink == 0
            && let Some(inode) = self.objects.remove(&victim)
        {
            let extra = match inode.node {
                Node::File(pages) => pages.used(),
                Node::Symlink(target) => target.len() as u64,
                _ => 0,
            };
            self.used = self.used.saturating_sub(OBJECT_COST + extra);
        }
        Ok(())
    }

    pub(super) fn unlink(
        &mut self,
        caller: &Caller,
        (dir, name): (u64, &[u8]),
        as_directory: bool,
        now: NfsTime,
    ) -> Result<(), Status> {
        let victim = self.searchable(caller, dir)?.get(name).ok_or(Status::NOENT)?;
        self.may_delete(caller, dir, victim, as_directory)?;
        if let Node::Directory(directory) = &self.get(victim)?.node
            && !directory.is_empty()
        {
            return Err(Status::NOTEMPTY);
        }
        self.detach(dir, name, now)
    }

    /// Whether `ancestor` is `dir` or above it.
    fn is_above(&self, ancestor: u64, mut dir: u64) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            match self.objects.get(&dir).map(|inode| &inode.node) {
                Some(Node::Directory(directory)) if dir != ROOT => dir = directory.parent,
                _ => return false,
            }
        }
    }

    pub(super) fn rename(
        &mut self,
        caller: &Caller,
        (from, from_name): (u64, &[u8]),
        (to, to_name): (u64, &[u8]),
        now: NfsTime,
    ) -> Result<(), Status> {
        for dir in [from, to] {
            self.get(dir)?.directory()?;
        }
        self.searchable(caller, from)?;
        self.searchable(caller, to)?;
        let source = self.get(from)?.directory()?.get(from_name).ok_or(Status::NOENT)?;
        let target = self.get(to)?.directory()?.get(to_name);
        let moves_directory = self.get(source)?.is_directory();
        if moves_directory && self.is_above(source, to) {
            return Err(Status::INVAL);
        }
        if let Some(target) = target
            && target != source
            && self.get(target)?.is_directory()
            && self.is_above(target, from)
        {
            return Err(Status::NOTEMPTY);
        }
        if target == Some(source) {
            return Ok(());
        }
        self.may_delete(caller, from, source, moves_directory)?;
        match target {
            Some(target) => self.may_delete(caller, to, target, moves_directory)?,
            None => self.get(to)?.check(caller, MAY_WRITE | MAY_EXEC)?,
        }
        if moves_directory && from != to {
            // Its ".." changes, which is a write to it.
            self.get(source)?.check(caller, MAY_WRITE)?;
            if target.is_none() && self.get(to)?.nlink >= LINK_MAX {
                return Err(Status::MLINK);
            }
        }
        if let Some(target) = target
            && let Node::Directory(directory) = &self.get(target)?.node
            && !directory.is_empty()
        {
            return Err(Status::NOTEMPTY);
        }
        self.reserve((to_name.len() as u64).saturating_sub(from_name.len() as u64))?;
        if target.is_some() {
            self.detach(to, to_name, now)?;
        }
        self.used = self.used.saturating_sub((from_name.len() as u64).saturating_sub(to_name.len() as u64));
        self.directory_mut(from)?.remove(from_name);
        self.directory_mut(to)?.insert(to_name, source);
        if moves_directory {
            self.directory_mut(source)?.parent = to;
            self.get_mut(from)?.nlink -= 1;
            self.get_mut(to)?.nlink += 1;
        }
        self.get_mut(source)?.ctime = now;
        self.touch_directory(from, now);
        self.touch_directory(to, now);
        Ok(())
    }

    pub(super) fn link(
        &mut self,
        caller: &Caller,
        object: u64,
        (dir, name): (u64, &[u8]),
        now: NfsTime,
    ) -> Result<(), Status> {
        let inode = self.get(object)?;
        self.get(dir)?.directory()?;
        if inode.is_directory() {
            return Err(Status::INVAL);
        }
        if self.searchable(caller, dir)?.get(name).is_some() {
            return Err(Status::EXIST);
        }
        // Nobody shall keep a file alive, or make it look like his own, that he could not write himself.
        let harmless = matches!(inode.node, Node::File(_))
            && inode.mode & SET_UID == 0
            && inode.mode & 0o2010 != 0o2010
            && inode.rights(caller, MAY_READ | MAY_WRITE) == MAY_READ | MAY_WRITE;
        if inode.owned_by(caller).is_err() && !harmless {
            return Err(Status::PERM);
        }
        let full = inode.nlink >= LINK_MAX;
        self.get(dir)?.check(caller, MAY_WRITE)?;
        if full {
            return Err(Status::MLINK);
        }
        self.reserve(name.len() as u64)?;
        let inode = self.get_mut(object)?;
        inode.nlink += 1;
        inode.ctime = now;
        self.directory_mut(dir)?.insert(name, object);
        self.touch_directory(dir, now);
        Ok(())
    }

    /// Writes as much of `data` as there is room for; at least one byte, unless there is none.
    pub(super) fn write(
        &mut self,
        caller: &Caller,
        file: u64,
        offset: u64,
        data: &[u8],
        now: NfsTime,
    ) -> Result<usize, Status> {
        let inode = self.get(file)?;
        let pages = inode.file()?;
        inode.check_data(caller, MAY_WRITE)?;
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= FILE_MAX {
            return Err(Status::FBIG);
        }
        let most = usize::try_from(FILE_MAX - offset).unwrap_or(usize::MAX);
        let mut data = &data[..data.len().min(most)];
        let free = self.capacity.saturating_sub(self.used);
        let mut growth = pages.growth(offset, data.len());
        while growth > free {
            // Cut at a page boundary: each page less is at most one new page less.
            let end = offset + data.len() as u64;
            let cut = match end % super::pages::PAGE as u64 {
                0 => super::pages::PAGE as u64,
                partial => partial,
            };
            if cut >= data.len() as u64 {
                return Err(Status::NOSPC);
            }
            data = &data[..data.len() - cut as usize];
            growth = pages.growth(offset, data.len());
        }
        self.used += growth;
        let inode = self.get_mut(file)?;
        inode.drop_set_id(caller);
        inode.mtime = now;
        inode.ctime = now;
        inode.file_mut()?.write(offset, data);
        Ok(data.len())
    }

    pub(super) fn truncate(
        &mut self,
        caller: &Caller,
        file: u64,
        len: u64,
        now: NfsTime,
    ) -> Result<(), Status> {
        let inode = self.get_mut(file)?;
        inode.file()?;
        inode.check_data(caller, MAY_WRITE)?;
        if len > FILE_MAX {
            return Err(Status::FBIG);
        }
        inode.drop_set_id(caller);
        inode.mtime = now;
        inode.ctime = now;
        let pages = inode.file_mut()?;
        let before = pages.used();
        pages.set_len(len);
        let freed = before - pages.used();
        self.used = self.used.saturating_sub(freed);
        Ok(())
    }

    pub(super) fn set_attributes(
        &mut self,
        caller: &Caller,
        object: u64,
        set: &SetAttributes,
        now: NfsTime,
    ) -> Result<(), Status> {
        if let Some(len) = set.size {
            self.truncate(caller, object, len, now)?;
        }
        let inode = self.get_mut(object)?;
        if set.uid.is_some() || set.gid.is_some() {
            let keeps_owner = set.uid.is_none_or(|uid| uid == inode.uid);
            let own_group = set.gid.is_none_or(|gid| gid == inode.gid || caller.in_group(gid));
            if caller.uid() != 0 && !(caller.uid() == inode.uid && keeps_owner && own_group) {
                return Err(Status::PERM);
            }
            if !inode.is_directory() {
                let in_group = caller.uid() == 0 || caller.in_group(inode.gid);
                inode.mode &= !SET_UID;
                if inode.mode & 0o010 != 0 || !in_group {
                    inode.mode &= !SET_GID;
                }
            }
            inode.uid = set.uid.unwrap_or(inode.uid);
            inode.gid = set.gid.unwrap_or(inode.gid);
            inode.ctime = now;
        }
        if let Some(mode) = set.mode {
            if matches!(inode.node, Node::Symlink(_)) {
                return Err(Status::NOTSUPP);
            }
            inode.owned_by(caller)?;
            let keeps_set_gid = caller.uid() == 0 || caller.in_group(inode.gid);
            inode.mode = mode & if keeps_set_gid { 0o7777 } else { 0o5777 };
            inode.ctime = now;
        }
        if set.atime != SetTime::DontChange || set.mtime != SetTime::DontChange {
            let to_now = set.atime == SetTime::Server && set.mtime == SetTime::Server;
            match inode.owned_by(caller) {
                Err(_) if to_now => inode.check(caller, MAY_WRITE)?,
                other => other?,
            }
            let new = |time, old| match time {
                SetTime::DontChange => old,
                SetTime::Server => now,
                SetTime::Client(t) => t,
            };
            inode.atime = new(set.atime, inode.atime);
            inode.mtime = new(set.mtime, inode.mtime);
            inode.ctime = now;
        }
        Ok(())
    }
}
