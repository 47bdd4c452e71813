//! What RDMA devices there are, for people.

use std::{fmt, io, net::IpAddr, path::Path};

use crate::{
    Unavailable,
    ffi::{Lib, verbs},
    sys::{self, Link},
};

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// InfiniBand.
    InfiniBand,
    /// RDMA over Converged Ethernet.
    Roce,
    /// iWARP.
    Iwarp,
    /// Something that has no reliable connections.
    Other,
}

impl Transport {
    pub(crate) fn new(iwarp: bool, link: Link) -> Self {
        match (iwarp, link) {
            (true, _) => Self::Iwarp,
            (_, Link::InfiniBand) => Self::InfiniBand,
            (_, Link::Ethernet) => Self::Roce,
            (_, Link::Other) => Self::Other,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::Roce => "RoCE",
            Self::Iwarp => "iWARP",
            Self::Other => "other",
        })
    }
}

/// How memory is opened to peers on a device; see the crate's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Through memory windows, which peers can invalidate.
    Windows,
    /// By registration per Call.
    Registration,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Windows => "memory windows",
            Self::Registration => "registration per call",
        })
    }
}

/// A device of the machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The kernel's name of it.
    pub name: String,
    /// What it speaks.
    pub transport: Transport,
    /// The network interface of its first active port, or of its first one if none is active, if that has one.
    pub interface: Option<String>,
    /// The addresses of the interface: IPv4 before IPv6, and without those that only the link knows.
    pub addresses: Vec<IpAddr>,
    /// Its limits, if it could be opened.
    pub limits: Option<DeviceLimits>,
    /// Why it cannot be used, if so.
    pub unusable: Option<String>,
}

/// What a device allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceLimits {
    /// Work requests per queue.
    pub queue_depth: u32,
    /// Entries per completion queue.
    pub completions: u32,
    /// Memory registrations.
    pub regions: u32,
    /// RDMA Reads that peers may have open, per connection.
    pub reads_in: u8,
    /// RDMA Reads that we may have open, per connection.
    pub reads_out: u8,
    /// The longest message in bytes.
    pub max_message: u32,
    /// How memory is opened to peers.
    pub protection: Protection,
}

/// All RDMA devices, usable or not.
///
/// # Errors
/// If the libraries or the kernel's part are missing, or there is no device.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    let lib = Lib::get()?;
    let listed = sys::list_devices(lib).map_err(|e| match e.raw_os_error() {
        // The library says so when the kernel has no verbs at all.
        Some(libc::ENOSYS) => Unavailable::Kernel("it has no verbs devices".to_owned()),
        _ => Unavailable::Kernel(e.to_string()),
    })?;
    if listed.is_empty() {
        return Err(none_listed(kernel_devices()));
    }
    let manager = connection_manager();
    Ok(listed.into_iter().map(|device| describe(device, manager.clone().err())).collect())
}

/// The devices that the kernel has, whether or not the library knows what to do with them.
fn kernel_devices() -> Vec<String> {
    let listed = std::fs::read_dir(SYS).into_iter().flatten().flatten();
    let mut names: Vec<_> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Why the library lists nothing, of what the kernel has.
fn none_listed(kernel: Vec<String>) -> Unavailable {
    if kernel.is_empty() { Unavailable::NoDevice } else { Unavailable::NoDriver(kernel) }
}

/// The addresses of all devices, if one of them is Linux's siw.
pub(crate) fn siw_addresses() -> Vec<IpAddr> {
    let devices = Lib::get().ok().and_then(|lib| sys::list_devices(lib).ok()).unwrap_or_default();
    if !devices.iter().any(|d| d.opened.as_ref().is_ok_and(|(abilities, _)| abilities.siw)) {
        return Vec::new();
    }
    let mut all: Vec<IpAddr> =
        devices.iter().filter_map(|d| interface(&d.name, 1)).flat_map(|i| sys::addresses(&i)).collect();
    // Two devices may share an interface.
    all.sort();
    all.dedup();
    all
}

/// Whether the kernel's connection manager can be used.
pub(crate) fn connection_manager() -> Result<(), String> {
    let path = Path::new("/dev/infiniband/rdma_cm");
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err("there is no /dev/infiniband/rdma_cm: load the module rdma_ucm".to_owned())
        }
        Err(e) => Err(cannot_open("/dev/infiniband/rdma_cm", &e)),
    }
}

