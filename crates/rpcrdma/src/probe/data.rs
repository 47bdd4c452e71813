//! READs and WRITEs of a file: what is in chunks, how it is padded, and what happens where there is no room.

use rpcrdma_fabric::{Access, Region};
use rpcrdma_nfs::v3::{
    CookieVerifier, CreateMode, Data, FileType, Handle, SetAttributes, Stable, Status,
    args::{ReadArgs, WriteArgs},
    results::ReadHead,
};
use rpcrdma_proto::{
    rpcrdma::{Body, ChunkLists, RdmaError, Segment, WriteChunk, Xid},
    xdr::{Decode as _, Reader},
};

use super::{
    Check, Group, Judged, Needs, Options, Probe, Run,
    chunks::{lend_pieces, rpc_message},
    conforms, deviates, tolerated,
    wire::{Halt, Reply, Seen, Wire, call, message, next_xid, nfs_status, rpc_outcome},
};
use crate::{
    client::{Mount, MountConfig, Target, Transport},
    error::Error,
};

/// Bytes of the file that we look at, which are not a multiple of 4.
const LEN: usize = (16 << 10) + 3;
/// Bytes of a READ whose Reply does not fit inline.
const BIG: usize = 5003;
/// Pages of the directory that are looked through for a file.
const PAGES: usize = 16;
/// What memory holds that the server has no business in.
const GUARD: u8 = 0xa5;

const fn check(
    id: &'static str,
    title: &'static str,
    section: &'static str,
    needs: Needs,
    run: Run,
) -> Check {
    Check { needs, ..Group::Data.check(id, title, section, run) }
}

pub(super) const CHECKS: [Check; 8] = [
    check(
        "read-to-chunk",
        "a READ of 1021 bytes into a Write chunk of two segments",
        "RFC 8166 3.4.6",
        Needs::File(1024),
        |p| Box::pin(read_to_chunk(p)),
    ),
    check(
        "read-to-empty-chunk",
        "a READ with an empty Write chunk",
        "RFC 8166 4.3.2",
        Needs::File(100),
        |p| Box::pin(read_to_empty_chunk(p)),
    ),
    check(
        "write-chunk-too-small",
        "a READ of 1000 bytes with a Write chunk of 100",
        "RFC 8166 4.5.3",
        Needs::File(1024),
        |p| Box::pin(too_small(p, 1000, Room::Write(100))),
    ),
    check("long-reply", "a READ of 5003 bytes into a Reply chunk", "RFC 8166 3.5.3", Needs::File(BIG), |p| {
        Box::pin(long_reply(p))
    }),
    check(
        "reply-chunk-too-small",
        "a READ of 5003 bytes with a Reply chunk of 256",
        "RFC 8166 4.5.3",
        Needs::File(BIG),
        |p| Box::pin(too_small(p, BIG, Room::Reply(256))),
    ),
    check("no-room", "a READ of 5003 bytes with no chunk at all", "RFC 8166 4.5.3", Needs::File(BIG), |p| {
        Box::pin(too_small(p, BIG, Room::None))
    }),
    check(
        "write-unpadded",
        "a WRITE of 1021 bytes from a Read chunk without XDR pad, read back",
        "RFC 8166 3.4.5",
        Needs::OwnFile,
        |p| Box::pin(write_back(p, 0, &[1000, 21])),
    ),
    check(
        "write-padded",
        "a WRITE of 1021 bytes from a Read chunk with XDR pad, read back",
        "RFC 8166 3.4.5",
        Needs::OwnFile,
        |p| Box::pin(write_back(p, 4096, &[1000, 24])),
    ),
];

/// A file to read, and maybe to write.
pub(super) struct File {
    pub(super) handle: Handle,
    /// Its first bytes.
    pub(super) data: Vec<u8>,
    /// Where it is, if we made it and may do with it what we want.
    pub(super) own: Option<Own>,
}

/// A file that we made.
pub(super) struct Own {
    mount: Mount,
    name: Vec<u8>,
}

impl File {
    /// Mounts the target's path and finds a file there, or makes one.
    pub(super) async fn find(target: &Target, options: &Options) -> Result<Self, Error> {
        let mut config = MountConfig {
            identity: options.identity.clone(),
            mount_port: options.mount_port,
            ..MountConfig::default()
        };
        config.rdma.connect_timeout = options.limit;
        config.rdma.give_up = Some(options.limit * 4);
        let mount = Mount::new(&Transport::Rdma(options.connector.clone()), target, config).await?;
        if options.write { Self::make(mount).await } else { Self::look_for(mount).await }
    }

