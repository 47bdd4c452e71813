//! Start-up over TCP against a scripted peer that writes and reads bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{End, local_listener, next_request, start, try_pair};
use rpcrdma_fabric::{
    Answer, BoxQueuePair, Completion, ConnectError, Connector as _, Listener as _, Lost, Region, Shutdown,
    Start, Work,
};
use softiwarp::{
    Config, Connector, Listener,
    ddp::Untagged,
    mpa::{
        fpdu,
        frame::{Enhanced, Frame},
    },
    rdmap::{ErrorCode, Opcode, Terminate},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const REQUEST_KEY: &[u8] = b"MPA ID Req Frame";
const REPLY_KEY: &[u8] = b"MPA ID Rep Frame";
const SIW_CLIENT: [u8; 16] = [0x10, 2, 0, 12, 0, 0x80, 0, 0, 0xf6, 0xab, 0x0e, 0x18, 1, 1, 3, 3];

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn with(data: &[u8]) -> Start {
    Start { private_data: data.to_vec(), ..start(4, 4096) }
}

/// Connects to a scripted peer that takes the Request, answers `reply` and closes its side; gives also what it reads
/// until the end.
async fn connect_to(reply: &[u8], config: Config) -> (Result<(), ConnectError>, Vec<u8>, Vec<u8>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let connector = Connector::new(config);
    let connect = async { connector.connect(to, with(b"client")).await.map(drop) };
    let (connected, (request, rest)) = tokio::join!(connect, async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 20];
        stream.read_exact(&mut request).await.unwrap();
        let mut private_data = vec![0; usize::from(request[19])];
        stream.read_exact(&mut private_data).await.unwrap();
        request.extend(private_data);
        stream.write_all(reply).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // A connector that has nothing to say to this may well reset the connection.
        let _ = stream.read_to_end(&mut rest).await;
        (request, rest)
    });
    (connected, request, rest)
}

fn reply(tail: &[u8]) -> Vec<u8> {
    [REPLY_KEY, tail].concat()
}

#[tokio::test]
async fn replies_that_do_not_fit() {
    let no_crc = || {
        let mut config = Config::default();
        config.crc = false;
        config
    };
    let (_, request, _) = connect_to(&reply(&[0x10, 2, 0, 4, 0, 0, 0, 0]), no_crc()).await;
    let (frame, _) = Frame::decode(&request).unwrap();
    assert_eq!((frame.crc, frame.markers, frame.revision, frame.enhanced), (false, false, 2, true));
    assert_eq!(
        Enhanced::decode(&frame.private_data),
        Some(Enhanced { ird: 128, ord: 32, ..Enhanced::default() })
    );
    assert_eq!(&frame.private_data[4..], b"client");

    for (tail, text) in [
        (&[0x90, 2, 0, 4, 0, 0, 0, 0][..], "markers"),
        (&[0x00, 2, 0, 0], "enhanced"),
        (&[0x10, 2, 0, 3, 0, 0, 0], "enhanced"),
        (&[0x10, 1, 0, 4, 0, 0, 0, 0], "revision"),
        (&[0x10, 2, 2, 1], "private data"),
        (&[0x10, 2, 0, 4], "closed"),
        (&[], "closed"),
    ] {
        let (connected, ..) = connect_to(&reply(tail), no_crc()).await;
        let Err(ConnectError::Incompatible(why)) = connected else { panic!("{tail:02x?}") };
        assert!(why.contains(text), "{why}");
    }
    let (connected, ..) = connect_to(b"HTTP/1.1 400 Bad Request\r\n", no_crc()).await;
    assert!(matches!(connected, Err(ConnectError::Incompatible(_))));
    let (connected, ..) = connect_to(&[REQUEST_KEY, &[0x10, 2, 0, 4, 0, 0, 0, 0]].concat(), no_crc()).await;
    assert!(matches!(connected, Err(ConnectError::Incompatible(why)) if why.contains("both sides")));
    let (connected, ..) = connect_to(&reply(&[0x30, 2, 0, 7, 0, 0, 0, 0, 1, 2, 3]), no_crc()).await;
    assert!(matches!(connected, Err(ConnectError::Refused(data)) if data == [1, 2, 3]));
}

