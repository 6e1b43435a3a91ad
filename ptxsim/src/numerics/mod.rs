//! The arithmetic of PTX instructions as pure functions on bits.
//!
//! Registers hold bits, so every function takes and returns them (`u32`, `u64`, or `u16` for the 16-bit types) and
//! keeps no state: the executor calls one per lane. Start from the file of the instruction's type: [`integer`],
//! [`float`] (f32, f64), [`half`] (f16, bf16 and their packed pairs), [`convert`] (every `cvt`), [`matrix`] (`mma.sync`).
//! All of them rest on [`exact`], which rounds an exact value to any format in any mode.
//!
//! Results are the same on every machine: transcendental functions come from polynomials here or from the `libm`
//! crate, never from the system's library. Where PTX allows an error (`.approx`), results are within the ISA's bound but
//! are not the hardware's bits.

pub mod convert;
pub mod exact;
pub mod float;
pub mod half;
pub mod integer;
pub mod matrix;
