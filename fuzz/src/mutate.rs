//! Breaks a valid input in a few places.

use model::testing::Random;

/// A valid input: one or several byte strings (a model's files, a connection's frames).
#[derive(Clone, Debug)]
pub struct Seed {
    /// The byte strings.
    pub pieces: Vec<Vec<u8>>,
    /// Bytes at the start of each piece that say what follows: most damage goes there.
    pub head_bytes: usize,
    /// What the pieces are written in.
    pub form: Form,
}

/// What an input is written in, which decides what kinds of damage tell something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Little-endian numbers and lengths.
    Binary,
    /// JSON.
    Json,
}

/// At most this many changes to one input.
const CHANGES_MAX: u64 = 4;
/// Longest stretch that is removed, doubled or copied from elsewhere.
const STRETCH_MAX: u64 = 64;
/// Numbers at the edges of types and bounds.
const WORDS: [u64; 16] = [
    0,
    1,
    2,
    31,
    64,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    u64::MAX >> 1,
    1 << 63,
    u64::MAX,
];

/// Makes `out` a copy of `seed` with one to [`CHANGES_MAX`] changes; `donor` is another
/// valid input to copy from.
pub fn mutate(seed: &Seed, donor: &Seed, random: &mut Random, out: &mut Vec<Vec<u8>>) {
    out.clone_from(&seed.pieces);
    // One change half of the time: with more, hardly anything comes past the first check.
    let changes = if random.below(2) == 0 { 1 } else { 1 + random.below(CHANGES_MAX) };
    for _ in 0..changes {
        let piece = random.below(out.len() as u64) as usize;
        if random.below(200) == 0 {
            change_pieces(out, piece, random);
            if out.is_empty() {
                return;
            }
        } else {
            change_bytes(&mut out[piece], seed, donor, random);
        }
    }
}

/// Drops, doubles or moves a whole piece.
fn change_pieces(pieces: &mut Vec<Vec<u8>>, piece: usize, random: &mut Random) {
    match random.below(3) {
        0 => drop(pieces.remove(piece)),
        1 => pieces.push(pieces[piece].clone()),
        _ => pieces.swap(0, piece),
    }
}

fn change_bytes(bytes: &mut Vec<u8>, seed: &Seed, donor: &Seed, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.next() as u8);
        return;
    }
    // One time in eight anywhere, else in the head.
    let head = seed.head_bytes.clamp(1, bytes.len());
    let range = if random.below(8) == 0 { bytes.len() } else { head };
    let at = random.below(range as u64) as usize;
    match (random.below(4), seed.form) {
        (0, _) => change_any(bytes, at, donor, random),
        (1 | 2, Form::Binary) => {
            let at = find_length(bytes, at);
            put_word(bytes, at, random);
        }
        (_, Form::Binary) => put_word(bytes, at, random),
        (1, Form::Json) => put_decimal(bytes, at, random),
        (2, Form::Json) => change_item(bytes, at, random),
        (_, Form::Json) => change_character(bytes, at, random),
    }
}

/// Damage that needs to know nothing.
fn change_any(bytes: &mut Vec<u8>, at: usize, donor: &Seed, random: &mut Random) {
    let stretch = (1 + random.below(STRETCH_MAX) as usize).min(bytes.len() - at);
    match random.below(8) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..at + stretch)),
        5 => {
            let copy = bytes[at..at + stretch].to_vec();
            drop(bytes.splice(at..at, copy));
        }
        6 => bytes[at..at + stretch].iter_mut().for_each(|b| *b = random.next() as u8),
        _ => splice(bytes, at, donor, random),
    }
}

/// Writes another number over the next decimal one from `at` on.
fn put_decimal(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|d| at + d) else {
        return;
    };
    let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let old = std::str::from_utf8(&bytes[start..start + digits]).ok().and_then(|t| t.parse().ok());
    let old: u64 = old.unwrap_or(0);
    let new = match random.below(5) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_add(64),
        _ => WORDS[random.below(WORDS.len() as u64) as usize],
    };
    drop(bytes.splice(start..start + digits, new.to_string().into_bytes()));
}

/// Removes or doubles what stands between two commas.
fn change_item(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let comma = |from: usize| bytes[from..].iter().position(|b| *b == b',').map(|d| from + d);
    let Some(start) = comma(at) else { return };
    let Some(end) = comma(start + 1) else { return };
    if random.below(2) == 0 {
        drop(bytes.drain(start..end));
    } else {
        let item = bytes[start..end].to_vec();
        drop(bytes.splice(start..start, item));
    }
}

/// Writes a letter or digit over the next one from `at` on: often still the same JSON.
fn change_character(bytes: &mut [u8], at: usize, random: &mut Random) {
    const CHARACTERS: &[u8] = b"0123456789abcdefAFxz_-+.e ";
    let next = bytes[at..].iter_mut().find(|b| b.is_ascii_alphanumeric());
    if let Some(byte) = next {
        *byte = CHARACTERS[random.below(CHARACTERS.len() as u64) as usize];
    }
}

/// Overwrites a 2-, 4- or 8-byte little-endian number.
fn put_word(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = [2, 4, 8][random.below(3) as usize].min(bytes.len() - at);
    let mut old = [0; 8];
    old[..width].copy_from_slice(&bytes[at..at + width]);
    let old = u64::from_le_bytes(old);
    let new = match random.below(8) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_mul(2),
        3 => (bytes.len() - at) as u64,
        4 => old ^ 1 << random.below(64),
        _ => WORDS[random.below(WORDS.len() as u64) as usize],
    };
    bytes[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// The next place from `at` on that looks like a 64-bit length: small, but not zero.
fn find_length(bytes: &[u8], at: usize) -> usize {
    let looks = |w: &[u8]| w[2..].iter().all(|b| *b == 0) && (w[0] | w[1]) != 0;
    bytes[at..].windows(8).take(256).position(looks).map_or(at, |distance| at + distance)
}

/// Writes a stretch of another valid input over this one.
fn splice(bytes: &mut Vec<u8>, at: usize, donor: &Seed, random: &mut Random) {
    let Some(from) = donor.pieces.get(random.below(donor.pieces.len() as u64) as usize) else {
        return;
    };
    let head = donor.head_bytes.clamp(1, from.len().max(1)) as u64;
    let start = random.below(head) as usize;
    let stretch = (1 + random.below(4 * STRETCH_MAX) as usize).min(from.len() - start);
    let end = (at + stretch).min(bytes.len());
    drop(bytes.splice(at..end, from[start..start + stretch].iter().copied()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_breaks_the_same_way_and_others_otherwise() {
        let seed = Seed {
            pieces: vec![vec![7; 300], (0..200).collect()],
            head_bytes: 100,
            form: Form::Binary,
        };
        let broken = |number: u64| {
            let mut out = Vec::new();
            mutate(&seed, &seed, &mut Random::new(number), &mut out);
            out
        };
        let all: std::collections::BTreeSet<_> = (0..1000).map(broken).collect();
        assert!((0..1000).all(|n| all.contains(&broken(n))));
        assert!(all.len() > 900, "{} different inputs of 1000", all.len());
        assert!(all.iter().any(|p| p.len() != 2), "no piece was dropped or doubled");
        assert!(all.iter().any(|p| p[0].len() < 300) && all.iter().any(|p| p[0].len() > 300));
        let most = 300 + (CHANGES_MAX * 4 * STRETCH_MAX) as usize;
        assert!(all.iter().flatten().all(|piece| piece.len() <= most));
    }
}
