//! Who may use an export, and as whom.
//!
//! # Operation
//! A peer claims an identity in its RPC credentials (AUTH_SYS: user, group, up to 16 more groups) that nothing
//! proves. [`ExportRules`] decide from the peer's address whether to serve it at all, then *squash* the claim into a
//! [`Caller`], the identity that an export acts under. The words are those of exports(5).
//!
//! # Limits
//! Addresses tell machines apart only as well as the network does. AUTH_SYS carries 16 groups; further ones that a
//! user has do not arrive.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Most supplementary groups a [`Caller`] has.
pub(super) const GROUPS_MAX: usize = 16;

/// The identity an operation runs under, after squashing.
#[derive(Clone, Copy)]
pub struct Caller {
    uid: u32,
    gid: u32,
    groups: [u32; GROUPS_MAX],
    group_count: u8,
    read_only: bool,
}

impl Caller {
    /// A caller with these ids. Groups beyond the 16th are dropped, as AUTH_SYS would.
    #[must_use]
    pub fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        let count = groups.len().min(GROUPS_MAX);
        let mut inline = [0; GROUPS_MAX];
        inline[..count].copy_from_slice(&groups[..count]);
        Self { uid, gid, groups: inline, group_count: count as u8, read_only: false }
    }

    /// User and group 0, to whom nothing is denied.
    #[must_use]
    pub fn superuser() -> Self {
        Self::new(0, 0, &[])
    }

    /// The same caller on a read-only export.
    #[must_use]
    pub const fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// User.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Primary group.
    #[must_use]
    pub const fn gid(&self) -> u32 {
        self.gid
    }

    /// Supplementary groups.
    #[must_use]
    pub fn groups(&self) -> &[u32] {
        &self.groups[..usize::from(self.group_count)]
    }

    /// Whether the export is read-only for this caller.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the caller is in a group.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().contains(&gid)
    }
}

// What a caller is allowed depends on the ids only, so that is what equality means: the spare slots do not count.
impl PartialEq for Caller {
    fn eq(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.gid == other.gid
            && self.read_only == other.read_only
            && self.groups() == other.groups()
    }
}

impl Eq for Caller {}

impl Hash for Caller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Groups hardly ever tell two callers of one user apart; equality still compares them.
        state.write_u64(u64::from(self.uid) << 32 | u64::from(self.gid));
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({}:{}", self.uid, self.gid)?;
        for group in self.groups() {
            write!(f, ",{group}")?;
        }
        f.write_str(if self.read_only { " read-only)" } else { ")" })
    }
}

/// What a peer claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials<'a> {
    /// Nothing (AUTH_NONE): it becomes the anonymous user.
    None,
    /// AUTH_SYS.
    Sys {
        /// User.
        uid: u32,
        /// Primary group.
        gid: u32,
        /// Supplementary groups.
        groups: &'a [u32],
    },
}

/// Whose identity becomes the anonymous one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    /// User 0 and group 0 (`root_squash`).
    #[default]
    Root,
    /// Everybody's (`all_squash`).
    All,
    /// Nobody's (`no_root_squash`).
    None,
}

/// Text that is not `root_squash`, `all_squash` or `no_root_squash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSquash(String);

impl fmt::Display for UnknownSquash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not one of root_squash, all_squash, no_root_squash", self.0)
    }
}

impl std::error::Error for UnknownSquash {}

impl FromStr for Squash {
    type Err = UnknownSquash;

    fn from_str(s: &str) -> Result<Self, UnknownSquash> {
        match s {
            "root_squash" => Ok(Self::Root),
            "all_squash" => Ok(Self::All),
            "no_root_squash" => Ok(Self::None),
            _ => Err(UnknownSquash(s.to_owned())),
        }
    }
}

impl fmt::Display for Squash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root_squash",
            Self::All => "all_squash",
            Self::None => "no_root_squash",
        })
    }
}

/// Why a peer is not served.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its address is in none of the allowed networks.
    Network(IpAddr),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(peer) => write!(f, "{peer} is in none of the export's allowed networks"),
        }
    }
}

impl std::error::Error for Denied {}

/// The rules of one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRules {
    /// Whether nothing may be changed.
    pub read_only: bool,
    /// Networks that are served; empty means everybody. IPv4 addresses that arrive on an IPv6 socket count as IPv4.
    pub allow: Vec<IpNet>,
    /// Whose identity becomes the anonymous one.
    pub squash: Squash,
    /// The anonymous user.
    pub anon_uid: u32,
    /// The anonymous group.
    pub anon_gid: u32,
}

impl Default for ExportRules {
    /// Writable, for everybody, root squashed to 65534.
    fn default() -> Self {
        Self { read_only: false, allow: Vec::new(), squash: Squash::Root, anon_uid: 65534, anon_gid: 65534 }
    }
}

