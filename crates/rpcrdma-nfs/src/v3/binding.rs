//! How NFSv3 uses RPC-over-RDMA: the upper-layer binding (RFC 8267), and what a retransmitted call may do.
//!
//! # Operation
//! Before a call leaves, the transport has to know how large its Reply can get, because it has to provide the
//! memory: [`ReplyBound`] says how many bytes the Reply has beside the item that may be a chunk, and how many that
//! item has. The bounds count a whole RPC Reply with an AUTH_NONE verifier, handles of 64 bytes and every optional
//! attribute present; nothing a server may legally send is larger.

use rpcrdma_proto::xdr::padded;

use super::types::{Attributes, Proc};

/// Bytes of an accepted RPC Reply in front of the results, with an empty verifier.
pub const RPC_REPLY_HEADER: usize = 24;

/// The largest Reply a call can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyBound {
    /// Most bytes of the RPC Reply, from its XID on, without the bytes and pad of a chunkable result.
    pub inline: usize,
    /// Most bytes of the result that may be a chunk, if the procedure has one.
    pub chunkable: Option<u32>,
}

impl ReplyBound {
    /// Most bytes of the RPC Reply when it travels whole.
    #[must_use]
    pub fn whole(&self) -> usize {
        self.inline.saturating_add(self.chunkable.map_or(0, |n| padded(n as usize)))
    }
}

const STATUS: usize = 4;
const FLAG: usize = 4;
const POST_OP: usize = FLAG + Attributes::WIRE_LEN;
const WCC: usize = FLAG + 24 + POST_OP;
const FH: usize = 4 + 64;

/// The bound of a procedure whose Reply does not depend on its arguments.
///
/// For READ, READLINK, READDIR and READDIRPLUS it is the bound of a Reply without data, target or entries; they
/// have functions of their own.
#[must_use]
pub const fn fixed_bound(proc: Proc) -> ReplyBound {
    let results = match proc {
        Proc::Null => return ReplyBound { inline: RPC_REPLY_HEADER, chunkable: None },
        Proc::GetAttr => Attributes::WIRE_LEN,
        Proc::SetAttr | Proc::Remove | Proc::RmDir => WCC,
        Proc::Lookup => FH + 2 * POST_OP,
        Proc::Access => POST_OP + 4,
        Proc::ReadLink => POST_OP + 4,
        Proc::Read => POST_OP + 12,
        Proc::Write => WCC + 16,
        Proc::Create | Proc::MkDir | Proc::SymLink | Proc::MkNod => FLAG + FH + POST_OP + WCC,
        Proc::Rename => 2 * WCC,
        Proc::Link => POST_OP + WCC,
        Proc::ReadDir | Proc::ReadDirPlus => POST_OP + 16,
        Proc::FsStat => POST_OP + 52,
        Proc::FsInfo => POST_OP + 48,
        Proc::PathConf => POST_OP + 24,
        Proc::Commit => WCC + 8,
    };
    ReplyBound { inline: RPC_REPLY_HEADER + STATUS + results, chunkable: None }
}

/// The bound of a READ of `count` bytes.
#[must_use]
pub const fn read_bound(count: u32) -> ReplyBound {
    ReplyBound { inline: fixed_bound(Proc::Read).inline, chunkable: Some(count) }
}

/// The bound of a READLINK whose target has at most `target` bytes: the symlink's size, where it is known.
#[must_use]
pub const fn readlink_bound(target: u32) -> ReplyBound {
    ReplyBound { inline: fixed_bound(Proc::ReadLink).inline, chunkable: Some(target) }
}

/// The bound of a READDIR of `count` bytes or a READDIRPLUS of `maxcount` bytes. RFC 1813 counts attributes, verifier and
/// the end of the list in; Linux's server counts the entries alone, so there has to be room for the rest beside them.
#[must_use]
pub const fn readdir_bound(count: u32) -> ReplyBound {
    let around = fixed_bound(Proc::ReadDir).inline;
    ReplyBound { inline: around.saturating_add(count as usize), chunkable: None }
}

/// Whether the procedure has an argument that may be a chunk: WRITE's data, SYMLINK's target.
#[must_use]
pub const fn chunkable_argument(proc: Proc) -> bool {
    matches!(proc, Proc::Write | Proc::SymLink)
}

/// Whether the procedure has a result that may be a chunk: READ's data, READLINK's target.
#[must_use]
pub const fn chunkable_result(proc: Proc) -> bool {
    matches!(proc, Proc::Read | Proc::ReadLink)
}

/// Whether a server keeps the Reply for a retransmitted call instead of executing it twice: everything that changes
/// something. Only such procedures whose results are never chunks qualify, because a retransmitted call brings new
/// memory to write into.
#[must_use]
pub const fn cached(proc: Proc) -> bool {
    matches!(
        proc,
        Proc::SetAttr
            | Proc::Write
            | Proc::Create
            | Proc::MkDir
            | Proc::SymLink
            | Proc::MkNod
            | Proc::Remove
            | Proc::RmDir
            | Proc::Rename
            | Proc::Link
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_those_of_the_binding() {
        let table = [
            (Proc::Null, 24),
            (Proc::GetAttr, 112),
            (Proc::SetAttr, 144),
            (Proc::Lookup, 272),
            (Proc::Access, 120),
            (Proc::ReadLink, 120),
            (Proc::Read, 128),
            (Proc::Write, 160),
            (Proc::Create, 304),
            (Proc::MkDir, 304),
            (Proc::SymLink, 304),
            (Proc::MkNod, 304),
            (Proc::Remove, 144),
            (Proc::RmDir, 144),
            (Proc::Rename, 260),
            (Proc::Link, 232),
            (Proc::FsStat, 168),
            (Proc::FsInfo, 164),
            (Proc::PathConf, 140),
            (Proc::Commit, 152),
        ];
        for (proc, bytes) in table {
            assert_eq!(fixed_bound(proc).inline, bytes, "{proc}");
        }
        assert_eq!(read_bound(5), ReplyBound { inline: 128, chunkable: Some(5) });
        assert_eq!(read_bound(5).whole(), 136);
        assert_eq!(readlink_bound(6).whole(), 128);
        assert_eq!(readdir_bound(4096), ReplyBound { inline: 28 + 104 + 4096, chunkable: None });
        assert_eq!(readdir_bound(0).inline, 28 + 104);
        assert_eq!(readdir_bound(u32::MAX).inline, 28 + 104 + u32::MAX as usize);
    }

    #[test]
    fn what_is_cached_has_no_result_in_a_chunk_and_changes_something() {
        for proc in Proc::ALL {
            assert!(!(cached(proc) && chunkable_result(proc)), "{proc}");
        }
        assert_eq!(Proc::ALL.into_iter().filter(|p| cached(*p)).count(), 10);
        assert_eq!(
            Proc::ALL.into_iter().filter(|p| chunkable_argument(*p) || chunkable_result(*p)).count(),
            4
        );
    }
}
