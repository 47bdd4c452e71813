//! The committed corpus: well-formed messages of every kind, made with the project's own encoders.
//!
//! Everything is the same in every run, so the files change only when a format or a target does.

use rpcrdma::{
    memory::Pools,
    server::{
        RpcService, Service,
        service::{Carrier, IncomingCall, Origin, OutgoingReply, Patience},
    },
};
use rpcrdma_nfs::{
    mount,
    v3::{
        self, AccessMask, CookieVerifier, CreateMode, CreateVerifier, Data, Handle, NfsTime, NodeKind, Proc,
        SetAttributes, SetTime, Stable, args::*,
    },
};
use rpcrdma_proto::{
    record,
    rpc::{self, AuthStat, AuthSys, CallHeader, Fault, Flavor, Groups, OpaqueAuth, Xid},
    rpcbind::{Binding, Mapping, PROT_TCP, encode_list},
    rpcrdma::{Body, ChunkLists, Credits, Header, PrivateData, RdmaError, Segment, WriteChunk},
    xdr::{Encode, Writer, pad},
};
use softiwarp::{
    ddp::{Tagged, Untagged, queue},
    mpa::{
        fpdu,
        frame::{Enhanced, Frame, Kind},
        setup::{self, Local},
    },
    rdmap::{ErrorCode, Opcode, ReadRequest, Terminate},
};

use crate::{
    iwarp::{PLACEHOLDER, SINKS},
    server,
};

/// A file of the corpus.
#[derive(Debug)]
pub struct Seed {
    /// Name of the target.
    pub target: &'static str,
    /// Name of the file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The whole corpus.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Seeds(Vec::new());
    headers(&mut seeds);
    rpc(&mut seeds);
    nfs(&mut seeds);
    mpa(&mut seeds);
    streams(&mut seeds);
    seeds.0
}

struct Seeds(Vec<Seed>);

impl Seeds {
    fn add(&mut self, target: &'static str, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push(Seed { target, name: name.into(), bytes: bytes.into() });
    }
}

fn xdr(value: &impl Encode) -> Vec<u8> {
    let mut w = Writer::new();
    value.encode(&mut w);
    w.as_slice().to_vec()
}

fn encoded(header: &Header) -> Vec<u8> {
    let mut out = vec![0; header.encoded_len()];
    header.encode_into(&mut out).expect("there is room");
    out
}

fn chunk(segments: &[(u32, u32)]) -> WriteChunk {
    segments.iter().map(|&(handle, length)| Segment { handle, length, offset: 0x1000 }).collect()
}

/// Lists of a Call: a Read chunk, a Write chunk and a Reply chunk as asked for.
fn lists(read: Option<(u32, u32)>, write: Option<u32>, reply: Option<u32>) -> ChunkLists {
    let mut lists = ChunkLists::default();
    if let Some((position, length)) = read {
        let half = length / 2;
        let part = |handle, length| Segment { handle, length, offset: 0x2000 };
        lists.read.push_chunk(position, [part(0x31, half), part(0x32, length - half)]);
    }
    if let Some(length) = write {
        lists.write.push(chunk(&[(0x41, length / 2), (0x42, length - length / 2)]));
    }
    lists.reply = reply.map(|length| chunk(&[(0x51, length)]));
    lists
}

