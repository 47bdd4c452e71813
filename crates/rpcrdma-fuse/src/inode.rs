//! The objects that the kernel knows, and what is known of each.
//!
//! # Operation
//! Every entry that is answered gives the kernel a reference to an [`Inode`], which it gives back with a FORGET; at none
//! the object is dropped from the table, once everything that was written to it is durable. Requests name objects by their
//! numbers (see [`crate::attr`]).
//!
//! Attributes are believed for a while that grows from the minimum to the maximum as long as they do not change. Data
//! that the kernel has cached stays good as long as size, mtime and ctime are those that belong to it: what we change
//! ourselves moves them along, and any other change makes the next open drop the cache.
//!
//! # Numbers that servers use again
//! A file id can be that of another object which the kernel still knows: one that is gone, or open without a name. The new
//! object gets a number of its own for as long as the kernel knows it. Under the same one the kernel would have to give the
//! old object up, and a program that is just about to open that would see EIO, instead of being sent to look again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use rpcrdma::nfs::v3::{Attributes, FileType, Handle, WccAttr, WccData};

use crate::{attr, options::CacheTime, user::User, write::WriteBack};

/// An object of the server.
pub(crate) struct Inode {
    /// Its number towards the kernel.
    pub(crate) number: u64,
    pub(crate) handle: Handle,
    pub(crate) file_type: FileType,
    /// The directory in which it was found first, for `..`.
    pub(crate) parent: u64,
    /// Open file descriptions.
    pub(crate) opens: AtomicUsize,
    known: Mutex<Known>,
    /// Where it lives on after its name was removed while it was open.
    hidden: Mutex<Option<Hidden>>,
    pub(crate) writes: WriteBack,
}

/// The name of an object that was removed while it was open.
pub(crate) struct Hidden {
    pub(crate) dir: Arc<Inode>,
    pub(crate) name: Vec<u8>,
    pub(crate) user: Arc<User>,
}

/// What in the kernel's cache is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) data: bool,
    pub(crate) attributes: bool,
}

#[derive(Default)]
struct Known {
    /// What the kernel's cached data belongs to; `None`: to nothing.
    data: Option<WccAttr>,
    /// How often we have changed the object, so that attributes from before are not taken for somebody else's change.
    changes: u64,
    /// Since when the attributes have been the same.
    since: Option<Instant>,
    belief: Duration,
    /// The last ctime seen.
    seen: Option<WccAttr>,
    /// For an object whose data is the kernel's: what the server has said of it last.
    special: Option<Box<Attributes>>,
    /// For a file: changes of ours that are under way, what the data belonged to before them, and the earliest state that
    /// the server has been in before one of them. If that is another, somebody else has changed the file, too.
    editing: usize,
    edited: Option<WccAttr>,
    before: Option<WccAttr>,
    /// For a directory: changes of its entries that are under way, and how often one has begun or other attributes were
    /// seen.
    changing: usize,
    events: u64,
    /// What the last change of its entries has left, and when it was answered; see [`Inode::take_left`].
    left: Option<(Attributes, Instant)>,
}

/// A change of a file that is under way.
pub(crate) struct Edit<'a>(&'a Inode);

impl Edit<'_> {
    /// What the server says of the file before and after the change.
    pub(crate) fn answered(&self, wcc: &WccData) {
        let mut known = lock(&self.0.known);
        known.changes += 1;
        if let Some(before) = wcc.before
            && known.before.is_none_or(|earliest| before.ctime < earliest.ctime)
        {
            known.before = Some(before);
        }
        let Some(after) = wcc.after.as_ref().map(Attributes::wcc) else {
            known.data = None;
            return;
        };
        // Replies may overtake each other; the last change has the last ctime.
        if known.data.is_some_and(|data| data.ctime <= after.ctime) {
            known.data = Some(after);
        }
        known.seen = None;
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        let mut known = lock(&self.0.known);
        known.editing -= 1;
        // Of changes at the same time only the first is sure to say what was before all of them.
        let foreign = known.before.is_some_and(|before| known.edited.is_some_and(|data| data != before));
        if known.editing == 0 && foreign {
            known.data = None;
        }
    }
}

