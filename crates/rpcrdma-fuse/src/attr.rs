//! Attributes, from NFS to FUSE and back, and the number by which the kernel knows an object.
//!
//! # Numbers
//! FUSE has one number for two purposes: it names the object in every request, and programs see it as `st_ino`. Here it
//! is the server's file id, which is unique in a file system, so that `st_ino` is what the server's own users see.
//! Objects of another file system than the root's, those with a number that FUSE keeps for itself, and those that come after
//! another one of the same number, get a hash with the highest bit set.
//!
//! # Limits
//! NFSv3 has 32 bits for seconds, and nothing before 1970. Times beyond are set to the nearest that it can say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rpcrdma::nfs::v3::{self, Attributes, NfsTime, SetTime};

/// The number of the mounted directory, whatever the server calls it.
pub(crate) const ROOT: u64 = INodeNo::ROOT.0;

/// The number of an object of a mount whose root is on file system `root_fsid`.
pub(crate) fn number(root_fsid: u64, attributes: &Attributes) -> u64 {
    let Attributes { fsid, fileid, .. } = *attributes;
    if fsid == root_fsid && fileid > ROOT {
        return fileid;
    }
    another_number(fileid ^ fsid.rotate_left(32))
}

/// The next to try when there is another object of this number.
pub(crate) fn another_number(number: u64) -> u64 {
    // An odd constant with its bits well mixed, so that the numbers go on and on.
    mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15)) | 1 << 63
}

/// A finalizer of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether what is read from and written to an object is not the server's, but this machine's kernel's.
pub(crate) fn is_special(of: v3::FileType) -> bool {
    use v3::FileType::{Block, Character, Fifo, Socket};
    matches!(of, Block | Character | Fifo | Socket)
}

/// What FUSE calls a type.
pub(crate) fn kind(of: v3::FileType) -> FileType {
    match of {
        v3::FileType::Regular => FileType::RegularFile,
        v3::FileType::Directory => FileType::Directory,
        v3::FileType::Block => FileType::BlockDevice,
        v3::FileType::Character => FileType::CharDevice,
        v3::FileType::Symlink => FileType::Symlink,
        v3::FileType::Socket => FileType::Socket,
        v3::FileType::Fifo => FileType::NamedPipe,
    }
}

/// Attributes as the kernel takes them. `block` is the transfer size that programs should prefer.
pub(crate) fn to_fuse(number: u64, a: &Attributes, block: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: a.size,
        blocks: a.used.div_ceil(512),
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(a.file_type),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: to_device(a.rdev),
        blksize: block,
        flags: 0,
    }
}

fn time(t: NfsTime) -> SystemTime {
    // A server may say more nanoseconds than a second has; they carry over.
    UNIX_EPOCH + Duration::from_secs(t.seconds.into()) + Duration::from_nanos(t.nanos.into())
}

/// How SETATTR is to treat a time.
pub(crate) fn set_time(wanted: Option<TimeOrNow>) -> SetTime {
    match wanted {
        None => SetTime::DontChange,
        Some(TimeOrNow::Now) => SetTime::Server,
        Some(TimeOrNow::SpecificTime(t)) => {
            let since = t.duration_since(UNIX_EPOCH).unwrap_or_default();
            SetTime::Client(match u32::try_from(since.as_secs()) {
                Ok(seconds) => NfsTime::new(seconds, since.subsec_nanos()),
                Err(_) => NfsTime::new(u32::MAX, 0),
            })
        }
    }
}

/// The kernel's form of a device number: 12 bits of major between 8 and 12 of minor.
fn to_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Major and minor of a device number in the kernel's form.
pub(crate) fn from_device(dev: u32) -> (u32, u32) {
    (dev >> 8 & 0xfff, (dev & 0xff) | dev >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(fsid: u64, fileid: u64) -> Attributes {
        Attributes {
            file_type: v3::FileType::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            rdev: (0, 0),
            fsid,
            fileid,
            atime: NfsTime::default(),
            mtime: NfsTime::default(),
            ctime: NfsTime::default(),
        }
    }

    #[test]
    fn numbers_are_those_of_the_server_where_they_can_be() {
        let of = |attributes| number(7, &attributes);
        assert_eq!(of(attributes(7, 4711)), 4711);
        for odd in [attributes(8, 4711), attributes(7, 1), attributes(7, 0)] {
            assert!(of(odd) >> 63 == 1);
        }
        assert_ne!(of(attributes(8, 2)), of(attributes(9, 2)));
    }

    #[test]
    fn device_numbers_round_trip() {
        for device in [(0, 0), (8, 1), (4095, (1 << 20) - 1), (259, 70_000)] {
            assert_eq!(from_device(to_device(device)), device);
        }
        // As makedev(3) packs them.
        assert_eq!(to_device((8, 1)), 0x801);
    }

    #[test]
    fn times_stay_in_the_range_of_the_protocol() {
        let at = |t| set_time(Some(TimeOrNow::SpecificTime(t)));
        assert_eq!(at(UNIX_EPOCH + Duration::new(5, 6)), SetTime::Client(NfsTime::new(5, 6)));
        assert_eq!(at(UNIX_EPOCH - Duration::new(5, 6)), SetTime::Client(NfsTime::new(0, 0)));
        assert_eq!(at(UNIX_EPOCH + Duration::from_secs(1 << 33)), SetTime::Client(NfsTime::new(u32::MAX, 0)));
        assert_eq!(set_time(Some(TimeOrNow::Now)), SetTime::Server);
        assert_eq!(set_time(None), SetTime::DontChange);
    }
}