fn headers(seeds: &mut Seeds) {
    let xid = Xid(0x11);
    let header = |body| Header::new(xid, Credits(32), body);
    let plain = [
        ("msg", header(Body::Msg(ChunkLists::default()))),
        ("msg-read", header(Body::Msg(lists(Some((96, 5000)), None, None)))),
        ("msg-write", header(Body::Msg(lists(None, Some(4096), None)))),
        ("msg-all", header(Body::Msg(lists(Some((96, 4096)), Some(4096), Some(8192))))),
        ("nomsg-call", header(Body::Nomsg(lists(Some((0, 6000)), None, Some(8192))))),
        ("nomsg-reply", header(Body::Nomsg(lists(None, None, Some(8192))))),
        ("error-vers", header(Body::Error(RdmaError::Vers { low: 1, high: 1 }))),
        ("error-chunk", header(Body::Error(RdmaError::Chunk))),
    ];
    let reply = {
        let mut w = Writer::new();
        rpc::success(xid, &mut w);
        w.as_slice().to_vec()
    };
    let call = null_call(xid.0, v3::PROGRAM, v3::VERSION);
    for (name, header) in plain {
        let message = encoded(&header);
        let payload = matches!(header.body, Body::Msg(_));
        seeds.add("transport_header", name, [&message[..], if payload { &call } else { &[] }].concat());
        // What the target's Requester offers is a Write chunk of 4096 bytes and a Reply chunk of 8192.
        seeds.add("requester", name, [&[1][..], &message, if payload { &reply } else { &[] }].concat());
    }
    for (name, first, write, used) in [("result", 1, 4096, 0), ("long", 3 | 1 << 4, 0, 300)] {
        let mut offered = ChunkLists::default();
        let one = |handle, length| -> WriteChunk {
            [Segment { handle, length, offset: 0x1000 }].into_iter().collect()
        };
        offered.write.push(one(1, write));
        offered.reply = Some(one(2, used));
        let body = if used > 0 { Body::Nomsg(offered) } else { Body::Msg(offered) };
        seeds.add("requester", name, [&[first], &encoded(&header(body))[..], &reply].concat());
    }
    for (name, bytes) in
        [("inv", PrivateData::new(4096, 4096, true)), ("small", PrivateData::new(1024, 1024, false))]
    {
        seeds.add("private_data", name, bytes.encode());
    }
    seeds.add(
        "private_data",
        "behind",
        [&[0; 4][..], &PrivateData::new(65536, 65536, true).encode()].concat(),
    );
}

fn header(xid: u32, prog: u32, vers: u32, proc: u32) -> Vec<u8> {
    let mut body = Writer::new();
    AuthSys { stamp: 1, machine_name: b"client", uid: 1000, gid: 100, groups: Groups::truncated(&[100, 4]) }
        .encode(&mut body);
    let cred = OpaqueAuth { flavor: Flavor::SYS, body: body.as_slice() };
    xdr(&CallHeader { xid: Xid(xid), prog, vers, proc, cred, verf: OpaqueAuth::NONE })
}

fn null_call(xid: u32, prog: u32, vers: u32) -> Vec<u8> {
    let none = OpaqueAuth::NONE;
    xdr(&CallHeader { xid: Xid(xid), prog, vers, proc: 0, cred: none, verf: none })
}

