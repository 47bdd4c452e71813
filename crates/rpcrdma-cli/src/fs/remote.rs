//! Directories of an NFS server, by handle.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rpcrdma::{
    client::{DirEntry, Mount},
    error::Error,
    fabric::Region,
    nfs::v3::{
        Attributes, CookieVerifier, CreateMode, FileType, Handle, NodeKind, SetAttributes, SetTime, Stable,
        Status, WriteVerifier,
    },
};

use super::{Change, Entry, FsError, Kind, Meta, Object, Special, Time, Written, lost_region, status_error};
use crate::latency::Latency;

/// Bytes of a listing per Call: a few hundred names with attributes and handles.
const LISTING: u32 = 64 << 10;

/// A server as seen through one mount, and how long it takes to answer.
#[derive(Clone)]
pub(crate) struct Server {
    mount: Mount,
    latency: Option<Arc<Mutex<Latency>>>,
}

impl Server {
    pub(crate) fn new(mount: Mount) -> Self {
        Self { mount, latency: None }
    }

    /// The same server, with the time of every Call recorded.
    pub(crate) fn timed(mount: Mount, latency: Arc<Mutex<Latency>>) -> Self {
        Self { mount, latency: Some(latency) }
    }

    pub(crate) fn mount(&self) -> &Mount {
        &self.mount
    }

    /// The mounted directory.
    pub(crate) fn root(&self) -> NfsDir {
        self.dir(self.mount.root())
    }

    /// A directory by its handle.
    pub(crate) fn dir(&self, handle: Handle) -> NfsDir {
        NfsDir { server: self.clone(), handle }
    }

    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        let Some(latency) = &self.latency else { return call.await };
        let start = Instant::now();
        let done = call.await;
        latency.lock().unwrap_or_else(PoisonError::into_inner).record(start.elapsed());
        done
    }
}

/// A directory of a server.
#[derive(Clone)]
pub(crate) struct NfsDir {
    server: Server,
    handle: Handle,
}

/// A file of a server. Clones are the same file.
#[derive(Clone)]
pub(crate) struct File(Arc<OpenFile>);

struct OpenFile {
    server: Server,
    handle: Handle,
    /// What every READ so far said of the file.
    seen: Mutex<Seen>,
}

/// What READs said of a file.
enum Seen {
    /// Always this.
    Same(Meta),
    /// Different things, or nothing.
    Unsure,
}

pub(crate) struct Lister {
    dir: NfsDir,
    cookie: u64,
    verifier: CookieVerifier,
    /// The server has READDIRPLUS.
    plus: bool,
    done: bool,
}

/// Attributes of the protocol in the words of this crate.
pub(crate) fn meta_of(a: &Attributes) -> Meta {
    Meta {
        kind: a.file_type.into(),
        mode: a.mode & 0o7777,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        size: a.size,
        used: a.used,
        rdev: a.rdev,
        id: (a.fsid, a.fileid),
        atime: a.atime.into(),
        mtime: a.mtime.into(),
    }
}

fn set_of(change: &Change) -> SetAttributes {
    let time = |t: Option<Time>| t.map_or(SetTime::DontChange, |t| SetTime::Client(t.to_nfs()));
    SetAttributes {
        mode: change.mode,
        uid: change.owner.map(|o| o.0),
        gid: change.owner.map(|o| o.1),
        size: change.size,
        atime: time(change.times.map(|t| t.0)),
        mtime: time(change.times.map(|t| t.1)),
    }
}

impl NfsDir {
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    fn mount(&self) -> &Mount {
        &self.server.mount
    }

    pub(super) fn io_size(&self) -> u32 {
        self.mount().io_size()
    }

    pub(super) fn list(&self) -> Lister {
        Lister { dir: self.clone(), cookie: 0, verifier: CookieVerifier::default(), plus: true, done: false }
    }

    pub(super) async fn meta(&self) -> Result<Meta, FsError> {
        Ok(meta_of(&self.server.call(self.mount().getattr(self.handle)).await?))
    }

    pub(super) async fn find(&self, name: &[u8]) -> Result<Object, FsError> {
        let found = self.server.call(self.mount().lookup(self.handle, name)).await?;
        let attributes = match found.attributes {
            Some(a) => a,
            None => self.server.call(self.mount().getattr(found.object)).await?,
        };
        Ok(Object { meta: meta_of(&attributes), handle: Some(found.object) })
    }

    /// The handle of a name that was found or listed; a listing may lack it.
    async fn handle_of(&self, name: &[u8], object: &Object) -> Result<Handle, FsError> {
        match object.handle {
            Some(handle) => Ok(handle),
            None => {
                let found = self.find(name).await?;
                found.handle.ok_or_else(|| status_error("LOOKUP", Status::NOENT))
            }
        }
    }

