//! Long messages, chunks and their padding, and remote invalidation, all without a file.

use rpcrdma_fabric::Access;
use rpcrdma_nfs::v3::{
    Data, Stable,
    args::{ReadArgs, WriteArgs},
};
use rpcrdma_proto::{
    rpc::Fault,
    rpcrdma::{Body, ChunkLists, RdmaError, ReadSegment, Segment, WriteChunk, Xid},
};

use super::{
    Check, Group, Judged, Probe, conforms, deviates,
    setup::nobodys_handle,
    skipped, tolerated,
    wire::{Halt, Reply, Seen, Wire, call, message, next_xid, nfs_status, null, rpc_outcome},
};

const GROUP: Group = Group::Chunks;

pub(super) const CHECKS: [Check; 13] = [
    GROUP.check(
        "long-call",
        "a Long Call: its message in a Position Zero Read chunk",
        "RFC 8166 3.5.3",
        |p| Box::pin(long_call(p, &[40])),
    ),
    GROUP.check(
        "long-call-in-pieces",
        "a Long Call in segments of 4, 20 and 16 bytes",
        "RFC 8166 3.5.3",
        |p| Box::pin(long_call(p, &[4, 20, 16])),
    ),
    GROUP.check("long-call-with-item", "a Long Call with a Read chunk beside it", "RFC 8166 3.5.3", |p| {
        Box::pin(long_write(p))
    }),
    GROUP.check(
        "reply-chunk-to-spare",
        "a Reply chunk that the Reply does not need",
        "RFC 8166 4.3.3",
        |p| Box::pin(reply_chunk_to_spare(p)),
    ),
    GROUP.check(
        "tiny-reply-chunk",
        "a Reply chunk of 8 bytes, for a Reply that fits inline",
        "RFC 8166 4.3.3",
        |p| Box::pin(tiny_reply_chunk(p)),
    ),
    GROUP.check("unused-write-chunk", "a Write chunk for a READ that fails", "RFC 8166 3.4.6", |p| {
        Box::pin(unused_write_chunk(p))
    }),
    GROUP.check("read-chunk-unpadded", "a Read chunk without XDR pad", "RFC 8166 3.4.5", |p| {
        Box::pin(read_chunk(p, 1021, &[1021], Rule::Accept))
    }),
    GROUP.check("read-chunk-padded", "a Read chunk with XDR pad", "RFC 8166 3.4.5", |p| {
        Box::pin(read_chunk(p, 1021, &[1024], Rule::Accept))
    }),
    GROUP.check(
        "read-chunk-pad-apart",
        "a Read chunk with its pad in a segment of its own",
        "RFC 8166 3.4.5",
        |p| Box::pin(read_chunk(p, 1021, &[1000, 21, 3], Rule::Accept)),
    ),
    GROUP.check("read-chunk-too-long", "a Read chunk 8 bytes longer than its item", "RFC 8166 4.5.2", |p| {
        Box::pin(read_chunk(p, 1020, &[1028], Rule::Garbage))
    }),
    GROUP.check(
        "read-chunk-too-short",
        "a Read chunk 8 bytes shorter than its item",
        "RFC 8166 4.5.2",
        |p| Box::pin(read_chunk(p, 1020, &[1012], Rule::Garbage)),
    ),
    GROUP.check("invalidation-allowed", "remote invalidation that we allow", "RFC 8797 4.1", |p| {
        Box::pin(invalidation(p, true))
    }),
    GROUP.check("invalidation-forbidden", "remote invalidation that we do not allow", "RFC 8797 4.1", |p| {
        Box::pin(invalidation(p, false))
    }),
];

/// What a Read chunk's length deserves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Accept,
    Garbage,
}

/// Lends `bytes` in pieces of these lengths; the last piece has the rest of it, and zeros where there are no bytes.
pub(super) fn lend_pieces(wire: &mut Wire, bytes: &[u8], lengths: &[usize]) -> Result<Vec<Segment>, Halt> {
    let mut at = 0;
    let lend = lengths.iter().map(|&len| {
        let from = at.min(bytes.len());
        let to = (at + len).min(bytes.len());
        at += len;
        wire.lend(bytes.get(from..to).unwrap_or_default(), len, Access::RemoteRead)
    });
    lend.collect()
}

