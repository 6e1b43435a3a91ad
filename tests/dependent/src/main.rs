//! Runs `norm.c`. Its calls end in the crate, which is linked because it is named here.
use std::{
    ffi::{CStr, c_char},
    process::ExitCode,
};

use warploom as _;

unsafe extern "C" {
    fn norm(device: *const c_char) -> i32;
}

fn main() -> ExitCode {
    let name: &CStr = c"sim";
    // SAFETY: a string with its zero.
    let wrong = unsafe { norm(name.as_ptr()) };
    let entries = include_str!(env!("RMS_NORM_PTX")).matches(".entry wl_rms_norm_").count();
    println!("a dependent's C: {wrong} of 1024 numbers are wrong; {entries} entries in rms_norm.ptx");
    ExitCode::from(u8::from(wrong != 0 || entries == 0))
}
