//! How a connection is made: MPA start-up, private data, and the inline thresholds that follow from it.

use std::{io, net::SocketAddr};

use rpcrdma_nfs::v3::{Data, Handle, Stable, args::WriteArgs};
use rpcrdma_proto::rpcrdma::{Body, ChunkLists, PrivateData};
use softiwarp::mpa::{
    frame::{DEPTH_UNKNOWN, Enhanced, Frame, FrameReader},
    setup::{Local, SetupError, conclude, request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    Check, Group, Judged, Probe, conforms, deviates, skipped, tolerated,
    wire::{Halt, Seen, Wire, call, message, next_xid, private_data},
};

const GROUP: Group = Group::Setup;

pub(super) const CHECKS: [Check; 6] = [
    GROUP.check("mpa-reply", "MPA revision 2 with enhanced set-up", "RFC 6581 4", |p| Box::pin(mpa_reply(p))),
    GROUP.check("mpa-revision-1", "MPA revision 1", "RFC 5044 7.1", |p| Box::pin(mpa_revision_1(p))),
    GROUP.check("mpa-crc", "CRC32c asked for, and not", "RFC 5044 7.1", |p| Box::pin(mpa_crc(p))),
    GROUP.check("mpa-peer-to-peer", "peer-to-peer start-up", "RFC 6581 4.2", |p| {
        Box::pin(mpa_peer_to_peer(p))
    }),
    GROUP.check("private-data", "private data", "RFC 8797 4", |p| Box::pin(private(p))),
    GROUP.check("threshold", "a Call as long as the inline threshold", "RFC 8166 3.3.2", |p| {
        Box::pin(threshold(p))
    }),
];

const NOT_IWARP: &str = "only over software iWARP";

/// Sends an MPA Request and reads the Reply; then hangs up.
async fn start_up(to: SocketAddr, local: &Local) -> io::Result<Frame> {
    let request = request(local, &private_data(false).encode()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&request.encode()).await?;
    let mut reader = FrameReader::new();
    loop {
        let n = stream.read(reader.space()).await?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up"));
        }
        if let Some(frame) = reader.filled(n).map_err(io::Error::other)? {
            return Ok(frame);
        }
    }
}

async fn mpa(probe: &Probe, revision: u8) -> Option<Result<(Local, Frame), String>> {
    probe.options.iwarp.as_ref()?;
    let local = Local { revision, crc: false, peer_to_peer: false, ird: 16, ord: 16 };
    let limit = probe.options.limit;
    Some(match timeout(limit, start_up(probe.to, &local)).await {
        Ok(Ok(frame)) => Ok((local, frame)),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no MPA Reply in {} s", limit.as_secs_f64())),
    })
}

fn depth(depth: u16) -> String {
    if depth == DEPTH_UNKNOWN { "not said".to_owned() } else { depth.to_string() }
}

async fn mpa_reply(probe: &Probe) -> Result<Judged, Halt> {
    let (local, frame) = match mpa(probe, 2).await {
        None => return Ok(skipped(NOT_IWARP)),
        Some(Err(why)) => return Ok(deviates(why)),
        Some(Ok(made)) => made,
    };
    let crc = if frame.crc { "wants CRCs" } else { "wants no CRCs" };
    let markers = if frame.markers { "wants markers" } else { "no markers" };
    let depths = match Enhanced::decode(&frame.private_data).filter(|_| frame.enhanced) {
        Some(e) => format!("IRD {}, ORD {}", depth(e.ird), depth(e.ord)),
        None => "no enhanced part".to_owned(),
    };
    let said = format!("revision {}, {crc}, {markers}, {depths}", frame.revision);
    Ok(match conclude(&local, &frame) {
        Ok(_) => conforms(said),
        Err(why @ (SetupError::Markers | SetupError::Rejected(_))) => tolerated(format!("{said}: {why}")),
        Err(why) => deviates(format!("{said}: {why}")),
    })
}

