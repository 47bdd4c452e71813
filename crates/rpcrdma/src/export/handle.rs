//! File handles: what a client holds, and why it cannot make one itself.
//!
//! # Operation
//! ```text
//! +--------+------+-------------------+-----------------------+--------------------+
//! | format | type | export id (8)     | object (0 to 38)      | tag (16)           |
//! +--------+------+-------------------+-----------------------+--------------------+
//! ```
//! The object part is the filesystem's own name for the object, including a generation, so that a number used again
//! does not bring an old handle back to life. `type` says how to read it. The tag is SipHash-2-4 with 128 bits over
//! everything before it, under a key that only servers of the same files share ([`HandleKey`]): a handle with a
//! right tag was handed out by one of them, for an object that was found by walking down from the export's root. So
//! the object part needs no further check before it goes to the kernel.
//!
//! # When it breaks
//! Wrong length, format or tag is [`Status::BADHANDLE`]: nobody handed that out, or the key was lost. A handle of
//! another export is [`Status::STALE`] here; servers pick the export by [`ExportId::of`] first.
//!
//! # Limits
//! 38 bytes for the object. Whoever learns the key can name any object of the filesystem, so its file is readable by
//! the server alone.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rpcrdma_nfs::v3::{Handle, Status};
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::hash::Hasher as _;

/// First byte of every handle: this layout.
const FORMAT: u8 = 0xa1;
const HEAD: usize = 10;
const TAG: usize = 16;
/// Most bytes that name the object inside its filesystem.
pub(super) const OBJECT_MAX: usize = 64 - HEAD - TAG;

/// Names an export inside its handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExportId(u64);

impl ExportId {
    /// An id that is the same whenever the parts are: the export's name, and what identifies its files.
    #[must_use]
    pub fn derive(parts: &[&[u8]]) -> Self {
        // The key is arbitrary and fixed: the id is a name, not a secret.
        let mut hash = siphasher::sip::SipHasher24::new_with_keys(0x6578_706f_7274, 1);
        for part in parts {
            hash.write_u64((part.len() as u64).to_le());
            hash.write(part);
        }
        Self(hash.finish())
    }

    pub(super) fn as_u64(self) -> u64 {
        self.0
    }

    /// The export that a handle claims to belong to; `None` if it is no handle of ours.
    #[must_use]
    pub fn of(handle: &Handle) -> Option<Self> {
        let bytes = handle.as_bytes();
        if bytes.len() < HEAD + TAG || bytes[0] != FORMAT {
            return None;
        }
        bytes[2..HEAD].try_into().ok().map(|id| Self(u64::from_be_bytes(id)))
    }
}

impl fmt::Display for ExportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The secret that authenticates handles.
///
/// Handles outlive a restart exactly as long as their key does, so it is kept in a file; servers that serve the same
/// files to the same clients share it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HandleKey([u8; 16]);

impl HandleKey {
    /// A key of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Self(key))
    }

    /// Where the key lies unless told otherwise: `/var/lib/rpcrdma/handle.key` for root, else `rpcrdma/handle.key`
    /// under `$XDG_STATE_HOME` or `~/.local/state`. `None` if neither variable is set.
    #[must_use]
    pub fn default_path() -> Option<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from("/var/lib/rpcrdma/handle.key"));
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p: &PathBuf| p.is_absolute());
        let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
        Some(state.join("rpcrdma/handle.key"))
    }

    /// Reads the key file, or makes it (mode 0600, in a directory of mode 0700) if there is none. Two servers that
    /// do so at once end up with the same key.
    ///
    /// # Errors
    /// If the file can neither be read nor made, is not 16 bytes long, or is open to others than its owner.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("handle key {}: {e}", path.display()));
        match Self::load(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(named),
        }
        match Self::store_new(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Self::load(path).map_err(named),
            other => other.map_err(named),
        }
    }

    fn load(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others than its owner may use the file; make it mode 0600",
            ));
        }
        let mut key = Vec::with_capacity(17);
        (&file).take(17).read_to_end(&mut key)?;
        key.try_into().map(Self).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "the file does not have exactly 16 bytes")
        })
    }

    /// Writes a temporary file and links it into place, so that no reader ever sees half a key.
    fn store_new(path: &Path) -> io::Result<Self> {
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::os::unix::fs::DirBuilderExt::mode(fs::DirBuilder::new().recursive(true), 0o700).create(dir)?;
        let key = Self::random()?;
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(io::Error::other)?;
        let temporary = dir.join(format!(".handle.key.{:016x}", u64::from_ne_bytes(unique)));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&key.0)?;
            file.sync_all()?;
            fs::hard_link(&temporary, path)
        };
        let written = write();
        // A left-over temporary file does no harm, and what matters is how the writing went.
        let _ = fs::remove_file(&temporary);
        written?;
        File::open(dir)?.sync_all()?;
        Ok(key)
    }
}

impl fmt::Debug for HandleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandleKey(..)")
    }
}

/// How the filesystem names an object: what stands in a handle between export id and tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ObjectId {
    kind: u8,
    len: u8,
    bytes: [u8; OBJECT_MAX],
}

