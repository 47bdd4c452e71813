//! The active side of start-up.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use rpcrdma_fabric::{BoxFuture, BoxQueuePair, ConnectError, Connector as Seam, Peer, Start};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};

use super::{Config, describe, linger::linger, qp::TcpQueuePair};
use crate::{
    engine::{Engine, terminate_fpdu},
    mpa::{
        frame::{Frame, FrameError, FrameReader, Kind},
        setup::{self, SetupError},
    },
    rdmap::{ErrorCode, Terminate},
};

/// Makes iWARP connections.
#[derive(Clone, Debug, Default)]
pub struct Connector {
    config: Config,
}

impl Connector {
    /// A connector with these settings.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    async fn start_up(&self, to: SocketAddr, start: Start) -> Result<BoxQueuePair, ConnectError> {
        let config = &self.config;
        let mut local = config.local(&start.limits);
        let (stream, reply) = loop {
            let request = setup::request(&local, &start.private_data)
                .map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
            let mut stream = TcpStream::connect(to).await?;
            config.apply(&stream);
            stream.write_all(&request.encode()).await?;
            let reply = read_frame(&mut stream).await?;
            // A peer that rejects a revision in an older one speaks that one: ask again in it, once, as RFC 6581 allows.
            if reply.kind == Kind::Reply && reply.rejected && reply.revision == 1 && local.revision > 1 {
                tracing::debug!(%to, "the peer speaks MPA revision 1 only");
                local.revision = 1;
                continue;
            }
            break (stream, reply);
        };
        let (agreed, private_data) = match setup::conclude(&local, &reply) {
            Ok(concluded) => concluded,
            Err(SetupError::Rejected(private_data)) => return Err(ConnectError::Refused(private_data)),
            Err(why) => {
                let code = match why {
                    SetupError::InsufficientIrd(_) => Some(ErrorCode::INSUFFICIENT_IRD),
                    SetupError::NoCommonRtr => Some(ErrorCode::NO_RTR),
                    _ => None,
                };
                if let Some(code) = code {
                    let fpdu = terminate_fpdu(&Terminate::bare(code), local.crc || reply.crc);
                    linger(&Handle::current(), stream, fpdu);
                }
                return Err(ConnectError::Incompatible(why.to_string()));
            }
        };
        let peer = Peer { addr: to, private_data, remote_invalidation: true, transport: describe(&agreed) };
        let engine = Engine::new(&agreed, start.limits, config.options(), start.recvs);
        Ok(Box::new(TcpQueuePair::new(stream, engine, peer, config.spin)))
    }
}

impl Seam for Connector {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            timeout(self.config.reply_timeout, self.start_up(to, start))
                .await
                .unwrap_or(Err(ConnectError::TimedOut))
        })
    }
}

/// Reads one start-up frame and not a byte more.
pub(super) async fn read_frame(stream: &mut TcpStream) -> Result<Frame, ConnectError> {
    let mut reader = FrameReader::new();
    loop {
        let n = stream.read(reader.space()).await?;
        if n == 0 {
            return Err(ConnectError::Incompatible(
                "the peer closed the connection during start-up".to_owned(),
            ));
        }
        match reader.filled(n) {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(
                e @ (FrameError::NotMpa | FrameError::TooMuchPrivateData(_) | FrameError::Truncated { .. }),
            ) => {
                return Err(ConnectError::Incompatible(e.to_string()));
            }
        }
    }
}
