//! Headers that a server refuses with RDMA_ERROR, and messages that it passes over in silence.

use rpcrdma_fabric::Access;
use rpcrdma_nfs::v3::{Data, Stable, args::WriteArgs};
use rpcrdma_proto::rpcrdma::{Body, ChunkLists, Credits, Header, Proc, RdmaError, ReadSegment, Xid};

use super::{
    Check, Group, Judged, Probe, conforms, deviates,
    setup::nobodys_handle,
    tolerated,
    wire::{CREDITS, Halt, Seen, Wire, call, message, next_xid, null, raw_message},
};

/// A check of how a message is refused or ignored.
const GROUP: Group = Group::Headers;

pub(super) const CHECKS: [Check; 12] = [
    GROUP.check("version-2", "a Call of version 2", "RFC 8166 4.5.1", |p| Box::pin(version_2(p))),
    GROUP.check("unknown-type", "a message of type 7", "RFC 8166 4.5.2", |p| {
        Box::pin(refused(p, Rule::Must, |xid| null_with_type(xid, Proc(7))))
    }),
    GROUP.check("nomsg-without-chunks", "an RDMA_NOMSG without any chunk", "RFC 8166 4.5.2", |p| {
        Box::pin(refused(p, Rule::Must, |xid| message(xid, Body::Nomsg(ChunkLists::default()), &[])))
    }),
    GROUP.check(
        "cut-read-list",
        "a Read list that runs past the end of its message",
        "RFC 8166 4.5.2",
        |p| Box::pin(refused(p, Rule::Must, |xid| words(&[xid.0, 1, CREDITS.0, 0, 1, 64, 0x1234_5678]))),
    ),
    GROUP.check(
        "huge-write-chunk",
        "a Write chunk that says it has 4,294,967,295 segments",
        "RFC 8166 4.5.2",
        |p| {
            Box::pin(refused(p, Rule::Must, |xid| {
                words(&[xid.0, 1, CREDITS.0, 0, 0, 1, u32::MAX, 0x1234_5678, 4096, 0, 0, 0, 0])
            }))
        },
    ),
    GROUP.check(
        "odd-position",
        "a Read chunk at a position that is no multiple of 4",
        "RFC 8166 3.4.4",
        |p| Box::pin(odd_position(p)),
    ),
    GROUP.check("xid-mismatch", "a header with another XID than its RPC message", "RFC 8166 4.5.2", |p| {
        Box::pin(refused(p, Rule::Must, |xid| {
            message(xid, Body::Msg(ChunkLists::default()), &null(Xid(xid.0 ^ 0x8000_0000)))
        }))
    }),
    GROUP.check("msgp", "an RDMA_MSGP, which nobody sends any more", "RFC 8166 4.6", |p| {
        Box::pin(refused(p, Rule::Should, |xid| {
            let mut out = words(&[xid.0, 1, CREDITS.0, Proc::MSGP.0, 0, 0, 0, 0, 0]);
            out.extend(null(xid));
            out
        }))
    }),
    GROUP.check("done", "an RDMA_DONE, which nobody sends any more", "RFC 8166 4.6", |p| {
        Box::pin(ignored(p, |xid| words(&[xid.0, 1, CREDITS.0, Proc::DONE.0])))
    }),
    GROUP.check("error-from-client", "an RDMA_ERROR, which no client sends", "RFC 8166 4.5", |p| {
        Box::pin(ignored(p, |xid| raw_message(&Header::error_chunk(xid, CREDITS), &[])))
    }),
    GROUP.check("short-8", "a message of 8 bytes", "RFC 8166 4.5", |p| {
        Box::pin(ignored(p, |xid| words(&[xid.0, 1])))
    }),
    GROUP.check("short-24", "a message of 24 bytes, 4 less than the shortest header", "RFC 8166 4.5", |p| {
        Box::pin(ignored(p, |xid| words(&[xid.0, 1, CREDITS.0, 0, 0, 0])))
    }),
];

/// How binding it is to answer ERR_CHUNK.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Must,
    Should,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn null_with_type(xid: Xid, proc: Proc) -> Vec<u8> {
    let mut out = words(&[xid.0, 1, CREDITS.0, proc.0, 0, 0, 0]);
    out.extend(null(xid));
    out
}

async fn version_2(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let body = Body::Msg(ChunkLists::default());
    let call = raw_message(&Header { xid, vers: 2, credit: CREDITS, body }, &null(xid));
    let seen = wire.exchange(xid, &call).await?;
    let words = seen.to_string();
    Ok(match seen {
        Seen::Error { header, error: RdmaError::Vers { low, high } } if (low..=high).contains(&1) => {
            let health = wire.health().await?;
            if header.vers == 2 {
                conforms(format!("{words}; {health}"))
            } else {
                deviates(format!("{words}, but the answer is of version {} and not 2", header.vers))
            }
        }
        _ => deviates(words),
    })
}

/// What is thought of an answer to a Call whose header is wrong.
async fn judge_refusal(wire: &mut Wire, rule: Rule, seen: Seen) -> Result<Judged, Halt> {
    let words = seen.to_string();
    Ok(match seen {
        Seen::Error { header: Header { credit: Credits(0), .. }, .. } => {
            deviates(format!("{words}, with 0 credits granted"))
        }
        Seen::Error { error: RdmaError::Chunk, .. } => conforms(format!("{words}; {}", wire.health().await?)),
        Seen::Lost(_) | Seen::Silence(_) | Seen::Reply(_) if rule == Rule::Should => tolerated(words),
        _ => deviates(words),
    })
}

/// Sends a message that is to be answered with ERR_CHUNK.
async fn refused(probe: &Probe, rule: Rule, make: fn(Xid) -> Vec<u8>) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let seen = wire.exchange(xid, &make(xid)).await?;
    judge_refusal(&mut wire, rule, seen).await
}

async fn odd_position(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let args =
        WriteArgs { file: nobodys_handle(), offset: 0, stable: Stable::Unstable, data: Data::Apart(8) };
    let (payload, hole) = call(xid, Some(&probe.cred), &args);
    let position = hole.map_or(0, |h| h.at as u32) + 2;
    let segment = wire.lend(&[1; 8], 8, Access::RemoteRead)?;
    let read = [ReadSegment { position, segment }].into_iter().collect();
    let lists = ChunkLists { read, ..ChunkLists::default() };
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists), &payload)).await?;
    judge_refusal(&mut wire, Rule::Must, seen).await
}

/// Sends a message that is to be passed over, and then Calls that are not.
async fn ignored(probe: &Probe, make: fn(Xid) -> Vec<u8>) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    wire.send(&make(next_xid()))?;
    // Replies may overtake what answers the message, but hardly two that wait for each other.
    for _ in 0..2 {
        let xid = next_xid();
        wire.send(&message(xid, Body::Msg(ChunkLists::default()), &null(xid)))?;
        match wire.seen().await {
            (about, Seen::Reply(_)) if about == Some(xid) => {}
            (_, Seen::Error { error, .. }) => {
                return Ok(deviates(format!("not passed over, but answered: {}", short(error))));
            }
            (_, other) => return Ok(deviates(format!("then a NULL Call was answered by {other}"))),
        }
    }
    Ok(conforms("no answer; the connection goes on"))
}

fn short(error: RdmaError) -> &'static str {
    match error {
        RdmaError::Chunk => "ERR_CHUNK",
        RdmaError::Vers { .. } => "ERR_VERS",
    }
}
