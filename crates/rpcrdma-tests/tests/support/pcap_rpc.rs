//! Decodes recorded RPC messages as far as their program is known, encodes them again, and compares.

use std::collections::{BTreeMap, HashMap};

use rpcrdma_nfs::mount::{self, DirPath, Exports, MntResult, Mounts};
use rpcrdma_nfs::v3::args::Args;
use rpcrdma_nfs::v3::binding::{ReplyBound, chunkable_argument, chunkable_result};
use rpcrdma_nfs::v3::results::Results;
use rpcrdma_nfs::v3::{Handle, Outcome};
use rpcrdma_nfs::{acl, v3};
use rpcrdma_proto::rpc::{self, Auth, CallHeader, Program, ReplyHeader};
use rpcrdma_proto::xdr::{Chunk, Decode, Encode, Reader, Writer, padded};

/// What a Reply has to be decoded with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) prog: u32,
    pub(crate) vers: u32,
    pub(crate) proc: u32,
    /// Of an NFSv3 call.
    pub(crate) bound: Option<ReplyBound>,
    /// File and offset of a READ.
    pub(crate) read: Option<(Handle, u64)>,
}

impl Asked {
    /// The procedure, if it is NFSv3's.
    fn nfs3(&self) -> Option<v3::Proc> {
        let ours = self.prog == v3::PROGRAM && self.vers == v3::VERSION;
        v3::Proc::from_u32(self.proc).filter(|_| ours)
    }

    /// The procedure, if it is MOUNT's.
    fn mount(&self) -> Option<mount::Proc> {
        let ours = self.prog == mount::PROGRAM && self.vers == mount::VERSION;
        mount::Proc::from_u32(self.proc).filter(|_| ours)
    }
}

/// What a capture's RPC messages say, over all of its connections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// How often each procedure was called, as `"NFS3 READ"` or `"100003.4 proc 1"`, and how often one was refused.
    pub(crate) calls: BTreeMap<String, usize>,
    /// Bytes that a READ returned and that a WRITE of the capture had put there.
    pub(crate) compared: u64,
    /// What was written, by file and offset.
    files: HashMap<Handle, BTreeMap<u64, Vec<u8>>>,
}

impl Seen {
    fn count(&mut self, name: String) {
        *self.calls.entry(name).or_default() += 1;
    }

    fn written(&mut self, file: Handle, offset: u64, data: &[u8]) {
        let file = self.files.entry(file).or_default();
        let end = offset + data.len() as u64;
        let overlaps = |(at, old): (&u64, &Vec<u8>)| *at < end && offset < at + old.len() as u64;
        assert!(!file.iter().any(overlaps), "a capture that writes the same bytes twice is not understood");
        file.insert(offset, data.to_vec());
    }

    /// Compares what was read with what was written, as far as that is known.
    fn read(&mut self, file: Handle, offset: u64, data: &[u8]) {
        for (at, written) in self.files.get(&file).into_iter().flatten() {
            let (from, to) = (offset.max(*at), (offset + data.len() as u64).min(at + written.len() as u64));
            if from < to {
                let part = |bytes: &'_ [u8], start: u64| {
                    bytes[(from - start) as usize..(to - start) as usize].to_vec()
                };
                assert!(part(data, offset) == part(written, *at), "read at {offset} what was not written");
                self.compared += to - from;
            }
        }
    }
}

/// Linux starts the callback programs of its NFSv4 clients here.
const CALLBACK: u32 = 0x4000_0000;

const PROGRAMS: [Program; 4] = [
    Program { number: v3::PROGRAM, versions: &[(3, 22), (4, 2)] },
    Program { number: mount::PROGRAM, versions: &[(3, 6)] },
    Program { number: acl::PROGRAM, versions: &[(3, 3)] },
    Program { number: CALLBACK, versions: &[(1, 2)] },
];