    async fn make(mount: Mount) -> Result<Self, Error> {
        let name = format!(".rpcrdma-probe-{:08x}", next_xid().0).into_bytes();
        let how = CreateMode::Guarded(SetAttributes { mode: Some(0o600), ..SetAttributes::default() });
        let made = mount.create(mount.root(), &name, how).await?.object;
        let handle = match made {
            Some(handle) => handle,
            None => mount.lookup(mount.root(), &name).await?.object,
        };
        let data: Vec<u8> = (0..LEN).map(|i| ((i * 31) >> 3) as u8).collect();
        let (written, _) =
            mount.write(handle, 0, LEN as u32, Region::from(&data[..]), Stable::FileSync).await;
        let file = Self { handle, data, own: Some(Own { mount, name }) };
        match written {
            Ok(_) => Ok(file),
            Err(e) => {
                file.remove().await;
                Err(e)
            }
        }
    }

    async fn look_for(mount: Mount) -> Result<Self, Error> {
        let (mut cookie, mut verifier) = (0, CookieVerifier::default());
        let mut best: Option<(u64, Handle)> = None;
        for _ in 0..PAGES {
            let page = mount.readdirplus(mount.root(), cookie, verifier, 32 << 10).await?;
            for entry in page.entries {
                let size = match entry.attributes {
                    Some(a) if a.file_type == FileType::Regular => a.size,
                    _ => continue,
                };
                if let Some(handle) = entry.handle
                    && best.is_none_or(|(most, _)| size > most)
                {
                    best = Some((size, handle));
                }
            }
            if page.eof || best.is_some_and(|(size, _)| size >= LEN as u64) {
                break;
            }
            (cookie, verifier) = (page.next, page.verifier);
        }
        let Some((_, handle)) = best else {
            return Err(Error::Nfs { procedure: "the search for a file", status: Status::NOENT });
        };
        let (done, region) = mount.read(handle, 0, LEN as u32, Region::alloc(LEN)).await;
        let len = done?.len as usize;
        let data = region.as_deref().and_then(|r| r.get(..len)).unwrap_or_default().to_vec();
        Ok(Self { handle, data, own: None })
    }

    /// Removes it, if it is ours.
    pub(super) async fn remove(self) {
        if let Some(Own { mount, name }) = self.own
            && let Err(error) = mount.remove(mount.root(), &name).await
        {
            tracing::warn!(name = %String::from_utf8_lossy(&name), "the probe's file stays: {error}");
        }
    }
}

impl Probe {
    /// The file; only checks that need one come here.
    fn file(&self) -> Result<&File, Halt> {
        self.file.as_ref().map_err(|why| Halt::Broken(why.clone()))
    }
}

/// The results of a READ and what follows them, from an RPC message.
fn read_results(xid: Xid, rpc: &[u8]) -> Result<(ReadHead, Vec<u8>), String> {
    let (status, at) = nfs_status(xid, rpc)?;
    if !status.is_ok() {
        return Err(status.to_string());
    }
    let mut r = Reader::new(rpc.get(at..).unwrap_or_default());
    let head = ReadHead::decode(&mut r).map_err(|e| e.to_string())?;
    Ok((head, r.rest().to_vec()))
}

async fn read(wire: &mut Wire, probe: &Probe, count: usize, lists: ChunkLists) -> Result<(Xid, Seen), Halt> {
    let xid = next_xid();
    let args = ReadArgs { file: probe.file()?.handle, offset: 0, count: count as u32 };
    let payload = call(xid, Some(&probe.cred), &args).0;
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists), &payload)).await?;
    Ok((xid, seen))
}

fn write_list(segments: &[Segment]) -> ChunkLists {
    let chunk: WriteChunk = segments.iter().copied().collect();
    ChunkLists { write: [chunk].into_iter().collect(), ..ChunkLists::default() }
}

fn is_guard(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == GUARD)
}

