//! A cursor over one part's bytes: every read is checked against what is left.

use super::error::{GgufError, Place};

/// Where we are in one part.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    part: Option<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], part: Option<usize>) -> Self {
        Reader { bytes, at: 0, part }
    }

    pub(super) fn place(&self) -> Place {
        Place { part: self.part, offset: self.at as u64 }
    }

    /// Bytes from the start.
    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// All that is left, without moving.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        if count > self.left() {
            let left = self.left();
            return Err(GgufError::Truncated { at: self.place(), what, needed: count, left });
        }
        let count = usize::try_from(count).expect("no more than a slice's length");
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        Ok(self.take(N as u64, what)?.try_into().expect("take gave N bytes"))
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, GgufError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], GgufError> {
        self.array("the magic")
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, GgufError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A u64 that counts things, of which there are at most `max`, each of at least
    /// `bytes_each` bytes in the rest of the file.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        max: u64,
        bytes_each: u64,
    ) -> Result<u64, GgufError> {
        let at = self.place();
        let got = self.u64(what)?;
        if got > max {
            return Err(GgufError::TooLarge { at, what, got, max });
        }
        let needed = got * bytes_each;
        if needed > self.left() {
            let left = self.left();
            return Err(GgufError::Truncated { at, what, needed, left });
        }
        Ok(got)
    }

    /// A string: u64 length, then UTF-8.
    pub(super) fn string(&mut self, what: &'static str, max: u64) -> Result<&'a str, GgufError> {
        let at = self.place();
        let count = self.count(what, max, 1)?;
        let bytes = self.take(count, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Utf8 { at, what })
    }
}
