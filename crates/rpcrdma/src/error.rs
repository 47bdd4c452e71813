//! What can go wrong for a client, by who is at fault.

use std::{fmt, io, net::SocketAddr};

use rpcrdma_fabric::ConnectError;
use rpcrdma_nfs::{mount::MountStatus, v3::Status};
use rpcrdma_proto::{rpc, xdr::XdrError};

use crate::client::CallError;

/// Why an operation of a client failed.
#[non_exhaustive]
#[derive(Debug)]
pub enum Error {
    /// The server executed the procedure, and this is its answer.
    Nfs {
        /// The procedure.
        procedure: &'static str,
        /// The answer.
        status: Status,
    },
    /// The server does not let us mount.
    Mount {
        /// The path that was asked for.
        path: String,
        /// The answer.
        status: MountStatus,
    },
    /// The server did not execute the procedure.
    Rpc(rpc::Fault),
    /// The server's Reply does not decode, or contradicts itself.
    BadReply(String),
    /// The Call ended without a Reply.
    Call(CallError),
    /// No connection could be made.
    Connect {
        /// The addresses that were tried, at least one, and why each of them did not do.
        attempts: Vec<(SocketAddr, ConnectError)>,
    },
    /// The host has no address.
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// Talking to the MOUNT service or to rpcbind over TCP failed.
    Tcp {
        /// At this address.
        to: SocketAddr,
        /// What for.
        what: &'static str,
        /// What happened.
        error: io::Error,
    },
    /// The server has no MOUNT service that could be found.
    NoMountService {
        /// The host.
        host: String,
    },
}

impl Error {
    /// The errno that a file system would report.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EACCES: i32 = 13;
        const EPROTONOSUPPORT: i32 = 93;
        const EOPNOTSUPP: i32 = 95;
        const ETIMEDOUT: i32 = 110;
        const ECONNREFUSED: i32 = 111;
        const EHOSTUNREACH: i32 = 113;
        match self {
            Self::Nfs { status, .. } => status.errno(),
            Self::Mount { status, .. } => status.errno(),
            Self::Rpc(rpc::Fault::ProgUnavail | rpc::Fault::ProcUnavail) => EOPNOTSUPP,
            Self::Rpc(rpc::Fault::ProgMismatch { .. } | rpc::Fault::RpcMismatch { .. }) => EPROTONOSUPPORT,
            Self::Rpc(rpc::Fault::Auth(_)) => EACCES,
            Self::Rpc(_) | Self::BadReply(_) => EIO,
            Self::Call(CallError::TimedOut { .. }) => ETIMEDOUT,
            Self::Call(_) => EIO,
            Self::Connect { attempts } => match attempts.first() {
                Some((_, ConnectError::Io(e))) => e.raw_os_error().unwrap_or(EIO),
                Some((_, ConnectError::TimedOut)) => ETIMEDOUT,
                _ => ECONNREFUSED,
            },
            Self::Tcp { error, .. } => error.raw_os_error().unwrap_or(EIO),
            Self::NoMountService { .. } => ECONNREFUSED,
            Self::Resolve { .. } => EHOSTUNREACH,
        }
    }

    /// The NFS status, if the server gave one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        if let Self::Nfs { status, .. } = self { Some(*status) } else { None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nfs { procedure, status } => write!(f, "{status} ({procedure})"),
            Self::Mount { path, status } => write!(f, "the server refuses to mount {path}: {status}"),
            Self::Rpc(fault) => write!(f, "the server did not execute the Call: {fault}"),
            Self::BadReply(what) => write!(f, "the server's Reply makes no sense: {what}"),
            Self::Call(e) => e.fmt(f),
            Self::Connect { attempts } => {
                for (i, (to, error)) in attempts.iter().enumerate() {
                    write!(f, "{}{to}: {error}", if i > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
            Self::Resolve { host, error } => write!(f, "{host}: no such host: {error}"),
            Self::Tcp { to, what, error } => write!(f, "{what} at {to}: {error}"),
            Self::NoMountService { host } => write!(
                f,
                "{host} has no MOUNT service on its NFS ports or in its rpcbind; where it listens elsewhere, name its port"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { attempts } => {
                attempts.first().map(|(_, error)| error as &(dyn std::error::Error + 'static))
            }
            Self::Resolve { error, .. } | Self::Tcp { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        Self::Call(e)
    }
}

impl From<XdrError> for Error {
    fn from(e: XdrError) -> Self {
        Self::BadReply(e.to_string())
    }
}

impl From<rpc::ReplyError> for Error {
    fn from(e: rpc::ReplyError) -> Self {
        Self::BadReply(e.to_string())
    }
}