async fn read_to_chunk(probe: &Probe) -> Result<Judged, Halt> {
    const COUNT: usize = 1021;
    let mut wire = probe.ready().await?;
    let data = probe.file()?.data.get(..COUNT).unwrap_or_default();
    let first = wire.lend(&[GUARD; 500], 500, Access::RemoteWrite)?;
    let second = wire.lend(&[GUARD; 532], 532, Access::RemoteWrite)?;
    let (xid, seen) = read(&mut wire, probe, COUNT, write_list(&[first, second])).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    let (head, rest) = match read_results(xid, &reply.payload) {
        Ok(results) => results,
        Err(why) => return Ok(deviates(format!("the READ fails: {why}"))),
    };
    if head.len as usize != COUNT {
        return Ok(tolerated(format!("a READ of only {} bytes", head.len)));
    }
    let [returned] = &reply.lists().write[..] else {
        return Ok(deviates("the Write chunk is not returned"));
    };
    let lengths: Vec<u32> = returned.iter().map(|s| s.length).collect();
    if lengths == [0, 0] && rest.len() >= COUNT {
        return Ok(deviates("the data is inline although there is a Write chunk for it"));
    }
    if lengths == [500, 524] {
        return Ok(deviates("the lengths of the chunk count the XDR pad: 500 and 524"));
    }
    if lengths != [500, 521] {
        return Ok(deviates(format!("the segments come back with lengths {lengths:?} and not 500 and 521")));
    }
    if !rest.is_empty() {
        return Ok(deviates(format!("{} bytes follow inline where the data was taken out", rest.len())));
    }
    let (Some(a), Some(b)) = (wire.take_back(first).await, wire.take_back(second).await) else {
        return Ok(deviates("the connection was lost behind the Reply"));
    };
    Ok(if a[..] != data[..500] || b[..521] != data[500..] {
        deviates("the data is not what the file holds")
    } else if !is_guard(&b[521..]) {
        deviates("the data is right, but bytes behind it were written: the XDR pad")
    } else {
        conforms("filled in order, 500 and 521 bytes, without pad")
    })
}

async fn read_to_empty_chunk(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let (xid, seen) = read(&mut wire, probe, 100, write_list(&[])).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    let data = probe.file()?.data.get(..100).unwrap_or_default();
    Ok(match read_results(xid, &reply.payload) {
        Err(why) => tolerated(format!("the READ fails: {why}")),
        Ok((_, rest)) if !rest.starts_with(data) => deviates("the data is not what the file holds"),
        Ok(_) if reply.lists().write.len() == 1 => conforms("the data is inline, the chunk returned empty"),
        Ok(_) => deviates("the data is inline, but the chunk is not returned"),
    })
}

async fn long_reply(probe: &Probe) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let segment = wire.lend(&[GUARD; 8192], 8192, Access::RemoteWrite)?;
    let reply = Some([segment].into_iter().collect());
    let (xid, seen) = read(&mut wire, probe, BIG, ChunkLists { reply, ..ChunkLists::default() }).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    let rpc = match rpc_message(&mut wire, &reply, Some(segment)).await {
        Ok(rpc) => rpc,
        Err(why) => return Ok(deviates(why)),
    };
    let data = &probe.file()?.data;
    Ok(match read_results(xid, &rpc) {
        Err(why) => deviates(format!("the READ fails: {why}")),
        Ok((head, rest)) if !rest.starts_with(data.get(..head.len as usize).unwrap_or(&[1])) => {
            deviates("the data is not what the file holds")
        }
        Ok((head, _)) if reply.is_nomsg() => {
            conforms(format!("a Reply with {} bytes of data in it", head.len))
        }
        Ok((head, _)) => tolerated(format!("inline, with {} bytes of data", head.len)),
    })
}

/// Room for a Reply, too little of it.
#[derive(Clone, Copy)]
enum Room {
    Write(usize),
    Reply(usize),
    None,
}

async fn too_small(probe: &Probe, count: usize, room: Room) -> Result<Judged, Halt> {
    let mut wire = probe.ready().await?;
    let mut lend =
        |len: usize| -> Result<Segment, Halt> { wire.lend(&vec![GUARD; len], len, Access::RemoteWrite) };
    let (lists, segment, len) = match room {
        Room::Write(len) => {
            let segment = lend(len)?;
            (write_list(&[segment]), Some(segment), len)
        }
        Room::Reply(len) => {
            let segment = lend(len)?;
            let reply = Some([segment].into_iter().collect());
            (ChunkLists { reply, ..ChunkLists::default() }, Some(segment), len)
        }
        Room::None => (ChunkLists::default(), None, 0),
    };
    let (xid, seen) = read(&mut wire, probe, count, lists).await?;
    let words = seen.to_string();
    let reply = match seen {
        Seen::Reply(reply) => reply,
        Seen::Error { error: RdmaError::Chunk, .. } => {
            return Ok(conforms(format!("{words}; {}", wire.health().await?)));
        }
        _ => return Ok(deviates(words)),
    };
    judge_cramped(&mut wire, xid, &reply, segment, len, count).await
}

