//! Connection private data (RFC 8797): eight bytes in which each side says, while connecting, how large its Sends and
//! Receives are and whether its memory may be invalidated remotely.
//!
//! # Operation
//! Both sides send [`PrivateData::encode`] and [`PrivateData::parse`] what they got. [`Thresholds::agree`] makes the
//! inline thresholds of the connection from the two. They hold for this connection only; the next one starts over.
//!
//! # When it breaks
//! Nothing here is an error. A peer that says nothing, or nothing that is understood, is a peer with the defaults of
//! RFC 8166: 1024 bytes either way, no remote invalidation.
//!
//! # Limits
//! Sizes are multiples of 1024 from 1 KiB to 256 KiB; others are rounded down to one that can be said.

use super::DEFAULT_INLINE;

const FORMAT: [u8; 4] = [0xf6, 0xab, 0x0e, 0x18];
const VERSION: u8 = 1;
const FLAG_R: u8 = 1;
const UNIT: u32 = 1024;

/// What one side says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrivateData {
    send: u8,
    receive: u8,
    invalidate: bool,
}

impl Default for PrivateData {
    /// What is assumed of a peer that says nothing.
    fn default() -> Self {
        Self::new(DEFAULT_INLINE, DEFAULT_INLINE, false)
    }
}

impl PrivateData {
    /// Length in bytes.
    pub const LEN: usize = 8;

    /// Sizes in bytes of the largest Send and of the posted Receives, and whether Replies may invalidate this side's
    /// memory. Sizes are rounded down to a multiple of 1024, and into 1024 to 262144.
    #[must_use]
    pub const fn new(send: u32, receive: u32, remote_invalidation: bool) -> Self {
        Self { send: code(send), receive: code(receive), invalidate: remote_invalidation }
    }

    /// The largest Send this side makes, in bytes.
    #[must_use]
    pub const fn send_size(&self) -> u32 {
        (self.send as u32 + 1) * UNIT
    }

    /// The size of this side's Receives, in bytes.
    #[must_use]
    pub const fn receive_size(&self) -> u32 {
        (self.receive as u32 + 1) * UNIT
    }

    /// Whether any handle that this side puts into a Call may be invalidated by the Reply.
    #[must_use]
    pub const fn remote_invalidation(&self) -> bool {
        self.invalidate
    }

    /// The eight bytes.
    #[must_use]
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let [a, b, c, d] = FORMAT;
        [a, b, c, d, VERSION, if self.invalidate { FLAG_R } else { 0 }, self.send, self.receive]
    }

    /// Searches what the connection manager delivered, at any alignment, because managers put bytes of their own
    /// ahead and behind. `None` if there is nothing of a version that is known here.
    #[must_use]
    pub fn parse(delivered: &[u8]) -> Option<Self> {
        delivered.windows(Self::LEN).find_map(|w| match *w {
            [a, b, c, d, VERSION, flags, send, receive] if [a, b, c, d] == FORMAT => {
                Some(Self { send, receive, invalidate: flags & FLAG_R != 0 })
            }
            _ => None,
        })
    }
}

const fn code(bytes: u32) -> u8 {
    match bytes / UNIT {
        0 => 0,
        units if units > 256 => 255,
        units => (units - 1) as u8,
    }
}

/// The inline thresholds of a connection: the most bytes, header and RPC message together, that one Send may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// For Calls: client to server in the forward direction.
    pub call: u32,
    /// For Replies: server to client in the forward direction.
    pub reply: u32,
}

impl Default for Thresholds {
    /// What holds when either side said nothing.
    fn default() -> Self {
        Self { call: DEFAULT_INLINE, reply: DEFAULT_INLINE }
    }
}

impl Thresholds {
    /// What client and server agree on: in each direction the smaller of what one sends and the other receives. A
    /// side that said nothing is `PrivateData::default()`.
    #[must_use]
    pub fn agree(client: PrivateData, server: PrivateData) -> Self {
        Self {
            call: client.send_size().min(server.receive_size()),
            reply: server.send_size().min(client.receive_size()),
        }
    }

