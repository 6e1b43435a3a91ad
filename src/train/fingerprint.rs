//! A hash that tells one text, file or log from another: FNV-1a of 64 bits. It finds mistakes, not malice.

/// The hash of what has been taken in so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of nothing.
    pub const EMPTY: Fingerprint = Fingerprint(0xcbf2_9ce4_8422_2325);

    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut fingerprint = Self::EMPTY;
        fingerprint.take(bytes);
        fingerprint
    }

    /// Takes in more bytes.
    pub fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // From the definition's own test vectors.
        assert_eq!(Fingerprint::of(b"").0, 0xcbf2_9ce4_8422_2325);
        assert_eq!(Fingerprint::of(b"a").0, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Fingerprint::of(b"foobar").0, 0x8594_4171_f739_67e8);
    }
}
