//! The pieces that arguments and results are made of.
//!
//! [`Put`] and [`Get`] are implemented for everything that stands in a message as one component, including plain integers
//! and optional values, on which `Encode` and `Decode` cannot be implemented from here. `message!` declares a struct
//! whose XDR form is its fields in order.

use rpcrdma_proto::xdr::{Reader, Writer, XdrError};

use super::types::{
    AccessMask, Attributes, CookieVerifier, CreateMode, FsInfo, FsStat, Handle, NfsTime, NodeKind, PATH_MAX,
    PathConf, SetAttributes, Stable, WccData, WriteVerifier,
};

/// One component of a message, to be written.
pub trait Put {
    /// Appends it.
    fn put(&self, w: &mut Writer);
}

/// One component of a message, to be read.
pub trait Get<'a>: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// If the bytes are not such a component.
    fn get(r: &mut Reader<'a>) -> Result<Self, XdrError>;
}

/// [`Put`] and [`Get`] for types that have `Encode` and `Decode`.
macro_rules! fields {
    ($($name:ident $(<$lt:lifetime>)?),+ $(,)?) => {
        $(
            impl$(<$lt>)? $crate::v3::field::Put for $name$(<$lt>)? {
                fn put(&self, w: &mut rpcrdma_proto::xdr::Writer) {
                    rpcrdma_proto::xdr::Encode::encode(self, w);
                }
            }

            impl<'m $(, $lt)?> $crate::v3::field::Get<'m> for $name$(<$lt>)?
            where
                Self: rpcrdma_proto::xdr::Decode<'m>,
            {
                fn get(r: &mut rpcrdma_proto::xdr::Reader<'m>) -> Result<Self, rpcrdma_proto::xdr::XdrError> {
                    rpcrdma_proto::xdr::Decode::decode(r)
                }
            }
        )+
    };
}

fields!(
    AccessMask,
    Attributes,
    CookieVerifier,
    CreateMode,
    FsInfo,
    FsStat,
    Handle,
    NfsTime,
    NodeKind,
    PathConf,
    SetAttributes,
    Stable,
    WccData,
    WriteVerifier,
);

impl Put for () {
    fn put(&self, _: &mut Writer) {}
}

impl Get<'_> for () {
    fn get(_: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(())
    }
}

impl Put for u32 {
    fn put(&self, w: &mut Writer) {
        w.u32(*self);
    }
}

impl Get<'_> for u32 {
    fn get(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        r.u32()
    }
}

impl Put for u64 {
    fn put(&self, w: &mut Writer) {
        w.u64(*self);
    }
}

impl Get<'_> for u64 {
    fn get(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        r.u64()
    }
}

impl Put for &[u8] {
    fn put(&self, w: &mut Writer) {
        w.opaque(self);
    }
}

/// A name. Up to [`PATH_MAX`] bytes decode, so that a server can answer a long one with a status.
impl<'a> Get<'a> for &'a [u8] {
    fn get(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        r.opaque(PATH_MAX)
    }
}

/// `post_op_attr`, a guard, a handle that may follow.
impl<T: Put> Put for Option<T> {
    fn put(&self, w: &mut Writer) {
        w.option(self.as_ref(), |w, v| v.put(w));
    }
}

impl<'a, T: Get<'a>> Get<'a> for Option<T> {
    fn get(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        r.option(T::get)
    }
}

/// Declares a struct and its XDR form: its fields, in order.
macro_rules! message {
    ($(#[$meta:meta])* pub struct $name:ident<$lt:lifetime> { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<$lt> { $($(#[$fmeta])* pub $field: $ty,)* }

        $crate::v3::field::codec!($name, $lt, $lt, [$($field)*]);
    };
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        $crate::v3::field::codec!($name, 'm, , [$($field)*]);
    };
}

macro_rules! codec {
    ($name:ident, $rlt:lifetime, $($lt:lifetime)?, [$($field:ident)*]) => {
        impl<$rlt> rpcrdma_proto::xdr::Decode<$rlt> for $name$(<$lt>)? {
            fn decode(_r: &mut rpcrdma_proto::xdr::Reader<$rlt>) -> Result<Self, rpcrdma_proto::xdr::XdrError> {
                Ok(Self { $($field: $crate::v3::field::Get::get(_r)?,)* })
            }
        }

        impl$(<$lt>)? rpcrdma_proto::xdr::Encode for $name$(<$lt>)? {
            fn encode(&self, _w: &mut rpcrdma_proto::xdr::Writer) {
                $($crate::v3::field::Put::put(&self.$field, _w);)*
            }
        }

        $crate::v3::field::fields!($name$(<$lt>)?);
    };
}

pub(crate) use {codec, fields, message};

/// Data that RFC 8267 lets travel in a chunk: what READ, READLINK, WRITE and SYMLINK are about.
///
/// Decoding always yields [`Data::Here`], wherever the bytes came from. Whoever encodes chooses: small data may go
/// into the message, large data stays where it is, and the writer leaves a
/// [`Hole`](rpcrdma_proto::xdr::Hole) for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// The bytes.
    Here(&'a [u8]),
    /// So many bytes that are elsewhere; only their length is written.
    Apart(u32),
}

impl<'a> Data<'a> {
    /// Length in bytes, without XDR pad.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self {
            Self::Here(v) => v.len() as u32,
            Self::Apart(n) => *n,
        }
    }

    /// Whether there is no data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are here.
    #[must_use]
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Here(v) => Some(v),
            Self::Apart(_) => None,
        }
    }

    pub(super) fn get(r: &mut Reader<'a>, max: usize) -> Result<Self, XdrError> {
        r.chunkable(max).map(Self::Here)
    }

    pub(super) fn put(&self, w: &mut Writer) {
        match self {
            Self::Here(v) => w.opaque(v),
            Self::Apart(n) => w.chunkable(*n),
        }
    }
}

impl<'a> From<&'a [u8]> for Data<'a> {
    fn from(v: &'a [u8]) -> Self {
        Self::Here(v)
    }
}

/// Most data of one READ or WRITE that decodes: whatever a length word can say. Decoding borrows, so the bytes that
/// are there bound it.
pub(super) const DATA_MAX: usize = u32::MAX as usize;
