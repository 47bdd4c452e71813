//! MOUNT version 3 (RFC 1813 appendix I): from a path to the first file handle.
//!
//! # Operation
//! A client sends MNT with the path of an export and gets the handle of its root and the authentication flavors the
//! server takes. EXPORT lists what there is. UMNT and UMNTALL are courtesy: a server must not rely on them, and DUMP
//! tells what it remembers, which may be nothing. The protocol travels over TCP; nothing in it may be a chunk.
//!
//! Lists borrow from the message and are checked once when they are decoded; a server writes them with
//! [`encode_exports`] and [`encode_mounts`].
//!
//! # Limits
//! Paths of [`PATH_MAX`] bytes, host and group names of [`NAME_MAX`] bytes, [`FLAVORS_MAX`] flavors.

use core::fmt;

use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

use crate::list::list;
use crate::v3::Status;
use crate::v3::types::Handle;

/// RPC program number.
pub const PROGRAM: u32 = 100_005;
/// Version number of the protocol in this module.
pub const VERSION: u32 = 3;
/// The customary port of a mount daemon that has one.
pub const PORT: u16 = 20048;
/// Most bytes in a path.
pub const PATH_MAX: usize = 1024;
/// Most bytes in a host or group name.
pub const NAME_MAX: usize = 255;
/// Most flavors that are kept of MNT's result; what follows is checked and dropped.
pub const FLAVORS_MAX: usize = 12;
/// The flavor of callers without an identity.
pub const AUTH_NONE: u32 = 0;
/// The flavor of callers with a user and group number.
pub const AUTH_SYS: u32 = 1;

/// The procedures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Proc {
    /// Does nothing.
    Null = 0,
    /// The root handle of an export. Takes a [`DirPath`], returns a [`MntResult`].
    Mnt = 1,
    /// Who has mounted what. Returns [`Mounts`].
    Dump = 2,
    /// Forgets one mount. Takes a [`DirPath`], returns nothing.
    Umnt = 3,
    /// Forgets all mounts of the caller.
    UmntAll = 4,
    /// What is exported. Returns [`Exports`].
    Export = 5,
}

impl Proc {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 6] = [Self::Null, Self::Mnt, Self::Dump, Self::Umnt, Self::UmntAll, Self::Export];

    /// The procedure with this number.
    #[must_use]
    pub const fn from_u32(v: u32) -> Option<Self> {
        Some(match v {
            0 => Self::Null,
            1 => Self::Mnt,
            2 => Self::Dump,
            3 => Self::Umnt,
            4 => Self::UmntAll,
            5 => Self::Export,
            _ => return None,
        })
    }

    /// Its name as RFC 1813 writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Mnt => "MNT",
            Self::Dump => "DUMP",
            Self::Umnt => "UMNT",
            Self::UmntAll => "UMNTALL",
            Self::Export => "EXPORT",
        }
    }
}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Outcome of MNT: `mountstat3`. Its values are those of NFS with the same meaning. Unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MountStatus(pub u32);

impl MountStatus {
    /// Success.
    pub const OK: Self = Self(0);
    /// Not the owner.
    pub const PERM: Self = Self(1);
    /// No such directory.
    pub const NOENT: Self = Self(2);
    /// Input/output error.
    pub const IO: Self = Self(5);
    /// Permission denied: for this client or these credentials.
    pub const ACCES: Self = Self(13);
    /// Not a directory.
    pub const NOTDIR: Self = Self(20);
    /// Invalid argument.
    pub const INVAL: Self = Self(22);
    /// Path too long.
    pub const NAMETOOLONG: Self = Self(63);
    /// Not supported.
    pub const NOTSUPP: Self = Self(10004);
    /// The server failed.
    pub const SERVERFAULT: Self = Self(10006);

    /// All of them, success first.
    pub const ALL: [Self; 10] = [
        Self::OK,
        Self::PERM,
        Self::NOENT,
        Self::IO,
        Self::ACCES,
        Self::NOTDIR,
        Self::INVAL,
        Self::NAMETOOLONG,
        Self::NOTSUPP,
        Self::SERVERFAULT,
    ];

    /// Whether this is success.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// The protocol's own name, such as `MNT3ERR_NOENT`; `None` for a value it does not define.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::OK => "MNT3_OK",
            Self::PERM => "MNT3ERR_PERM",
            Self::NOENT => "MNT3ERR_NOENT",
            Self::IO => "MNT3ERR_IO",
            Self::ACCES => "MNT3ERR_ACCES",
            Self::NOTDIR => "MNT3ERR_NOTDIR",
            Self::INVAL => "MNT3ERR_INVAL",
            Self::NAMETOOLONG => "MNT3ERR_NAMETOOLONG",
            Self::NOTSUPP => "MNT3ERR_NOTSUPP",
            Self::SERVERFAULT => "MNT3ERR_SERVERFAULT",
            _ => return None,
        })
    }

    /// The Linux `errno` an application expects; 0 for success, `EIO` for unknown values.
    #[must_use]
    pub const fn errno(self) -> i32 {
        if self.name().is_some() { Status(self.0).errno() } else { Status::IO.errno() }
    }
}

/// What MNT says for an NFS status: the same if it has it, otherwise `SERVERFAULT`.
impl From<Status> for MountStatus {
    fn from(s: Status) -> Self {
        let same = Self(s.0);
        if same.name().is_some() { same } else { Self::SERVERFAULT }
    }
}

