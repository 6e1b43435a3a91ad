//! Where data lives: [`arena`] is the device's memory, [`view`] what the CTAs of a launch see and change of it,
//! [`window`] the memory of one CTA (shared) and of its threads (local), [`sectors`] what of device memory was touched.

pub(crate) mod arena;
pub(crate) mod sectors;
pub(crate) mod view;
pub(crate) mod window;

/// Generic addresses of the state spaces. Device memory is above all windows: of the first device here, of every other one so far behind it.
pub(crate) const GLOBAL_BASE: u64 = 0x7f00_0000_0000;
pub(crate) const DEVICE_BYTES: u64 = 1 << 41;
pub(crate) const SHARED_WINDOW: u64 = 0x7e00_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x7d00_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x7c00_0000_0000;
/// Addresses that functions have.
pub(crate) const FUNCTION_BASE: u64 = 0x7b00_0000_0000;
/// Size of each window.
pub(crate) const WINDOW: u64 = 1 << 32;
/// Bytes of a page of [`view::View`].
pub(crate) const PAGE: usize = 4096;
/// What memory holds that nobody wrote: NaN as f32, f16, bf16 and f64.
pub(crate) const POISON: u8 = 0xff;

/// One bit a byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(bytes: usize) -> Self {
        Bits(vec![0; bytes.div_ceil(64)])
    }

    pub fn resize(&mut self, bytes: usize) {
        self.0.resize(bytes.div_ceil(64), 0);
    }

    pub fn fill(&mut self, begin: usize, bytes: usize, value: bool) {
        let mut at = begin;
        let end = begin + bytes;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(end - at);
            let mask = run(bit, n);
            if value {
                self.0[word] |= mask;
            } else {
                self.0[word] &= !mask;
            }
            at += n;
        }
    }

    /// Whether all bytes of a range have their bit.
    pub fn all(&self, begin: usize, bytes: usize) -> bool {
        let mut at = begin;
        let end = begin + bytes;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(end - at);
            let mask = run(bit, n);
            if self.0[word] & mask != mask {
                return false;
            }
            at += n;
        }
        true
    }

    /// The first byte of a range without its bit.
    pub fn first_without(&self, begin: usize, bytes: usize) -> Option<usize> {
        let mut at = begin;
        let end = begin + bytes;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(end - at);
            let without = !self.0[word] & run(bit, n);
            if without != 0 {
                return Some(word * 64 + without.trailing_zeros() as usize);
            }
            at += n;
        }
        None
    }

    /// Whether a byte of a range has its bit.
    pub fn any(&self, begin: usize, bytes: usize) -> bool {
        let mut at = begin;
        let end = begin + bytes;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(end - at);
            if self.0[word] & run(bit, n) != 0 {
                return true;
            }
            at += n;
        }
        false
    }

    pub fn words(&self) -> &[u64] {
        &self.0
    }
}

/// `n` ones from bit `bit`.
pub(crate) fn run(bit: usize, n: usize) -> u64 {
    (if n >= 64 { u64::MAX } else { (1 << n) - 1 }) << bit
}
