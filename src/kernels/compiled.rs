//! The kernels as build.rs made them: machine code, PTX and what the compiler says of each entry.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
