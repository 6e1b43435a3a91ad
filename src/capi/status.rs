//! What functions return: a status, and words for the thread that called.

use std::{
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::abi::{
    WL_ERROR_ARGUMENT, WL_ERROR_DEVICE, WL_ERROR_INTERNAL, WL_ERROR_MEMORY, WL_ERROR_NULL, WL_ERROR_VERSION,
    WL_OK,
};
use crate::{error::Error, kernels::params::WL_VERSION};

thread_local! {
    static SAID: RefCell<CString> = RefCell::default();
}

/// Why a function fails.
pub(super) enum Failure {
    Null(&'static str),
    /// What was given, the type of its struct, and the version there.
    Version(&'static str, &'static str, u32),
    Crate(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Crate(error)
    }
}

pub(super) type Outcome = Result<(), Failure>;

/// Runs a function's work; what goes wrong becomes its status and the thread's words.
pub(super) fn status(work: impl FnOnce() -> Outcome) -> i32 {
    // What the work leaves behind is behind locks that bear it, or the caller's to throw away.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let (status, words) = match outcome {
        Ok(Ok(())) => return WL_OK as i32,
        Ok(Err(Failure::Null(what))) => (WL_ERROR_NULL, format!("{what} is null")),
        Ok(Err(Failure::Version(what, kind, found))) => (
            WL_ERROR_VERSION,
            format!(
                "{what} ({kind}): version is {found}, this library's is {WL_VERSION}: compile with its header, and set the field"
            ),
        ),
        Ok(Err(Failure::Crate(error))) => {
            let status = match &error {
                Error::Argument { .. } => WL_ERROR_ARGUMENT,
                Error::Capacity { .. } => WL_ERROR_MEMORY,
                // Files are the simulator's, of the kernels that WARPLOOM_PTX names.
                Error::Device { .. } | Error::Io { .. } | Error::File { .. } => WL_ERROR_DEVICE,
                _ => WL_ERROR_INTERNAL,
            };
            (status, error.to_string())
        }
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).into()));
            (WL_ERROR_INTERNAL, format!("a fault of warploom's: {}", words.unwrap_or_default()))
        }
    };
    let words = CString::new(words.replace('\0', "\\0")).unwrap_or_default();
    // A thread that is ending has lost its words.
    let _ = SAID.try_with(|said| *said.borrow_mut() = words);
    status as i32
}

/// The version of the structs.
#[unsafe(no_mangle)]
pub extern "C" fn wl_version() -> u32 {
    WL_VERSION
}

/// The library's release.
#[unsafe(no_mangle)]
pub extern "C" fn wl_release() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What went wrong in the thread's last call that failed.
#[unsafe(no_mangle)]
pub extern "C" fn wl_error() -> *const c_char {
    // A thread that is ending has lost its words.
    SAID.try_with(|said| said.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// What `pointer` points to.
///
/// # Safety
/// If it is not null, it points to a T that stays there as long as the reference.
pub(super) unsafe fn given<'t, T>(pointer: *const T, what: &'static str) -> Result<&'t T, Failure> {
    aligned(pointer, what)?;
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { &*pointer })
}

/// The place that `pointer` points to, for a result.
///
/// # Safety
/// As [`given`], and nobody else may use it meanwhile.
pub(super) unsafe fn place<'t, T>(pointer: *mut T, what: &'static str) -> Result<&'t mut T, Failure> {
    aligned(pointer, what)?;
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { &mut *pointer })
}

/// Neither null nor misaligned.
pub(super) fn aligned<T>(pointer: *const T, what: &'static str) -> Outcome {
    if pointer.is_null() {
        return Err(Failure::Null(what));
    }
    if !pointer.is_aligned() {
        let reason = format!("points to {pointer:p}, which is no multiple of {}", align_of::<T>());
        return Err(Error::argument(what, reason).into());
    }
    Ok(())
}

/// A struct that begins with its version, which is this library's.
///
/// # Safety
/// As [`given`], if the version is this library's; else it points to an u32 at least.
pub(super) unsafe fn versioned<'t, T>(pointer: *const T, what: &'static str) -> Result<&'t T, Failure> {
    aligned(pointer, what)?;
    // SAFETY: not null, aligned for T, which begins with an u32, and the caller's promise.
    match unsafe { *pointer.cast::<u32>() } {
        // SAFETY: the caller's promise.
        WL_VERSION => Ok(unsafe { &*pointer }),
        found => {
            let kind = std::any::type_name::<T>();
            Err(Failure::Version(what, kind.rsplit("::").next().unwrap_or(kind), found))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn words() -> String {
        // SAFETY: a string of this thread's, read before the next call.
        unsafe { CStr::from_ptr(wl_error()) }.to_str().unwrap().to_string()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        let work = || -> Outcome { panic!("of {}", 7) };
        assert_eq!(status(work), WL_ERROR_INTERNAL as i32);
        assert_eq!(words(), "a fault of warploom's: of 7");
        let work = || -> Outcome { std::panic::panic_any(7) };
        assert_eq!(status(work), WL_ERROR_INTERNAL as i32);
    }

    /// Destructors of a thread's variables may call, too, and may come after that of the words.
    #[test]
    fn a_thread_that_ends_still_gets_its_status() {
        struct Late(std::sync::mpsc::Sender<i32>);
        impl Drop for Late {
            fn drop(&mut self) {
                let failed = status(|| Err(Failure::Null("late")));
                let _ = wl_error();
                self.0.send(failed).unwrap();
            }
        }
        thread_local! {
            static LATE: RefCell<Option<Late>> = RefCell::default();
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // Used first, it is dropped last, when the words are gone.
            LATE.with(|late| *late.borrow_mut() = Some(Late(sender)));
            status(|| Err(Failure::Null("early")))
        });
        assert_eq!(thread.join().unwrap(), WL_ERROR_NULL as i32);
        assert_eq!(receiver.recv().unwrap(), WL_ERROR_NULL as i32);
    }
}
