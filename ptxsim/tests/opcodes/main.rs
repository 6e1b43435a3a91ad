//! Every opcode against a reference in plain Rust that shares nothing with `ptxsim::numerics`.
//!
//! Start from `harness`: it makes a kernel of one instruction, runs it on a table of operands and compares all results.

mod atomics;
mod compare;
mod control;
mod convert;
mod float;
mod half_types;
mod harness;
mod integer;
mod matrix;
mod memory;
mod refusals;
mod rounding;
mod text;
mod warp;
