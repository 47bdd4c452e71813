//! The table of a server's exports.
//!
//! # Operation
//! Built once, then only read. [`Exports::mount`] answers a MOUNT path: the export whose name is the longest prefix
//! of it, component by component, then a walk of LOOKUPs for the rest, so that a client can mount a directory inside
//! an export. Symlinks on that way are not followed. [`Exports::of_handle`] finds the export a handle belongs to.
//!
//! # Limits
//! A handle names its export by an id; two exports with the same id do not go into one table.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rpcrdma_nfs::v3::{FileType, Handle, Status};

use super::{Caller, Export, ExportId, ExportRules};

/// One export: what is served, under which name, to whom.
#[derive(Clone)]
pub struct ExportEntry {
    /// The name clients mount: a path that begins with `/`.
    pub name: String,
    /// The files.
    pub export: Arc<dyn Export>,
    /// Who may use them.
    pub rules: ExportRules,
}

impl fmt::Debug for ExportEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportEntry")
            .field("name", &self.name)
            .field("id", &self.export.id())
            .field("rules", &self.rules)
            .finish()
    }
}

/// A name or an id is in the table already, or the name is none.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameTaken {
    /// An export with this name exists.
    Name(String),
    /// An export with the same id exists: the same files under the same name.
    Id(String),
    /// Names begin with `/`, have no `.` or `..` component and at most 1024 bytes.
    Malformed(String),
}

impl fmt::Display for NameTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "there are two exports named {name}"),
            Self::Id(name) => write!(f, "the export {name} has the same id as another one"),
            Self::Malformed(name) => {
                write!(f, "{name:?} cannot name an export: it has to be an absolute path without . and ..")
            }
        }
    }
}

impl std::error::Error for NameTaken {}

/// A server's exports.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    /// In order of their names, which is the order EXPORT lists them in.
    by_name: BTreeMap<String, Arc<ExportEntry>>,
    /// Sorted by id.
    by_id: Vec<(ExportId, Arc<ExportEntry>)>,
}

