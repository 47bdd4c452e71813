//! ONC RPC version 2 (RFC 5531): the headers of Calls and Replies, and who the caller says it is.
//!
//! # Operation
//! A client writes a [`CallHeader`] and then its arguments; it reads a [`ReplyHeader`] and then the results. A server
//! calls [`receive`], which checks a Call in the order that Linux does and leaves the reader at the arguments, and
//! writes [`success`] before its results or [`Fault::reply`] instead of them.
//!
//! Everything decoded borrows from the message; nothing is allocated.
//!
//! # When it breaks
//! [`Refusal`] says what a server owes a message that it cannot execute: an answer, silence, or the end of the
//! connection. A client gets the server's refusal as a [`Fault`], and bytes that are no Reply as [`ReplyError`].
//!
//! # Limits
//! Credential and verifier bodies have at most 400 bytes, machine names 255, supplementary groups 16. AUTH_NONE and
//! AUTH_SYS are understood; any other flavor is refused.

use core::fmt;

use crate::xdr::{Encode, Reader, Writer, XdrError, padded};

#[cfg(test)]
mod tests;

/// The version of ONC RPC.
pub const RPC_VERSION: u32 = 2;

/// Length in bytes of the shortest Call: no credentials, no arguments.
pub const MIN_CALL: usize = 40;

/// Length in bytes of the header of a successful Reply without a verifier body.
pub const REPLY_HEADER: usize = 24;

/// Most bytes in the body of a credential or a verifier.
pub const MAX_AUTH_BODY: usize = 400;

/// Most bytes in the machine name of an AUTH_SYS credential.
pub const MAX_MACHINE_NAME: usize = 255;

/// Most supplementary groups in an AUTH_SYS credential.
pub const MAX_GROUPS: usize = 16;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const MSG_ACCEPTED: u32 = 0;
const MSG_DENIED: u32 = 1;
const RPC_MISMATCH: u32 = 0;
const AUTH_ERROR: u32 = 1;

/// A transaction identifier: chosen by the Requester, copied by the Responder, compared for equality only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Which way an RPC message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// From client to server.
    Call,
    /// From server to client.
    Reply,
}

/// The XID and direction of an RPC message, or `None` if it is too short or neither Call nor Reply.
#[must_use]
pub fn peek(message: &[u8]) -> Option<(Xid, MessageType)> {
    let mut r = Reader::new(message);
    let xid = Xid(r.u32().ok()?);
    match r.u32().ok()? {
        CALL => Some((xid, MessageType::Call)),
        REPLY => Some((xid, MessageType::Reply)),
        _ => None,
    }
}

/// An authentication flavor. An unknown value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flavor(pub u32);

impl Flavor {
    /// No authentication.
    pub const NONE: Self = Self(0);
    /// Plain user and group numbers.
    pub const SYS: Self = Self(1);
    /// A server's short handle for AUTH_SYS credentials; never issued here.
    pub const SHORT: Self = Self(2);
    /// RPCSEC_GSS (RFC 2203).
    pub const GSS: Self = Self(6);
    /// The probe of RPC-with-TLS (RFC 9289).
    pub const TLS: Self = Self(7);
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("AUTH_NONE"),
            Self::SYS => f.write_str("AUTH_SYS"),
            Self::SHORT => f.write_str("AUTH_SHORT"),
            Self::GSS => f.write_str("RPCSEC_GSS"),
            Self::TLS => f.write_str("AUTH_TLS"),
            Self(v) => write!(f, "flavor {v}"),
        }
    }
}

/// A credential or a verifier, its body not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpaqueAuth<'a> {
    /// What the body means.
    pub flavor: Flavor,
    /// At most [`MAX_AUTH_BODY`] bytes.
    pub body: &'a [u8],
}

impl OpaqueAuth<'static> {
    /// AUTH_NONE with its empty body.
    pub const NONE: Self = Self { flavor: Flavor::NONE, body: &[] };
}

impl<'a> OpaqueAuth<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self { flavor: Flavor(r.u32()?), body: r.opaque(MAX_AUTH_BODY)? })
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        8 + padded(self.body.len())
    }
}

impl Encode for OpaqueAuth<'_> {
    fn encode(&self, w: &mut Writer) {
        debug_assert!(self.body.len() <= MAX_AUTH_BODY);
        w.u32(self.flavor.0);
        w.opaque(self.body);
    }
}

/// Up to 16 supplementary groups.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Groups {
    ids: [u32; MAX_GROUPS],
    len: u8,
}