fn describe(device: sys::ListedDevice, no_manager: Option<String>) -> DeviceInfo {
    let sys::ListedDevice { name, transport, opened } = device;
    let iwarp = transport == verbs::TRANSPORT_IWARP;
    let interface = |port| {
        let interface = interface(&name, port);
        let addresses = interface.as_deref().map(sys::addresses).unwrap_or_default();
        (interface, addresses)
    };
    let (abilities, ports) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            let (interface, addresses) = interface(1);
            let transport = Transport::new(iwarp, link_in(&Path::new(SYS).join(&name)));
            let unusable = Some(cannot_open("it", &e));
            return DeviceInfo { name, transport, interface, addresses, limits: None, unusable };
        }
    };
    let connected = iwarp || transport == verbs::TRANSPORT_IB;
    let unusable = if !connected {
        Some("it has no reliable connections".to_owned())
    } else if !ports.iter().any(|p| p.active) {
        Some("no port is active: check the cable, or set its interface up".to_owned())
    } else {
        no_manager
    };
    let port = ports.iter().find(|p| p.active).or(ports.first());
    let (interface, addresses) = interface(port.map_or(1, |p| p.number));
    let link = port.map_or(Link::Other, |p| p.link);
    let limits = DeviceLimits {
        queue_depth: abilities.queue_depth,
        completions: abilities.completions,
        regions: abilities.regions,
        reads_in: abilities.reads_in,
        reads_out: abilities.reads_out,
        max_message: port.map_or(0, |p| p.max_message),
        protection: if abilities.windows { Protection::Windows } else { Protection::Registration },
    };
    let transport = if connected { Transport::new(iwarp, link) } else { Transport::Other };
    DeviceInfo { name, transport, interface, addresses, limits: Some(limits), unusable }
}

/// Says that something cannot be opened, with the remedy if this process may not.
fn cannot_open(what: &str, e: &io::Error) -> String {
    let remedy = match e.kind() {
        io::ErrorKind::PermissionDenied => ": this user needs access to the files in /dev/infiniband",
        _ => "",
    };
    format!("{what} cannot be opened: {e}{remedy}")
}

/// The network interface of a device's port, which is counted from 1.
fn interface(device: &str, port: u8) -> Option<String> {
    interface_in(&Path::new(SYS).join(device), port)
}

/// Where the kernel has its devices.
const SYS: &str = "/sys/class/infiniband";

/// What the first port of a device is attached to.
fn link_in(device: &Path) -> Link {
    match std::fs::read_to_string(device.join("ports/1/link_layer")).unwrap_or_default().trim() {
        "Ethernet" => Link::Ethernet,
        "InfiniBand" => Link::InfiniBand,
        _ => Link::Other,
    }
}

fn interface_in(device: &Path, port: u8) -> Option<String> {
    let text = |path: &str| {
        let text = std::fs::read_to_string(device.join(path)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    text(&format!("ports/{port}/gid_attrs/ndevs/0"))
        // Software devices say it here.
        .or_else(|| text("parent"))
        // Ports of InfiniBand do not, and their interfaces count ports from 0.
        .or_else(|| {
            let listed = std::fs::read_dir(device.join("device/net")).ok()?.flatten();
            let mut names: Vec<_> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            names.sort();
            let at = |name: &String| text(&format!("device/net/{name}/dev_port"))?.parse::<u8>().ok();
            let known = names.iter().find(|name| at(name).is_some_and(|at| at.checked_add(1) == Some(port)));
            known.or(names.first()).cloned()
        })
}

/// How much memory this process may lock for devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedMemory {
    /// As much as there is.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

/// How much memory this process may lock for devices: `RLIMIT_MEMLOCK`, which does not apply with `CAP_IPC_LOCK` in the
/// machine's own user namespace.
#[must_use]
pub fn locked_memory() -> LockedMemory {
    use rustix::{
        process::{Resource, getrlimit},
        thread::{CapabilitySet, capabilities},
    };
    let may_lock = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
        // A kernel without user namespaces has no such file.
        && std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_initial(&map));
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if !may_lock => LockedMemory::Bytes(bytes),
        _ => LockedMemory::Unlimited,
    }
}

/// Whether this is the map of users of the machine's own namespace: all are who they are. Elsewhere the kernel does not count
/// the capability to lock memory.
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Explains a registration that failed.
pub(crate) fn registration_failed(e: &io::Error) -> String {
    explain("the device does not take the memory", e, locked_memory())
}

/// Explains that there are no queues for another connection, which are memory, too.
pub(crate) fn queues_failed(e: &io::Error) -> String {
    explain("the device has no queues for another connection", e, locked_memory())
}

fn explain(what: &str, e: &io::Error, limit: LockedMemory) -> String {
    match (e.raw_os_error(), limit) {
        (Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM), LockedMemory::Bytes(bytes)) => {
            format!("{what}, as this process {}", may_lock(bytes))
        }
        _ => format!("{what}: {e}"),
    }
}