impl fmt::Display for MountStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::OK => "success",
            Self::PERM => "operation not permitted",
            Self::NOENT => "no such export or directory",
            Self::IO => "input/output error",
            Self::ACCES => "the server does not let this client mount it",
            Self::NOTDIR => "not a directory",
            Self::INVAL => "invalid argument",
            Self::NAMETOOLONG => "path too long",
            Self::NOTSUPP => "operation not supported",
            Self::SERVERFAULT => "the server failed",
            Self(v) => return write!(f, "unknown MOUNT status {v}"),
        };
        write!(f, "{words} ({})", self.name().unwrap_or_default())
    }
}

impl core::error::Error for MountStatus {}

/// The argument of MNT and UMNT: the path of an export, at most [`PATH_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirPath<'a>(pub &'a [u8]);

impl<'a> Decode<'a> for DirPath<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        r.opaque(PATH_MAX).map(Self)
    }
}

impl Encode for DirPath<'_> {
    fn encode(&self, w: &mut Writer) {
        w.opaque(self.0);
    }
}

/// Authentication flavors, in the server's order of preference; at most [`FLAVORS_MAX`].
#[derive(Clone, Copy, Default)]
pub struct Flavors {
    list: [u32; FLAVORS_MAX],
    len: u8,
}

impl Flavors {
    /// These flavors; those beyond [`FLAVORS_MAX`] are dropped.
    #[must_use]
    pub fn new(flavors: &[u32]) -> Self {
        let mut out = Self::default();
        flavors.iter().for_each(|&f| out.push(f));
        out
    }

    fn push(&mut self, flavor: u32) {
        if let Some(slot) = self.list.get_mut(usize::from(self.len)) {
            *slot = flavor;
            self.len += 1;
        }
    }

    /// The flavors.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        self.list.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Whether the server takes this flavor. An empty list means AUTH_NONE only.
    #[must_use]
    pub fn takes(&self, flavor: u32) -> bool {
        if self.len == 0 { flavor == AUTH_NONE } else { self.as_slice().contains(&flavor) }
    }
}

impl PartialEq for Flavors {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Flavors {}

impl fmt::Debug for Flavors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// What MNT returns on success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MntOk {
    /// The root of the export; never empty when it was decoded.
    pub handle: Handle,
    /// What the server takes.
    pub flavors: Flavors,
}

/// What MNT returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MntResult(pub Result<MntOk, MountStatus>);

impl Decode<'_> for MntResult {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let status = MountStatus(r.u32()?);
        if !status.is_ok() {
            return Ok(Self(Err(status)));
        }
        let handle = Handle::decode(r)?;
        if handle.is_empty() {
            return Err(XdrError::Empty);
        }
        // As many as the message can hold; each is read before the next, nothing is allocated.
        let count = r.count(r.remaining() / 4)?;
        let mut flavors = Flavors::default();
        for _ in 0..count {
            flavors.push(r.u32()?);
        }
        Ok(Self(Ok(MntOk { handle, flavors })))
    }
}

impl Encode for MntResult {
    fn encode(&self, w: &mut Writer) {
        match &self.0 {
            Ok(ok) => {
                w.u32(MountStatus::OK.0);
                ok.handle.encode(w);
                let flavors = ok.flavors.as_slice();
                w.u32(flavors.len() as u32);
                flavors.iter().for_each(|&f| w.u32(f));
            }
            Err(s) => w.u32(if s.is_ok() { MountStatus::SERVERFAULT.0 } else { s.0 }),
        }
    }
}

/// The name of a group or host that may mount an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a>(pub &'a [u8]);

impl<'a> Decode<'a> for Group<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        r.opaque(NAME_MAX).map(Self)
    }
}

list! {
    /// Who may mount an export; empty if everybody may.
    Groups, Group
}

/// One line of EXPORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportItem<'a> {
    /// The path to give to MNT.
    pub path: &'a [u8],
    /// Who may.
    pub groups: Groups<'a>,
}

impl<'a> Decode<'a> for ExportItem<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self { path: r.opaque(PATH_MAX)?, groups: Groups::decode(r)? })
    }
}

list! {
    /// What EXPORT returns.
    Exports, ExportItem
}

/// One line of DUMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountItem<'a> {
    /// Who has mounted it.
    pub host: &'a [u8],
    /// The path that was given to MNT.
    pub path: &'a [u8],
}

impl<'a> Decode<'a> for MountItem<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self { host: r.opaque(NAME_MAX)?, path: r.opaque(PATH_MAX)? })
    }
}

list! {
    /// What DUMP returns.
    Mounts, MountItem
}

/// Writes the result of EXPORT: each export's path and the groups that may mount it (none is everybody).
///
/// Paths and names longer than the protocol's limits would make the whole list unreadable; they are left out.
pub fn encode_exports<'a, G>(w: &mut Writer, exports: impl IntoIterator<Item = (&'a [u8], G)>)
where
    G: IntoIterator<Item = &'a [u8]>,
{
    for (path, groups) in exports.into_iter().filter(|(path, _)| path.len() <= PATH_MAX) {
        w.bool(true);
        w.opaque(path);
        for group in groups.into_iter().filter(|g| g.len() <= NAME_MAX) {
            w.bool(true);
            w.opaque(group);
        }
        w.bool(false);
    }
    w.bool(false);
}

/// Writes the result of DUMP: pairs of host and path. Those longer than the protocol's limits are left out.
pub fn encode_mounts<'a>(w: &mut Writer, mounts: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) {
    for (host, path) in mounts {
        if host.len() <= NAME_MAX && path.len() <= PATH_MAX {
            w.bool(true);
            w.opaque(host);
            w.opaque(path);
        }
    }
    w.bool(false);
}

#[cfg(test)]
mod tests;
