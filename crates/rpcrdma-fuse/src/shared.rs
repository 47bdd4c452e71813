//! What all requests of a mount share, and how objects are shown to the kernel.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use fuser::{FileAttr, INodeNo, Notifier};
use rpcrdma::{
    memory::Pools,
    nfs::v3::{Attributes, FileType, Handle, NfsTime, Status},
};
use tokio::sync::Semaphore;

use crate::{
    attr,
    dir::OpenDir,
    hidden::HiddenFiles,
    inode::{Inode, Inodes},
    open::{Numbered, OpenFile},
    options::{CacheTime, MountOptions, NameCache},
    serve::Fail,
    user::Users,
    write::Writer,
};

/// READs in flight.
const READS_MAX: usize = 64;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) users: Users,
    pub(crate) inodes: Inodes,
    pub(crate) files: Numbered<OpenFile>,
    pub(crate) dirs: Numbered<OpenDir>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) options: MountOptions,
    /// Bytes per WRITE.
    pub(crate) wsize: u32,
    /// Where files end at most.
    pub(crate) largest: u64,
    /// Memory for READs, and who may take of it.
    pub(crate) read_memory: Pools,
    pub(crate) readers: Semaphore,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Told when the kernel is there.
    pub(crate) notifier: OnceLock<Notifier>,
    pub(crate) hidden: HiddenFiles,
}

/// An object as the kernel is told of it.
pub(crate) struct Shown {
    pub(crate) attr: FileAttr,
    /// How long the attributes are good.
    pub(crate) belief: Duration,
    /// How long the name is.
    pub(crate) name: Duration,
}

impl Shared {
    pub(crate) fn new(
        users: Users,
        inodes: Inodes,
        options: MountOptions,
        wsize: u32,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        // Servers that do not know say 0.
        let largest = Some(users.owner().mount.info().maxfilesize).filter(|most| *most > 0);
        Self {
            users,
            inodes,
            files: Numbered::default(),
            dirs: Numbered::default(),
            writer: Writer::new(wsize as usize, runtime.clone()),
            options,
            wsize,
            largest: largest.unwrap_or(u64::MAX),
            read_memory: Pools::new(READS_MAX),
            readers: Semaphore::new(READS_MAX),
            runtime,
            notifier: OnceLock::new(),
            hidden: HiddenFiles::default(),
        }
    }

    pub(crate) fn inode(&self, number: INodeNo) -> Result<Arc<Inode>, Fail> {
        self.inodes.get(number.0).ok_or(Fail::STALE)
    }

    fn cache_time(&self, of: FileType) -> CacheTime {
        if of == FileType::Directory { self.options.dirs } else { self.options.files }
    }

    /// How long a name is believed to exist.
    pub(crate) fn name_time(&self) -> Duration {
        if self.options.names == NameCache::None { Duration::ZERO } else { self.options.dirs.min }
    }

    /// How long a name is believed not to exist.
    pub(crate) fn no_name_time(&self) -> Duration {
        match self.options.names {
            NameCache::All => self.options.dirs.min.min(self.options.files.min),
            NameCache::Positive | NameCache::None => Duration::ZERO,
        }
    }

    /// Shows an object with attributes from the server. `mark` is [`Inode::mark`] from before the Call.
    pub(crate) fn show(&self, inode: &Arc<Inode>, attributes: &Attributes, mark: Option<u64>) -> Shown {
        let (belief, foreign) = inode.observe(attributes, mark, self.cache_time(attributes.file_type));
        if foreign && inode.opens.load(Ordering::Acquire) > 0 {
            self.drop_data(inode);
        }
        let mut attr = attr::to_fuse(inode.number, attributes, self.wsize);
        if inode.is_hidden() {
            attr.nlink = attr.nlink.saturating_sub(1);
        }
        Shown { attr, belief, name: self.name_time() }
    }