fn rpc(seeds: &mut Seeds) {
    seeds.add("rpc_call", "null", null_call(1, v3::PROGRAM, v3::VERSION));
    seeds.add("rpc_call", "sys", header(2, v3::PROGRAM, v3::VERSION, 1));
    seeds.add("rpc_call", "mount", header(3, mount::PROGRAM, mount::VERSION, 1));
    seeds.add("rpc_call", "version", null_call(4, v3::PROGRAM, 4));

    let faults = [
        Fault::ProgUnavail,
        Fault::ProgMismatch { low: 3, high: 3 },
        Fault::ProcUnavail,
        Fault::GarbageArgs,
        Fault::SystemErr,
        Fault::RpcMismatch { low: 2, high: 2 },
        Fault::Auth(AuthStat::BAD_CRED),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        let mut w = Writer::new();
        fault.reply(Xid(5), &mut w);
        seeds.add("rpc_reply", format!("fault-{n}"), w.as_slice());
    }
    let mut w = Writer::new();
    rpc::success(Xid(6), &mut w);
    seeds.add("rpc_reply", "success", w.as_slice());

    let mut w = Writer::new();
    let groups: Vec<u32> = (100..116).collect();
    AuthSys { stamp: 1, machine_name: b"host", uid: 0, gid: 0, groups: Groups::truncated(&groups) }
        .encode(&mut w);
    seeds.add("auth_sys", "sys", w.as_slice());
    seeds.add("auth_sys", "opaque", xdr(&OpaqueAuth { flavor: Flavor::SYS, body: w.as_slice() }));
    seeds.add("auth_sys", "none", xdr(&OpaqueAuth::NONE));

    let call = null_call(7, v3::PROGRAM, v3::VERSION);
    let record = |bytes: &[u8]| [&record::mark(bytes.len()).expect("short")[..], bytes].concat();
    seeds.add("record_marking", "two", [&[5][..], &record(&call), &record(&call)].concat());
    let mut fragments = vec![3, 0, 0, 0, 20];
    fragments.extend_from_slice(&call[..20]);
    fragments.extend_from_slice(&record(&call[20..]));
    seeds.add("record_marking", "fragments", fragments);

    let mapping = Mapping { prog: v3::PROGRAM, vers: 3, prot: PROT_TCP, port: 2049 };
    seeds.add("rpcbind", "mapping", xdr(&mapping));
    let binding = Binding { prog: v3::PROGRAM, vers: 3, netid: "rdma", addr: "192.0.2.1.78.81", owner: "0" };
    seeds.add("rpcbind", "binding", xdr(&binding));
    let mut w = Writer::new();
    encode_list([mapping, mapping], &mut w);
    seeds.add("rpcbind", "mappings", w.as_slice());
    let mut w = Writer::new();
    encode_list([binding], &mut w);
    seeds.add("rpcbind", "bindings", w.as_slice());
    seeds.add("rpcbind", "address4", "192.0.2.1.8.1");
    seeds.add("rpcbind", "address6", "2001:db8::1.8.1");
}

/// Arguments for every procedure that succeed on the export of the server targets, in this order.
fn calls(objects: &server::Objects) -> Vec<(Proc, Vec<u8>)> {
    fn one<A: Procedure>(args: &A) -> (Proc, Vec<u8>) {
        (A::PROC, xdr(args))
    }
    let &server::Objects { root, file, dir, link, .. } = objects;
    let at = |name| DirOp { dir: root, name };
    let set = SetAttributes {
        mode: Some(0o755),
        size: Some(100),
        atime: SetTime::Server,
        mtime: SetTime::Client(NfsTime { seconds: 1, nanos: 2 }),
        ..SetAttributes::default()
    };
    let plain = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
    let zero = CookieVerifier::default();
    vec![
        one(&NullArgs {}),
        one(&GetAttrArgs { object: root }),
        one(&LookupArgs { what: at(b"file") }),
        one(&AccessArgs { object: file, access: AccessMask::ALL }),
        one(&ReadLinkArgs { symlink: link }),
        one(&ReadArgs { file, offset: 5, count: 1000 }),
        one(&WriteArgs { file, offset: 9, stable: Stable::FileSync, data: Data::Here(b"written data") }),
        one(&SetAttrArgs { object: file, new: set, guard: None }),
        one(&CreateArgs { at: at(b"made"), how: CreateMode::Guarded(plain) }),
        one(&CreateArgs { at: at(b"excl"), how: CreateMode::Exclusive(CreateVerifier([1; 8])) }),
        one(&MkDirArgs { at: at(b"sub"), attributes: plain }),
        one(&SymLinkArgs { at: at(b"sym"), attributes: plain, target: Data::Here(b"some/where") }),
        one(&MkNodArgs { at: at(b"fifo"), node: NodeKind::Fifo(plain) }),
        one(&LinkArgs { file, to: DirOp { dir, name: b"hard" } }),
        one(&RenameArgs { from: at(b"made"), to: DirOp { dir, name: b"moved" } }),
        one(&ReadDirArgs { dir: root, cookie: 0, verifier: zero, count: 2000 }),
        one(&ReadDirPlusArgs { dir: root, cookie: 0, verifier: zero, dircount: 500, maxcount: 3000 }),
        one(&RemoveArgs { what: at(b"excl") }),
        one(&RmDirArgs { what: at(b"sub") }),
        one(&FsStatArgs { root }),
        one(&FsInfoArgs { root }),
        one(&PathConfArgs { object: dir }),
        one(&CommitArgs { file, offset: 0, count: 0 }),
        // And some that fail.
        one(&LookupArgs { what: at(b"nothing") }),
        one(&GetAttrArgs { object: Handle::new(&[0; 32]).expect("short") }),
        one(&RemoveArgs { what: at(b"dir") }),
        one(&ReadArgs { file: dir, offset: 0, count: 10 }),
    ]
}