/// Answers each connection in turn, and gives the revisions that were asked for, and how it ended for the connector.
async fn revisions(replies: &[&[u8]]) -> (Vec<u8>, Result<(), ConnectError>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let connector = Connector::new(Config::default());
    let connect = async { connector.connect(to, with(b"client")).await.map(drop) };
    let script = async {
        let mut asked = Vec::new();
        for tail in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 20];
            stream.read_exact(&mut request).await.unwrap();
            let mut private_data = vec![0; usize::from(request[19])];
            stream.read_exact(&mut private_data).await.unwrap();
            asked.push(request[17]);
            stream.write_all(&reply(tail)).await.unwrap();
        }
        asked
    };
    let (connected, asked) = tokio::join!(connect, script);
    (asked, connected)
}

#[tokio::test]
async fn a_peer_of_revision_1_is_asked_again_in_it() {
    let (asked, connected) = revisions(&[&[0x20, 1, 0, 0], &[0x00, 1, 0, 0]]).await;
    assert_eq!((asked, connected.is_ok()), (vec![2, 1], true));
    // Once, and not where the peer speaks revision 2 and means it.
    let (asked, connected) = revisions(&[&[0x20, 1, 0, 0], &[0x20, 1, 0, 2, 8, 9]]).await;
    assert_eq!(asked, [2, 1]);
    assert!(matches!(connected, Err(ConnectError::Refused(data)) if data == [8, 9]));
    let (asked, connected) = revisions(&[&[0x30, 2, 0, 4, 0, 0, 0, 0]]).await;
    assert_eq!((asked, connected.is_err()), (vec![2], true));
}

#[tokio::test]
async fn a_peer_that_wants_too_many_reads_is_told() {
    let (connected, _, rest) =
        connect_to(&reply(&[0x50, 2, 0, 4, 0, 0, 0x3f, 0xfe]), Config::default()).await;
    assert!(matches!(connected, Err(ConnectError::Incompatible(_))));
    let fpdu = fpdu::decode(&rest).unwrap();
    assert!(fpdu.crc_matches && fpdu.len == rest.len());
    let (terminate, _) = Terminate::decode(&fpdu.ulpdu[18..]).unwrap();
    assert_eq!(terminate, Terminate::bare(ErrorCode::INSUFFICIENT_IRD));
}

#[tokio::test]
async fn silence_ends_in_time() {
    let mut config = Config::default();
    config.reply_timeout = Duration::from_millis(20);
    config.request_timeout = Duration::from_millis(20);
    let silent = TcpListener::bind(any()).await.unwrap();
    let connected = Connector::new(config.clone()).connect(silent.local_addr().unwrap(), with(b"")).await;
    assert!(matches!(connected, Err(ConnectError::TimedOut)));

    let mut listener = local_listener(config);
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    stream.write_all(&REQUEST_KEY[..7]).await.unwrap();
    let accepted =
        next_request(&mut listener).await.accept(Box::new(|_| panic!("there is nothing to decide on"))).await;
    assert!(matches!(accepted, Err(ConnectError::TimedOut)));
}

