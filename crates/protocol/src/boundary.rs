//! Hidden states `[T, D]` as the rows of a payload: exact f32, or rounded to f16 or int8.
//!
//! A row is, little-endian:
//! - f32: D values.
//! - f16: D IEEE binary16 values, ties to even; magnitudes above 65504 become 65504.
//! - int8: ⌈D/32⌉ f32 scales d, each that of the next 32 values (fewer in the last block, if D is
//!   no multiple of 32), then D quants q in −127 ..= 127; a value is d·q. As NUMERICS.md quantises
//!   activations: d = max|x|/127, q to the nearest even.
//!
//! What is rounded depends on nothing but the row: the same bytes wherever it is done. Coming
//! back to f32 is exact, so an f16 row survives any number of trips.

use std::borrow::Cow;

use bytes::Bytes;
use numerics::f16::{f16_to_f32, f32_to_f16};
use numerics::finite;
use numerics::quantise::quantise_block;
use numerics::{BLOCK, Fault};

use crate::frame::Dtype;
use crate::payload::{elements, first_non_finite, to_payload};

/// The largest finite f16.
const F16_MAX: f32 = 65_504.0;
/// The largest scale whose values are all finite: `f32::MAX / 127` would be rounded up to one
/// that is too large by its last bit.
const SCALE_MAX: f32 = f32::from_bits((f32::MAX / 127.0).to_bits() - 1);

/// The payload of rows `[T, width]` f32, row-major.
///
/// # Errors
/// A value is infinite or NaN, and `dtype` is f16 or int8.
///
/// # Panics
/// If the values are no whole number of rows, or `dtype` is that of token ids.
pub fn encode(values: Vec<f32>, dtype: Dtype, width: usize) -> Result<Bytes, Fault> {
    assert!(width > 0 && values.len().is_multiple_of(width), "whole rows of {width} values");
    let bytes = values.len() / width * dtype.row_bytes(width);
    match dtype {
        Dtype::U32 => panic!("hidden states are no token ids"),
        Dtype::F32 => Ok(to_payload(values)),
        Dtype::F16 => {
            finite::check(&values)?;
            let mut payload = Vec::with_capacity(bytes);
            for x in values {
                let h = f32_to_f16(x.clamp(-F16_MAX, F16_MAX))?;
                payload.extend(h.to_le_bytes());
            }
            Ok(payload.into())
        }
        Dtype::I8 => {
            let mut payload = Vec::with_capacity(bytes);
            for row in values.chunks_exact(width) {
                encode_int8(row, &mut payload)?;
            }
            Ok(payload.into())
        }
    }
}

fn encode_int8(row: &[f32], payload: &mut Vec<u8>) -> Result<(), Fault> {
    let mut quants = Vec::with_capacity(row.len());
    for values in row.chunks(BLOCK) {
        let mut block = [0.0; BLOCK];
        block[..values.len()].copy_from_slice(values);
        let block = quantise_block(&block)?;
        payload.extend(block.d.min(SCALE_MAX).to_le_bytes());
        quants.extend(block.q[..values.len()].iter().map(|q| *q as u8));
    }
    payload.extend(quants);
    Ok(())
}

/// The values of a payload of rows `[T, width]`, row-major f32; `None` if the payload is no
/// whole number of rows, or [`is_sound`] says no. f32 is not looked at, nor copied if it is
/// aligned.
///
/// # Panics
/// If `dtype` is that of token ids.
pub fn decode(payload: &[u8], dtype: Dtype, width: usize) -> Option<Cow<'_, [f32]>> {
    if dtype == Dtype::F32 {
        return payload.len().is_multiple_of(dtype.row_bytes(width)).then(|| elements(payload));
    }
    if !is_sound(payload, dtype, width) {
        return None;
    }
    let mut values = Vec::with_capacity(payload.len());
    match dtype {
        Dtype::F16 => values.extend(payload.as_chunks().0.iter().map(|b| f16(*b))),
        _ => {
            for row in payload.chunks_exact(dtype.row_bytes(width)) {
                let (scales, quants) = row.split_at(row.len() - width);
                for (d, quants) in scales.as_chunks().0.iter().zip(quants.chunks(BLOCK)) {
                    let d = f32::from_le_bytes(*d);
                    values.extend(quants.iter().map(|q| d * f32::from(*q as i8)));
                }
            }
        }
    }
    Some(Cow::Owned(values))
}