async fn long_call(probe: &Probe, lengths: &[usize]) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let segments = lend_pieces(&mut wire, &null(xid), lengths)?;
    let mut lists = ChunkLists::default();
    lists.read.push_chunk(0, segments);
    let seen = wire.exchange(xid, &message(xid, Body::Nomsg(lists), &[])).await?;
    Ok(judge_success(xid, seen))
}

fn judge_success(xid: Xid, seen: Seen) -> Judged {
    let words = seen.to_string();
    match seen {
        Seen::Reply(reply) if rpc_outcome(xid, &reply.payload).is_ok_and(|o| o.status.is_ok()) => {
            conforms("fetched and answered")
        }
        _ => deviates(format!("answered by {words}")),
    }
}

/// A WRITE to nobody's file, with a Read chunk of these lengths for data of `len` bytes.
async fn read_chunk(probe: &Probe, len: u32, lengths: &[usize], rule: Rule) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let args =
        WriteArgs { file: nobodys_handle(), offset: 0, stable: Stable::Unstable, data: Data::Apart(len) };
    let (payload, hole) = call(xid, Some(&probe.cred), &args);
    let segments = lend_pieces(&mut wire, &vec![7; len as usize], lengths)?;
    let mut lists = ChunkLists::default();
    lists.read.push_chunk(hole.map_or(0, |h| h.at as u32), segments);
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists), &payload)).await?;
    let words = seen.to_string();
    let fault = match &seen {
        Seen::Reply(reply) => match rpc_outcome(xid, &reply.payload) {
            Ok(outcome) => outcome.status.err(),
            Err(what) => return Ok(deviates(what)),
        },
        // Not what the RFC asks for, but no less clear.
        Seen::Error { error: RdmaError::Chunk, .. } if rule == Rule::Garbage => {
            return Ok(tolerated(format!("{words}; {}", wire.health().await?)));
        }
        _ => return Ok(deviates(words)),
    };
    Ok(match (rule, fault) {
        (Rule::Accept, None) => conforms("fetched and taken for what it is"),
        (Rule::Accept, Some(fault)) => deviates(fault.to_string()),
        (Rule::Garbage, Some(Fault::GarbageArgs)) => conforms("GARBAGE_ARGS"),
        (Rule::Garbage, Some(fault)) => tolerated(fault.to_string()),
        (Rule::Garbage, None) => tolerated("not noticed: the Call is executed"),
    })
}

/// A WRITE whose message and data are in chunks of their own.
async fn long_write(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let args =
        WriteArgs { file: nobodys_handle(), offset: 0, stable: Stable::Unstable, data: Data::Apart(1021) };
    let (payload, hole) = call(xid, Some(&probe.cred), &args);
    let message_at = wire.lend(&payload, payload.len(), Access::RemoteRead)?;
    let data_at = wire.lend(&[7; 1021], 1021, Access::RemoteRead)?;
    let position = hole.map_or(0, |h| h.at as u32);
    let read = [ReadSegment { position: 0, segment: message_at }, ReadSegment { position, segment: data_at }];
    let lists = ChunkLists { read: read.into_iter().collect(), ..ChunkLists::default() };
    let seen = wire.exchange(xid, &message(xid, Body::Nomsg(lists), &[])).await?;
    Ok(judge_success(xid, seen))
}

/// A NULL Call that offers a Reply chunk of so many bytes.
async fn offering_reply_chunk(wire: &mut Wire, len: usize) -> Result<(Xid, Segment, Seen), Halt> {
    let xid = next_xid();
    let segment = wire.lend(&[], len, Access::RemoteWrite)?;
    let reply = Some([segment].into_iter().collect::<WriteChunk>());
    let call = message(xid, Body::Msg(ChunkLists { reply, ..ChunkLists::default() }), &null(xid));
    let seen = wire.exchange(xid, &call).await?;
    Ok((xid, segment, seen))
}

/// The RPC message of a Reply, wherever it is.
pub(super) async fn rpc_message(
    wire: &mut Wire,
    reply: &Reply,
    chunk: Option<Segment>,
) -> Result<Vec<u8>, String> {
    if !reply.is_nomsg() {
        return Ok(reply.payload.clone());
    }
    let Some(returned) = &reply.lists().reply else {
        return Err("an RDMA_NOMSG without a Reply chunk".to_owned());
    };
    let len = returned.length() as usize;
    let memory = match chunk {
        Some(segment) => wire.take_back(segment).await,
        None => return Err("a Reply in a chunk that was not offered".to_owned()),
    };
    let memory = memory.ok_or("the connection was lost with the Reply chunk")?;
    memory
        .get(..len)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| format!("{len} bytes in a Reply chunk of {}", memory.len()))
}

