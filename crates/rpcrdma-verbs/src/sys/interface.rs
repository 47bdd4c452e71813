//! The addresses of network interfaces.
#![allow(unsafe_code, reason = "functions of the C library")]

use std::{
    ffi::CStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

/// The addresses of an interface: IPv4 before IPv6, and without those that only the link knows. None if there is no such
/// interface.
pub(crate) fn addresses(interface: &str) -> Vec<IpAddr> {
    let mut list = ptr::null_mut();
    // SAFETY: `list` is where the library puts the head of its list.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: an entry of the list, which is freed only below.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: names end with a NUL and live as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        if name.to_bytes() != interface.as_bytes() {
            continue;
        }
        // SAFETY: an entry's address is as long as its family says.
        let address: IpAddr = unsafe {
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let v4 = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                    Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into()
                }
                libc::AF_INET6 => {
                    let v6 = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    Ipv6Addr::from(v6.sin6_addr.s6_addr).into()
                }
                _ => continue,
            }
        };
        if !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            found.push(address);
        }
    }
    // SAFETY: the list came from the library and nothing of it is used any more.
    unsafe { libc::freeifaddrs(list) };
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_its_addresses() {
        assert!(addresses("no such interface").is_empty());
        let local = addresses("lo");
        assert!(
            local.iter().all(IpAddr::is_loopback) && local.is_sorted_by_key(IpAddr::is_ipv6),
            "{local:?}"
        );
    }
}