#[tokio::test]
async fn nobody_listens() {
    let to = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let connected = Connector::default().connect(to, with(b"")).await;
    assert!(matches!(connected, Err(ConnectError::Io(_))));
    let long = Connector::default().connect(to, with(&[0; 600])).await;
    assert!(matches!(long, Err(ConnectError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidInput));
}

/// Connects as a scripted peer that sends `request`; gives what accepting says, and all that the peer reads.
async fn request_to(request: &[u8]) -> (Result<BoxQueuePair, ConnectError>, Vec<u8>) {
    let mut listener = local_listener(Config::default());
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let accepted =
        next_request(&mut listener).await.accept(Box::new(|_| Answer::Accept(with(b"server")))).await;
    let mut answer = Vec::new();
    if accepted.is_err() {
        let _ = stream.read_to_end(&mut answer).await;
    }
    (accepted, answer)
}

#[tokio::test]
async fn requests_that_do_not_fit() {
    let request = |tail: &[u8]| [REQUEST_KEY, tail].concat();
    let rejection = reply(&[0x30, 2, 0, 4, 0, 0, 0, 0]);
    for (bytes, answer, text) in [
        (request(&[0x90, 2, 0, 4, 0, 0, 0, 0]), rejection.clone(), "markers"),
        (request(&[0x10, 2, 0, 2, 0, 0]), rejection.clone(), "enhanced"),
        (request(&[0x10, 2, 0, 4, 0x80, 0, 0, 0]), reply(&[0x70, 2, 0, 4, 0, 0, 0, 0]), "ready-to-receive"),
        (request(&[0x80, 1, 0, 0]), reply(&[0x20, 1, 0, 0]), "markers"),
        (request(&[0x10, 3, 0, 4, 0, 0, 0, 0]), Vec::new(), "revision"),
        (request(&[0x00, 0, 0, 0]), Vec::new(), "revision"),
        (request(&[0x00, 1, 2, 1]), Vec::new(), "private data"),
        (request(&[0x00, 1, 0, 4, 0]), Vec::new(), "closed"),
        (reply(&[0x00, 1, 0, 0]), Vec::new(), "both"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Vec::new(), "no MPA frame"),
        (Vec::new(), Vec::new(), "closed"),
    ] {
        let (accepted, got) = request_to(&bytes).await;
        let Err(ConnectError::Incompatible(why)) = accepted.map(|_| ()) else { panic!("{bytes:02x?}") };
        assert!(why.contains(text), "{why}");
        assert_eq!(got, answer, "{why}");
    }
}

#[tokio::test]
async fn private_data_goes_both_ways_and_a_rejection_has_some_too() {
    for (revision, peer_to_peer) in [(1, false), (2, false), (2, true)] {
        let mut config = Config::default();
        (config.revision, config.peer_to_peer) = (revision, peer_to_peer);
        let answer = Answer::Accept(with(b"from the server"));
        let (active, passive) =
            try_pair(config.clone(), Config::default(), with(b"from the client"), answer).await;
        let (active, passive) = (active.unwrap(), passive.unwrap());
        assert_eq!(active.peer().private_data, b"from the server");
        assert_eq!(passive.peer().private_data, b"from the client");
        assert!(active.peer().remote_invalidation && passive.peer().remote_invalidation);
        assert_eq!(active.peer().transport, passive.peer().transport);
        assert_eq!(active.peer().transport.contains("peer-to-peer"), peer_to_peer);

        let answer = Answer::Reject(b"no room".to_vec());
        let (active, passive) = try_pair(config, Config::default(), with(b""), answer).await;
        assert!(matches!(active, Err(ConnectError::Refused(data)) if data == b"no room"));
        assert!(matches!(passive, Err(ConnectError::Refused(data)) if data == b"no room"));
    }
}

#[tokio::test]
async fn checksums_are_used_if_either_side_asks() {
    for (active_crc, passive_crc) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut a, mut b) = (Config::default(), Config::default());
        (a.crc, b.crc) = (active_crc, passive_crc);
        let (active, passive) = try_pair(a, b, with(b""), Answer::Accept(with(b""))).await;
        let expected = if active_crc || passive_crc { "iWARP/TCP, CRC32c" } else { "iWARP/TCP, no CRC" };
        assert_eq!(active.unwrap().peer().transport, expected);
        assert_eq!(passive.unwrap().peer().transport, expected);
    }
}

#[tokio::test]
async fn depths_are_negotiated() {
    let depths = |inbound, outbound| {
        let mut start = with(b"");
        (start.limits.inbound_reads, start.limits.outbound_reads) = (inbound, outbound);
        start
    };
    let (active, passive) =
        try_pair(Config::default(), Config::default(), depths(10, 0), Answer::Accept(depths(0, 16))).await;
    let (active, passive) = (active.unwrap().limits(), passive.unwrap().limits());
    assert_eq!((active.inbound_reads, active.outbound_reads), (10, 0));
    assert_eq!((passive.inbound_reads, passive.outbound_reads), (0, 10));
}