/// A change of a directory's entries that is under way.
pub(crate) struct Change<'a> {
    dir: &'a Inode,
    /// [`Known::events`] when it began, if no other was under way.
    alone: Option<u64>,
}

impl Change<'_> {
    /// The change is over and has left the directory like this. After one that is dropped instead, nothing is known.
    pub(crate) fn left(self, after: Option<&Attributes>) {
        let mut known = lock(&self.dir.known);
        // Of Calls at the same time nobody knows whose attributes are the last.
        known.left = after.filter(|_| self.alone == Some(known.events)).map(|after| (*after, Instant::now()));
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        lock(&self.dir.known).changing -= 1;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between the writes of a guarded section.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inode {
    /// To be taken before a Call whose attributes will be handed to [`Inode::observe`].
    pub(crate) fn mark(&self) -> u64 {
        lock(&self.known).changes
    }

    /// Takes up attributes that the server has shown. `mark` is from before the Call; without it, nobody can be blamed
    /// for a change. Returns how long they are to be believed, and whether the data in the kernel's cache was changed
    /// by somebody else.
    pub(crate) fn observe(
        &self,
        attributes: &Attributes,
        mark: Option<u64>,
        cache: CacheTime,
    ) -> (Duration, bool) {
        let mut known = lock(&self.known);
        known.left = None;
        known.events += 1;
        if attr::is_special(attributes.file_type) {
            known.special = Some(Box::new(*attributes));
        }
        let now = Instant::now();
        let wcc = attributes.wcc();
        if known.seen != Some(wcc) {
            known.seen = Some(wcc);
            known.since = Some(now);
            known.belief = cache.min;
        } else if known.since.is_some_and(|t| now.duration_since(t) >= known.belief) {
            known.since = Some(now);
            known.belief = (known.belief * 2).min(cache.max).max(cache.min);
        }
        let foreign = mark == Some(known.changes) && known.data.is_some_and(|data| data != wcc);
        if foreign {
            known.data = None;
        }
        (known.belief.clamp(cache.min.min(cache.max), cache.max), foreign)
    }

    /// To be called before a Call that changes a file.
    pub(crate) fn begin_edit(&self) -> Edit<'_> {
        let mut known = lock(&self.known);
        if known.editing == 0 {
            known.edited = known.data;
            known.before = None;
        }
        known.editing += 1;
        Edit(self)
    }

    /// To be called before a Call that changes the entries of this directory.
    pub(crate) fn begin_change(&self) -> Change<'_> {
        let mut known = lock(&self.known);
        known.changing += 1;
        known.events += 1;
        known.left = None;
        Change { dir: self, alone: (known.changing == 1).then_some(known.events) }
    }

    /// The attributes that a change of this directory's entries has left, and how old they are. The kernel forgets a
    /// directory's attributes when it has its entries changed, and asks for them at once. Only for the first to ask,
    /// and not if others have been seen since.
    pub(crate) fn take_left(&self) -> Option<(Attributes, Duration)> {
        lock(&self.known).left.take().map(|(attributes, when)| (attributes, when.elapsed()))
    }

    /// The attributes of a pipe, a socket or a device that the server knows no more: those that it had last, without a name.
    pub(crate) fn without_name(&self) -> Option<Attributes> {
        lock(&self.known).special.as_deref().map(|last| Attributes { nlink: 0, ..*last })
    }

    /// A file with these attributes is opened; from now on what the kernel caches belongs to them.
    pub(crate) fn opened(&self, attributes: &Attributes) -> Cached {
        let mut known = lock(&self.known);
        let wcc = attributes.wcc();
        let data = known.data.replace(wcc) == Some(wcc);
        Cached { data, attributes: known.seen.is_none_or(|seen| seen == wcc) }
    }

    /// What the kernel has cached is not where it thinks that it is.
    pub(crate) fn misplaced(&self) {
        lock(&self.known).data = None;
    }

    /// Whether there is data in the kernel's cache of which nobody has said that it is not good.
    pub(crate) fn has_cache(&self) -> bool {
        lock(&self.known).data.is_some()
    }

    pub(crate) fn hide(&self, hidden: Hidden) {
        *lock(&self.hidden) = Some(hidden);
    }

    pub(crate) fn take_hidden(&self) -> Option<Hidden> {
        lock(&self.hidden).take()
    }

    pub(crate) fn is_hidden(&self) -> bool {
        lock(&self.hidden).is_some()
    }
}

