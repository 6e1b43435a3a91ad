//! The sizes of launches (CTAs, threads, shared memory, scratch) as functions of a kernel's parameter struct.
//!
//! [`geometry!`] makes two things of one definition: the function that launches compute their sizes with, and the
//! text that the [manifest](mod@super::manifest) has of it for programs that launch the kernels themselves. So neither
//! can say what the other does not.

use crate::{
    driver::Launch,
    kernels::params::{WlMask, WlProjection},
};

/// What follows from a parameter struct whose numbers are such as the checks before a launch let through.
pub(super) struct Geometry<P> {
    pub of: fn(&P) -> Sizes,
    pub text: Text,
}

/// Numbers of 128 bits: no product of what checks let through exceeds them.
pub(super) struct Sizes {
    pub grid: [i128; 3],
    pub block: i128,
    pub shared: i128,
    /// Bytes of each range of scratch, of up to two.
    pub scratch: [i128; 2],
}

/// The same as expressions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    /// Values with names, each of fields, constants and those before it.
    pub values: &'static [(&'static str, &'static str)],
    pub grid: [&'static str; 3],
    pub block: &'static str,
    pub shared: &'static str,
    /// Field, bytes, and how many of them, from the first on, are zeros before and after every launch.
    pub scratch: &'static [(&'static str, &'static str, &'static str)],
}

impl<P: bytemuck::NoUninit> Geometry<P> {
    /// CTAs along x, y, z.
    pub fn grid(&self, p: &P) -> [u32; 3] {
        (self.of)(p).grid.map(size)
    }

    /// Dynamic shared memory of a CTA in bytes.
    pub fn shared_bytes(&self, p: &P) -> usize {
        size((self.of)(p).shared) as usize
    }

    /// Bytes of each range of scratch, of up to two; None if together they exceed an address space.
    pub fn scratch(&self, p: &P) -> Option<[usize; 2]> {
        let bytes = (self.of)(p).scratch;
        let fits = bytes.iter().sum::<i128>() <= i128::from(i64::MAX);
        fits.then(|| bytes.map(|bytes| bytes as usize))
    }

    /// The launch.
    pub fn launch<'p>(&self, p: &'p P) -> Launch<'p> {
        let sizes = (self.of)(p);
        Launch {
            grid: sizes.grid.map(size),
            block: [size(sizes.block), 1, 1],
            shared_bytes: size(sizes.shared),
            ..Launch::new(bytemuck::bytes_of(p))
        }
    }
}

/// As a launch has it. No device takes the largest number: what is as large, it refuses.
fn size(value: i128) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A field as expressions have it.
pub(super) trait Field {
    type Operand;
    fn operand(self) -> Self::Operand;
}

macro_rules! fields {
    ($($number:ty),*; $($kept:ty),*) => {
        $(impl Field for $number {
            type Operand = i128;
            fn operand(self) -> i128 {
                self.into()
            }
        })*
        $(impl Field for $kept {
            type Operand = $kept;
            fn operand(self) -> $kept {
                self
            }
        })*
    };
}
fields!(i32, u32, i64; WlMask, [WlProjection; 3]);

/// The quotient, rounded up.
pub(super) fn ceil_div(a: i128, b: i128) -> i128 {
    (a + b - 1) / b
}

/// The next power of two from a number of 1 or more on.
pub(super) fn pow2_ceil(a: i128) -> i128 {
    (a.max(1) as u128).next_power_of_two() as i128
}

/// One of two numbers.
pub(super) fn select(condition: bool, yes: impl Into<i128>, no: impl Into<i128>) -> i128 {
    if condition { yes.into() } else { no.into() }
}

/// Of a struct, with the fields and the constants of `params` that the expressions name: values, then sizes. Of
/// scratch the field that has the address, the bytes, and how many of them are zeros before and after every launch.
/// What may stand in an expression, the manifest says.
macro_rules! geometry {
    (
        $params:ident { $($field:ident),* $(,)? } [$($constant:ident),* $(,)?]
        $(let $name:ident = $value:expr;)*
        grid: [$x:expr, $y:expr, $z:expr],
        block: $block:expr,
        shared: $shared:expr,
        $(scratch: { $($range:ident: $bytes:expr, $zeros:expr;)* },)?
    ) => {{
        #[allow(unused_imports)]
        use $crate::kernels::geometry::{Field, Geometry, Sizes, Text, ceil_div, pow2_ceil, select};
        #[allow(unused_imports)]
        use std::cmp::{max, min};
        fn of(p: &$params) -> Sizes {
            $(const $constant: i128 = $crate::kernels::params::$constant as i128;)*
            $(let $field = Field::operand(p.$field);)*
            $(let $name = i128::from($value);)*
            let _ = p;
            let ranges: &[i128] = &[$($($bytes),*)?];
            let _: &[i128] = &[$($($zeros),*)?];
            Sizes {
                grid: [$x, $y, $z],
                block: $block,
                shared: $shared,
                scratch: [0, 1].map(|i| ranges.get(i).copied().unwrap_or(0)),
            }
        }
        Geometry {
            of,
            text: Text {
                values: &[$((stringify!($name), stringify!($value))),*],
                grid: [stringify!($x), stringify!($y), stringify!($z)],
                block: stringify!($block),
                shared: stringify!($shared),
                scratch: &[$($((stringify!($range), stringify!($bytes), stringify!($zeros))),*)?],
            },
        }
    }};
}
pub(super) use geometry;