impl Exports {
    /// No exports yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export. Slashes at the end of its name and doubled ones do not count.
    ///
    /// # Errors
    /// If its name or its id is in use, or the name is not an absolute path.
    pub fn add(&mut self, name: &str, export: Arc<dyn Export>, rules: ExportRules) -> Result<(), NameTaken> {
        let components: Vec<&str> = name.split('/').filter(|c| !c.is_empty()).collect();
        let odd = |c: &&str| *c == "." || *c == ".." || c.contains('\0');
        if !name.starts_with('/') || name.len() > 1024 || components.iter().any(odd) {
            return Err(NameTaken::Malformed(name.to_owned()));
        }
        let name = format!("/{}", components.join("/"));
        if self.by_name.contains_key(&name) {
            return Err(NameTaken::Name(name));
        }
        let id = export.id();
        match self.by_id.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(_) => Err(NameTaken::Id(name)),
            Err(at) => {
                let entry = Arc::new(ExportEntry { name: name.clone(), export, rules });
                self.by_id.insert(at, (id, entry.clone()));
                self.by_name.insert(name, entry);
                Ok(())
            }
        }
    }

    /// All exports in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &ExportEntry> {
        self.by_name.values().map(|e| &**e)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The export a handle belongs to.
    ///
    /// # Errors
    /// [`Status::BADHANDLE`] if it is no handle of ours, [`Status::STALE`] if its export is not served (any more).
    pub fn of_handle(&self, handle: &Handle) -> Result<&Arc<ExportEntry>, Status> {
        let id = ExportId::of(handle).ok_or(Status::BADHANDLE)?;
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).map_err(|_| Status::STALE)?;
        Ok(&self.by_id[at].1)
    }

    /// Answers MOUNT's MNT: the export and the handle of the directory at `path`.
    ///
    /// The walk inside the export is made as superuser, as mountd does: the handle alone gives nobody a right.
    ///
    /// # Errors
    /// `ACCES` if the export does not serve this peer or no export has such a name (a peer is not told which), else
    /// what the walk said: `NOENT`, `NOTDIR`, `NAMETOOLONG`, ... A MOUNT status has the same numbers.
    pub fn mount(&self, peer: IpAddr, path: &[u8]) -> Result<(&Arc<ExportEntry>, Handle), Status> {
        if !path.starts_with(b"/") {
            return Err(Status::ACCES);
        }
        let components: Vec<&[u8]> =
            path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        if components.iter().any(|c| *c == b"..") {
            return Err(Status::ACCES);
        }
        let (entry, depth) = self.longest_prefix(&components).ok_or(Status::ACCES)?;
        if !entry.rules.admits(peer) {
            return Err(Status::ACCES);
        }
        let caller = Caller::superuser().with_read_only(true);
        let mut handle = entry.export.root();
        for name in &components[depth..] {
            handle = entry.export.lookup(&caller, &handle, name).result?.handle;
        }
        if entry.export.getattr(&caller, &handle)?.file_type != FileType::Directory {
            return Err(Status::NOTDIR);
        }
        Ok((entry, handle))
    }

    fn longest_prefix(&self, components: &[&[u8]]) -> Option<(&Arc<ExportEntry>, usize)> {
        (0..=components.len()).rev().find_map(|depth| {
            let name = [b"/".as_slice(), &components[..depth].join(&b'/')].concat();
            let name = std::str::from_utf8(&name).ok()?;
            self.by_name.get(name).map(|entry| (entry, depth))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HandleKey, MemoryExport, MemoryOptions};
    use super::*;
    use rpcrdma_nfs::v3::{CreateMode, SetAttributes};

    fn memory(name: &str) -> Arc<MemoryExport> {
        let options = MemoryOptions { name: name.to_owned(), ..MemoryOptions::default() };
        Arc::new(MemoryExport::new(HandleKey::from_bytes([1; 16]), options))
    }

    fn here() -> IpAddr {
        "127.0.0.1".parse().unwrap()
    }

    fn table() -> (Exports, Handle) {
        let root = Caller::superuser();
        let outer = memory("/srv");
        let make = |dir: &Handle, name: &[u8]| {
            let set = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
            outer.mkdir(&root, dir, name, &set).result.unwrap().handle.unwrap()
        };
        let a = make(&outer.root(), b"a");
        let b = make(&a, b"b");
        let _ = outer.create(&root, &a, b"file", &CreateMode::Guarded(SetAttributes::default()));
        let _ = outer.symlink(&root, &a, b"link", &SetAttributes::default(), b"/etc");
        let mut exports = Exports::new();
        exports.add("/srv/", outer, ExportRules::default()).unwrap();
        exports.add("/srv/a/inner", memory("/srv/a/inner"), ExportRules::default()).unwrap();
        (exports, b)
    }

    #[test]
    fn the_longest_name_wins_and_the_rest_is_walked() {
        let (exports, b) = table();
        let mount = |path: &[u8]| exports.mount(here(), path).map(|(e, h)| (e.name.as_str(), h));
        let srv = exports.iter().next().unwrap();
        assert_eq!(mount(b"/srv"), Ok(("/srv", srv.export.root())));
        assert_eq!(mount(b"//srv/./a/b/"), Ok(("/srv", b)));
        assert_eq!(mount(b"/srv/a/inner").unwrap().0, "/srv/a/inner");
        assert_eq!(mount(b"/srv/a/none"), Err(Status::NOENT));
        assert_eq!(mount(b"/srv/a/file"), Err(Status::NOTDIR));
        assert_eq!(mount(b"/srv/a/link"), Err(Status::NOTDIR));
        assert_eq!(mount(b"/srv/a/link/passwd"), Err(Status::NOTDIR));
        for refused in [b"/".as_slice(), b"", b"srv", b"/srvx", b"/srv/..", b"/srv/a/../..", b"/\xff"] {
            assert_eq!(mount(refused), Err(Status::ACCES), "{refused:?}");
        }
        assert_eq!(mount(&[b"/srv/".as_slice(), &[b'n'; 256]].concat()), Err(Status::NAMETOOLONG));
    }

    #[test]
    fn handles_lead_to_their_export() {
        let (exports, b) = table();
        assert_eq!(exports.of_handle(&b).unwrap().name, "/srv");
        let stranger = memory("/elsewhere").root();
        assert_eq!(exports.of_handle(&stranger).unwrap_err(), Status::STALE);
        assert_eq!(exports.of_handle(&Handle::new(b"x").unwrap()).unwrap_err(), Status::BADHANDLE);
    }

    #[test]
    fn a_peer_that_is_not_admitted_learns_nothing() {
        let mut exports = Exports::new();
        let rules = ExportRules { allow: vec!["10.0.0.0/8".parse().unwrap()], ..ExportRules::default() };
        exports.add("/", memory("/"), rules).unwrap();
        assert_eq!(exports.mount(here(), b"/nothing").unwrap_err(), Status::ACCES);
        assert!(exports.mount("10.1.1.1".parse().unwrap(), b"/").is_ok());
    }

    #[test]
    fn names_and_ids_are_unique() {
        let mut exports = Exports::new();
        exports.add("/x", memory("/x"), ExportRules::default()).unwrap();
        let add = |exports: &mut Exports, name: &str, id: &str| {
            exports.add(name, memory(id), ExportRules::default()).unwrap_err()
        };
        assert_eq!(add(&mut exports, "//x/", "/y"), NameTaken::Name("/x".into()));
        assert_eq!(add(&mut exports, "/y", "/x"), NameTaken::Id("/y".into()));
        for bad in ["", "x", "/x/../y", "/./x"] {
            assert_eq!(add(&mut exports, bad, "/z"), NameTaken::Malformed(bad.into()));
        }
    }
}