fn nfs(seeds: &mut Seeds) {
    let objects = server::objects();
    for (name, handle) in
        [("root", objects.root), ("file", objects.file), ("dir", objects.dir), ("link", objects.link)]
    {
        seeds.add("file_handle", name, handle.as_bytes());
    }
    seeds.add("file_handle", "path", "/fuzz/dir");

    // Results are what a server answers.
    let service = RpcService::new(server::exports(&objects));
    let pools = Pools::new(1);
    for (n, (proc, args)) in calls(&objects).into_iter().enumerate() {
        let mut message = header(n as u32, v3::PROGRAM, v3::VERSION, proc as u32);
        message.extend_from_slice(&args);
        let results = answer(&service, &pools, &message);
        let name = format!("{n:02}-{}", proc.to_string().to_lowercase());
        seeds.add("nfs_args", &name, [&[proc as u8], &args[..]].concat());
        seeds.add("nfs_results", &name, [&[proc as u8], &results[24..]].concat());
    }
    let path = xdr(&mount::DirPath(b"/fuzz"));
    seeds.add("mount", "path", &path[..]);
    for (name, proc, args) in [("mnt", 1, &path[..]), ("dump", 2, &[]), ("export", 5, &[])] {
        let mut message = header(100 + proc, mount::PROGRAM, mount::VERSION, proc);
        message.extend_from_slice(args);
        seeds.add("mount", name, &answer(&service, &pools, &message)[24..]);
    }
}

/// A Reply, whole.
fn answer(service: &RpcService, pools: &Pools, message: &[u8]) -> Vec<u8> {
    let origin = Origin { peer: ([127, 0, 0, 1], 700).into(), carrier: Carrier::Tcp };
    let mut reply = OutgoingReply::default();
    service.serve(&IncomingCall { origin, message, chunks: &[] }, Patience::Wait, pools, &mut reply);
    let (mut bytes, hole) = reply.message.into_parts();
    if let (Some(hole), Some(data)) = (hole, reply.data) {
        let mut item = data[..hole.len].to_vec();
        item.resize(hole.len + pad(hole.len), 0);
        bytes.splice(hole.at..hole.at, item);
    }
    bytes
}

fn mpa(seeds: &mut Seeds) {
    let private = PrivateData::new(4096, 4096, true).encode();
    let local = Local { revision: 2, crc: true, peer_to_peer: true, ird: 16, ord: 16 };
    for (name, local) in [
        ("request", local),
        ("request-crc", Local { crc: false, peer_to_peer: false, ..local }),
        ("request-rev1", Local { revision: 1, peer_to_peer: false, ..local }),
    ] {
        let request = setup::request(&local, &private).expect("sound settings");
        seeds.add("mpa_frame", name, request.encode());
        let incoming = setup::Incoming::new(request).expect("our own Request is acceptable");
        let (reply, _) = incoming.accept(&local, &private).expect("our own Request is acceptable");
        seeds.add("mpa_frame", name.replace("request", "reply"), reply.encode());
        let no = incoming.reject(&local, &private).expect("sound settings");
        seeds.add("mpa_frame", name.replace("request", "rejection"), no.encode());
    }
    let enhanced =
        Enhanced { peer_to_peer: true, rtr_send: true, ird: 1, rtr_write: false, rtr_read: true, ord: 9 };
    let odd = Frame {
        kind: Kind::Request,
        markers: true,
        crc: false,
        rejected: false,
        enhanced: true,
        revision: 2,
        private_data: enhanced.encode().to_vec(),
    };
    seeds.add("mpa_frame", "markers", odd.encode());

    let request = ReadRequest { sink_stag: 1, sink_to: 2, len: 3, source_stag: 4, source_to: 5 };
    seeds.add("ddp_rdmap", "read-request", request.encode());
    let mut segment = Vec::new();
    fpdu::encode(&untagged(queue::SEND, 1, Opcode::SEND, 0, b"hello"), true, &mut segment);
    seeds.add("ddp_rdmap", "send", &segment[..]);
    seeds.add("ddp_rdmap", "write", tagged(Opcode::WRITE, 0x1234, 7, b"data"));
    let mut terminate = Vec::new();
    Terminate::bare(ErrorCode::TAGGED_STAG).encode(&mut terminate);
    seeds.add("ddp_rdmap", "terminate", &terminate[..]);
    seeds.add("ddp_rdmap", "terminate-mirrored", [0x11, 0, 0x03, 0, 0, 18, 0xc1, 0x40]);
}