/// An inode and the kernel's references to it.
struct Slot {
    inode: Arc<Inode>,
    lookups: u64,
}

/// All objects that the kernel may name.
pub(crate) struct Inodes {
    fsid: u64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    slots: HashMap<u64, Slot>,
    /// Objects that the kernel has forgotten, and that are kept for what is still to be written to them.
    leaving: Vec<u64>,
    /// Objects whose number is not the one that [`attr::number`] gives, because that was another's.
    elsewhere: HashMap<Handle, u64>,
}

impl Table {
    /// Lets go of an object that the kernel has no reference to. Says whether it has to be kept for a while.
    fn keeps(&mut self, number: u64) -> bool {
        let Some(slot) = self.slots.get(&number).filter(|slot| slot.lookups == 0) else { return false };
        if slot.inode.writes.is_at_work() {
            return true;
        }
        let handle = slot.inode.handle;
        self.slots.remove(&number);
        if self.elsewhere.get(&handle) == Some(&number) {
            self.elsewhere.remove(&handle);
        }
        false
    }

    fn number(&self, natural: u64, handle: &Handle) -> u64 {
        // Hardly ever is there one.
        let other = if self.elsewhere.is_empty() { None } else { self.elsewhere.get(handle) };
        other.copied().unwrap_or(natural)
    }
}

impl Inodes {
    /// A table with the mounted directory in it.
    pub(crate) fn new(handle: Handle, attributes: &Attributes) -> Self {
        let root = inode(attr::ROOT, handle, attributes, attr::ROOT);
        let slots = HashMap::from([(attr::ROOT, Slot { inode: root, lookups: 1 })]);
        Self { fsid: attributes.fsid, table: Mutex::new(Table { slots, ..Table::default() }) }
    }

    /// The number by which the kernel knows, or would know, an object with these attributes.
    pub(crate) fn number(&self, handle: &Handle, attributes: &Attributes) -> u64 {
        lock(&self.table).number(attr::number(self.fsid, attributes), handle)
    }

    /// The object that a request names.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Inode>> {
        lock(&self.table).slots.get(&number).map(|slot| Arc::clone(&slot.inode))
    }

    /// An object that the kernel is about to be told of, with one more reference.
    pub(crate) fn refer(&self, handle: Handle, attributes: &Attributes, parent: u64) -> Arc<Inode> {
        let natural = attr::number(self.fsid, attributes);
        let mut table = lock(&self.table);
        let mut number = table.number(natural, &handle);
        while let Some(slot) = table.slots.get_mut(&number) {
            if slot.inode.handle == handle && slot.inode.file_type == attributes.file_type {
                slot.lookups += 1;
                return Arc::clone(&slot.inode);
            }
            number = attr::another_number(number);
        }
        let inode = inode(number, handle, attributes, parent);
        table.slots.insert(number, Slot { inode: Arc::clone(&inode), lookups: 1 });
        if number != natural {
            table.elsewhere.insert(handle, number);
        }
        inode
    }

    /// The object with this handle and these attributes, if the kernel knows it.
    pub(crate) fn find(&self, handle: Handle, attributes: &Attributes) -> Option<Arc<Inode>> {
        self.get(self.number(&handle, attributes)).filter(|inode| inode.handle == handle)
    }

    /// The kernel gives references back.
    pub(crate) fn forget(&self, number: u64, lookups: u64) {
        if number == attr::ROOT {
            return;
        }
        let mut table = lock(&self.table);
        let Some(slot) = table.slots.get_mut(&number) else { return };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups > 0 {
            return;
        }
        let mut leaving = std::mem::take(&mut table.leaving);
        if !leaving.contains(&number) {
            leaving.push(number);
        }
        leaving.retain(|number| table.keeps(*number));
        table.leaving = leaving;
    }
}