impl Groups {
    /// The groups, in the order of the credential.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.ids[..usize::from(self.len)]
    }

    /// The first [`MAX_GROUPS`] of `ids`: AUTH_SYS has no room for more, so clients leave the others out.
    #[must_use]
    pub fn truncated(ids: &[u32]) -> Self {
        let mut out = Self::default();
        for (slot, id) in out.ids.iter_mut().zip(ids) {
            *slot = *id;
            out.len += 1;
        }
        out
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// The body of an AUTH_SYS credential: whom the client says it acts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthSys<'a> {
    /// Arbitrary number.
    pub stamp: u32,
    /// Name of the client's machine, at most [`MAX_MACHINE_NAME`] bytes.
    pub machine_name: &'a [u8],
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Groups,
}

impl<'a> AuthSys<'a> {
    /// Reads a credential body. The whole of it has to lie within `body`; bytes behind it are ignored.
    ///
    /// # Errors
    /// If it is cut short, or its name or groups pass their limit.
    pub fn decode(body: &'a [u8]) -> Result<Self, XdrError> {
        let mut r = Reader::new(body);
        let (stamp, machine_name, uid, gid) = (r.u32()?, r.opaque(MAX_MACHINE_NAME)?, r.u32()?, r.u32()?);
        let mut groups = Groups::default();
        let count = r.count(MAX_GROUPS)?;
        for slot in groups.ids.iter_mut().take(count) {
            *slot = r.u32()?;
        }
        groups.len = count as u8;
        Ok(Self { stamp, machine_name, uid, gid, groups })
    }
}

impl Encode for AuthSys<'_> {
    /// Writes the body; a client keeps it, and refers to it from the credential of each Call. A machine name that is
    /// too long is cut.
    fn encode(&self, w: &mut Writer) {
        w.u32(self.stamp);
        w.opaque(&self.machine_name[..self.machine_name.len().min(MAX_MACHINE_NAME)]);
        w.u32(self.uid);
        w.u32(self.gid);
        w.u32(u32::from(self.groups.len));
        for id in self.groups.as_slice() {
            w.u32(*id);
        }
    }
}

/// A credential that a server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth<'a> {
    /// Nobody in particular.
    None,
    /// Whom the client says.
    Sys(AuthSys<'a>),
}

/// What precedes the arguments of a Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallHeader<'a> {
    /// Identifies the Call among those outstanding.
    pub xid: Xid,
    /// Program number.
    pub prog: u32,
    /// Its version.
    pub vers: u32,
    /// Procedure of that version; 0 does nothing in every program.
    pub proc: u32,
    /// Who calls.
    pub cred: OpaqueAuth<'a>,
    /// Proof of it.
    pub verf: OpaqueAuth<'a>,
}

impl CallHeader<'_> {
    /// Bytes on the wire.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        24 + self.cred.encoded_len() + self.verf.encoded_len()
    }
}

impl Encode for CallHeader<'_> {
    fn encode(&self, w: &mut Writer) {
        for word in [self.xid.0, CALL, RPC_VERSION, self.prog, self.vers, self.proc] {
            w.u32(word);
        }
        self.cred.encode(w);
        self.verf.encode(w);
    }
}

/// Why a credential or verifier was refused (`auth_stat`). An unknown value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthStat(pub u32);

impl AuthStat {
    /// The credential is malformed, or of a flavor that is not understood.
    pub const BAD_CRED: Self = Self(1);
    /// The client has to begin a new session.
    pub const REJECTED_CRED: Self = Self(2);
    /// The verifier is malformed.
    pub const BAD_VERF: Self = Self(3);
    /// The verifier expired or was replayed.
    pub const REJECTED_VERF: Self = Self(4);
    /// A stronger flavor is wanted.
    pub const TOO_WEAK: Self = Self(5);
    /// The server's verifier is no good.
    pub const INVALID_RESP: Self = Self(6);
    /// No particular reason.
    pub const FAILED: Self = Self(7);
    /// RPCSEC_GSS: no credentials for the user.
    pub const GSS_CRED_PROBLEM: Self = Self(13);
    /// RPCSEC_GSS: the context is gone.
    pub const GSS_CTX_PROBLEM: Self = Self(14);
}

impl fmt::Display for AuthStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BAD_CRED => f.write_str("the credential is malformed or of an unsupported flavor"),
            Self::REJECTED_CRED => f.write_str("the credential was rejected"),
            Self::BAD_VERF => f.write_str("the verifier is malformed"),
            Self::REJECTED_VERF => f.write_str("the verifier was rejected"),
            Self::TOO_WEAK => f.write_str("stronger authentication is required"),
            Self::INVALID_RESP => f.write_str("the server's verifier is invalid"),
            Self::FAILED => f.write_str("authentication failed"),
            Self::GSS_CRED_PROBLEM => f.write_str("no RPCSEC_GSS credential"),
            Self::GSS_CTX_PROBLEM => f.write_str("RPCSEC_GSS context problem"),
            Self(v) => write!(f, "auth_stat {v}"),
        }
    }
}

