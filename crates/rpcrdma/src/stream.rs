//! What both ends of RPC over TCP share: records as slices for vectored writes, and socket options.

use std::{io, io::IoSlice, time::Duration};

use rpcrdma_proto::{
    record::{self, MARK},
    xdr::{Hole, pad},
};
use tokio::net::TcpStream;

/// Most slices in one vectored write.
pub(crate) const SLICES: usize = 64;

/// Zero bytes for XDR padding.
const PAD: [u8; 3] = [0; 3];

/// The slices of a record on the wire, in order.
pub(crate) type Pieces<'a> = [&'a [u8]; 5];

/// The mark of a record of this message, with or without a hole, and the record's length on the wire, mark included.
/// `None` if it is too long for record marking.
pub(crate) fn mark(message: &[u8], hole: Option<Hole>) -> Option<([u8; MARK], usize)> {
    let len = message.len().checked_add(hole.map_or(0, |h| h.len + pad(h.len)))?;
    Some((record::mark(len)?, len + MARK))
}

/// The slices of a record whose hole, if it has one, is filled by the first bytes of `data`. `None` if the hole is
/// not in the message or `data` is too short for it.
pub(crate) fn pieces<'a>(
    mark: &'a [u8; MARK],
    message: &'a [u8],
    hole: Option<Hole>,
    data: &'a [u8],
) -> Option<Pieces<'a>> {
    let Some(hole) = hole else { return Some([mark, message, &[], &[], &[]]) };
    let (head, tail) = message.split_at_checked(hole.at)?;
    Some([mark, head, data.get(..hole.len)?, &PAD[..pad(hole.len)], tail])
}

/// Fills `slices` with the bytes of `records` from `skip` on; returns how many slices.
pub(crate) fn gather<'a>(
    records: impl Iterator<Item = Pieces<'a>>,
    mut skip: usize,
    slices: &mut [IoSlice<'a>; SLICES],
) -> usize {
    let mut n = 0;
    for piece in records.flatten() {
        let Some(piece) = piece.get(skip..) else {
            skip -= piece.len();
            continue;
        };
        skip = 0;
        if piece.is_empty() {
            continue;
        }
        let Some(slot) = slices.get_mut(n) else { break };
        *slot = IoSlice::new(piece);
        n += 1;
    }
    n
}

/// No delay for small messages, and probes that find out about peers that vanished.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(records: &[Pieces<'_>], skip: usize) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let n = gather(records.iter().copied(), skip, &mut slices);
        slices[..n].iter().flat_map(|s| s.to_vec()).collect()
    }

    #[test]
    fn a_hole_is_filled_and_padded() {
        let hole = Some(Hole { at: 4, len: 5 });
        let (word, len) = mark(b"headtail", hole).unwrap();
        assert_eq!((word, len), ([0x80, 0, 0, 16], 20));
        let filled = pieces(&word, b"headtail", hole, b"12345 and more").unwrap();
        let wire = b"\x80\0\0\x10head12345\0\0\0tail";
        assert_eq!(bytes(&[filled], 0), wire);
        assert!(pieces(&word, b"headtail", hole, b"1234").is_none());
        assert!(pieces(&word, b"hea", hole, b"12345").is_none());
    }

    #[test]
    fn any_number_of_bytes_may_be_skipped() {
        let (a, _) = mark(b"abcd", None).unwrap();
        let hole = Some(Hole { at: 8, len: 3 });
        let (b, _) = mark(b"efghijkl", hole).unwrap();
        let records =
            [pieces(&a, b"abcd", None, b"").unwrap(), pieces(&b, b"efghijkl", hole, b"xyz").unwrap()];
        let all = bytes(&records, 0);
        assert_eq!(all.len(), 8 + 16);
        for skip in 0..all.len() {
            assert_eq!(bytes(&records, skip), all[skip..]);
        }
    }

    #[test]
    fn more_records_than_slices_are_cut_off_whole_slices() {
        let (a, _) = mark(b"abcd", None).unwrap();
        let records = vec![pieces(&a, b"abcd", None, b"").unwrap(); SLICES];
        assert_eq!(bytes(&records, 0).len(), SLICES / 2 * 8);
    }

    #[test]
    fn a_message_too_long_for_a_mark_has_none() {
        assert!(mark(b"1234", Some(Hole { at: 4, len: (1 << 31) - 4 })).is_none());
        assert!(mark(b"1234", Some(Hole { at: 4, len: (1 << 31) - 8 })).is_some());
    }
}