/// What is thought of a Reply to a READ for which there was no room.
async fn judge_cramped(
    wire: &mut Wire,
    xid: Xid,
    reply: &Reply,
    segment: Option<Segment>,
    room: usize,
    count: usize,
) -> Result<Judged, Halt> {
    let claimed: u64 = reply.lists().write.iter().chain(&reply.lists().reply).map(WriteChunk::length).sum();
    if claimed > room as u64 {
        return Ok(deviates(format!("{claimed} bytes are said to be in a chunk of {room}")));
    }
    let rpc = match rpc_message(wire, reply, segment).await {
        Ok(rpc) => rpc,
        Err(why) => return Ok(deviates(why)),
    };
    if let Ok(outcome) = rpc_outcome(xid, &rpc)
        && let Err(fault) = outcome.status
    {
        return Ok(tolerated(format!("an RPC Reply: {fault}; {}", wire.health().await?)));
    }
    Ok(match read_results(xid, &rpc) {
        Ok((head, rest)) if (head.len as usize) < count => {
            let place = if rest.is_empty() && head.len > 0 { "in the chunk" } else { "inline" };
            conforms(format!("a shorter READ: {} bytes {place}", head.len))
        }
        Ok((head, rest)) if rest.len() >= head.len as usize => {
            deviates(format!("all {} bytes inline, past the chunk that was offered for them", head.len))
        }
        Ok((head, _)) => deviates(format!("{} bytes are said to be there that are not", head.len)),
        Err(status) => conforms(format!("the READ fails: {status}")),
    })
}

/// Writes 1021 bytes from pieces of these lengths and reads them back.
async fn write_back(probe: &Probe, offset: u64, lengths: &[usize]) -> Result<Judged, Halt> {
    const COUNT: usize = 1021;
    let file = probe.file()?;
    let Some(Own { mount, .. }) = &file.own else {
        return Err(Halt::Broken("the file is not ours".to_owned()));
    };
    let mut wire = probe.ready().await?;
    let xid = next_xid();
    let bytes: Vec<u8> = (0..COUNT).map(|i| ((i * 7) >> 1) as u8 ^ 0x33).collect();
    let args =
        WriteArgs { file: file.handle, offset, stable: Stable::FileSync, data: Data::Apart(COUNT as u32) };
    let (payload, hole) = call(xid, Some(&probe.cred), &args);
    let segments = lend_pieces(&mut wire, &bytes, lengths)?;
    let mut lists = ChunkLists::default();
    lists.read.push_chunk(hole.map_or(0, |h| h.at as u32), segments);
    let seen = wire.exchange(xid, &message(xid, Body::Msg(lists), &payload)).await?;
    let Seen::Reply(reply) = seen else { return Ok(deviates(format!("answered by {seen}"))) };
    match nfs_status(xid, &reply.payload) {
        Ok((status, _)) if status.is_ok() => {}
        Ok((status, _)) => return Ok(deviates(format!("the WRITE fails: {status}"))),
        Err(why) => return Ok(deviates(format!("the WRITE fails: {why}"))),
    }
    let start = offset as usize;
    let wanted = [&bytes[..], file.data.get(start + COUNT..start + 2048).unwrap_or_default()].concat();
    let (done, region) = mount.read(file.handle, offset, 2048, Region::alloc(2048)).await;
    if let Err(e) = done {
        return Ok(deviates(format!("written, but the READ of it fails: {e}")));
    }
    let found = region.as_deref().and_then(|r| r.get(..wanted.len())).unwrap_or_default();
    Ok(if found == wanted {
        conforms("the file holds these bytes and no more")
    } else if found.get(..COUNT) == Some(&bytes[..]) {
        deviates("the bytes are right, but the file has changed behind them")
    } else {
        deviates("the file holds other bytes")
    })
}
