//! What happens to a socket whose connection is over.
//!
//! A socket that is closed with unread data in it makes TCP send a reset, which can overtake the last words. So they
//! are written, the stream is ended, and what still comes in is read and forgotten until the peer has ended its side
//! too, or patience runs out.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Handle,
};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says `last_words` to the peer and closes the socket, in the background.
pub(super) fn linger(runtime: &Handle, mut stream: TcpStream, last_words: Vec<u8>) {
    runtime.spawn(async move {
        let farewell = async {
            stream.write_all(&last_words).await?;
            stream.shutdown().await?;
            let mut sink = [0; 4096];
            while stream.read(&mut sink).await? > 0 {}
            std::io::Result::Ok(())
        };
        match tokio::time::timeout(PATIENCE, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the connection broke while it was closed"),
            Err(_) => tracing::debug!("the peer does not end its side of a closed connection"),
        }
    });
}
