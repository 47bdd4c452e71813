//! MOUNT version 3: from the name of an export to the handle of its root (RFC 1813 appendix I).
//!
//! # Operation
//! Served wherever NFS is, so that a client needs no rpcbind. MNT takes the path of an export or of a directory inside
//! one. Who has mounted what is remembered for DUMP only: nothing depends on it, it does not survive a restart, and
//! clients that vanish stay in it until others push them out.
//!
//! # Limits
//! [`REMEMBERED`] mounts.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rpcrdma_nfs::mount::{
    AUTH_SYS, DirPath, Flavors, MntOk, MntResult, MountStatus, Proc, encode_exports, encode_mounts,
};
use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

use crate::export::Exports;

/// Most mounts that DUMP tells about; the oldest are forgotten.
const REMEMBERED: usize = 1024;

/// Who has mounted what, as far as is remembered. Oldest first.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    list: Mutex<VecDeque<(IpAddr, Box<[u8]>)>>,
}

impl Mounts {
    fn list(&self) -> MutexGuard<'_, VecDeque<(IpAddr, Box<[u8]>)>> {
        // The guarded sections leave the list whole at every step.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, peer: IpAddr, path: &[u8]) {
        let mut list = self.list();
        if list.iter().any(|(p, known)| *p == peer && **known == *path) {
            return;
        }
        if list.len() == REMEMBERED {
            list.pop_front();
        }
        list.push_back((peer, path.into()));
    }

    fn remove(&self, peer: IpAddr, path: Option<&[u8]>) {
        self.list().retain(|(p, known)| *p != peer || path.is_some_and(|path| **known != *path));
    }
}

/// Whether a procedure looks at files, and so may have to wait for them.
pub(super) fn may_block(proc: Proc) -> bool {
    proc == Proc::Mnt
}

/// Executes a Call and writes its result behind what `begin` writes.
///
/// # Errors
/// If the arguments do not decode; nothing has been written then.
pub(super) fn execute(
    exports: &Exports,
    mounts: &Mounts,
    peer: IpAddr,
    proc: Proc,
    mut args: Reader<'_>,
    w: &mut Writer,
    begin: impl FnOnce(&mut Writer),
) -> Result<(), XdrError> {
    let peer = peer.to_canonical();
    let path = match proc {
        Proc::Mnt | Proc::Umnt => DirPath::decode(&mut args)?.0,
        Proc::Null | Proc::Dump | Proc::UmntAll | Proc::Export => &[],
    };
    args.finish()?;
    begin(w);
    match proc {
        Proc::Null => {}
        Proc::Mnt => {
            let found = exports.mount(peer, path);
            if found.is_ok() {
                mounts.add(peer, path);
            }
            let ok = found.map(|(_, handle)| MntOk { handle, flavors: Flavors::new(&[AUTH_SYS]) });
            MntResult(ok.map_err(MountStatus::from)).encode(w);
        }
        Proc::Dump => {
            let list = mounts.list();
            let hosts: Vec<String> = list.iter().map(|(peer, _)| peer.to_string()).collect();
            encode_mounts(w, hosts.iter().zip(list.iter()).map(|(h, (_, path))| (h.as_bytes(), &**path)));
        }
        Proc::Umnt => mounts.remove(peer, Some(path)),
        Proc::UmntAll => mounts.remove(peer, None),
        Proc::Export => {
            let groups: Vec<Vec<String>> =
                exports.iter().map(|e| e.rules.allow.iter().map(ToString::to_string).collect()).collect();
            let lines = exports.iter().zip(&groups).map(|(entry, groups)| {
                (entry.name.as_bytes(), groups.iter().map(|g| g.as_bytes()).collect::<Vec<_>>())
            });
            encode_exports(w, lines);
        }
    }
    Ok(())
}
