//! What an NFS procedure says about its outcome: `nfsstat3` (RFC 1813 section 2.6).
//!
//! A [`Status`] keeps the number of the wire, so a value this crate does not know survives decoding, forwarding and
//! printing. Both directions of the mapping to Linux `errno` values are here: a server turns what the operating
//! system said into a status with [`Status::from_errno`], a client turns a status into what an application expects
//! with [`Status::errno`]. Neither is the inverse of the other, because several errors share a status.

use core::fmt;

use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

/// Outcome of an NFS procedure. Unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($name:ident = $value:literal, $nfs:literal, $errno:literal, $words:literal;)+) => {
        impl Status {
            $(
                #[doc = concat!("`", $nfs, "`: ", $words, ".")]
                pub const $name: Self = Self($value);
            )+

            /// Every status RFC 1813 defines, success first.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The protocol's own name, such as `NFS3ERR_NOENT`; `None` for a value RFC 1813 does not define.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($nfs),)+
                    _ => None,
                }
            }

            /// The Linux `errno` an application expects; 0 for success, `EIO` for unknown values.
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self.0 {
                    $($value => $errno,)+
                    _ => 5,
                }
            }

            const fn words(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($words),)+
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    OK = 0, "NFS3_OK", 0, "success";
    PERM = 1, "NFS3ERR_PERM", 1, "operation not permitted";
    NOENT = 2, "NFS3ERR_NOENT", 2, "no such file or directory";
    IO = 5, "NFS3ERR_IO", 5, "input/output error";
    NXIO = 6, "NFS3ERR_NXIO", 6, "no such device or address";
    ACCES = 13, "NFS3ERR_ACCES", 13, "permission denied";
    EXIST = 17, "NFS3ERR_EXIST", 17, "file exists";
    XDEV = 18, "NFS3ERR_XDEV", 18, "the two names are on different file systems";
    NODEV = 19, "NFS3ERR_NODEV", 19, "no such device";
    NOTDIR = 20, "NFS3ERR_NOTDIR", 20, "not a directory";
    ISDIR = 21, "NFS3ERR_ISDIR", 21, "is a directory";
    INVAL = 22, "NFS3ERR_INVAL", 22, "invalid argument";
    FBIG = 27, "NFS3ERR_FBIG", 27, "file too large";
    NOSPC = 28, "NFS3ERR_NOSPC", 28, "no space left on device";
    ROFS = 30, "NFS3ERR_ROFS", 30, "read-only file system";
    MLINK = 31, "NFS3ERR_MLINK", 31, "too many links";
    NAMETOOLONG = 63, "NFS3ERR_NAMETOOLONG", 36, "file name too long";
    NOTEMPTY = 66, "NFS3ERR_NOTEMPTY", 39, "directory not empty";
    DQUOT = 69, "NFS3ERR_DQUOT", 122, "disk quota exceeded";
    STALE = 70, "NFS3ERR_STALE", 116, "stale file handle";
    REMOTE = 71, "NFS3ERR_REMOTE", 66, "object is remote to the server";
    BADHANDLE = 10001, "NFS3ERR_BADHANDLE", 116, "not a file handle of this server";
    NOT_SYNC = 10002, "NFS3ERR_NOT_SYNC", 16, "the object changed since its guard was taken";
    BAD_COOKIE = 10003, "NFS3ERR_BAD_COOKIE", 22, "stale directory cookie";
    NOTSUPP = 10004, "NFS3ERR_NOTSUPP", 95, "operation not supported";
    TOOSMALL = 10005, "NFS3ERR_TOOSMALL", 22, "buffer or request too small";
    SERVERFAULT = 10006, "NFS3ERR_SERVERFAULT", 121, "the server failed";
    BADTYPE = 10007, "NFS3ERR_BADTYPE", 22, "the server cannot create objects of this type";
    JUKEBOX = 10008, "NFS3ERR_JUKEBOX", 11, "not available yet, try again later";
}

impl Status {
    /// Whether this is success.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// The status a server answers when the operating system gave the Linux error number `errno`.
    ///
    /// Shortages that pass (memory, descriptors, interrupted calls) become [`Status::JUKEBOX`], so that clients
    /// wait and try again. What has no counterpart becomes [`Status::IO`].
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            0 => Self::OK,
            1 => Self::PERM,
            2 => Self::NOENT,
            6 => Self::NXIO,
            // EBADF: the object behind a handle is gone.
            9 | 116 => Self::STALE,
            // EINTR, EAGAIN, ENOMEM, ENFILE, EMFILE, ETXTBSY, ETIMEDOUT.
            4 | 11 | 12 | 23 | 24 | 26 | 110 => Self::JUKEBOX,
            // EBUSY: typically a mount point somebody wants to remove; no listed status fits better.
            13 | 16 => Self::ACCES,
            17 => Self::EXIST,
            18 => Self::XDEV,
            19 => Self::NODEV,
            20 => Self::NOTDIR,
            21 => Self::ISDIR,
            // ELOOP: a symlink where a file was wanted.
            22 | 40 => Self::INVAL,
            // E2BIG, EFBIG, EOVERFLOW.
            7 | 27 | 75 => Self::FBIG,
            28 => Self::NOSPC,
            30 => Self::ROFS,
            31 => Self::MLINK,
            36 => Self::NAMETOOLONG,
            // ENOSYS, EOPNOTSUPP.
            38 | 95 => Self::NOTSUPP,
            39 => Self::NOTEMPTY,
            66 => Self::REMOTE,
            122 => Self::DQUOT,
            _ => Self::IO,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.words(), self.name()) {
            (Some(words), Some(name)) => write!(f, "{words} ({name})"),
            _ => write!(f, "unknown NFS status {}", self.0),
        }
    }
}

impl core::error::Error for Status {}

impl Encode for Status {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.0);
    }
}

impl Decode<'_> for Status {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        r.u32().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_status_has_an_errno_that_leads_back_or_a_reason_not_to() {
        // Statuses whose errno is shared with a more common one.
        let lossy = [
            Status::BADHANDLE,
            Status::NOT_SYNC,
            Status::BAD_COOKIE,
            Status::TOOSMALL,
            Status::SERVERFAULT,
            Status::BADTYPE,
        ];
        for &s in Status::ALL {
            assert_eq!(s.errno() == 0, s.is_ok(), "{s}");
            assert_eq!(Status::from_errno(s.errno()) == s, !lossy.contains(&s), "{s}");
        }
    }

    #[test]
    fn unknown_values_survive_and_print() {
        let s = Status::decode(&mut Reader::new(&[0, 0, 0x27, 0x1f])).unwrap();
        assert_eq!(s, Status(10015));
        assert_eq!(s.name(), None);
        assert_eq!(s.errno(), 5);
        assert_eq!(s.to_string(), "unknown NFS status 10015");
        assert_eq!(Status::NOENT.to_string(), "no such file or directory (NFS3ERR_NOENT)");
        assert_eq!(Status::from_errno(9999), Status::IO);
    }
}
