//! What a rude client can do, and whether the server is there for others afterwards.

use rpcrdma_nfs::v3::{Data, Stable, args::WriteArgs};
use rpcrdma_proto::rpcrdma::{Body, ChunkLists, RdmaError, Segment};

use super::{
    Check, Group, Judged, Probe, conforms,
    credits::burst,
    deviates,
    setup::nobodys_handle,
    tolerated,
    wire::{Halt, Seen, call, message, next_xid},
};

const GROUP: Group = Group::Hostile;

pub(super) const CHECKS: [Check; 3] = [
    GROUP.check("flood", "four times as many Calls at once as were granted", "RFC 8166 3.3.1", |p| {
        Box::pin(flood(p))
    }),
    GROUP.check("foreign-memory", "a Read chunk in memory that is not there", "RFC 8166 4.5.3", |p| {
        Box::pin(pull(p, 1000))
    }),
    GROUP.check("huge-read-chunk", "a Read chunk of 4,294,967,292 bytes", "RFC 8166 4.5.2", |p| {
        Box::pin(pull(p, u32::MAX - 3))
    }),
];

/// Most Calls of a flood.
const FLOOD: u32 = 1000;

/// Whether others are served, in words. `None` if they are not.
async fn survives(probe: &Probe) -> Option<&'static str> {
    probe.ready().await.ok().map(|_| "a new connection is served")
}

async fn flood(probe: &Probe) -> Result<Judged, Halt> {
    let (mut wire, grant) = probe.open(FLOOD as usize + 8, false).await?;
    let calls = grant.window().saturating_mul(4).min(FLOOD);
    let (answered, end) = burst(&mut wire, calls).await?;
    let Some(after) = survives(probe).await else {
        return Ok(deviates(format!("{answered} of {calls} answered, then nobody is served any more")));
    };
    Ok(match end {
        None => tolerated(format!("all {calls} are answered; {after}")),
        Some(end @ Seen::Lost(_)) => conforms(format!("{answered} of {calls} answered, then {end}; {after}")),
        Some(end) => tolerated(format!("{answered} of {calls} answered, then {end}; {after}")),
    })
}

/// A WRITE whose data is in memory that we have not lent.
async fn pull(probe: &Probe, length: u32) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let args =
        WriteArgs { file: nobodys_handle(), offset: 0, stable: Stable::Unstable, data: Data::Apart(length) };
    let (payload, hole) = call(xid, Some(&probe.cred), &args);
    let mut lists = ChunkLists::default();
    let segment = Segment { handle: xid.0 ^ 0x5555_5555, length, offset: 0 };
    lists.read.push_chunk(hole.map_or(0, |h| h.at as u32), [segment]);
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists), &payload)).await?;
    let words = seen.to_string();
    let Some(after) = survives(probe).await else {
        return Ok(deviates(format!("{words}, then nobody is served any more")));
    };
    let words = format!("{words}; {after}");
    Ok(match seen {
        Seen::Error { error: RdmaError::Chunk, .. } | Seen::Lost(_) => conforms(words),
        Seen::Reply(_) => tolerated(words),
        _ => deviates(words),
    })
}