impl ExportRules {
    /// Whether a peer is served at all. An IPv4 address and its IPv6-mapped form are the same here, in peers and in
    /// networks.
    #[must_use]
    pub fn admits(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let holds = |net: &IpNet| match (net, peer) {
            (IpNet::V6(net), IpAddr::V4(v4)) if net.addr().to_ipv4_mapped().is_some() => {
                net.contains(&v4.to_ipv6_mapped())
            }
            _ => net.contains(&peer),
        };
        self.allow.is_empty() || self.allow.iter().any(holds)
    }

    /// The identity that a peer's credentials become.
    ///
    /// # Errors
    /// If the peer is not served.
    pub fn caller(&self, peer: IpAddr, credentials: Credentials<'_>) -> Result<Caller, Denied> {
        if !self.admits(peer) {
            return Err(Denied::Network(peer.to_canonical()));
        }
        let caller = match credentials {
            Credentials::Sys { uid, gid, groups } if self.squash != Squash::All => {
                let mut caller = Caller::new(uid, gid, groups);
                if self.squash == Squash::Root {
                    if caller.uid == 0 {
                        caller.uid = self.anon_uid;
                    }
                    let count = usize::from(caller.group_count);
                    for gid in std::iter::once(&mut caller.gid).chain(&mut caller.groups[..count]) {
                        if *gid == 0 {
                            *gid = self.anon_gid;
                        }
                    }
                }
                caller
            }
            _ => Caller::new(self.anon_uid, self.anon_gid, &[]),
        };
        Ok(caller.with_read_only(self.read_only))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    const SOMEBODY: Credentials<'static> = Credentials::Sys { uid: 1000, gid: 100, groups: &[4, 0, 27] };
    const ROOT: Credentials<'static> = Credentials::Sys { uid: 0, gid: 0, groups: &[0, 5] };

    #[test]
    fn a_mapped_network_admits_plain_addresses() {
        let allow = vec!["::ffff:10.0.0.0/104".parse().unwrap()];
        let rules = ExportRules { allow, ..ExportRules::default() };
        for (peer, admitted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("192.0.2.1", false), ("::1", false)]
        {
            assert_eq!(rules.admits(peer.parse().unwrap()), admitted, "{peer}");
        }
        // All of IPv6 is not all of IPv4.
        let allow = vec!["::/0".parse().unwrap()];
        let rules = ExportRules { allow, ..ExportRules::default() };
        assert!(!rules.admits("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn root_is_squashed_by_default_and_others_keep_their_ids() {
        let rules = ExportRules::default();
        assert_eq!(rules.caller(ip("::1"), SOMEBODY), Ok(Caller::new(1000, 100, &[4, 65534, 27])));
        assert_eq!(rules.caller(ip("::1"), ROOT), Ok(Caller::new(65534, 65534, &[65534, 5])));
        assert_eq!(rules.caller(ip("::1"), Credentials::None), Ok(Caller::new(65534, 65534, &[])));
    }

    #[test]
    fn squashing_nobody_and_everybody() {
        let mut rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
        assert_eq!(rules.caller(ip("::1"), ROOT), Ok(Caller::new(0, 0, &[0, 5])));
        rules.squash = Squash::All;
        rules.anon_uid = 7;
        rules.anon_gid = 8;
        assert_eq!(rules.caller(ip("::1"), SOMEBODY), Ok(Caller::new(7, 8, &[])));
        rules.read_only = true;
        assert!(rules.caller(ip("::1"), SOMEBODY).unwrap().read_only());
    }

    #[test]
    fn networks_are_matched_after_unmapping() {
        let rules = ExportRules {
            allow: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..ExportRules::default()
        };
        assert!(rules.caller(ip("10.1.2.3"), SOMEBODY).is_ok());
        assert!(rules.caller(ip("::ffff:10.1.2.3"), SOMEBODY).is_ok());
        assert!(rules.caller(ip("fd12::1"), SOMEBODY).is_ok());
        assert_eq!(rules.caller(ip("::ffff:10.2.0.1"), SOMEBODY), Err(Denied::Network(ip("10.2.0.1"))));
        assert!(rules.caller(ip("2001:db8::1"), SOMEBODY).is_err());
    }

    #[test]
    fn more_groups_than_fit_are_dropped() {
        let groups: Vec<u32> = (1..=20).collect();
        let caller = Caller::new(1, 2, &groups);
        assert_eq!(caller.groups(), &groups[..16]);
        assert!(caller.in_group(2) && caller.in_group(16) && !caller.in_group(17));
    }

    #[test]
    fn squash_words_are_those_of_exports() {
        for squash in [Squash::Root, Squash::All, Squash::None] {
            assert_eq!(squash.to_string().parse(), Ok(squash));
        }
        assert!("root".parse::<Squash>().is_err());
    }
}
