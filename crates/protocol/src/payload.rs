//! Payload bytes as numbers and back.

use std::borrow::Cow;

use bytes::Bytes;

/// An element of a payload: four bytes, little-endian, any bits allowed.
pub trait Element: sealed::Sealed + Copy + Send + 'static {
    /// From its bytes.
    fn from_le(bytes: [u8; 4]) -> Self;
    /// To its bytes.
    fn to_le(self) -> [u8; 4];
}

mod sealed {
    /// Only `u32` and `f32`: both are four bytes without padding or invalid bits.
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for f32 {}
}

impl Element for u32 {
    fn from_le(bytes: [u8; 4]) -> u32 {
        u32::from_le_bytes(bytes)
    }
    fn to_le(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Element for f32 {
    fn from_le(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
    fn to_le(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

/// Token ids or values of a payload; borrowed where the bytes are aligned, else copied.
/// Bytes beyond the last whole element are left out ([`crate::Frame::validate`] sees to it
/// that there are none).
pub fn elements<T: Element>(payload: &[u8]) -> Cow<'_, [T]> {
    if cfg!(target_endian = "little") {
        // SAFETY: T is u32 or f32 (sealed): any four bytes are a valid value of it, and
        // `align_to` gives only aligned, in-bounds elements.
        let (before, aligned, after) = unsafe { payload.align_to::<T>() };
        if before.is_empty() && after.len() < 4 {
            return Cow::Borrowed(aligned);
        }
    }
    let (chunks, _) = payload.as_chunks::<4>();
    Cow::Owned(chunks.iter().map(|c| T::from_le(*c)).collect())
}

/// The payload that holds `values`; on little-endian machines they are not copied.
pub fn to_payload<T: Element>(values: Vec<T>) -> Bytes {
    if cfg!(target_endian = "little") {
        return Bytes::from_owner(Owned(values));
    }
    values.iter().flat_map(|v| v.to_le()).collect::<Vec<u8>>().into()
}

struct Owned<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        let bytes = std::mem::size_of_val(self.0.as_slice());
        // SAFETY: the vector's elements are u32 or f32 (sealed), so all `bytes` bytes from
        // its start are initialised, and u8 has no alignment to keep.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), bytes) }
    }
}

/// Where the first value that is infinite or NaN stands, if one is.
pub fn first_non_finite(payload: &[u8]) -> Option<usize> {
    let (chunks, _) = payload.as_chunks::<4>();
    let exponent = |c: &[u8; 4]| u32::from_le_bytes(*c) & 0x7f80_0000;
    chunks.iter().position(|c| exponent(c) == 0x7f80_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_at_any_alignment() {
        let values = vec![0.0f32, -0.0, 1.5, f32::MAX, f32::from_bits(0x7fc0_1234), 1e-42];
        let payload = to_payload(values.clone());
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&elements::<f32>(&payload)), bits(&values));
        for shift in 0..4 {
            let mut shifted = vec![0xAA; shift];
            shifted.extend_from_slice(&payload);
            assert_eq!(bits(&elements::<f32>(&shifted[shift..])), bits(&values), "shift {shift}");
        }
    }

    #[test]
    fn token_ids_are_little_endian() {
        assert_eq!(&to_payload(vec![0x0102_0304u32])[..], [4, 3, 2, 1]);
        assert_eq!(*elements::<u32>(&[1, 0, 0, 0, 0, 1, 0, 0]), [1, 256]);
        assert!(elements::<u32>(&[]).is_empty());
    }

    #[test]
    fn infinities_and_nans_are_found() {
        let at = |values: &[f32]| first_non_finite(&to_payload(values.to_vec()));
        assert_eq!(at(&[1.0, -f32::MAX, 1e-45]), None);
        assert_eq!(at(&[1.0, f32::NEG_INFINITY]), Some(1));
        assert_eq!(at(&[f32::NAN, 1.0]), Some(0));
    }
}
