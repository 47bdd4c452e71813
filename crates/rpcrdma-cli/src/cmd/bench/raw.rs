//! What TCP by itself does between two threads of this process: the measure that everything else is compared with.
//!
//! # Operation
//! Blocking sockets and two threads, with no framing and no runtime, so nothing that carries the same bytes over the
//! same kernel can be expected to be faster. The sockets use `reno`, as our own do, because the default of some
//! machines is made for longer ways than the loopback.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::Sample;
use crate::latency::Latency;

/// Two ends of a connection.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let a = TcpStream::connect(listener.local_addr()?)?;
    let (b, _) = listener.accept()?;
    for end in [&a, &b] {
        end.set_nodelay(true)?;
        // Better than nothing where it may not be set.
        let _ = rustix::net::sockopt::set_tcp_congestion(end, "reno");
    }
    Ok((a, b))
}

fn join<T>(handle: thread::JoinHandle<io::Result<T>>) -> io::Result<T> {
    handle.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the benchmark panicked")))
}

/// A stream of writes of `size` bytes in one direction.
pub(super) fn stream(size: usize, time: Duration) -> io::Result<Sample> {
    let (mut from, mut to) = pair()?;
    let receiver = thread::spawn(move || {
        let mut buf = vec![0; size];
        let mut total = 0_u64;
        loop {
            match to.read(&mut buf)? {
                0 => return Ok(total),
                n => total += n as u64,
            }
        }
    });
    let start = Instant::now();
    let buf = vec![0x5a; size];
    while start.elapsed() < time {
        from.write_all(&buf)?;
    }
    from.shutdown(Shutdown::Write)?;
    let bytes = join(receiver)?;
    Ok(Sample { ops: bytes / size as u64, bytes, time: start.elapsed(), latency: Latency::new() })
}

/// Requests of `request` bytes and replies of `reply` bytes, `depth` of them in flight. Both ends take all that has
/// arrived in one read and answer it with one write.
pub(super) fn ping_pong(request: usize, reply: usize, depth: usize, time: Duration) -> io::Result<Sample> {
    let (mut client, mut server) = pair()?;
    let answering = thread::spawn(move || {
        let mut inbox = vec![0; request * depth];
        let outbox = vec![0x5a; reply * depth];
        let mut have = 0;
        loop {
            let n = server.read(&mut inbox)?;
            if n == 0 {
                return Ok(());
            }
            have += n;
            server.write_all(&outbox[..have / request * reply])?;
            have %= request;
        }
    });
    let outbox = vec![0x5a; request * depth];
    let mut inbox = vec![0; reply * depth];
    let mut latency = Latency::new();
    let mut ops = 0;
    let start = Instant::now();
    client.write_all(&outbox)?;
    let mut have = 0;
    // One after the other, so the oldest is answered first.
    let mut sent = std::collections::VecDeque::from(vec![start; depth]);
    while !sent.is_empty() {
        let n = client.read(&mut inbox)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += n;
        let now = Instant::now();
        let answered = have / reply;
        have %= reply;
        for at in sent.drain(..answered.min(sent.len())) {
            latency.record(now - at);
        }
        ops += answered as u64;
        if now - start < time {
            client.write_all(&outbox[..answered * request])?;
            sent.extend(std::iter::repeat_n(now, answered));
        }
    }
    let took = start.elapsed();
    client.shutdown(Shutdown::Write)?;
    join(answering)?;
    Ok(Sample { ops, bytes: ops * reply as u64, time: took, latency })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_arrives_whole() {
        let s = stream(1 << 16, Duration::from_millis(5)).unwrap();
        assert!(s.ops > 0);
        assert_eq!(s.bytes, s.ops << 16);
    }

    #[test]
    fn every_request_is_answered() {
        for depth in [1, 7] {
            let s = ping_pong(64, 100, depth, Duration::from_millis(5)).unwrap();
            assert!(s.ops >= depth as u64);
            assert_eq!(s.latency.count(), s.ops);
        }
    }
}