/// The message with its chunks put back, pads as zeros.
fn whole(message: &[u8], chunks: &[Chunk<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    for chunk in chunks {
        let (before, behind) = rest.split_at(chunk.position as usize - out.len());
        out.extend_from_slice(before);
        out.extend_from_slice(chunk.data);
        out.resize(padded(out.len()), 0);
        rest = behind;
    }
    out.extend_from_slice(rest);
    out
}

/// Checks a Call; `message` may be reduced by `chunks`.
pub(crate) fn check_call(message: &[u8], chunks: &[Chunk<'_>], seen: &mut Seen) -> Asked {
    let mut r = Reader::with_chunks(message, chunks);
    let call = rpc::receive(&mut r, &PROGRAMS).expect("a Call that a server would execute");
    let CallHeader { prog, vers, proc, .. } = call.header;
    let mut asked = Asked { prog, vers, proc, bound: None, read: None };

    let mut w = Writer::new();
    call.header.encode(&mut w);
    assert_eq!(w.len(), r.position());
    if let Auth::Sys(auth) = call.auth {
        let mut body = Writer::new();
        auth.encode(&mut body);
        assert_eq!(body.as_slice(), call.header.cred.body, "the AUTH_SYS body encodes differently");
    }

    let name = if let Some(proc) = asked.nfs3() {
        assert!(chunks.is_empty() || chunkable_argument(proc), "a chunk in the arguments of {proc}");
        let args = Args::decode(proc, &mut r).unwrap_or_else(|e| panic!("arguments of {proc}: {e}"));
        asked.bound = Some(args.reply_bound());
        args.encode(&mut w);
        match args {
            Args::Read(a) => asked.read = Some((a.file, a.offset)),
            Args::Write(a) => seen.written(a.file, a.offset, a.data.bytes().expect("the data")),
            _ => {}
        }
        assert_eq!(r.remaining(), 0, "bytes behind the arguments of {proc}");
        format!("NFS3 {proc}")
    } else if let Some(proc) = asked.mount() {
        match proc {
            mount::Proc::Mnt | mount::Proc::Umnt => DirPath::decode(&mut r).unwrap().encode(&mut w),
            _ => {}
        }
        format!("MOUNT {proc}")
    } else {
        // Only the RPC level is looked at.
        seen.count(format!("{prog}.{vers} proc {proc}"));
        assert_eq!(w.as_slice(), &message[..w.len()], "the RPC header encodes differently");
        return asked;
    };
    r.finish().expect("every chunk has its item");
    assert!(w.as_slice() == whole(message, chunks), "the Call of {name} encodes differently");
    seen.count(name);
    asked
}

/// Checks a Reply to what was asked; `message` may be reduced by `chunks`.
pub(crate) fn check_reply(message: &[u8], chunks: &[Chunk<'_>], asked: &Asked, seen: &mut Seen) {
    let mut r = Reader::with_chunks(message, chunks);
    let reply = ReplyHeader::decode(&mut r).expect("a Reply");
    let mut w = Writer::new();
    match reply.status {
        Ok(()) => rpc::success(reply.xid, &mut w),
        Err(fault) => {
            fault.reply(reply.xid, &mut w);
            assert_eq!(w.as_slice(), message);
            let Asked { prog, vers, proc, .. } = asked;
            seen.count(format!("{prog}.{vers} proc {proc}, answered {fault:?}"));
            return;
        }
    }
    assert_eq!(w.as_slice(), &message[..w.len()], "the RPC header encodes differently");
    if let Some(proc) = asked.nfs3() {
        assert!(chunks.is_empty() || chunkable_result(proc), "a chunk in the results of {proc}");
        let results = Results::decode(proc, &mut r).unwrap_or_else(|e| panic!("results of {proc}: {e}"));
        let bound = asked.bound.expect("the bound of an NFSv3 call");
        assert!(w.len() + encoded_len(&results) <= bound.whole(), "{proc} answered more than {bound:?}");
        results.encode(&mut w);
        if let Results::Read(Outcome(Ok(ok))) = results
            && let Some((file, offset)) = asked.read
        {
            seen.read(file, offset, ok.data.bytes().expect("the data"));
        }
        assert_eq!(r.remaining(), 0, "bytes behind the results of {proc}");
    } else if let Some(proc) = asked.mount() {
        match proc {
            mount::Proc::Mnt => MntResult::decode(&mut r).unwrap().encode(&mut w),
            mount::Proc::Dump => Mounts::decode(&mut r).unwrap().encode(&mut w),
            mount::Proc::Export => Exports::decode(&mut r).unwrap().encode(&mut w),
            mount::Proc::Null | mount::Proc::Umnt | mount::Proc::UmntAll => {}
        }
    } else {
        return;
    }
    r.finish().expect("every chunk has its item");
    assert!(w.as_slice() == whole(message, chunks), "the Reply to {asked:?} encodes differently");
}

fn encoded_len(v: &impl Encode) -> usize {
    let mut w = Writer::new();
    v.encode(&mut w);
    w.len()
}
