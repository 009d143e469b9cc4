//! How files keep the values of a tensor, and how they become f32.
//!
//! The blocks are those of ggml: 32 or 256 values of a row share their scales. What each means is defined by
//! `dequantize_row_*` of ggml's `ggml-quants.c`; `gguf.quants` (PyPI) has the same arithmetic, and its bits.

use half::{bf16, f16};

/// How the values of a tensor are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One by one, 4 bytes each.
    F32,
    /// One by one, in IEEE's half precision.
    F16,
    /// One by one, the upper half of an f32.
    Bf16,
    /// Blocks of 32, 4 bits each: `d·(q − 8)`.
    Q4_0,
    /// Blocks of 32, 4 bits each: `d·q + m`.
    Q4_1,
    /// Blocks of 32, 5 bits each: `d·(q − 16)`.
    Q5_0,
    /// Blocks of 32, 5 bits each: `d·q + m`.
    Q5_1,
    /// Blocks of 32, 8 bits each: `d·q`.
    Q8_0,
    /// Blocks of 256 with a scale and a minimum of 6 bits for each 32, 4 bits each: `d·s·q − e·m`.
    Q4K,
    /// The same with 5 bits each.
    Q5K,
    /// Blocks of 256 with a scale of 8 bits for each 16, 6 bits each: `d·s·(q − 32)`.
    Q6K,
    /// In a way that is not read; its name.
    Other(String),
}

/// Values of a block of the older kinds.
const SMALL: usize = 32;
/// Values of a block of the K kinds.
const LARGE: usize = 256;

impl Stored {
    /// The kind of a `ggml_type` in a GGUF file.
    pub fn of_ggml(number: u32) -> Self {
        match number {
            0 => Stored::F32,
            1 => Stored::F16,
            2 => Stored::Q4_0,
            3 => Stored::Q4_1,
            6 => Stored::Q5_0,
            7 => Stored::Q5_1,
            8 => Stored::Q8_0,
            10 => Stored::Other("Q2_K".to_owned()),
            11 => Stored::Other("Q3_K".to_owned()),
            12 => Stored::Q4K,
            13 => Stored::Q5K,
            14 => Stored::Q6K,
            16..=23 | 29 => Stored::Other(format!("one of the IQ kinds, number {number}")),
            24 => Stored::Other("I8".to_owned()),
            25 => Stored::Other("I16".to_owned()),
            26 => Stored::Other("I32".to_owned()),
            27 => Stored::Other("I64".to_owned()),
            28 => Stored::Other("F64".to_owned()),
            30 => Stored::Bf16,
            other => Stored::Other(format!("number {other} of ggml's")),
        }
    }

    /// Whether its values are read.
    pub fn is_float(&self) -> bool {
        !matches!(self, Stored::Other(_))
    }

    /// Values of a block, and its bytes; nothing is known of a kind that is not read.
    pub fn block(&self) -> Option<(usize, usize)> {
        Some(match self {
            Stored::F32 => (1, 4),
            Stored::F16 | Stored::Bf16 => (1, 2),
            Stored::Q4_0 => (SMALL, 18),
            Stored::Q4_1 => (SMALL, 20),
            Stored::Q5_0 => (SMALL, 22),
            Stored::Q5_1 => (SMALL, 24),
            Stored::Q8_0 => (SMALL, 34),
            Stored::Q4K => (LARGE, 144),
            Stored::Q5K => (LARGE, 176),
            Stored::Q6K => (LARGE, 210),
            Stored::Other(_) => return None,
        })
    }

