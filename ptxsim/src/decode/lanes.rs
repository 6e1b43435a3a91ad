//! Functions of one lane to functions of thirty-two, in loops that the compiler vectorises.

/// A value as a register holds it. Narrow values live in the low bits of 32, the others being zero.
pub(super) trait Bits: Copy {
    type Register: Copy;
    fn from_bits(bits: Self::Register) -> Self;
    fn into_bits(self) -> Self::Register;
}

macro_rules! bits {
    ($($ty:ty, $register:ty, |$bits:ident| $from:expr, |$value:ident| $into:expr;)*) => {
        $(impl Bits for $ty {
            type Register = $register;
            #[inline(always)]
            fn from_bits($bits: $register) -> Self {
                $from
            }
            #[inline(always)]
            fn into_bits(self) -> $register {
                let $value = self;
                $into
            }
        })*
    };
}
bits! {
    u32, u32, |b| b, |v| v;
    i32, u32, |b| b as i32, |v| v as u32;
    u16, u32, |b| b as u16, |v| u32::from(v);
    i16, u32, |b| b as i16, |v| u32::from(v as u16);
    u8, u32, |b| b as u8, |v| u32::from(v);
    i8, u32, |b| b as i8, |v| u32::from(v as u8);
    // The hardware has one NaN.
    f32, u32, |b| f32::from_bits(b), |v| if v.is_nan() { 0x7fff_ffff } else { v.to_bits() };
    u64, u64, |b| b, |v| v;
    i64, u64, |b| b as i64, |v| v as u64;
    f64, u64, |b| f64::from_bits(b), |v| v.to_bits();
}

/// `lanes!(W2; |x: f32, y: f32| x + y)`: a [`crate::kernel::Function`] of that signature.
macro_rules! lanes {
    ($variant:ident; |$($x:ident: $t:ty),+| $body:expr) => {{
        #[allow(unused_imports)]
        use $crate::decode::lanes::Bits as _;
        #[allow(clippy::needless_range_loop)]
        fn run($($x: &[<$t as $crate::decode::lanes::Bits>::Register; 32],)+ out: &mut [lanes!(@out $variant); 32]) {
            for lane in 0..32 {
                $(let $x = <$t as $crate::decode::lanes::Bits>::from_bits($x[lane]);)+
                out[lane] = $body.into_bits();
            }
        }
        $crate::kernel::Function::$variant(run)
    }};
    (@out D1) => { u64 };
    (@out D2) => { u64 };
    (@out D3) => { u64 };
    (@out DfromW) => { u64 };
    (@out DfromWW) => { u64 };
    (@out DfromWWD) => { u64 };
    (@out DfromDW) => { u64 };
    (@out DfromDWW) => { u64 };
    (@out DfromDDWW) => { u64 };
    (@out $other:ident) => { u32 };
}

/// `compare!(Compare; |x: i32, y: i32| x < y)`: a comparison, whose result is a predicate.
macro_rules! compare {
    ($variant:ident; |$($x:ident: $t:ty),+| $body:expr) => {{
        #[allow(unused_imports)]
        use $crate::decode::lanes::Bits as _;
        #[allow(clippy::needless_range_loop)]
        fn run($($x: &[<$t as $crate::decode::lanes::Bits>::Register; 32]),+) -> u32 {
            let mut holds = [0u8; 32];
            for lane in 0..32 {
                $(let $x = <$t as $crate::decode::lanes::Bits>::from_bits($x[lane]);)+
                holds[lane] = u8::from($body);
            }
            let mut mask = 0;
            for lane in 0..32 {
                mask |= u32::from(holds[lane]) << lane;
            }
            mask
        }
        $crate::kernel::Function::$variant(run)
    }};
}

pub(super) use {compare, lanes};
