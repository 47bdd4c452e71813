//! Acting as a caller.
//!
//! # Operation
//! A server that runs as root lets the kernel decide what a caller may do: for the length of a few system calls the
//! thread takes the caller's effective user, group and supplementary groups, and with the user it loses all effective
//! capabilities, so that permissions, quotas, set-id bits and the owner of new files come out as for a local process
//! of that user. Identities belong to threads on Linux, so other threads do not notice. [`Assumed`] gives the own
//! identity back when it is dropped; it is not `Send`, and no call between may suspend.
//!
//! A server that runs as anybody else has one identity only, its own, and serves everything under it.
//!
//! # When it breaks
//! If the kernel refuses an identity, the operation fails; it never runs under another one. Should the way back be
//! refused, the thread is left with fewer rights than before, and says so in the log.
//!
//! # Limits
//! Changing the effective user makes a process "not dumpable": no core dumps, and `/proc/self` belongs to root.

use std::marker::PhantomData;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;

use super::super::Caller;
use super::super::access::GROUPS_MAX;

/// "No id" in the system calls that set one.
const NOBODY: u32 = u32::MAX;

/// Whose identity operations run under.
#[derive(Debug)]
pub(super) enum Identity {
    /// The server's own user.
    Own {
        /// That user.
        uid: u32,
    },
    /// The caller's.
    Caller {
        /// What to return to.
        gid: Gid,
        /// What to return to.
        groups: Vec<Gid>,
    },
}

impl Identity {
    /// The caller's if this thread may take any identity, else the own one.
    ///
    /// # Errors
    /// If the thread's ids cannot be read.
    pub(super) fn detect() -> Result<Self, Errno> {
        let uid = rustix::process::geteuid();
        let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let able = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
        if uid.is_root() && able {
            Ok(Self::Caller { gid: rustix::process::getegid(), groups: rustix::process::getgroups()? })
        } else {
            Ok(Self::own())
        }
    }

    pub(super) fn own() -> Self {
        Self::Own { uid: rustix::process::geteuid().as_raw() }
    }

    /// The user that operations for this caller run under.
    pub(super) fn uid(&self, caller: &Caller) -> u32 {
        match self {
            Self::Own { uid } => *uid,
            Self::Caller { .. } => caller.uid(),
        }
    }

    /// What tells the rights of two callers apart.
    pub(super) fn key(&self, caller: &Caller) -> Caller {
        match self {
            Self::Own { uid } => Caller::new(*uid, 0, &[]),
            Self::Caller { .. } => caller.with_read_only(false),
        }
    }

    /// Takes the caller's user and groups.
    ///
    /// # Errors
    /// If the kernel refuses them, or an id is -1, which means "no change" to it.
    pub(super) fn assume(&self, caller: &Caller) -> Result<Assumed<'_>, Errno> {
        let mut assumed = self.nothing_assumed();
        let Self::Caller { gid: own_gid, groups: own_groups } = self else { return Ok(assumed) };
        #[cfg(test)]
        count();
        if [caller.uid(), caller.gid()].contains(&NOBODY) || caller.groups().contains(&NOBODY) {
            return Err(Errno::PERM);
        }
        if !(caller.groups().is_empty() && own_groups.is_empty()) {
            let mut groups = [Gid::ROOT; GROUPS_MAX];
            for (to, from) in groups.iter_mut().zip(caller.groups()) {
                *to = Gid::from_raw(*from);
            }
            assumed.groups = true;
            rustix::thread::set_thread_groups(&groups[..caller.groups().len()])?;
        }
        if own_gid.as_raw() != caller.gid() {
            assumed.gid = true;
            rustix::thread::set_thread_res_gid(None, Gid::from_raw(caller.gid()), None)?;
        }
        self.take_user(assumed, caller)
    }

    /// Takes the caller's user alone, which is enough where a descriptor is open already: capabilities go, and quotas
    /// and reserved space are the user's.
    ///
    /// # Errors
    /// As [`Identity::assume`].
    pub(super) fn assume_user(&self, caller: &Caller) -> Result<Assumed<'_>, Errno> {
        let assumed = self.nothing_assumed();
        match self {
            Self::Own { .. } => Ok(assumed),
            Self::Caller { .. } if caller.uid() == NOBODY => Err(Errno::PERM),
            Self::Caller { .. } => {
                #[cfg(test)]
                count();
                self.take_user(assumed, caller)
            }
        }
    }

    fn nothing_assumed(&self) -> Assumed<'_> {
        Assumed { own: self, uid: false, gid: false, groups: false, this_thread: PhantomData }
    }

    fn take_user<'a>(&self, mut assumed: Assumed<'a>, caller: &Caller) -> Result<Assumed<'a>, Errno> {
        if caller.uid() != 0 {
            rustix::thread::set_thread_res_uid(None, Uid::from_raw(caller.uid()), None)?;
            assumed.uid = true;
        }
        Ok(assumed)
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has acted as a caller.
    pub(super) static ACTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn count() {
    ACTED.set(ACTED.get() + 1);
}

/// The thread acts as a caller until this is dropped.
pub(super) struct Assumed<'a> {
    own: &'a Identity,
    uid: bool,
    gid: bool,
    groups: bool,
    this_thread: PhantomData<*const ()>,
}

impl Drop for Assumed<'_> {
    fn drop(&mut self) {
        let Identity::Caller { gid, groups } = self.own else { return };
        let back = || {
            // The user first: with it come the capabilities that the rest needs.
            if self.uid {
                rustix::thread::set_thread_res_uid(None, Uid::ROOT, None)?;
            }
            if self.gid {
                rustix::thread::set_thread_res_gid(None, *gid, None)?;
            }
            if self.groups {
                rustix::thread::set_thread_groups(groups)?;
            }
            Ok::<_, Errno>(())
        };
        if let Err(error) = back() {
            tracing::error!(%error, "a thread could not return from a caller's identity to the server's");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (u32, u32, Vec<u32>, bool) {
        let groups = rustix::process::getgroups().unwrap();
        let capabilities = rustix::thread::capabilities(None).unwrap();
        (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
            groups.into_iter().map(Gid::as_raw).collect(),
            capabilities.effective.is_empty(),
        )
    }

    #[test]
    fn identities_are_taken_and_given_back() {
        let identity = Identity::detect().unwrap();
        let own = ids();
        let caller = Caller::new(1234, 77, &[88, 99]);
        {
            let _assumed = identity.assume(&caller).unwrap();
            if matches!(identity, Identity::Caller { .. }) {
                assert_eq!(ids(), (1234, 77, vec![88, 99], true));
                assert_eq!(std::thread::spawn(ids).join().unwrap().0, 1234, "a new thread inherits");
            } else {
                assert_eq!(ids(), own);
            }
        }
        assert_eq!(ids(), own);
        {
            let _assumed = identity.assume_user(&caller).unwrap();
            if matches!(identity, Identity::Caller { .. }) {
                assert_eq!(ids(), (1234, own.1, own.2.clone(), true));
            }
        }
        assert_eq!(ids(), own);
    }

    #[test]
    fn an_id_of_minus_one_never_means_the_own_identity() {
        let identity = Identity::detect().unwrap();
        if matches!(identity, Identity::Own { .. }) {
            return;
        }
        for caller in
            [Caller::new(u32::MAX, 1, &[]), Caller::new(1, u32::MAX, &[]), Caller::new(1, 1, &[u32::MAX])]
        {
            assert_eq!(identity.assume(&caller).err(), Some(Errno::PERM));
        }
        assert_eq!(identity.assume_user(&Caller::new(u32::MAX, 1, &[])).err(), Some(Errno::PERM));
    }
}