async fn mpa_revision_1(probe: &Probe) -> Result<Judged, Halt> {
    let (local, frame) = match mpa(probe, 1).await {
        None => return Ok(skipped(NOT_IWARP)),
        Some(Err(why)) => return Ok(tolerated(format!("no connection: {why}"))),
        Some(Ok(made)) => made,
    };
    Ok(match conclude(&local, &frame) {
        Ok(_) => conforms("accepted"),
        Err(SetupError::Rejected(_)) => tolerated("rejected"),
        Err(why) => tolerated(format!("answered with revision {}: {why}", frame.revision)),
    })
}

/// A NULL round trip over software iWARP with other settings.
async fn round_trip(
    probe: &Probe,
    change: impl FnOnce(&mut softiwarp::Config),
) -> Option<Result<String, String>> {
    let mut config = probe.options.iwarp.clone()?;
    change(&mut config);
    let connector = softiwarp::Connector::new(config);
    let made = Wire::connect(&connector, probe.to, probe.options.limit, 8, false).await;
    let mut wire = match made {
        Ok(wire) => wire,
        Err(e) => return Some(Err(e.to_string())),
    };
    Some(match wire.null().await {
        Ok(Ok(_)) => Ok(wire.transport().to_owned()),
        Ok(Err(seen)) => Err(format!("a NULL Call was answered by {seen}")),
        Err(halt) => Err(halt.to_string()),
    })
}

async fn mpa_crc(probe: &Probe) -> Result<Judged, Halt> {
    let (with, without) =
        (round_trip(probe, |c| c.crc = true).await, round_trip(probe, |c| c.crc = false).await);
    let (Some(with), Some(without)) = (with, without) else { return Ok(skipped(NOT_IWARP)) };
    Ok(match (with, without) {
        (Ok(_), Ok(agreed)) => conforms(format!("asked for: used; not asked for: {agreed}")),
        (Err(why), _) => deviates(format!("with CRCs: {why}")),
        (_, Err(why)) => tolerated(format!("only with CRCs; without: {why}")),
    })
}

async fn mpa_peer_to_peer(probe: &Probe) -> Result<Judged, Halt> {
    let Some(done) = round_trip(probe, |c| c.peer_to_peer = true).await else {
        return Ok(skipped(NOT_IWARP));
    };
    Ok(match done {
        Ok(agreed) if agreed.contains("peer-to-peer") => conforms("agreed to, and works"),
        Ok(_) => tolerated("not agreed to; works without"),
        Err(why) => deviates(why),
    })
}

async fn private(probe: &Probe) -> Result<Judged, Halt> {
    let wire = probe.connect(8, true).await?;
    let bytes = wire.private_data().to_vec();
    wire.close().await;
    Ok(match PrivateData::parse(&bytes) {
        Some(data) => conforms(format!(
            "sends up to {} bytes, takes {}, {} remote invalidation",
            data.send_size(),
            data.receive_size(),
            if data.remote_invalidation() { "supports" } else { "no" },
        )),
        None if bytes.iter().all(|b| *b == 0) => {
            conforms("none, so 1024 bytes each way and no remote invalidation")
        }
        None => tolerated(format!("{} bytes that are not those of RFC 8797; taken for none", bytes.len())),
    })
}

async fn threshold(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let threshold = wire.thresholds().call as usize;
    let xid = next_xid();
    let args = |data: &[u8]| {
        let args =
            WriteArgs { file: nobodys_handle(), offset: 0, stable: Stable::Unstable, data: Data::Here(data) };
        let payload = call(xid, Some(&probe.cred), &args).0;
        message(xid, Body::Msg(ChunkLists::default()), &payload)
    };
    let data = vec![0; threshold.saturating_sub(args(&[]).len())];
    let seen = wire.exchange(xid, &args(&data)).await?;
    Ok(match seen {
        Seen::Reply(_) => conforms(format!("{threshold} bytes arrive and are answered")),
        other => deviates(format!("{threshold} bytes were answered by {other}")),
    })
}

/// A file handle that no server gave, of a length that is everywhere allowed.
pub(super) fn nobodys_handle() -> Handle {
    Handle::new(&[0x5a; 28]).unwrap_or(Handle::EMPTY)
}