    /// Shows an object that the kernel gets a reference to. `epoch` is [`Writer::epoch`] from before the Call.
    pub(crate) async fn show_entry(
        &self,
        handle: Handle,
        attributes: Option<Attributes>,
        parent: u64,
        epoch: u64,
    ) -> Result<(Arc<Inode>, Attributes, Shown), Fail> {
        let mount = &self.users.owner().mount;
        let mut attributes = match attributes {
            Some(attributes) => attributes,
            None => mount.getattr(handle).await?,
        };
        if let Some(inode) = self.inodes.find(handle, &attributes)
            && inode.writes.may_have_passed(epoch)
        {
            // The size from before a write would make the kernel forget the end of the file.
            self.writer.flush(&inode).await;
            attributes = mount.getattr(handle).await?;
        }
        let inode = self.inodes.refer(handle, &attributes, parent);
        let shown = self.show(&inode, &attributes, None);
        Ok((inode, attributes, shown))
    }

    /// The attributes of an object, after all that was written to it.
    pub(crate) async fn attributes(&self, inode: &Arc<Inode>) -> Result<Shown, Fail> {
        if inode.writes.is_pending() {
            self.writer.flush(inode).await;
        }
        if let Some((attributes, age)) = inode.take_left() {
            let shown = self.show(inode, &attributes, None);
            if shown.belief > age {
                return Ok(Shown { belief: shown.belief - age, ..shown });
            }
        }
        let (mark, epoch) = (inode.mark(), self.writer.epoch());
        let attributes = match self.users.owner().mount.getattr(inode.handle).await {
            // The server has forgotten it with its last name, but a program may have it open. Not to be believed for longer
            // than this, as there may be another of this name.
            Err(e) if e.status() == Some(Status::STALE) => {
                let last = inode.without_name().ok_or(e)?;
                return Ok(Shown { belief: Duration::ZERO, ..self.show(inode, &last, Some(mark)) });
            }
            attributes => attributes?,
        };
        inode.writes.ends(&attributes, epoch);
        Ok(self.show(inode, &attributes, Some(mark)))
    }

    /// Makes the kernel drop what it has cached of a file's data. Not from here, because it waits for pages that it may
    /// be reading through us.
    pub(crate) fn drop_data(&self, inode: &Inode) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let number = INodeNo(inode.number);
        self.runtime.spawn_blocking(move || {
            if let Err(e) = notifier.inval_inode(number, 0, 0) {
                tracing::debug!(inode = number.0, "the kernel keeps its cache: {e}");
            }
        });
    }

    /// Makes the kernel ask for an object's attributes when it needs them next.
    pub(crate) fn drop_attributes(&self, inode: &Inode) {
        // A negative offset leaves the data alone, and nothing waits.
        if let Some(notifier) = self.notifier.get()
            && let Err(e) = notifier.inval_inode(INodeNo(inode.number), -1, 0)
        {
            tracing::debug!(inode = inode.number, "the kernel keeps its attributes: {e}");
        }
    }
}

impl Shown {
    /// Something that the kernel gets no reference to.
    pub(crate) fn unreferenced(number: u64, attributes: &Attributes) -> Self {
        let attr = attr::to_fuse(number, attributes, 4096);
        Self { attr, belief: Duration::ZERO, name: Duration::ZERO }
    }

    /// A directory of which only the number is of interest.
    pub(crate) fn directory(number: u64) -> Self {
        Self::unreferenced(number, &blank(FileType::Directory))
    }

    /// Nothing, for so long.
    pub(crate) fn nothing(time: Duration) -> Self {
        Self { belief: time, name: time, ..Self::unreferenced(0, &blank(FileType::Regular)) }
    }
}

/// Attributes of nothing in particular.
pub(crate) fn blank(file_type: FileType) -> Attributes {
    let epoch = NfsTime::default();
    Attributes {
        file_type,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        size: 0,
        used: 0,
        rdev: (0, 0),
        fsid: 0,
        fileid: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
    }
}