fn untagged(qn: u32, msn: u32, opcode: Opcode, invalidate: u32, payload: &[u8]) -> Vec<u8> {
    let header = Untagged { last: true, rdmap: opcode.control(), invalidate, qn, msn, mo: 0 };
    [&header.encode(), payload].concat()
}

fn tagged(opcode: Opcode, stag: u32, to: u64, payload: &[u8]) -> Vec<u8> {
    [&Tagged { last: true, rdmap: opcode.control(), stag, to }.encode(), payload].concat()
}

fn placeholder(n: u8) -> u32 {
    let [a, b, c] = PLACEHOLDER;
    u32::from_be_bytes([a, b, c, n])
}

/// FPDUs around segments, with checksums.
fn fpdus(segments: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    segments.iter().for_each(|segment| fpdu::encode(segment, true, &mut out));
    out
}

fn streams(seeds: &mut Seeds) {
    let hello = untagged(queue::SEND, 1, Opcode::SEND, 0, &[0x5a; 100]);
    let write = tagged(Opcode::WRITE, placeholder(0), 0, &[0xa5; 400]);
    let request =
        ReadRequest { sink_stag: 9, sink_to: 0, len: 300, source_stag: placeholder(1), source_to: 0 };
    let read = untagged(queue::READ_REQUEST, 1, Opcode::READ_REQUEST, 0, &request.encode());
    let answer = tagged(Opcode::READ_RESPONSE, placeholder(SINKS), 0, &[3; 64]);
    let invalidate = untagged(queue::SEND, 2, Opcode::SEND_INVALIDATE, placeholder(0), b"done");
    let mut quote = Vec::new();
    Terminate::bare(ErrorCode::UNEXPECTED_OPCODE).encode(&mut quote);
    let terminate = untagged(queue::TERMINATE, 1, Opcode::TERMINATE, 0, &quote);
    let cases: [(&str, u8, &[Vec<u8>]); 6] = [
        ("send", 0x12, &[hello.clone()]),
        ("write", 0x01, &[write.clone(), hello.clone(), invalidate]),
        ("read", 0x21, &[answer, read.clone(), hello.clone()]),
        ("requests", 0x50, &[read, write]),
        ("terminate", 0x13, &[hello.clone(), terminate]),
        ("rtr", 0x0c, &[untagged(queue::SEND, 1, Opcode::SEND, 0, &[]), hello]),
    ];
    for (name, flags, segments) in cases {
        seeds.add("iwarp_stream", name, [&[flags, 13], &fpdus(segments)[..]].concat());
    }
    servers(seeds);
}

