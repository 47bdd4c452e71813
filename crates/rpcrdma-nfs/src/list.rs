//! XDR's linked lists: a boolean in front of each item, and one that says there are no more.
//!
//! A list is checked once, when it is decoded, and keeps the bytes it came in. Iterating decodes them again, which
//! then can neither fail nor allocate, and encoding copies them.

/// Declares a list of `$item`, which has a lifetime and decodes.
macro_rules! list {
    ($(#[$meta:meta])* $name:ident, $item:ident) => {
        $(#[$meta])*
        ///
        /// Iterates over a list that was checked when it was decoded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<'a> {
            /// From an item's "one follows" word to the "none follows" word.
            bytes: &'a [u8],
        }

        impl<'a> rpcrdma_proto::xdr::Decode<'a> for $name<'a> {
            fn decode(r: &mut rpcrdma_proto::xdr::Reader<'a>) -> Result<Self, rpcrdma_proto::xdr::XdrError> {
                let rest = r.rest();
                let start = r.position();
                while r.bool()? {
                    <$item<'_> as rpcrdma_proto::xdr::Decode<'_>>::decode(r)?;
                }
                // A list without items is kept as no bytes, like the default.
                let len = r.position() - start;
                Ok(Self { bytes: rest.get(..len).filter(|b| b.len() > 4).unwrap_or_default() })
            }
        }

        impl rpcrdma_proto::xdr::Encode for $name<'_> {
            fn encode(&self, w: &mut rpcrdma_proto::xdr::Writer) {
                if self.bytes.is_empty() {
                    w.bool(false);
                } else {
                    w.bytes(self.bytes);
                }
            }
        }

        /// The empty list.
        impl Default for $name<'_> {
            fn default() -> Self {
                Self { bytes: &[] }
            }
        }

        impl<'a> Iterator for $name<'a> {
            type Item = $item<'a>;

            fn next(&mut self) -> Option<Self::Item> {
                let mut r = rpcrdma_proto::xdr::Reader::new(self.bytes);
                let item = match r.bool() {
                    Ok(true) => <$item<'_> as rpcrdma_proto::xdr::Decode<'_>>::decode(&mut r).ok(),
                    _ => None,
                };
                self.bytes = if item.is_some() { r.rest() } else { &[] };
                item
            }
        }

        impl core::iter::FusedIterator for $name<'_> {}
    };
}

pub(crate) use list;