async fn reply_chunk_to_spare(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let (xid, segment, seen) = offering_reply_chunk(&mut wire, 1024).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    let where_it_is = if reply.is_nomsg() { "in the Reply chunk" } else { "inline" };
    let Some(returned) = &reply.lists().reply else {
        return Ok(deviates(format!("a Reply {where_it_is}; the chunk was not returned")));
    };
    if returned.iter().map(|s| s.handle).ne([segment.handle]) {
        return Ok(deviates(format!("a Reply {where_it_is}; the chunk came back with other segments")));
    }
    if !reply.is_nomsg() && returned.length() != 0 {
        return Ok(deviates("a Reply inline, and the chunk came back with a length that is not 0"));
    }
    Ok(match rpc_message(&mut wire, &reply, Some(segment)).await {
        Err(why) => deviates(why),
        Ok(rpc) => match rpc_outcome(xid, &rpc) {
            Ok(o) if o.status.is_ok() && reply.is_nomsg() => {
                conforms("used all the same: the Reply is in it")
            }
            Ok(o) if o.status.is_ok() => conforms("the Reply is inline, the chunk returned unused"),
            Ok(_) => deviates("the Reply says failure"),
            Err(what) => deviates(format!("a Reply {where_it_is} that does not decode: {what}")),
        },
    })
}

async fn tiny_reply_chunk(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let (_, _, seen) = offering_reply_chunk(&mut wire, 8).await?;
    let words = seen.to_string();
    Ok(match seen {
        Seen::Reply(reply) if !reply.is_nomsg() => conforms("the Reply is inline"),
        Seen::Reply(reply) => {
            let len = reply.lists().reply.as_ref().map_or(0, WriteChunk::length);
            deviates(format!("a Reply of {len} bytes is said to be in it"))
        }
        Seen::Error { error: RdmaError::Chunk, .. } => {
            tolerated(format!("{words}; {}", wire.health().await?))
        }
        _ => deviates(words),
    })
}

async fn unused_write_chunk(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let args = ReadArgs { file: nobodys_handle(), offset: 0, count: 1000 };
    let segment = wire.lend(&[], 1000, Access::RemoteWrite)?;
    let write = [[segment].into_iter().collect::<WriteChunk>()].into_iter().collect();
    let lists = ChunkLists { write, ..ChunkLists::default() };
    let payload = call(xid, Some(&probe.cred), &args).0;
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists.clone()), &payload)).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    let said = match nfs_status(xid, &reply.payload) {
        Ok((status, _)) if status.is_ok() => {
            return Ok(skipped("READ of a file handle that nobody gave succeeds"));
        }
        Ok((status, _)) => status.to_string(),
        Err(fault) => fault,
    };
    Ok(if reply.lists().write == lists.unused().write {
        conforms(format!("{said}; the chunk is returned unused"))
    } else if reply.lists().write.is_empty() {
        deviates(format!("{said}; the chunk is not returned"))
    } else {
        deviates(format!("{said}; the chunk comes back as {:?}", reply.lists().write))
    })
}

async fn invalidation(probe: &Probe, allowed: bool) -> Result<Judged, Halt> {
    let (mut wire, _) = probe.open(8, allowed).await?;
    let (_, segment, seen) = offering_reply_chunk(&mut wire, 1024).await?;
    let words = seen.to_string();
    let invalidated = match seen {
        Seen::Reply(reply) => reply.invalidated,
        _ => return Ok(deviates(words)),
    };
    Ok(match (invalidated, allowed) {
        (None, true) => conforms("made no use of"),
        (None, false) => conforms("left alone"),
        (Some(stag), true) if stag.0 == segment.handle => conforms("the handle of the Call is invalidated"),
        (Some(stag), true) => deviates(format!("{stag:?} is invalidated, which is not of this Call")),
        (Some(stag), false) => deviates(format!("{stag:?} is invalidated all the same")),
    })
}
