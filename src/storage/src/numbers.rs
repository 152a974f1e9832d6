//! Sequences of numbers in little memory, for rows of which many are kept: most numbers are small.

use prost::encoding::{decode_varint, encode_varint};

/// Appends numbers.
pub(super) fn put(numbers: impl IntoIterator<Item = u64>, to: &mut Vec<u8>) {
    numbers.into_iter().for_each(|number| encode_varint(number, to));
}

/// The numbers that [`put`] has written. Reading more of them than there are, or other bytes, panics: they never leave
/// the process.
pub(super) struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn next(&mut self) -> u64 {
        decode_varint(&mut self.0).expect("as many numbers as were written")
    }

    pub fn take<const N: usize>(&mut self) -> [u64; N] {
        std::array::from_fn(|_| self.next())
    }
}