/// Why a server did not execute a Call: every status of a Reply but success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The program is not served here.
    ProgUnavail,
    /// The program is, but not in this version.
    ProgMismatch {
        /// Lowest version that is.
        low: u32,
        /// Highest version that is.
        high: u32,
    },
    /// The version has no such procedure.
    ProcUnavail,
    /// The arguments do not decode.
    GarbageArgs,
    /// The server could not, for a reason of its own.
    SystemErr,
    /// Another version of ONC RPC is spoken here.
    RpcMismatch {
        /// Lowest version.
        low: u32,
        /// Highest version.
        high: u32,
    },
    /// The caller is not believed.
    Auth(AuthStat),
}

impl Fault {
    /// Writes the whole Reply that tells the client.
    pub fn reply(&self, xid: Xid, w: &mut Writer) {
        w.u32(xid.0);
        w.u32(REPLY);
        let accepted = |w: &mut Writer, stat| {
            w.u32(MSG_ACCEPTED);
            OpaqueAuth::NONE.encode(w);
            w.u32(stat);
        };
        let words = |w: &mut Writer, words: &[u32]| words.iter().for_each(|word| w.u32(*word));
        match *self {
            Self::ProgUnavail => accepted(w, 1),
            Self::ProgMismatch { low, high } => {
                accepted(w, 2);
                words(w, &[low, high]);
            }
            Self::ProcUnavail => accepted(w, 3),
            Self::GarbageArgs => accepted(w, 4),
            Self::SystemErr => accepted(w, 5),
            Self::RpcMismatch { low, high } => words(w, &[MSG_DENIED, RPC_MISMATCH, low, high]),
            Self::Auth(stat) => words(w, &[MSG_DENIED, AUTH_ERROR, stat.0]),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ProgUnavail => f.write_str("the server does not serve this program"),
            Self::ProgMismatch { low, high } => {
                write!(f, "the server does not serve this version of the program, only {low} to {high}")
            }
            Self::ProcUnavail => f.write_str("the server does not have this procedure"),
            Self::GarbageArgs => f.write_str("the server could not decode the arguments"),
            Self::SystemErr => f.write_str("the server could not execute the call"),
            Self::RpcMismatch { low, high } => {
                write!(f, "the server does not speak RPC version 2, only {low} to {high}")
            }
            Self::Auth(stat) => write!(f, "the server refused the caller: {stat}"),
        }
    }
}

impl core::error::Error for Fault {}

impl From<XdrError> for Fault {
    /// What arguments that do not decode are answered with, chunks of the wrong length included.
    fn from(_: XdrError) -> Self {
        Self::GarbageArgs
    }
}

/// Writes the header of a successful Reply; the results follow.
pub fn success(xid: Xid, w: &mut Writer) {
    for word in [xid.0, REPLY, MSG_ACCEPTED] {
        w.u32(word);
    }
    OpaqueAuth::NONE.encode(w);
    w.u32(0);
}

/// What precedes the results of a Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader<'a> {
    /// The Call that is answered.
    pub xid: Xid,
    /// The server's verifier; [`OpaqueAuth::NONE`] in a denial, which has none.
    pub verf: OpaqueAuth<'a>,
    /// Success, with the results behind the header, or why not.
    pub status: Result<(), Fault>,
}

/// Why a message is not a Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// It is a Call, or neither.
    NotAReply {
        /// The word that should say "Reply".
        msg_type: u32,
    },
    /// It does not decode.
    Xdr(XdrError),
}

impl From<XdrError> for ReplyError {
    fn from(e: XdrError) -> Self {
        Self::Xdr(e)
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAReply { msg_type } => {
                write!(f, "an RPC message of type {msg_type} where a Reply belongs")
            }
            Self::Xdr(e) => write!(f, "malformed RPC reply: {e}"),
        }
    }
}

impl core::error::Error for ReplyError {}

