//! System calls for which there is no safe wrapper: file handles, and permission checks and mode changes on
//! descriptors that were opened with `O_PATH`. Everything unsafe of the exports is in this file.
#![allow(unsafe_code, reason = "four system calls that no well-kept crate wraps safely")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::handle::ObjectId;

/// Most bytes the kernel puts into a file handle (`MAX_HANDLE_SZ`).
const KERNEL_MAX: usize = 128;

/// `struct file_handle` with room for the largest one.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; KERNEL_MAX],
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The kernel's handle of the object behind a descriptor.
///
/// # Errors
/// `EOPNOTSUPP` if the filesystem has no handles, `EOVERFLOW` if its handles are too long for NFSv3.
pub(super) fn name_to_handle(fd: BorrowedFd<'_>) -> Result<ObjectId, Errno> {
    let mut raw = RawHandle { bytes: KERNEL_MAX as u32, kind: 0, data: [0; KERNEL_MAX] };
    let mut mount_id = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: the path is a NUL-terminated literal; `raw` has the layout of `struct file_handle` followed by as many
    // bytes as its first field says, and `mount_id` has room for an int; both outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast::<libc::file_handle>(),
            mount_id.as_mut_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(last_error());
    }
    let kind = u8::try_from(raw.kind).map_err(|_| Errno::OPNOTSUPP)?;
    let data = raw.data.get(..raw.bytes as usize).ok_or(Errno::OVERFLOW)?;
    ObjectId::new(kind, data).ok_or(Errno::OVERFLOW)
}

/// Opens the object that a kernel handle names, on the mounted filesystem that `mount` lies on. Needs
/// `CAP_DAC_READ_SEARCH`, and checks no other permission than what the caller's capabilities leave over.
///
/// # Errors
/// `ESTALE` if the object is gone, `EPERM` without the capability.
pub(super) fn open_by_handle(mount: BorrowedFd<'_>, id: &ObjectId, flags: OFlags) -> Result<OwnedFd, Errno> {
    let bytes = id.bytes();
    let mut raw = RawHandle { bytes: bytes.len() as u32, kind: i32::from(id.kind()), data: [0; KERNEL_MAX] };
    raw.data[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: `raw` has the layout of `struct file_handle` followed by `bytes` bytes, and outlives the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut raw).cast::<libc::file_handle>(),
            (flags | OFlags::CLOEXEC).bits().cast_signed(),
        )
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the calling thread's effective identity has one of the rights 4, 2, 1 (read, write, execute) on the object
/// behind a descriptor.
///
/// # Errors
/// `EACCES` or `EROFS` if not.
pub(super) fn access(fd: BorrowedFd<'_>, right: u32) -> Result<(), Errno> {
    // SAFETY: the path is a NUL-terminated literal; the kernel writes to no memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            right,
            libc::AT_EMPTY_PATH | libc::AT_EACCESS,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Changes the mode of the object behind a descriptor.
///
/// # Errors
/// `ENOSYS` before Linux 6.6, otherwise as `fchmod`.
pub(super) fn change_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // Calls that came after Linux 5.0 have the same number on all architectures of today.
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the path is a NUL-terminated literal; the kernel writes to no memory of ours.
    let result =
        unsafe { libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn path_fd(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn the_mode_changes_through_a_path_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        match change_mode(path_fd(file.path()).as_fd(), 0o4751) {
            Err(Errno::NOSYS) => {}
            result => {
                result.unwrap();
                assert_eq!(file.as_file().metadata().unwrap().mode() & 0o7777, 0o4751);
            }
        }
    }

    #[test]
    fn access_looks_at_the_object_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = path_fd(file.path());
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(access(fd.as_fd(), 4), Ok(()));
        // Even the superuser may not execute what nobody may.
        assert_eq!(access(fd.as_fd(), 1), Err(Errno::ACCESS));
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o744)).unwrap();
        assert_eq!(access(fd.as_fd(), 1), Ok(()));
    }

    #[test]
    fn handles_tell_objects_apart_and_lead_back() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        let Ok(id) = name_to_handle(path_fd(&a).as_fd()) else { return };
        assert_eq!(name_to_handle(path_fd(&a).as_fd()), Ok(id));
        assert_ne!(name_to_handle(path_fd(&b).as_fd()), Ok(id));
        let mount = std::fs::File::open(dir.path()).unwrap();
        match open_by_handle(mount.as_fd(), &id, OFlags::RDONLY) {
            Err(Errno::PERM) => {}
            fd => {
                let stat = rustix::fs::fstat(fd.unwrap()).unwrap();
                assert_eq!(stat.st_ino, std::fs::metadata(&a).unwrap().ino());
                std::fs::remove_file(&a).unwrap();
                assert_eq!(open_by_handle(mount.as_fd(), &id, OFlags::RDONLY).unwrap_err(), Errno::STALE);
            }
        }
    }
}
