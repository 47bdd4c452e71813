//! What `-o` says, in the words of nfs(5).
//!
//! A list of words and `name=value` pairs between commas. Unknown ones are errors, except those that mount(8) keeps for
//! itself (`_netdev`, `nofail`, `x-...`). Later ones win.

use std::{fmt, time::Duration};

use rpcrdma::client::RdmaConfig;

/// How long attributes of one kind of object are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheTime {
    /// After they have changed.
    pub min: Duration,
    /// After they have not changed for long.
    pub max: Duration,
}

/// What carries NFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proto {
    /// RPC-over-RDMA.
    #[default]
    Rdma,
    /// TCP.
    Tcp,
}

/// Which names are believed, within the times of directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameCache {
    /// Those that exist, and that others do not.
    #[default]
    All,
    /// Those that exist.
    Positive,
    /// None: the server is asked each time.
    None,
}

/// Mount options. [`MountOptions::default`] is what nfs(5) has for defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing may be changed.
    pub read_only: bool,
    /// Try for ever. Otherwise give up after `timeo` and `retrans` times as long again, with EIO.
    pub hard: bool,
    /// How long a connection may be silent with a Call outstanding.
    pub timeo: Duration,
    /// How often a soft mount tries again.
    pub retrans: u32,
    /// Bytes per READ at most.
    pub rsize: Option<u32>,
    /// Bytes per WRITE at most.
    pub wsize: Option<u32>,
    /// Connections.
    pub nconnect: Option<u32>,
    /// Port of NFS.
    pub port: Option<u16>,
    /// TCP port of MOUNT.
    pub mount_port: Option<u16>,
    /// What carries it.
    pub proto: Proto,
    /// Attributes of files.
    pub files: CacheTime,
    /// Attributes of directories.
    pub dirs: CacheTime,
    /// Which names are believed.
    pub names: NameCache,
    /// Whether opening a file asks the server what has changed, and closing one waits for what was written.
    pub close_to_open: bool,
    /// Whether every write waits for the server's disk.
    pub sync: bool,
    /// Whether users other than the one who mounts may use it.
    pub allow_other: bool,
    /// Whether set-user-id bits count.
    pub suid: bool,
    /// Whether device files can be opened.
    pub dev: bool,
    /// Whether programs can be executed.
    pub exec: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            read_only: false,
            hard: true,
            timeo: seconds(60),
            retrans: 2,
            rsize: None,
            wsize: None,
            nconnect: None,
            port: None,
            mount_port: None,
            proto: Proto::Rdma,
            files: CacheTime { min: seconds(3), max: seconds(60) },
            dirs: CacheTime { min: seconds(30), max: seconds(60) },
            names: NameCache::All,
            close_to_open: true,
            sync: false,
            allow_other: false,
            suid: false,
            dev: false,
            exec: true,
        }
    }
}

/// An option that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    option: String,
    why: &'static str,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount option {:?}: {}", self.option, self.why)
    }
}

impl std::error::Error for OptionError {}

const UNKNOWN: &str = "it is not known";

impl MountOptions {
    /// Takes up what a list such as `ro,soft,timeo=50` says.
    ///
    /// # Errors
    /// Names the first option that is unknown, has no or a wrong value, or cannot be had here.
    pub fn apply(&mut self, list: &str) -> Result<(), OptionError> {
        self.apply_known(list)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// Takes up what a list says, but for unknown options, which it returns: as mount(8) has it for `--sloppy`.
    ///
    /// # Errors
    /// Names the first option that has no or a wrong value, or cannot be had here.
    pub fn apply_known(&mut self, list: &str) -> Result<Vec<OptionError>, OptionError> {
        let mut unknown = Vec::new();
        for option in list.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            if let Err(why) = self.apply_one(option) {
                let error = OptionError { option: option.to_owned(), why };
                if why != UNKNOWN {
                    return Err(error);
                }
                unknown.push(error);
            }
        }
        Ok(unknown)
    }