impl ObjectId {
    /// `None` if there are more than [`OBJECT_MAX`] bytes.
    pub(super) fn new(kind: u8, object: &[u8]) -> Option<Self> {
        let mut bytes = [0; OBJECT_MAX];
        bytes.get_mut(..object.len())?.copy_from_slice(object);
        Some(Self { kind, len: object.len() as u8, bytes })
    }

    pub(super) fn kind(&self) -> u8 {
        self.kind
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}:{:02x?}", self.kind, self.bytes())
    }
}

/// Makes and checks the handles of one export.
#[derive(Clone)]
pub(super) struct HandleCodec {
    hasher: SipHasher24,
    export: ExportId,
}

impl HandleCodec {
    pub(super) fn new(key: &HandleKey, export: ExportId) -> Self {
        Self { hasher: SipHasher24::new_with_key(&key.0), export }
    }

    pub(super) fn export(&self) -> ExportId {
        self.export
    }

    fn tag(&self, message: &[u8]) -> [u8; TAG] {
        let mut hasher = self.hasher;
        hasher.write(message);
        hasher.finish128().as_bytes()
    }

    pub(super) fn encode(&self, object: &ObjectId) -> Handle {
        let mut bytes = [0; 64];
        let end = HEAD + usize::from(object.len);
        bytes[0] = FORMAT;
        bytes[1] = object.kind;
        bytes[2..HEAD].copy_from_slice(&self.export.0.to_be_bytes());
        bytes[HEAD..end].copy_from_slice(object.bytes());
        let tag = self.tag(&bytes[..end]);
        bytes[end..end + TAG].copy_from_slice(&tag);
        // At most 10 + 38 + 16 bytes, so it fits.
        Handle::new(&bytes[..end + TAG]).unwrap_or_else(|| unreachable!("a handle has at most 64 bytes"))
    }

    pub(super) fn decode(&self, handle: &Handle) -> Result<ObjectId, Status> {
        let export = ExportId::of(handle).ok_or(Status::BADHANDLE)?;
        let bytes = handle.as_bytes();
        let (message, tag) = bytes.split_at(bytes.len() - TAG);
        // Compared without an early end, so that timing tells nothing about a forged tag.
        let difference = self.tag(message).iter().zip(tag).fold(0, |all, (a, b)| all | (a ^ b));
        if difference != 0 {
            return Err(Status::BADHANDLE);
        }
        if export != self.export {
            return Err(Status::STALE);
        }
        ObjectId::new(message[1], &message[HEAD..]).ok_or(Status::BADHANDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codec() -> HandleCodec {
        HandleCodec::new(&HandleKey::from_bytes([7; 16]), ExportId::derive(&[b"/srv"]))
    }

    #[test]
    fn every_object_length_comes_back() {
        for len in 0..=OBJECT_MAX {
            let object = ObjectId::new(0x42, &vec![len as u8; len]).unwrap();
            let handle = codec().encode(&object);
            assert_eq!(handle.len(), HEAD + len + TAG);
            assert_eq!(codec().decode(&handle), Ok(object));
            assert_eq!(ExportId::of(&handle), Some(codec().export()));
        }
        assert!(ObjectId::new(0, &[0; OBJECT_MAX + 1]).is_none());
    }

    #[test]
    fn any_changed_bit_any_cut_and_any_other_key_is_a_bad_handle() {
        let handle = codec().encode(&ObjectId::new(1, b"12345678").unwrap());
        let bytes = handle.as_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.to_vec();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(codec().decode(&Handle::new(&forged).unwrap()), Err(Status::BADHANDLE), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(codec().decode(&Handle::new(&bytes[..len]).unwrap()), Err(Status::BADHANDLE));
        }
        let other = HandleCodec::new(&HandleKey::from_bytes([8; 16]), codec().export());
        assert_eq!(other.decode(&handle), Err(Status::BADHANDLE));
    }

    #[test]
    fn a_handle_of_another_export_is_stale() {
        let other = HandleCodec::new(&HandleKey::from_bytes([7; 16]), ExportId::derive(&[b"/other"]));
        let handle = other.encode(&ObjectId::new(1, b"x").unwrap());
        assert_eq!(codec().decode(&handle), Err(Status::STALE));
    }

    #[test]
    fn ids_tell_where_parts_end() {
        assert_ne!(ExportId::derive(&[b"ab", b"c"]), ExportId::derive(&[b"a", b"bc"]));
        assert_eq!(ExportId::derive(&[b"/srv", b"1"]), ExportId::derive(&[b"/srv", b"1"]));
    }

    #[test]
    fn the_key_file_is_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/handle.key");
        let key = HandleKey::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert!(HandleKey::load_or_create(&path).unwrap() == key);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_key_file_that_others_can_read_or_that_is_cut_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        HandleKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = HandleKey::load_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("key"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for len in [0, 15, 17] {
            fs::write(&path, vec![0; len]).unwrap();
            assert_eq!(HandleKey::load_or_create(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn servers_that_start_at_once_share_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let keys: Vec<HandleKey> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| HandleKey::load_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|k| *k == keys[0]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_a_handle(bytes in proptest::collection::vec(any::<u8>(), 0..=64)) {
            prop_assert_eq!(codec().decode(&Handle::new(&bytes).unwrap()), Err(Status::BADHANDLE));
        }
    }
}
