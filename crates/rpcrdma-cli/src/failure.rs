//! What the command says when something goes wrong: one sentence that names the object and the reason.

use std::{fmt, io, process::ExitCode};

use rpcrdma::{client::CallError, error::Error, fabric::ConnectError};

/// Exit statuses.
pub(crate) const EXIT_FAILURE: u8 = 1;
pub(crate) const EXIT_USAGE: u8 = 2;
/// As a shell reports a program that SIGINT ended.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// A failure of a command, ready to be printed behind the command's name.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
    /// The connection is gone for good, so there is no point in going on with other files.
    fatal: bool,
    /// Nobody reads our output any more, which is no reason for a message.
    silent: bool,
}

/// What a command returns.
pub(crate) type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// A failure that is all said in its message.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EXIT_FAILURE, fatal: false, silent: false }
    }

    /// The command was called in a way that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: EXIT_USAGE, ..Self::new(message) }
    }

    /// An object and why something with it failed.
    pub(crate) fn of(object: impl fmt::Display, error: impl Into<Reason>) -> Self {
        let reason = error.into();
        Self { fatal: reason.fatal, silent: reason.silent, ..Self::new(format!("{object}: {}", reason.text)) }
    }

    /// The status to exit with.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why an operation on some object failed.
#[derive(Debug)]
pub(crate) struct Reason {
    text: String,
    fatal: bool,
    silent: bool,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        let fatal = match &error {
            Error::Call(call) => matches!(call, CallError::TimedOut { .. } | CallError::Closed),
            Error::Connect { .. } | Error::Tcp { .. } | Error::Resolve { .. } => true,
            _ => false,
        };
        let server = match &error {
            Error::Nfs { status, .. } => {
                Some(status.name().map_or_else(|| format!("NFS status {}", status.0), str::to_owned))
            }
            Error::Mount { status, .. } => Some(status.to_string()),
            _ => None,
        };
        let text = match (server, &error) {
            (Some(server), _) => format!("{} (server: {server})", errno_text(error.errno())),
            // Most often this is the port of NFS over TCP, where nobody answers in iWARP.
            (None, Error::Connect { attempts }) if attempts.iter().any(|(_, e)| is_mute(e)) => {
                format!("{}; if it serves NFS over TCP, use --tcp", without_number(&error.to_string()))
            }
            (None, _) => without_number(&error.to_string()),
        };
        Self { text, fatal, silent: false }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        let text = without_number(&error.to_string());
        Self { text, fatal: false, silent: error.kind() == io::ErrorKind::BrokenPipe }
    }
}

impl From<rustix::io::Errno> for Reason {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text, fatal: false, silent: false }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What the C library calls an error number.
fn errno_text(errno: i32) -> String {
    without_number(&io::Error::from_raw_os_error(errno).to_string())
}

/// What the standard library says, less the numbers of errors, which say nothing to people.
pub(crate) fn without_number(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    out
}

/// Whether this may come from a peer that does not speak RDMA.
fn is_mute(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Incompatible(_) | ConnectError::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpcrdma::nfs::v3::Status;

    #[test]
    fn a_failure_names_object_errno_and_the_servers_word() {
        let error = Error::Nfs { procedure: "LOOKUP", status: Status::NOENT };
        assert_eq!(
            Failure::of("/x", error).to_string(),
            "/x: No such file or directory (server: NFS3ERR_NOENT)"
        );
        let unknown = Error::Nfs { procedure: "LOOKUP", status: Status(10099) };
        assert_eq!(Failure::of("x", unknown).to_string(), "x: Input/output error (server: NFS status 10099)");
        assert_eq!(Failure::of("x", io::Error::from_raw_os_error(13)).to_string(), "x: Permission denied");
    }

    #[test]
    fn what_connecting_to_a_port_of_the_other_transport_says() {
        let to = ([127, 0, 0, 1], 2049).into();
        let connect = |error| Failure::of("x", Error::Connect { attempts: vec![(to, error)] }).to_string();
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(connect(refused.into()), "x: 127.0.0.1:2049: cannot connect: Connection refused");
        assert!(connect(ConnectError::Incompatible("it is mute".to_owned())).ends_with("use --tcp"));
    }

    #[test]
    fn a_closed_pipe_is_no_reason_for_a_message() {
        assert!(Failure::of("stdout", io::Error::from(io::ErrorKind::BrokenPipe)).is_silent());
    }
}