fn inode(number: u64, handle: Handle, attributes: &Attributes, parent: u64) -> Arc<Inode> {
    Arc::new(Inode {
        number,
        handle,
        file_type: attributes.file_type,
        parent,
        opens: AtomicUsize::new(0),
        known: Mutex::default(),
        hidden: Mutex::new(None),
        writes: WriteBack::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::blank;

    fn dir() -> (Arc<Inode>, Attributes) {
        let attributes = blank(FileType::Directory);
        (inode(5, Handle::EMPTY, &attributes, attr::ROOT), attributes)
    }

    #[test]
    fn what_a_change_leaves_is_told_once() {
        let (dir, attributes) = dir();
        dir.begin_change().left(Some(&attributes));
        assert_eq!(dir.take_left().map(|(left, _)| left), Some(attributes));
        assert_eq!(dir.take_left(), None);
        dir.begin_change().left(None);
        assert_eq!(dir.take_left(), None);
    }

    #[test]
    fn changes_at_the_same_time_leave_nothing() {
        let (dir, attributes) = dir();
        let (one, other) = (dir.begin_change(), dir.begin_change());
        other.left(Some(&attributes));
        assert_eq!(dir.take_left(), None);
        one.left(Some(&attributes));
        assert_eq!(dir.take_left(), None);
        // One that was begun in between, and one whose end nobody has seen.
        let one = dir.begin_change();
        drop(dir.begin_change());
        one.left(Some(&attributes));
        assert_eq!(dir.take_left(), None);
        dir.begin_change().left(Some(&attributes));
        drop(dir.begin_change());
        assert_eq!(dir.take_left(), None);
        dir.begin_change().left(Some(&attributes));
        assert!(dir.take_left().is_some());
    }

    #[test]
    fn other_attributes_are_newer_than_what_a_change_has_left() {
        let (dir, attributes) = dir();
        let cache = CacheTime { min: Duration::ZERO, max: Duration::ZERO };
        dir.begin_change().left(Some(&attributes));
        dir.observe(&attributes, None, cache);
        assert_eq!(dir.take_left(), None);
        // Such as those of a SETATTR that is answered first.
        let change = dir.begin_change();
        dir.observe(&attributes, None, cache);
        change.left(Some(&attributes));
        assert_eq!(dir.take_left(), None);
    }

    #[test]
    fn an_object_with_the_file_id_of_another_has_a_number_of_its_own() {
        let attributes = Attributes { fileid: 4711, ..blank(FileType::Regular) };
        let root = Attributes { fileid: 2, ..blank(FileType::Directory) };
        let handle = |bytes: &[u8]| Handle::new(bytes).unwrap();
        let inodes = Inodes::new(handle(b"root"), &root);
        let number = |name| inodes.find(handle(name), &attributes).map(|inode| inode.number);
        let old = inodes.refer(handle(b"old"), &attributes, attr::ROOT).number;
        let new = inodes.refer(handle(b"new"), &attributes, attr::ROOT).number;
        let third = inodes.refer(handle(b"third"), &attributes, attr::ROOT).number;
        assert!(old == 4711 && new >> 63 == 1 && third >> 63 == 1 && new != third);
        // The same object, whatever has become of the others.
        inodes.forget(old, 1);
        assert_eq!(number(b"old"), None);
        assert_eq!(inodes.refer(handle(b"new"), &attributes, attr::ROOT).number, new);
        assert_eq!((number(b"new"), number(b"third")), (Some(new), Some(third)));
        inodes.forget(new, 1);
        assert_eq!(number(b"new"), Some(new), "there is a reference");
        inodes.forget(new, 1);
        assert_eq!((number(b"new"), number(b"third")), (None, Some(third)));
        assert_eq!(inodes.refer(handle(b"new"), &attributes, attr::ROOT).number, 4711);
        inodes.forget(third, 1);
        assert!(lock(&inodes.table).elsewhere.is_empty());
    }
}