/// Whether a payload is a whole number of rows whose values are all finite, and what [`encode`]
/// may have written: no scale is negative, no quant is −128.
///
/// # Panics
/// If `dtype` is that of token ids.
pub fn is_sound(payload: &[u8], dtype: Dtype, width: usize) -> bool {
    let row_bytes = dtype.row_bytes(width);
    if width == 0 || !payload.len().is_multiple_of(row_bytes) {
        return false;
    }
    match dtype {
        Dtype::U32 => panic!("hidden states are no token ids"),
        Dtype::F32 => first_non_finite(payload).is_none(),
        Dtype::F16 => payload.as_chunks::<2>().0.iter().all(|b| b[1] & 0x7c != 0x7c),
        Dtype::I8 => payload.chunks_exact(row_bytes).all(|row| {
            let (scales, quants) = row.split_at(row_bytes - width);
            let scale = |b: &[u8; 4]| f32::from_le_bytes(*b);
            scales.as_chunks().0.iter().map(scale).all(|d| d.is_sign_positive() && d <= SCALE_MAX)
                && quants.iter().all(|q| *q as i8 != i8::MIN)
        }),
    }
}

fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn rows_have_the_bytes_that_their_dtype_says() {
        for width in [1, 31, 32, 33, 576] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::I8] {
                let values: Vec<f32> = (0..3 * width).map(|i| i as f32 - 40.5).collect();
                let payload = encode(values.clone(), dtype, width).unwrap();
                assert_eq!(payload.len(), 3 * dtype.row_bytes(width), "{dtype:?} {width}");
                let back = decode(&payload, dtype, width).unwrap();
                assert_eq!(back.len(), values.len());
                // Once rounded, f16 values stay what they are.
                if dtype != Dtype::I8 {
                    let again = encode(back.to_vec(), dtype, width).unwrap();
                    assert_eq!(again, payload, "{dtype:?} {width}");
                }
            }
        }
        assert_eq!(
            [Dtype::F32, Dtype::F16, Dtype::I8].map(|d| d.row_bytes(576)),
            [2304, 1152, 648]
        );
    }

    #[test]
    fn f32_is_exact_and_the_others_are_near() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let through = |dtype| {
            let payload = encode(values.clone(), dtype, 64).unwrap();
            decode(&payload, dtype, 64).unwrap().to_vec()
        };
        assert_eq!(bits(&through(Dtype::F32)), bits(&values));
        let off = |got: Vec<f32>| {
            let apart = got.iter().zip(&values).map(|(a, b)| (a - b).abs());
            apart.fold(0.0, f32::max)
        };
        // Half a unit in the last place of an f16 below 4; half of a step of 3/127.
        assert!((1e-6..=0.001).contains(&off(through(Dtype::F16))));
        assert!((1e-3..=1.5 / 127.0).contains(&off(through(Dtype::I8))));
    }

    #[test]
    fn a_block_knows_nothing_of_its_neighbours() {
        // An outlier costs the 31 values beside it their precision, and no others.
        let mut values = vec![0.01f32; 64];
        values[3] = 5000.0;
        let payload = encode(values, Dtype::I8, 64).unwrap();
        let back = decode(&payload, Dtype::I8, 64).unwrap();
        assert_eq!(back[3], 5000.0 / 127.0 * 127.0);
        assert_eq!(back[4], 0.0);
        assert!((back[32] - 0.01).abs() < 1e-8);
    }

    #[test]
    fn extremes_stay_finite_and_infinities_are_faults() {
        let top = vec![f32::MAX, -f32::MAX, 1e-42, -0.0];
        let payload = encode(top.clone(), Dtype::F16, 4).unwrap();
        assert_eq!(*decode(&payload, Dtype::F16, 4).unwrap(), [F16_MAX, -F16_MAX, 0.0, -0.0]);
        let payload = encode(top, Dtype::I8, 4).unwrap();
        let back = decode(&payload, Dtype::I8, 4).unwrap().to_vec();
        assert!(back[0] > 3.4e38 && back[1] < -3.4e38 && back[2..] == [0.0, 0.0], "{back:?}");
        for dtype in Dtype::LOSSY {
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(encode(vec![1.0, x], dtype, 2), Err(Fault));
            }
        }
    }

    #[test]
    fn what_nobody_would_write_is_refused() {
        let good = encode(vec![1.0; 40], Dtype::I8, 40).unwrap().to_vec();
        assert!(is_sound(&good, Dtype::I8, 40));
        let broken = |at: usize, bytes: &[u8]| {
            let mut payload = good.clone();
            payload[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(decode(&payload, Dtype::I8, 40), None);
            is_sound(&payload, Dtype::I8, 40)
        };
        assert!(!broken(8, &[0x80]), "-128");
        assert!(!broken(47, &[0x80]), "-128 at the end");
        for scale in [f32::NAN, f32::INFINITY, -1.0, -0.0, f32::MAX] {
            assert!(!broken(4, &scale.to_le_bytes()), "{scale}");
        }
        assert_eq!(decode(&good[..47], Dtype::I8, 40), None);
        assert_eq!(decode(&good, Dtype::I8, 39), None);
        for h in [0x7c00u16, 0xfc00, 0x7e00] {
            assert!(!is_sound(&h.to_le_bytes(), Dtype::F16, 1), "{h:x}");
        }
        assert!(is_sound(&0x7bffu16.to_le_bytes(), Dtype::F16, 1));
        assert!(!is_sound(&f32::NAN.to_le_bytes(), Dtype::F32, 1));
    }
}