/// Whether a connection's Receives, of which there are `count` of `len` bytes, fit into what may be locked. A connection
/// that has fewer than it grants would break whenever its peer makes use of them.
pub(crate) fn receives_fit(count: u32, len: usize, limit: LockedMemory) -> Result<(), String> {
    let need = u64::from(count).saturating_mul(len as u64);
    match limit {
        LockedMemory::Bytes(bytes) if need > bytes => Err(format!(
            "a connection takes {} KiB of locked memory and more, and this process {}",
            need.div_ceil(1024),
            may_lock(bytes)
        )),
        _ => Ok(()),
    }
}

fn may_lock(bytes: u64) -> String {
    format!("may lock {} KiB: raise the limit with `ulimit -l` or LimitMEMLOCK=", bytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_says_what_it_has_or_what_is_missing() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(why) => assert!(why.to_string().contains(": ") || why.to_string().contains("; "), "{why}"),
        }
    }

    #[test]
    fn devices_without_a_driver_are_named() {
        assert_eq!(none_listed(Vec::new()), Unavailable::NoDevice);
        let why = none_listed(vec!["mlx5_0".to_owned(), "mlx5_1".to_owned()]).to_string();
        assert!(why.starts_with("no driver for mlx5_0, mlx5_1: install ibverbs-providers"), "{why}");
    }

    #[test]
    fn too_small_a_limit_is_said_with_its_remedy() {
        let limit = LockedMemory::Bytes(64 << 10);
        let why = receives_fit(144, 4096, limit).unwrap_err();
        assert_eq!(
            why,
            "a connection takes 576 KiB of locked memory and more, and this process may lock 64 KiB: raise the limit \
             with `ulimit -l` or LimitMEMLOCK="
        );
        assert_eq!(receives_fit(16, 4096, limit), Ok(()));
        assert_eq!(receives_fit(u32::MAX, usize::MAX, LockedMemory::Unlimited), Ok(()));

        let refused = io::Error::from_raw_os_error(libc::ENOMEM);
        assert_eq!(
            explain("no", &refused, limit),
            "no, as this process may lock 64 KiB: raise the limit with `ulimit -l` or LimitMEMLOCK="
        );
        // Then the limit is not the cause, or not all of it.
        assert!(!explain("no", &refused, LockedMemory::Unlimited).contains("ulimit"));
        assert!(!explain("no", &io::Error::from_raw_os_error(libc::EFAULT), limit).contains("ulimit"));
    }

    #[test]
    fn a_port_has_the_interface_that_the_kernel_says_it_has() {
        let sys = std::env::temp_dir().join(format!("verbs-sys-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = sys.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let port = |device: &str, port| interface_in(&sys.join(device), port);
        put("roce/ports/1/gid_attrs/ndevs/0", "eth0\n");
        put("roce/ports/2/gid_attrs/ndevs/0", "eth1\n");
        assert_eq!((port("roce", 1).as_deref(), port("roce", 2).as_deref()), (Some("eth0"), Some("eth1")));
        put("soft/parent", "eth2\n");
        assert_eq!(port("soft", 1).as_deref(), Some("eth2"));
        put("ib/device/net/ib7/dev_port", "0\n");
        put("ib/device/net/ib3/dev_port", "1\n");
        assert_eq!((port("ib", 1).as_deref(), port("ib", 2).as_deref()), (Some("ib7"), Some("ib3")));
        put("old/device/net/ib0/address", "");
        assert_eq!((port("old", 2).as_deref(), port("none", 1)), (Some("ib0"), None));
        put("roce/ports/1/link_layer", "Ethernet\n");
        put("ib/ports/1/link_layer", "InfiniBand\n");
        let links = ["roce", "ib", "none"].map(|device| link_in(&sys.join(device)));
        assert_eq!(links, [Link::Ethernet, Link::InfiniBand, Link::Other]);
        std::fs::remove_dir_all(sys).unwrap();
    }

    #[test]
    fn what_may_not_be_opened_is_said_with_its_remedy() {
        let denied = cannot_open("it", &io::Error::from_raw_os_error(libc::EACCES));
        assert!(denied.ends_with(": this user needs access to the files in /dev/infiniband"), "{denied}");
        assert!(!cannot_open("it", &io::Error::from_raw_os_error(libc::EIO)).contains("/dev"));
    }

    #[test]
    fn a_container_has_users_of_its_own() {
        assert!(is_initial("         0          0 4294967295\n"));
        for other in ["0 1000 1\n", "0 100000 65536\n", "0 0 1\n1 1 4294967294\n", ""] {
            assert!(!is_initial(other), "{other}");
        }
    }

    #[test]
    fn link_and_transport_make_a_name() {
        assert_eq!(Transport::new(true, Link::Ethernet), Transport::Iwarp);
        assert_eq!(Transport::new(false, Link::Ethernet).to_string(), "RoCE");
        assert_eq!(Transport::new(false, Link::InfiniBand).to_string(), "InfiniBand");
    }
}
