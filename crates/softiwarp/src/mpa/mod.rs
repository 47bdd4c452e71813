//! MPA: framing on a TCP stream, and connection start-up (RFC 5044, RFC 6581).
//!
//! # What flows through
//! [`frame`] is the codec of the Request and Reply that open a connection, [`setup`] decides what they agree on, and
//! [`fpdu`] is the framing that follows. [`crc`] is the checksum in each FPDU's trailer.
//!
//! Everything here is a pure function of its input; nothing is kept between calls, except by
//! [`frame::FrameReader`], which collects the bytes of one start-up frame.

pub mod crc;
pub mod fpdu;
pub mod frame;
pub mod setup;