    /// The thresholds for reverse-direction traffic on the same connection, whose Calls travel where the forward
    /// direction's Replies do.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { call: self.reply, reply: self.call }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn vectors() {
        let vectors = [
            ("f6ab0e18 01010303", PrivateData::new(4096, 4096, true)),
            ("f6ab0e18 01000303", PrivateData::new(4096, 4096, false)),
            ("f6ab0e18 010100ff", PrivateData::new(1024, 262_144, true)),
        ];
        for (bytes, data) in vectors {
            assert_eq!(data.encode()[..], hex(bytes));
            assert_eq!(PrivateData::parse(&hex(bytes)), Some(data));
        }
        let client = PrivateData::parse(&hex(vectors[0].0)).unwrap();
        let server = PrivateData::parse(&hex(vectors[1].0)).unwrap();
        assert_eq!(Thresholds::agree(client, server), Thresholds { call: 4096, reply: 4096 });
        assert_eq!((client.remote_invalidation(), server.remote_invalidation()), (true, false));
    }

    #[test]
    fn sizes_and_their_codes() {
        let table = [
            (1024, 0),
            (2048, 1),
            (4096, 3),
            (8192, 7),
            (16384, 0x0f),
            (65536, 0x3f),
            (131_072, 0x7f),
            (262_144, 0xff),
        ];
        for (bytes, code) in table {
            let data = PrivateData::new(bytes, 1024, false);
            assert_eq!(data.encode()[6], code);
            assert_eq!(data.send_size(), bytes);
        }
        for (asked, said) in
            [(0, 1024), (1023, 1024), (2047, 1024), (4097, 4096), (263_168, 262_144), (u32::MAX, 262_144)]
        {
            let data = PrivateData::new(asked, asked, false);
            assert_eq!((data.send_size(), data.receive_size()), (said, said));
        }
    }

    #[test]
    fn what_is_not_understood_means_the_defaults() {
        for bytes in ["", "f6ab0e18010103", "f6ab0e18 02010303", "f6ab0e19 01010303", "000000 f6ab0e1801"] {
            assert_eq!(PrivateData::parse(&hex(bytes)), None, "{bytes}");
        }
        let silent = PrivateData::default();
        assert_eq!(
            (silent.send_size(), silent.receive_size(), silent.remote_invalidation()),
            (1024, 1024, false)
        );
        let ours = PrivateData::new(65536, 65536, true);
        assert_eq!(Thresholds::agree(ours, silent), Thresholds::default());
        assert_eq!(Thresholds::agree(silent, ours), Thresholds::default());
    }

    #[test]
    fn reserved_flags_are_ignored() {
        assert_eq!(PrivateData::parse(&hex("f6ab0e18 01fe0303")), Some(PrivateData::new(4096, 4096, false)));
        assert_eq!(PrivateData::parse(&hex("f6ab0e18 01ff0303")), Some(PrivateData::new(4096, 4096, true)));
    }

    #[test]
    fn it_is_found_behind_what_the_connection_manager_put_ahead() {
        let found = PrivateData::parse(&hex("00 f6ab0e18 01010307"));
        assert_eq!(found, Some(PrivateData::new(4096, 8192, true)));
        let mut request = hex("00409c40 000000000000000000000000 c0000201 000000000000000000000000 c0000202");
        assert_eq!(request.len(), 36);
        request.extend(hex("f6ab0e18 01010303"));
        request.resize(92, 0);
        assert_eq!(PrivateData::parse(&request), Some(PrivateData::new(4096, 4096, true)));
        // A copy of another version ahead of ours hides nothing.
        let both = hex("f6ab0e18 02010303 f6ab0e18 01010303");
        assert_eq!(PrivateData::parse(&both), Some(PrivateData::new(4096, 4096, true)));
    }

    #[test]
    fn thresholds_are_the_smaller_size_in_each_direction() {
        let client = PrivateData::new(8192, 2048, true);
        let server = PrivateData::new(16384, 4096, true);
        let t = Thresholds::agree(client, server);
        assert_eq!(t, Thresholds { call: 4096, reply: 2048 });
        assert_eq!(t.reversed(), Thresholds { call: 2048, reply: 4096 });
    }

    proptest! {
        #[test]
        fn round_trip_at_any_alignment(
            send: u32, receive: u32, r: bool, ahead in 0usize..60, behind in 0usize..60,
        ) {
            let data = PrivateData::new(send, receive, r);
            let mut bytes = vec![0; ahead];
            bytes.extend(data.encode());
            bytes.resize(bytes.len() + behind, 0);
            prop_assert_eq!(PrivateData::parse(&bytes), Some(data));
        }
    }
}