impl<'a> ReplyHeader<'a> {
    /// Reads the header of a Reply and leaves `r` at the results.
    ///
    /// # Errors
    /// If the message is not a Reply.
    pub fn decode(r: &mut Reader<'a>) -> Result<Self, ReplyError> {
        let xid = Xid(r.u32()?);
        match r.u32()? {
            REPLY => {}
            msg_type => return Err(ReplyError::NotAReply { msg_type }),
        }
        match r.u32()? {
            MSG_ACCEPTED => {
                let verf = OpaqueAuth::decode(r)?;
                let status = match r.u32()? {
                    0 => Ok(()),
                    1 => Err(Fault::ProgUnavail),
                    2 => Err(Fault::ProgMismatch { low: r.u32()?, high: r.u32()? }),
                    3 => Err(Fault::ProcUnavail),
                    4 => Err(Fault::GarbageArgs),
                    5 => Err(Fault::SystemErr),
                    v => return Err(XdrError::BadEnum(v).into()),
                };
                Ok(Self { xid, verf, status })
            }
            MSG_DENIED => {
                let fault = match r.u32()? {
                    RPC_MISMATCH => Fault::RpcMismatch { low: r.u32()?, high: r.u32()? },
                    AUTH_ERROR => Fault::Auth(AuthStat(r.u32()?)),
                    v => return Err(XdrError::BadEnum(v).into()),
                };
                Ok(Self { xid, verf: OpaqueAuth::NONE, status: Err(fault) })
            }
            v => Err(XdrError::BadEnum(v).into()),
        }
    }
}

/// A program that a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Program number.
    pub number: u32,
    /// Its versions, each with the number of procedures it has: those from 0 to one less exist.
    pub versions: &'static [(u32, u32)],
}

/// A Call that passed [`receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Its header.
    pub header: CallHeader<'a>,
    /// Its credential, decoded.
    pub auth: Auth<'a>,
}

/// What a server owes a message that it does not execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The connection ends: fewer bytes than any Call has.
    Close {
        /// Bytes that arrived.
        have: usize,
    },
    /// Nothing: it is not a Call. It may be a Reply in the reverse direction.
    NotACall {
        /// The word that should say "Call".
        msg_type: u32,
    },
    /// A Reply with this fault ([`Fault::reply`]).
    Answer {
        /// XID of the Call.
        xid: Xid,
        /// What to say.
        fault: Fault,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close { have } => write!(f, "{have} bytes are too few for an RPC call"),
            Self::NotACall { msg_type } => {
                write!(f, "an RPC message of type {msg_type} where a call belongs")
            }
            Self::Answer { xid, fault } => write!(f, "call {xid} refused: {fault}"),
        }
    }
}

impl core::error::Error for Refusal {}

/// Reads the header of a Call, checks it in the order that Linux does (length, type, RPC version, credential,
/// verifier, program, version, procedure), and leaves `r` at the arguments. `r` stands at the XID.
///
/// A program that nobody serves still needs a good credential to be told so, and so does every other fault that
/// comes later in the order.
///
/// # Errors
/// What to do with the message instead of executing it.
pub fn receive<'a>(r: &mut Reader<'a>, programs: &[Program]) -> Result<Call<'a>, Refusal> {
    let have = r.remaining();
    let short = |_: XdrError| Refusal::Close { have };
    if have < 24 {
        return Err(Refusal::Close { have });
    }
    let xid = Xid(r.u32().map_err(short)?);
    let msg_type = r.u32().map_err(short)?;
    if msg_type != CALL {
        return Err(Refusal::NotACall { msg_type });
    }
    let refuse = |fault| Refusal::Answer { xid, fault };
    if r.u32().map_err(short)? != RPC_VERSION {
        return Err(refuse(Fault::RpcMismatch { low: RPC_VERSION, high: RPC_VERSION }));
    }
    let (prog, vers, proc) = (r.u32().map_err(short)?, r.u32().map_err(short)?, r.u32().map_err(short)?);

    // The least there can be is a credential's two words and a verifier's first.
    if r.remaining() < 12 {
        return Err(refuse(Fault::GarbageArgs));
    }
    let bad_cred = refuse(Fault::Auth(AuthStat::BAD_CRED));
    let cred = OpaqueAuth::decode(r).map_err(|_| bad_cred)?;
    let auth = match cred.flavor {
        Flavor::NONE if cred.body.is_empty() => Auth::None,
        Flavor::SYS => Auth::Sys(AuthSys::decode(cred.body).map_err(|_| bad_cred)?),
        _ => return Err(bad_cred),
    };
    let verf = match OpaqueAuth::decode(r) {
        Ok(verf) if verf == OpaqueAuth::NONE => verf,
        _ => return Err(refuse(Fault::Auth(AuthStat::BAD_VERF))),
    };

    let Some(program) = programs.iter().find(|p| p.number == prog) else {
        return Err(refuse(Fault::ProgUnavail));
    };
    let Some((_, procs)) = program.versions.iter().find(|(v, _)| *v == vers) else {
        let versions = || program.versions.iter().map(|(v, _)| *v);
        let (low, high) = (versions().min().unwrap_or(0), versions().max().unwrap_or(0));
        return Err(refuse(Fault::ProgMismatch { low, high }));
    };
    if proc >= *procs {
        return Err(refuse(Fault::ProcUnavail));
    }
    Ok(Call { header: CallHeader { xid, prog, vers, proc, cred, verf }, auth })
}