/// Messages of clients: all Calls inline, and Calls with chunks of every kind.
fn servers(seeds: &mut Seeds) {
    let objects = server::objects();
    let message = |xid: u32, proc: Proc, args: &[u8], lists: ChunkLists| {
        let call = [&header(xid, v3::PROGRAM, v3::VERSION, proc as u32), args].concat();
        let transport = encoded(&Header::new(Xid(xid), Credits(32), Body::Msg(lists)));
        [transport, call].concat()
    };
    let mut inline = Vec::new();
    for (n, (proc, args)) in calls(&objects).into_iter().enumerate() {
        inline.push(message(n as u32, proc, &args, ChunkLists::default()));
    }
    let mnt = {
        let mut call = header(90, mount::PROGRAM, mount::VERSION, 1);
        call.extend_from_slice(&xdr(&mount::DirPath(b"/fuzz")));
        [encoded(&Header::new(Xid(90), Credits(32), Body::Msg(ChunkLists::default()))), call].concat()
    };
    inline.push(mnt);

    // READ into a Write chunk, READDIRPLUS into a Reply chunk, WRITE from a Read chunk, a Long Call.
    let read = xdr(&ReadArgs { file: objects.file, offset: 0, count: 8000 });
    let list = ReadDirPlusArgs {
        dir: objects.root,
        cookie: 0,
        verifier: CookieVerifier::default(),
        dircount: 8000,
        maxcount: 8000,
    };
    let mut write = Writer::new();
    let data = Data::Apart(5001);
    WriteArgs { file: objects.file, offset: 4, stable: Stable::Unstable, data }.encode(&mut write);
    let position = (header(0, 0, 0, 0).len() + write.hole().expect("the data is apart").at) as u32;
    let long = {
        let lists = lists(Some((0, 120)), None, Some(9000));
        encoded(&Header::new(Xid(0x6363_6363), Credits(32), Body::Nomsg(lists)))
    };
    let chunked = [
        message(60, Proc::Read, &read, lists(None, Some(8000), None)),
        message(61, Proc::ReadDirPlus, &xdr(&list), lists(None, None, Some(9000))),
        message(62, Proc::Write, write.as_slice(), lists(Some((position, 5001)), None, None)),
        long,
        encoded(&Header::new(Xid(64), Credits(32), Body::Error(RdmaError::Chunk))),
        message(65, Proc::Read, &read, lists(None, Some(10), None)),
    ];

    let framed = |messages: &[Vec<u8>]| {
        let one = |m: &Vec<u8>| [&(m.len() as u16).to_be_bytes(), &m[..]].concat();
        messages.iter().flat_map(one).collect::<Vec<u8>>()
    };
    for (n, pair) in inline.chunks(2).enumerate() {
        seeds.add("server_messages", format!("inline-{n:02}"), framed(pair));
    }
    for (n, message) in chunked.iter().enumerate() {
        seeds.add("server_messages", format!("chunks-{n}"), framed(std::slice::from_ref(message)));
    }
    seeds.add("server_messages", "all", framed(&[&inline[..], &chunked].concat()));
    // What a Long Call's RDMA Read finds is the input behind it.
    let behind = [null_call(0x6363_6363, v3::PROGRAM, v3::VERSION), vec![0; 80]].concat();
    seeds.add("server_messages", "long", [framed(&[chunked[3].clone()]), behind].concat());

    let send = |msn: usize, m: &[u8]| untagged(queue::SEND, msn as u32, Opcode::SEND, 0, m);
    let sends: Vec<Vec<u8>> = inline.iter().enumerate().map(|(n, m)| send(n + 1, m)).collect();
    seeds.add("server_stream", "inline", [&[4], &fpdus(&sends)[..]].concat());
    let half = 5001 / 2;
    let written = [
        send(1, &chunked[2]),
        tagged(Opcode::READ_RESPONSE, placeholder(SINKS), 0, &vec![1; half]),
        tagged(Opcode::READ_RESPONSE, placeholder(SINKS), half as u64, &vec![2; 5001 - half]),
        send(2, &chunked[0]),
    ];
    seeds.add("server_stream", "write-read", [&[9], &fpdus(&written)[..]].concat());
}
