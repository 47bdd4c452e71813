//! `rpcrdma devices`.

use std::{net::IpAddr, process::ExitCode};

use clap::Args;
use rpcrdma_verbs::{DeviceInfo, LockedMemory};
use serde::Serialize;

use crate::{
    failure::{Failure, Outcome},
    out::Out,
    units,
};

/// List the RDMA devices of this machine, and why one cannot be used
///
/// Software iWARP needs none of them.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma devices
  rpcrdma ping --provider verbs nfs://server   over the one that leads to the server")]
pub(crate) struct Devices {
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    transport: String,
    interface: Option<&'a str>,
    addresses: &'a [IpAddr],
    usable: bool,
    why_not: Option<&'a str>,
    queue_depth: Option<u32>,
    completions: Option<u32>,
    regions: Option<u32>,
    reads_in: Option<u8>,
    reads_out: Option<u8>,
    max_message: Option<u32>,
    protection: Option<String>,
}

impl Devices {
    pub(super) fn run(self) -> Outcome {
        let devices = rpcrdma_verbs::devices().map_err(|why| Failure::new(why.to_string()))?;
        let mut out = Out::new();
        for device in &devices {
            if self.json {
                out.json(&record(device))?;
            } else {
                print(&mut out, device)?;
            }
        }
        if !self.json
            && let LockedMemory::Bytes(bytes) = rpcrdma_verbs::locked_memory()
        {
            out.line("")?;
            out.line(format!(
                "this process may lock {} of memory for them; ulimit -l or LimitMEMLOCK= raises it",
                units::size(bytes)
            ))?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn record(device: &DeviceInfo) -> Record<'_> {
    let limits = device.limits;
    Record {
        name: &device.name,
        transport: device.transport.to_string(),
        interface: device.interface.as_deref(),
        addresses: &device.addresses,
        usable: device.unusable.is_none(),
        why_not: device.unusable.as_deref(),
        queue_depth: limits.map(|l| l.queue_depth),
        completions: limits.map(|l| l.completions),
        regions: limits.map(|l| l.regions),
        reads_in: limits.map(|l| l.reads_in),
        reads_out: limits.map(|l| l.reads_out),
        max_message: limits.map(|l| l.max_message),
        protection: limits.map(|l| l.protection.to_string()),
    }
}

fn print(out: &mut Out, device: &DeviceInfo) -> Result<(), Failure> {
    let mut interface = device.interface.as_ref().map_or_else(String::new, |i| format!(" on {i}"));
    for (i, address) in device.addresses.iter().enumerate() {
        interface += if i == 0 { " with " } else { " and " };
        interface += &address.to_string();
    }
    let verdict = match &device.unusable {
        None => "usable".to_owned(),
        Some(why) => format!("not usable: {why}"),
    };
    out.line(format!("{}  {}{interface}, {verdict}", out.paint("1", &device.name), device.transport))?;
    if let Some(limits) = &device.limits {
        out.line(format!(
            "  {} per queue, {} per completion queue, {}, messages to {}",
            units::things(u64::from(limits.queue_depth), "request", "requests"),
            units::things(u64::from(limits.completions), "entry", "entries"),
            units::things(u64::from(limits.regions), "registration", "registrations"),
            units::size(u64::from(limits.max_message)),
        ))?;
        out.line(format!(
            "  RDMA Reads in flight: {} from the peer, {} to it; memory is opened to peers by {}",
            limits.reads_in, limits.reads_out, limits.protection
        ))?;
    }
    Ok(())
}