    pub(super) async fn enter(&self, name: &[u8], object: &Object) -> Result<Self, FsError> {
        if object.meta.kind != Kind::Dir {
            return Err(status_error("LOOKUP", Status::NOTDIR));
        }
        Ok(self.server.dir(self.handle_of(name, object).await?))
    }

    pub(super) async fn make_dir(&self, name: &[u8]) -> Result<(Self, bool), FsError> {
        let set = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
        match self.server.call(self.mount().mkdir(self.handle, name, set)).await {
            Ok(made) => {
                let handle = match made.object {
                    Some(handle) => handle,
                    None => self.server.call(self.mount().lookup(self.handle, name)).await?.object,
                };
                Ok((self.server.dir(handle), true))
            }
            Err(e) if e.status() == Some(Status::EXIST) => {
                let found = self.find(name).await?;
                Ok((self.enter(name, &found).await?, false))
            }
            Err(e) => Err(e.into()),
        }
    }

    pub(super) async fn open(&self, name: &[u8], object: &Object) -> Result<File, FsError> {
        let handle = self.handle_of(name, object).await?;
        Ok(self.file(handle, Seen::Same(object.meta)))
    }

    fn file(&self, handle: Handle, seen: Seen) -> File {
        File(Arc::new(OpenFile { server: self.server.clone(), handle, seen: Mutex::new(seen) }))
    }

    pub(super) async fn create(&self, name: &[u8]) -> Result<File, FsError> {
        // Unchecked, so that sending it twice does no harm.
        let set = SetAttributes { mode: Some(0o600), size: Some(0), ..SetAttributes::default() };
        let create = || self.server.call(self.mount().create(self.handle, name, CreateMode::Unchecked(set)));
        let mut made = create().await;
        let in_the_way = [Status::EXIST, Status::ACCES, Status::INVAL, Status::NXIO];
        let blocked = match &made {
            Ok(made) => made.attributes.is_some_and(|a| a.file_type != FileType::Regular),
            Err(e) => e.status().is_some_and(|s| in_the_way.contains(&s)),
        };
        if blocked && self.find(name).await.is_ok_and(|o| o.meta.kind != Kind::Dir) {
            self.remove(name).await?;
            made = create().await;
        }
        let handle = match made?.object {
            Some(handle) => handle,
            None => self.server.call(self.mount().lookup(self.handle, name)).await?.object,
        };
        Ok(self.file(handle, Seen::Unsure))
    }

    pub(super) async fn read_link(&self, name: &[u8], object: &Object) -> Result<Vec<u8>, FsError> {
        let handle = self.handle_of(name, object).await?;
        Ok(self.server.call(self.mount().readlink(handle)).await?)
    }

    pub(super) async fn symlink(&self, name: &[u8], target: &[u8]) -> Result<(), FsError> {
        let set = SetAttributes { mode: Some(0o777), ..SetAttributes::default() };
        self.server.call(self.mount().symlink(self.handle, name, target, set)).await?;
        Ok(())
    }

    pub(super) async fn make_special(&self, name: &[u8], special: Special) -> Result<(), FsError> {
        let set = SetAttributes { mode: Some(special.mode), ..SetAttributes::default() };
        let node = match special.kind {
            Kind::Block => NodeKind::Block(set, special.rdev),
            Kind::Char => NodeKind::Character(set, special.rdev),
            Kind::Socket => NodeKind::Socket(set),
            _ => NodeKind::Fifo(set),
        };
        self.server.call(self.mount().mknod(self.handle, name, node)).await?;
        Ok(())
    }

