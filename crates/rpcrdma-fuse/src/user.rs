//! On whose behalf the server is asked.
//!
//! The kernel says user, group and thread of whoever makes a request; the supplementary groups of that thread are in
//! `/proc`. Each combination gets a credential of its own, over the connections that all share. Who reads or writes an
//! open file does so as the one who opened it.
//!
//! # Limits
//! 16 groups, as AUTH_SYS has it. [`USERS_MAX`] combinations are remembered; then all are forgotten and made anew. A
//! thread that is not visible in our `/proc` (another PID namespace) has no supplementary groups.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use fuser::Request;
use rpcrdma::client::{Identity, Mount};

/// Credentials that are remembered.
const USERS_MAX: usize = 1024;

/// Somebody, and the mount on their behalf.
pub(crate) struct User {
    pub(crate) mount: Mount,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Everybody who has made a request.
pub(crate) struct Users {
    owner: Arc<User>,
    /// `None`: everybody is the owner.
    base: Option<Identity>,
    known: Mutex<HashMap<Key, Arc<User>>>,
}

impl Users {
    /// `mount` acts as `identity`; everybody else acts as themselves, or, if `fixed`, as `identity` too.
    pub(crate) fn new(mount: Mount, identity: Identity, fixed: bool) -> Self {
        let base = (!fixed).then_some(identity);
        Self { owner: Arc::new(User { mount }), base, known: Mutex::default() }
    }

    /// Who has mounted it.
    pub(crate) fn owner(&self) -> &Arc<User> {
        &self.owner
    }

    /// Who makes this request.
    pub(crate) fn of(&self, request: &Request) -> Arc<User> {
        let (uid, gid) = (request.uid(), request.gid());
        let Some(base) = &self.base else { return Arc::clone(&self.owner) };
        // Root's groups give it nothing.
        let groups = if uid == 0 { Vec::new() } else { groups_of(request.pid()) };
        let key = Key { uid, gid, groups };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = known.get(&key) {
            return Arc::clone(user);
        }
        let identity = Identity { uid, gid, gids: key.groups.clone(), machine: base.machine.clone() };
        let user = Arc::new(User { mount: self.owner.mount.acting_as(&identity) });
        if known.len() >= USERS_MAX {
            known.clear();
        }
        known.insert(key, Arc::clone(&user));
        user
    }
}

fn groups_of(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    field(&status, "Groups:").split_ascii_whitespace().filter_map(|g| g.parse().ok()).collect()
}

/// Whether a thread is about to be killed: it waits for us and for nothing else.
pub(crate) fn is_dying(thread: u32) -> bool {
    const SIGKILL: u32 = 9;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        // It is in another namespace, and not ours to judge. A thread that waits does not go away.
        return false;
    };
    // A fatal signal of any kind becomes SIGKILL of each thread.
    let killed = u64::from_str_radix(field(&status, "SigPnd:").trim(), 16)
        .is_ok_and(|mask| mask >> (SIGKILL - 1) & 1 == 1);
    killed
        || std::fs::read_to_string(format!("/proc/{thread}/stat")).is_ok_and(|stat| is_ended_by_signal(&stat))
}

/// Whether a thread, by its line in `/proc`, is ending because of a signal, which is pending no more. It may be closing
/// files. One that ends by itself is to hear what has become of them.
fn is_ended_by_signal(stat: &str) -> bool {
    const PF_EXITING: u64 = 0x4;
    const PF_SIGNALED: u64 = 0x400;
    const BOTH: u64 = PF_EXITING | PF_SIGNALED;
    // The second field is a name in parentheses, which may have spaces and parentheses of its own. The ninth is the flags.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & BOTH == BOTH)
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_thread_are_found() {
        let status = "Name:\tx\nGroups:\t4 24 1000 \nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n";
        assert_eq!(field(status, "Groups:").trim(), "4 24 1000");
        assert_eq!(field(status, "SigPnd:").trim(), "0000000000000100");
        assert_eq!(field(status, "Nothing:"), "");
    }

    #[test]
    fn a_thread_that_a_signal_ends_is_known_by_its_flags() {
        let stat = |flags: u32| format!("7 (a) R (b c) D 1 7 7 34816 7 {flags} 120 0 0 0 3 1\n");
        assert!(is_ended_by_signal(&stat(0x40_040c)));
        // It ends by itself, has dumped core and does not end yet, does neither.
        for flags in [0x40_000c, 0x40_0600, 0x40_0000, 0] {
            assert!(!is_ended_by_signal(&stat(flags)), "{flags:#x}");
        }
        for bad in ["", "7 (a) D 1 2", "7 (a", "7 (a) D 1 7 7 34816 7 x"] {
            assert!(!is_ended_by_signal(bad), "{bad}");
        }
    }

    #[test]
    fn a_living_thread_is_not_dying() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(u32::MAX));
        assert_eq!(groups_of(u32::MAX), Vec::<u32>::new());
    }
}