    /// Adds the values of whole blocks.
    pub fn decode(&self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Stored::F32 => one_by_one(bytes, values, f32::from_le_bytes),
            Stored::F16 => one_by_one(bytes, values, half),
            Stored::Bf16 => {
                one_by_one(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32());
            }
            Stored::Q4_0 => each::<18>(bytes, values, |block, values| {
                let d = scale(block, 0);
                let quants = nibbles(&block[2..]);
                values.extend(quants.map(|q| d * f32::from(q as i8 - 8)));
            }),
            Stored::Q4_1 => each::<20>(bytes, values, |block, values| {
                let (d, m) = (scale(block, 0), scale(block, 2));
                values.extend(nibbles(&block[4..]).map(|q| d * f32::from(q) + m));
            }),
            Stored::Q5_0 => each::<22>(bytes, values, |block, values| {
                let d = scale(block, 0);
                let quants = fives(&block[2..6], &block[6..]);
                values.extend(quants.map(|q| d * f32::from(q as i8 - 16)));
            }),
            Stored::Q5_1 => each::<24>(bytes, values, |block, values| {
                let (d, m) = (scale(block, 0), scale(block, 2));
                let quants = fives(&block[4..8], &block[8..]);
                values.extend(quants.map(|q| d * f32::from(q) + m));
            }),
            Stored::Q8_0 => each::<34>(bytes, values, |block, values| {
                let d = scale(block, 0);
                values.extend(block[2..].iter().map(|q| f32::from(*q as i8) * d));
            }),
            Stored::Q4K => each::<144>(bytes, values, |block, values| {
                let parts = scales_and_minima(block);
                // 32 bytes hold 32 values in their low halves, and the next 32 in their high ones.
                for (pair, bytes) in parts.chunks(2).zip(block[16..].chunks(SMALL)) {
                    let [low, high] = [pair[0], pair[1]];
                    values.extend(bytes.iter().map(|q| low.0 * f32::from(q & 15) - low.1));
                    values.extend(bytes.iter().map(|q| high.0 * f32::from(q >> 4) - high.1));
                }
            }),
            Stored::Q5K => each::<176>(bytes, values, |block, values| {
                let (fifths, quants) = block[16..].split_at(SMALL);
                for (part, (scale, minimum)) in scales_and_minima(block).into_iter().enumerate() {
                    let bytes = &quants[part / 2 * SMALL..][..SMALL];
                    values.extend(bytes.iter().zip(fifths).map(|(byte, fifths)| {
                        let q = byte >> (4 * (part % 2)) & 15 | (fifths >> part & 1) << 4;
                        scale * f32::from(q) - minimum
                    }));
                }
            }),
            Stored::Q6K => each::<210>(bytes, values, |block, values| {
                let (low, rest) = block.split_at(LARGE / 2);
                let (high, rest) = rest.split_at(LARGE / 4);
                let (scales, _) = rest.split_at(LARGE / 16);
                let d = scale(block, 208);
                for part in 0..LARGE / SMALL {
                    // Half a block is 64 bytes of low bits and 32 of high ones, for four parts.
                    let (side, part_of) = (part / 4, part % 4);
                    let low = &low[side * 64 + part_of % 2 * SMALL..][..SMALL];
                    let high = &high[side * SMALL..][..SMALL];
                    for (at, (low, high)) in low.iter().zip(high).enumerate() {
                        let low = low >> (part_of / 2 * 4) & 15;
                        let q = low | (high >> (2 * part_of) & 3) << 4;
                        let scale = d * f32::from(scales[part * 2 + at / 16] as i8);
                        values.push(scale * f32::from(q as i8 - 32));
                    }
                }
            }),
            // Refused before anything of it is read.
            Stored::Other(_) => {}
        }
    }
}

fn one_by_one<const N: usize>(
    bytes: &[u8],
    values: &mut Vec<f32>,
    convert: impl Fn([u8; N]) -> f32,
) {
    values.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)));
}

/// Hands whole blocks of `N` bytes on.
fn each<const N: usize>(
    bytes: &[u8],
    values: &mut Vec<f32>,
    decode: impl Fn(&[u8; N], &mut Vec<f32>),
) {
    let (blocks, _) = bytes.as_chunks::<N>();
    blocks.iter().for_each(|block| decode(block, values));
}

fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// The half at a place of a block.
fn scale(block: &[u8], at: usize) -> f32 {
    half([block[at], block[at + 1]])
}

/// 16 bytes as 32 values of 4 bits: the low halves of all, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

/// The same with the fifth bit of each from `fifths`.
fn fives(fifths: &[u8], bytes: &[u8]) -> impl Iterator<Item = u8> {
    let fifth = |at: usize| fifths[at / 8] >> (at % 8) & 1;
    let values = nibbles(bytes).enumerate();
    values.map(move |(at, low)| low | fifth(at) << 4)
}

/// Scale and minimum of each 32 values of a block whose first 16 bytes are those of Q4_K.
fn scales_and_minima(block: &[u8]) -> [(f32, f32); 8] {
    let (d, e) = (scale(block, 0), scale(block, 2));
    let packed = &block[4..16];
    std::array::from_fn(|part| {
        // Of the last four, the two upper bits are those of the first four's bytes.
        let (scale, minimum) = match part {
            0..4 => (packed[part] & 63, packed[part + 4] & 63),
            _ => (
                packed[part + 4] & 15 | (packed[part - 4] >> 6) << 4,
                packed[part + 4] >> 4 | (packed[part] >> 6) << 4,
            ),
        };
        (d * f32::from(scale), e * f32::from(minimum))
    })
}