    pub(super) async fn link(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<(), FsError> {
        let file = self.find(name).await?.handle.ok_or_else(|| status_error("LOOKUP", Status::NOENT))?;
        self.server.call(self.mount().link(file, to.handle, new)).await?;
        Ok(())
    }

    pub(super) async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FsError> {
        self.server.call(self.mount().rename((self.handle, from), (self.handle, to))).await?;
        Ok(())
    }

    pub(super) async fn remove(&self, name: &[u8]) -> Result<(), FsError> {
        self.server.call(self.mount().remove(self.handle, name)).await?;
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) async fn remove_dir(&self, name: &[u8]) -> Result<(), FsError> {
        self.server.call(self.mount().rmdir(self.handle, name)).await?;
        Ok(())
    }

    pub(super) async fn change(&self, name: &[u8], _: Kind, change: Change) -> Result<(), FsError> {
        let found = self.find(name).await?;
        let handle = self.handle_of(name, &found).await?;
        self.set(handle, change).await
    }

    pub(super) async fn change_self(&self, change: Change) -> Result<(), FsError> {
        self.set(self.handle, change).await
    }

    async fn set(&self, handle: Handle, change: Change) -> Result<(), FsError> {
        self.server.call(self.mount().setattr(handle, set_of(&change), None)).await?;
        Ok(())
    }
}

impl Lister {
    pub(super) async fn next(&mut self) -> Result<Vec<Entry>, FsError> {
        loop {
            if self.done {
                return Ok(Vec::new());
            }
            let NfsDir { server, handle } = &self.dir;
            let mount = server.mount();
            let page = if self.plus {
                server.call(mount.readdirplus(*handle, self.cookie, self.verifier, LISTING)).await
            } else {
                server.call(mount.readdir(*handle, self.cookie, self.verifier, LISTING)).await
            };
            let page = match page {
                Err(Error::Nfs { status: Status::NOTSUPP, .. }) if self.plus => {
                    self.plus = false;
                    continue;
                }
                page => page?,
            };
            (self.cookie, self.verifier, self.done) = (page.next, page.verifier, page.eof);
            let mut entries = Vec::with_capacity(page.entries.len());
            for DirEntry { name, attributes, handle, .. } in page.entries {
                let object = match attributes {
                    Some(a) => Object { meta: meta_of(&a), handle },
                    None => match self.dir.find(&name).await {
                        Ok(object) => object,
                        Err(e) if e.is_not_found() => continue,
                        Err(e) => return Err(e),
                    },
                };
                entries.push(Entry { name, object });
            }
            if !entries.is_empty() || self.done {
                return Ok(entries);
            }
        }
    }
}

impl File {
    pub(super) async fn read(&self, at: u64, len: u32, buf: Region) -> Result<(u32, Region), FsError> {
        let mut buf = buf;
        let len = len.min(u32::try_from(buf.len()).unwrap_or(u32::MAX));
        let mut done = 0;
        loop {
            // The rest of a short READ goes behind what is there.
            let tail = buf.split_off(done as usize);
            let read = self.0.server.call(self.0.server.mount.read(
                self.0.handle,
                at + u64::from(done),
                len - done,
                tail,
            ));
            let (read, tail) = read.await;
            buf.unsplit(tail.ok_or_else(lost_region)?).map_err(|_| lost_region())?;
            let read = read?;
            self.saw(read.attributes);
            done += read.len;
            if read.eof || done >= len || read.len == 0 {
                return Ok((done, buf));
            }
        }
    }

    pub(super) async fn write(
        &self,
        at: u64,
        len: u32,
        buf: Region,
        durable: bool,
    ) -> Result<(Written, Region), FsError> {
        let stable = if durable { Stable::FileSync } else { Stable::Unstable };
        let mut buf = buf;
        let mut done = 0;
        let mut written = Written::Done;
        while done < len {
            let tail = buf.split_off(done as usize);
            let write =
                self.0.server.mount.write(self.0.handle, at + u64::from(done), len - done, tail, stable);
            let (write, tail) = self.0.server.call(write).await;
            buf.unsplit(tail.ok_or_else(lost_region)?).map_err(|_| lost_region())?;
            let write = write?;
            if write.committed < stable {
                let text = "the server did not make data durable that had to be".to_owned();
                return Err(Error::BadReply(text).into());
            }
            if write.committed == Stable::Unstable {
                // Two halves under two verifiers: the first half may be lost already, so neither verifier is right.
                written = match written {
                    Written::Until(v) if v != write.verifier => Written::Until(WriteVerifier(*b"restart!")),
                    _ => Written::Until(write.verifier),
                };
            }
            done += write.count;
        }
        Ok((written, buf))
    }

    pub(super) async fn commit(&self, at: u64, len: u32) -> Result<WriteVerifier, FsError> {
        Ok(self.0.server.call(self.0.server.mount.commit(self.0.handle, at, len)).await?)
    }

    /// The file as it is, or as it was at the last READ if it was the same at every one: what was read is then what
    /// it was.
    pub(super) async fn meta(&self) -> Result<Meta, FsError> {
        if let Seen::Same(meta) = &*self.seen() {
            return Ok(*meta);
        }
        let now = meta_of(&self.0.server.call(self.0.server.mount.getattr(self.0.handle)).await?);
        *self.seen() = Seen::Same(now);
        Ok(now)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, attributes: Option<Attributes>) {
        let mut seen = self.seen();
        if let Seen::Same(meta) = &*seen
            && !attributes.is_some_and(|a| a.size == meta.size && Time::from(a.mtime) == meta.mtime)
        {
            *seen = Seen::Unsure;
        }
    }

    pub(super) async fn change(&self, change: Change) -> Result<(), FsError> {
        self.0.server.call(self.0.server.mount.setattr(self.0.handle, set_of(&change), None)).await?;
        Ok(())
    }
}