#[tokio::test]
async fn version_six_of_ip() {
    let Ok(mut listener) = Listener::bind("[::1]:0".parse().unwrap(), Config::default()) else {
        eprintln!("no IPv6 on this machine");
        return;
    };
    let to = listener.local_addr();
    let connector = Connector::default();
    let (active, passive) = tokio::join!(connector.connect(to, with(b"")), async {
        next_request(&mut listener).await.accept(Box::new(|_| Answer::Accept(with(b"")))).await
    });
    assert!(active.unwrap().peer().addr.is_ipv6() && passive.unwrap().peer().addr.is_ipv6());
}

/// Plays a Linux client byte for byte, and looks at what comes back.
#[tokio::test]
async fn a_scripted_conversation() {
    let mut listener = local_listener(Config::default());
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    stream.write_all(&[REQUEST_KEY, &SIW_CLIENT].concat()).await.unwrap();
    let mut limits = with(b"");
    limits.limits.inbound_reads = 0;
    let accepted = next_request(&mut listener)
        .await
        .accept(Box::new(|data| {
            assert_eq!(data, &SIW_CLIENT[8..]);
            Answer::Accept(limits)
        }))
        .await
        .unwrap();
    let mut expected = reply(&[0x50, 2, 0, 4, 0, 0, 0, 32]);
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected);

    let header =
        |msn| Untagged { last: true, rdmap: Opcode::SEND.control(), invalidate: 0, qn: 0, msn, mo: 0 };
    let message = |msn, payload: &[u8]| {
        let mut bytes = Vec::new();
        fpdu::encode(&[&header(msn).encode()[..], payload].concat(), true, &mut bytes);
        bytes
    };
    let mut server = End::new(accepted);
    let answer = Region::from(&b"answer"[..]);
    server.qp.post(Work::Send { id: 1, buf: answer, len: 6, invalidate: None }).unwrap();
    let serve = async {
        std::future::poll_fn(|cx| {
            while server.poll(cx) {}
            if server.lost.is_some() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    };
    let talk = async {
        // The call goes out one byte at a time.
        for byte in message(1, b"call") {
            stream.write_all(&[byte]).await.unwrap();
        }
        expected = message(1, b"answer");
        got = vec![0; expected.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected);
        // Wrong number: the server says so, ends the stream, and waits for us to do the same.
        stream.write_all(&message(3, b"?")).await.unwrap();
        got.clear();
        stream.read_to_end(&mut got).await.unwrap();
        let fpdu = fpdu::decode(&got).unwrap();
        assert!(fpdu.crc_matches && fpdu.len == got.len());
        let (terminate, _) = Terminate::decode(&fpdu.ulpdu[18..]).unwrap();
        assert_eq!(terminate.error, ErrorCode::UNTAGGED_MSN);
    };
    tokio::join!(serve, talk);
    assert!(matches!(server.lost, Some(Lost::PeerMisbehaved(_))));
    assert!(matches!(
        &server.done[..],
        [
            Completion::Received { .. } | Completion::Done { .. },
            Completion::Received { .. } | Completion::Done { .. },
            Completion::Flushed { .. },
            Completion::Flushed { .. },
            Completion::Flushed { .. },
        ]
    ));
}

#[tokio::test]
async fn a_peer_that_stops_in_the_middle_of_a_frame() {
    let (active, passive) =
        try_pair(Config::default(), Config::default(), with(b""), Answer::Accept(with(b""))).await;
    // A queue pair that is aborted before it has sent anything.
    let (mut active, mut passive) = (End::new(active.unwrap()), End::new(passive.unwrap()));
    active.qp.shutdown(Shutdown::Abort);
    std::future::poll_fn(|cx| {
        while passive.poll(cx) {}
        if passive.lost.is_some() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(passive.lost, Some(Lost::Io(std::io::ErrorKind::ConnectionReset)));

    // Half an FPDU, and the end.
    let mut listener = local_listener(Config::default());
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    stream.write_all(&[REQUEST_KEY, &SIW_CLIENT, &[0, 40, 0x41]].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    let accepted = next_request(&mut listener).await.accept(Box::new(|_| Answer::Accept(with(b"")))).await;
    let mut server = End::new(accepted.unwrap());
    std::future::poll_fn(|cx| {
        while server.poll(cx) {}
        if server.lost.is_some() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(server.lost, Some(Lost::Io(std::io::ErrorKind::UnexpectedEof)));
}