    fn apply_one(&mut self, option: &str) -> Result<(), &'static str> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match value {
            None => self.apply_word(name),
            Some(value) => self.apply_value(name, value),
        }
    }

    fn apply_word(&mut self, name: &str) -> Result<(), &'static str> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "hard" => self.hard = true,
            "soft" | "softerr" => self.hard = false,
            "ac" => {
                let Self { files, dirs, .. } = Self::default();
                (self.files, self.dirs) = (files, dirs);
            }
            "noac" => {
                self.attribute_cache(Duration::ZERO);
                self.sync = true;
            }
            "cto" => self.close_to_open = true,
            "nocto" => self.close_to_open = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "rdma" => self.proto = Proto::Rdma,
            "tcp" => self.proto = Proto::Tcp,
            "allow_other" => self.allow_other = true,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "defaults" => *self = Self { suid: true, dev: true, ..self.clone() },
            "lock" => return Err("locks are local here: say nolock"),
            "bg" => return Err("mounting does not go on in the background when it fails"),
            // What is so anyway, and what mount(8) means for itself.
            "nolock" | "acl" | "noacl" | "fsc" | "nofsc" | "sharecache" | "nosharecache" | "strictatime"
            | "nostrictatime" | "lazytime" | "nolazytime" | "norelatime" | "fg" | "intr" | "nointr"
            | "noatime" | "nodiratime" | "relatime" | "atime" | "auto" | "noauto" | "user" | "users"
            | "nouser" | "owner" | "group" | "nofail" | "_netdev" | "rdirplus" | "nordirplus"
            | "resvport" | "noresvport" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            "timeo" | "retrans" | "rsize" | "wsize" | "nconnect" | "port" | "mountport" | "proto"
            | "vers" | "nfsvers" | "actimeo" | "acregmin" | "acregmax" | "acdirmin" | "acdirmax"
            | "lookupcache" | "retry" => {
                return Err("a value has to follow it");
            }
            _ => return Err(UNKNOWN),
        }
        Ok(())
    }

    fn apply_value(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let number = || value.parse::<u32>().map_err(|_| "the value is not a number");
        let seconds = || number().map(|n| Duration::from_secs(n.into()));
        let size = || {
            let n = number()?;
            // As nfs(5) has it: a multiple of 1024.
            if n < 1024 { Err("the least is 1024") } else { Ok(Some(n.min(1 << 20) / 1024 * 1024)) }
        };
        let port = || match value.parse::<u16>() {
            // In nfs(5), 0 is "ask".
            Ok(0) => Ok(None),
            Ok(port) => Ok(Some(port)),
            Err(_) => Err("the value is not a port"),
        };
        match name {
            "timeo" => match number()? {
                0 => return Err("the least is 1, a tenth of a second"),
                tenths => self.timeo = Duration::from_millis(u64::from(tenths) * 100),
            },
            "retrans" => self.retrans = number()?,
            "rsize" => self.rsize = size()?,
            "wsize" => self.wsize = size()?,
            "nconnect" => match number()? {
                n @ 1..=64 => self.nconnect = Some(n),
                _ => return Err("it is a number from 1 to 64"),
            },
            "port" => self.port = port()?,
            "mountport" => self.mount_port = port()?,
            "proto" => match value {
                "rdma" | "rdma6" => self.proto = Proto::Rdma,
                "tcp" | "tcp6" => self.proto = Proto::Tcp,
                _ => return Err("rdma and tcp are what there is"),
            },
            "vers" | "nfsvers" => {
                if value != "3" {
                    return Err("3 is what there is");
                }
            }
            "mountproto" | "mountvers" | "sec" | "local_lock" => {
                let fine = matches!(
                    (name, value),
                    ("mountproto", "tcp" | "rdma")
                        | ("mountvers", "3")
                        | ("sec", "sys")
                        | ("local_lock", "all")
                );
                if !fine {
                    return Err("this value cannot be had");
                }
            }
            "lookupcache" => {
                self.names = match value {
                    "all" => NameCache::All,
                    "pos" | "positive" => NameCache::Positive,
                    "none" => NameCache::None,
                    _ => return Err("all, positive and none are what there is"),
                }
            }
            // How many minutes to try to mount, which is done once.
            "retry" => {
                number()?;
            }
            "actimeo" => self.attribute_cache(seconds()?),
            "acregmin" => self.files.min = seconds()?,
            "acregmax" => self.files.max = seconds()?,
            "acdirmin" => self.dirs.min = seconds()?,
            "acdirmax" => self.dirs.max = seconds()?,
            _ if name.starts_with("x-") || name.starts_with("X-") || name == "comment" => {}
            _ => return Err(UNKNOWN),
        }
        Ok(())
    }

    fn attribute_cache(&mut self, time: Duration) {
        self.files = CacheTime { min: time, max: time };
        self.dirs = self.files;
    }

    /// How long connections wait and Calls are tried.
    #[must_use]
    pub fn patience(&self, config: RdmaConfig) -> RdmaConfig {
        if self.hard { config.hard(self.timeo) } else { config.soft(self.timeo, self.retrans) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.apply(list).map(|()| options)
    }

    #[test]
    fn options_have_the_names_and_defaults_of_nfs() {
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert_eq!(
            parse("rw,hard,timeo=600,retrans=2,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60").unwrap(),
            MountOptions::default()
        );
        let o = parse("ro,soft,timeo=50,retrans=3,rsize=65536,wsize=5000,nconnect=4,proto=tcp,port=2050")
            .unwrap();
        assert!(o.read_only && !o.hard);
        assert_eq!((o.rsize, o.wsize, o.nconnect, o.port), (Some(65536), Some(4096), Some(4), Some(2050)));
        assert_eq!(o.proto, Proto::Tcp);
        assert_eq!(o.patience(RdmaConfig::default()).give_up, Some(Duration::from_secs(20)));
        assert_eq!(parse("hard,soft,hard").unwrap().patience(RdmaConfig::default()).give_up, None);
        let o = parse("noac").unwrap();
        assert_eq!((o.files, o.sync), (CacheTime { min: Duration::ZERO, max: Duration::ZERO }, true));
        assert_eq!(parse("actimeo=7").unwrap().dirs.max, Duration::from_secs(7));
        assert_eq!(parse("rsize=4194304").unwrap().rsize, Some(1 << 20));
    }

    #[test]
    fn what_is_meant_for_others_is_let_pass() {
        let fstab = "rw,_netdev,nofail,noauto,x-systemd.automount,x-a=b,vers=3,nolock,mountproto=tcp";
        assert_eq!(parse(fstab).unwrap(), MountOptions::default());
        let nfs = "retry=2,acl,fsc,sharecache,nosharecache,strictatime,lazytime,lookupcache=all";
        assert_eq!(parse(nfs).unwrap(), MountOptions::default());
        assert_eq!(parse("lookupcache=pos").unwrap().names, NameCache::Positive);
        let mut options = MountOptions::default();
        let unknown = options.apply_known("frob,ro,x=y").unwrap();
        assert!(options.read_only);
        let named: Vec<_> = unknown.iter().map(|e| e.option.as_str()).collect();
        assert_eq!(named, ["frob", "x=y"]);
        options.apply_known("frob,vers=4").unwrap_err();
    }

    #[test]
    fn nonsense_is_named() {
        for (list, named) in [
            ("ro,frob", "frob"),
            ("vers=4.2", "vers=4.2"),
            ("timeo", "timeo"),
            ("timeo=0", "timeo=0"),
            ("rsize=1k", "rsize=1k"),
            ("nconnect=65", "nconnect=65"),
            ("lock", "lock"),
            ("sec=krb5", "sec=krb5"),
            ("lookupcache=some", "lookupcache=some"),
            ("retry=soon", "retry=soon"),
        ] {
            let error = parse(list).unwrap_err().to_string();
            assert!(error.contains(&format!("{named:?}")), "{error}");
        }
    }
}
