//! The content of a file in memory: a map of the pages that were ever written. What is not there reads as zeros.

use std::collections::BTreeMap;

/// Bytes per page.
pub(super) const PAGE: usize = 4096;
const PAGE_U64: u64 = PAGE as u64;

/// A sparse file.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    len: u64,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that the pages take.
    pub(super) fn used(&self) -> u64 {
        self.pages.len() as u64 * PAGE_U64
    }

    /// How many bytes of new pages a write of `len` bytes at `offset` needs. The end does not overflow.
    pub(super) fn growth(&self, offset: u64, len: usize) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE_U64, (offset + len as u64 - 1) / PAGE_U64);
        (last - first + 1 - self.pages.range(first..=last).count() as u64) * PAGE_U64
    }

    /// Fills the front of `buf` from `offset` on; returns how many bytes the file had for it.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        if count == 0 {
            return 0;
        }
        let buf = &mut buf[..count];
        let (first, last) = (offset / PAGE_U64, (offset + count as u64 - 1) / PAGE_U64);
        let mut done = 0;
        for (&number, page) in self.pages.range(first..=last) {
            let start = number * PAGE_U64;
            let from = offset.max(start);
            let at = (from - offset) as usize;
            buf[done..at].fill(0);
            let in_page = (from - start) as usize;
            done = count.min(at + PAGE - in_page);
            buf[at..done].copy_from_slice(&page[in_page..in_page + (done - at)]);
        }
        buf[done..].fill(0);
        count
    }

    /// Writes all of `data` at `offset`. The end does not overflow.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let in_page = (at % PAGE_U64) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE - in_page));
            let page = self.pages.entry(at / PAGE_U64).or_insert_with(|| Box::new([0; PAGE]));
            page[in_page..in_page + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        if !data.is_empty() {
            self.len = self.len.max(at);
        }
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.pages.split_off(&len.div_ceil(PAGE_U64)));
            let in_page = (len % PAGE_U64) as usize;
            if let Some(page) = self.pages.get_mut(&(len / PAGE_U64)) {
                page[in_page..].fill(0);
            }
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holes_take_no_memory_and_read_as_zeros() {
        let mut file = Pages::default();
        assert_eq!(file.growth(1 << 40, 2), PAGE_U64);
        file.write(1 << 40, b"ab");
        assert_eq!((file.len(), file.used()), ((1 << 40) + 2, PAGE_U64));
        let mut buf = [1; 5];
        assert_eq!(file.read((1 << 40) - 3, &mut buf), 5);
        assert_eq!(&buf, b"\0\0\0ab");
        assert_eq!(file.read((1 << 40) + 1, &mut buf), 1);
        assert_eq!(file.read(u64::MAX, &mut buf), 0);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Read(u64, usize),
        SetLen(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = 0..5 * PAGE_U64;
        prop_oneof![
            (at.clone(), proptest::collection::vec(any::<u8>(), 0..3 * PAGE))
                .prop_map(|(a, d)| Op::Write(a, d)),
            (at.clone(), 0..3 * PAGE).prop_map(|(a, n)| Op::Read(a, n)),
            at.prop_map(Op::SetLen),
        ]
    }

    proptest! {
        #[test]
        fn like_a_plain_vector(ops in proptest::collection::vec(op(), 1..20)) {
            let (mut file, mut model) = (Pages::default(), Vec::new());
            for op in ops {
                match op {
                    Op::Write(at, data) => {
                        let (at, growth, used) = (at as usize, file.growth(at, data.len()), file.used());
                        file.write(at as u64, &data);
                        prop_assert_eq!(file.used(), used + growth);
                        if !data.is_empty() {
                            model.resize(model.len().max(at + data.len()), 0);
                            model[at..at + data.len()].copy_from_slice(&data);
                        }
                    }
                    Op::Read(at, len) => {
                        let mut buf = vec![0xaa; len];
                        let count = file.read(at, &mut buf);
                        let want = model.get(at as usize..).unwrap_or_default();
                        let want = &want[..want.len().min(len)];
                        prop_assert_eq!(&buf[..count], want);
                    }
                    Op::SetLen(len) => {
                        file.set_len(len);
                        model.resize(len as usize, 0);
                    }
                }
                prop_assert_eq!(file.len(), model.len() as u64);
            }
        }
    }
}
