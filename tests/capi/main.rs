//! The functions of C, as C calls them: what they compute is what the kernels of their names do, and what they are given wrong is refused.
#![cfg(feature = "capi")]

mod header;
mod refusals;
mod results;

use std::{ffi::CStr, ptr};

use warploom::capi::{abi::*, *};

fn words() -> String {
    // SAFETY: a string of the library's, read before the next call.
    unsafe { CStr::from_ptr(wl_error()) }.to_str().unwrap().to_string()
}

fn ok(status: i32) {
    assert_eq!(status, WL_OK as i32, "{}", words());
}

/// A simulated device with a stream.
struct Rig {
    device: *mut WlDevice,
    stream: *mut WlStream,
}

impl Rig {
    fn new() -> Self {
        let (mut device, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: places for what is made.
        unsafe {
            ok(wl_device_open(c"sim".as_ptr(), &mut device));
            ok(wl_stream_create(device, &mut stream));
        }
        Rig { device, stream }
    }

    /// So many zeros.
    fn zeros(&self, bytes: usize) -> WlView {
        let mut view = WlView::default();
        // SAFETY: device and stream are there.
        unsafe {
            ok(wl_allocate(self.device, bytes as u64, &mut view));
            ok(wl_fill(self.stream, view, 0));
        }
        view
    }

    /// Scratch that is zeros; none where none is needed.
    fn scratch(&self, bytes: u64) -> WlView {
        if bytes > 0 { self.zeros(bytes as usize) } else { WlView::default() }
    }

    fn of<T: bytemuck::NoUninit>(&self, data: &[T]) -> WlView {
        let view = self.zeros(size_of_val(data));
        // SAFETY: as many bytes as the view has.
        unsafe { ok(wl_upload(self.stream, view, data.as_ptr().cast())) };
        view
    }

    fn read<T: bytemuck::Pod>(&self, view: WlView) -> Vec<T> {
        let mut data = vec![T::zeroed(); view.bytes as usize / size_of::<T>()];
        // SAFETY: as many bytes as the view has.
        unsafe { ok(wl_download(self.stream, data.as_mut_ptr().cast(), view)) };
        data
    }

    /// Rows of bf16.
    fn rows(&self, rows: usize, width: usize) -> WlMatrix {
        WlMatrix { view: self.zeros(2 * rows * width), stride: width as u64 }
    }

    fn floats(&self, rows: usize, width: usize) -> WlMatrix {
        WlMatrix { view: self.zeros(4 * rows * width), stride: width as u64 }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe {
            // The stream outlives its device.
            ok(wl_device_close(self.device));
            ok(wl_stream_destroy(self.stream));
        }
    }
}

fn layout() -> WlPageLayout {
    let (pages, page_size, kv_heads, head_dim) = (3, 16, 2, 64);
    WlPageLayout {
        pages,
        page_size,
        kv_heads,
        head_dim,
        page_stride: page_size * kv_heads * head_dim,
        head_stride: page_size * head_dim,
        slot_stride: head_dim,
    }
}
