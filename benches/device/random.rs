//! Random numbers for inputs, and checkpoints of random weights that lie in no file.

use warploom::{
    Error, Result,
    checkpoint::{Checkpoint, Config},
};

/// Knuth's MMIX generator.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Its lower bits are worse.
        self.0 >> 16
    }
}

/// Numbers of bf16 whose magnitude is 2^-2 to 2, of either sign. Two of them are a sound f32, and each byte a sound e4m3.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = Noise(1);
    let number = |bits: u64| {
        // Exponents 125 to 127; the lower byte is no NaN of e4m3, whose other bits are all set then.
        let exponent = 125 + (bits & 3).min(2);
        let (sign, mantissa) = (bits >> 2 & 1, bits >> 3 & 0x77);
        (sign << 15 | exponent << 7 | mantissa) as u16
    };
    (0..bytes.div_ceil(2)).flat_map(|_| number(noise.next()).to_le_bytes()).take(bytes).collect()
}

/// Deviation of the weights: products of rows whose root mean square is 1 stay of that size or grow a little, at every width here.
const DEVIATION: f32 = 0.02;
/// Random numbers that are repeated through all weights.
const BLOCK: usize = 32 << 20;

/// Weights of a config's shapes, bf16, in memory: normal-like, norms 1. Every tensor continues where the last one stopped in a block of
/// random numbers of an odd length, so that no two are alike; a decode step's time does not depend on what the numbers are.
///
/// The memory is never given back.
///
/// # Errors
/// [`Error::Capacity`] where memory is short.
pub fn checkpoint(config: &Config, json: &str) -> Result<Checkpoint> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in config.tensors() {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = Vec::new();
    let total = 8 + header.len() + end;
    bytes.try_reserve_exact(total).map_err(|_| Error::Capacity {
        what: "random weights".into(),
        needed: format!("{total} bytes of host memory"),
        available: "there is less".into(),
    })?;
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    let mut noise = Noise(2);
    let uniform = |bits: u64| (bits & 0xff_ffff) as f32 / (1 << 23) as f32 - 1.0;
    // Of a uniform number √3 makes the deviation 1.
    let mut number = || half::bf16::from_f32(uniform(noise.next()) * DEVIATION * 3f32.sqrt());
    let count = (BLOCK / 2).min(end / 2 + 1) | 1;
    let block: Vec<u8> = (0..count).flat_map(|_| number().to_le_bytes()).collect();
    let mut place = 0;
    for (name, shape) in config.tensors() {
        let mut left = 2 * shape.iter().product::<usize>();
        if name.contains("norm") {
            bytes.extend((0..left / 2).flat_map(|_| half::bf16::ONE.to_le_bytes()));
            continue;
        }
        while left > 0 {
            let piece = left.min(block.len() - place);
            bytes.extend_from_slice(&block[place..place + piece]);
            left -= piece;
            place = (place + piece) % block.len();
        }
    }
    Checkpoint::from_bytes(json.as_bytes(), None, bytes.leak())
}
