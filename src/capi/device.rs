//! Devices, streams and memory.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_void},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    abi::{WlProperties, WlView},
    status::{Failure, Outcome, aligned, given, place, status, versioned},
};
use crate::{
    driver::{self, Buffer, Driver, Stream, View, ViewMut},
    error::{Error, Result},
    kernels::{
        Accept, Adamw, AttentionDecode, AttentionPrefill, Embed, Gemm, Linear, QuantizeFp8Rows, RmsNorm,
        RopeAppend, Sample, Swiglu,
    },
};

/// A device with the kernels that have been used.
pub struct WlDevice(Arc<Shared>);

/// Work that happens in order.
pub struct WlStream {
    pub(super) stream: Stream,
    pub(super) device: Arc<Shared>,
}

/// What a device and its streams share.
pub(super) struct Shared {
    driver: Arc<dyn Driver>,
    pub kernels: Kernels,
    /// What `wl_allocate` gave out, by address.
    allocated: Mutex<BTreeMap<u64, Buffer>>,
}

/// A kernel that is loaded when it is used first.
pub(super) struct Lazy<K>(OnceLock<K>, fn(&Arc<dyn Driver>) -> Result<K>);

impl<K> Lazy<K> {
    const fn new(load: fn(&Arc<dyn Driver>) -> Result<K>) -> Self {
        Lazy(OnceLock::new(), load)
    }

    /// The kernel, loaded.
    pub fn on(&self, device: &Shared) -> Result<&K> {
        match self.0.get() {
            Some(kernel) => Ok(kernel),
            // Of two threads at once one loads it in vain.
            None => (self.1)(&device.driver).map(|kernel| self.0.get_or_init(|| kernel)),
        }
    }
}

/// All kernels.
pub(super) struct Kernels {
    pub accept: Lazy<Accept>,
    pub adamw: Lazy<Adamw>,
    pub attention_decode: Lazy<AttentionDecode>,
    pub attention_prefill: Lazy<AttentionPrefill>,
    pub embed: Lazy<Embed>,
    pub gemm: Lazy<Gemm>,
    pub linear: Lazy<Linear>,
    pub quantize_fp8_rows: Lazy<QuantizeFp8Rows>,
    pub rms_norm: Lazy<RmsNorm>,
    pub rope_append: Lazy<RopeAppend>,
    pub sample: Lazy<Sample>,
    pub swiglu: Lazy<Swiglu>,
}

impl Shared {
    fn load_all(&self) -> Result<()> {
        let kernels = &self.kernels;
        kernels.accept.on(self)?;
        kernels.adamw.on(self)?;
        kernels.attention_decode.on(self)?;
        kernels.attention_prefill.on(self)?;
        kernels.embed.on(self)?;
        kernels.gemm.on(self)?;
        kernels.linear.on(self)?;
        kernels.quantize_fp8_rows.on(self)?;
        kernels.rms_norm.on(self)?;
        kernels.rope_append.on(self)?;
        kernels.sample.on(self)?;
        kernels.swiglu.on(self).map(|_| ())
    }

    fn allocated(&self) -> MutexGuard<'_, BTreeMap<u64, Buffer>> {
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A size as this machine has it.
pub(super) fn size(argument: &'static str, value: u64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Error::argument(argument, format!("{value} exceeds the address space")))
}

/// A range of memory that is not null, within an address space.
fn range(argument: &'static str, view: WlView) -> std::result::Result<(u64, usize), Failure> {
    let WlView { address, bytes } = view;
    if address == 0 {
        return Err(Failure::Null(argument));
    }
    match isize::try_from(bytes) {
        Ok(size) if address.checked_add(bytes).is_some() => Ok((address, size as usize)),
        _ => {
            let reason = format!("{bytes} bytes at {address:#x} exceed the address space");
            Err(Error::argument(argument, reason).into())
        }
    }
}

/// A view to read. The caller of a function of C has promised what [`View::from_raw`] asks for.
pub(super) fn view(argument: &'static str, view: WlView) -> std::result::Result<View<'static>, Failure> {
    let (address, bytes) = range(argument, view)?;
    // SAFETY: the promise of the header: memory stays allocated until the work is done.
    Ok(unsafe { View::from_raw(address, bytes) })
}

/// A view to write.
pub(super) fn view_mut(
    argument: &'static str,
    view: WlView,
) -> std::result::Result<ViewMut<'static>, Failure> {
    let (address, bytes) = range(argument, view)?;
    // SAFETY: the promise of the header: also that nothing else uses it at that time.
    Ok(unsafe { ViewMut::from_raw(address, bytes) })
}

/// Opens a device.
///
/// # Safety
/// `name` is a string with its zero, and `device` a place for a pointer, or they are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_device_open(name: *const c_char, device: *mut *mut WlDevice) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (name, device) = unsafe { (given(name, "name")?, place(device, "device")?) };
        // SAFETY: as above.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let shared = Shared {
            driver: driver::open(&name)?,
            kernels: Kernels {
                accept: Lazy::new(Accept::load),
                adamw: Lazy::new(Adamw::load),
                attention_decode: Lazy::new(AttentionDecode::load),
                attention_prefill: Lazy::new(AttentionPrefill::load),
                embed: Lazy::new(Embed::load),
                gemm: Lazy::new(Gemm::load),
                linear: Lazy::new(Linear::load),
                quantize_fp8_rows: Lazy::new(QuantizeFp8Rows::load),
                rms_norm: Lazy::new(RmsNorm::load),
                rope_append: Lazy::new(RopeAppend::load),
                sample: Lazy::new(Sample::load),
                swiglu: Lazy::new(Swiglu::load),
            },
            allocated: Mutex::default(),
        };
        *device = Box::into_raw(Box::new(WlDevice(Arc::new(shared))));
        Ok(())
    })
}

/// Closes a device; its streams still work.
///
/// # Safety
/// `device` is of [`wl_device_open`], open, and used by no other call, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_device_close(device: *mut WlDevice) -> i32 {
    // SAFETY: the caller's promise.
    status(|| unsafe { close(device, "device") })
}

/// # Safety
/// Made by `Box::into_raw` and not closed, or null.
unsafe fn close<T>(pointer: *mut T, what: &'static str) -> Outcome {
    aligned(pointer, what)?;
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(pointer) });
    Ok(())
}

/// What a device is.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_device_properties(device: *const WlDevice, properties: *mut WlProperties) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (device, version) =
            unsafe { (given(device, "device")?, versioned(properties, "properties")?.version) };
        let found = device.0.driver.properties();
        let mut told = WlProperties {
            version,
            capability_major: found.capability.0,
            capability_minor: found.capability.1,
            multiprocessors: found.multiprocessors,
            memory_bytes: found.memory_bytes,
            l2_bytes: found.l2_bytes,
            ..WlProperties::default()
        };
        let room = told.name.len() - 1;
        for (to, byte) in told.name[..room].iter_mut().zip(found.name.bytes()) {
            *to = byte as c_char;
        }
        // SAFETY: the caller's promise.
        unsafe { *place(properties, "properties")? = told };
        Ok(())
    })
}

/// Loads all kernels.
///
/// # Safety
/// `device` is open, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_device_load(device: *const WlDevice) -> i32 {
    // SAFETY: the caller's promise.
    status(|| Ok(unsafe { given(device, "device")? }.0.load_all()?))
}

/// Allocates device memory.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_allocate(device: *const WlDevice, bytes: u64, to: *mut WlView) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (device, to) = unsafe { (given(device, "device")?, place(to, "view")?) };
        let buffer = Buffer::new(&device.0.driver, size("bytes", bytes)?)?;
        *to = WlView { address: buffer.view().address(), bytes };
        device.0.allocated().insert(to.address, buffer);
        Ok(())
    })
}

/// Gives device memory back.
///
/// # Safety
/// `device` is open, or null; work that uses the memory has been enqueued, and no more will be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_free(device: *const WlDevice, address: u64) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let device = unsafe { given(device, "device")? };
        if address == 0 {
            return Err(Failure::Null("address"));
        }
        let buffer = device.0.allocated().remove(&address);
        let unknown =
            || Error::argument("address", format!("{address:#x} is not of wl_allocate, or was freed"));
        drop(buffer.ok_or_else(unknown)?);
        Ok(())
    })
}

/// Makes a stream.
///
/// # Safety
/// The pointers point to what their types say, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_stream_create(device: *const WlDevice, stream: *mut *mut WlStream) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (device, to) = unsafe { (given(device, "device")?, place(stream, "stream")?) };
        let stream = WlStream { stream: Stream::new(&device.0.driver)?, device: device.0.clone() };
        *to = Box::into_raw(Box::new(stream));
        Ok(())
    })
}

/// Takes a stream of CUDA's.
///
/// # Safety
/// The pointers point to what their types say, or are null; `cuda_stream` is a stream of the device's primary context that lives as long as
/// the stream made of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_stream_of_cuda(
    device: *const WlDevice,
    cuda_stream: *mut c_void,
    stream: *mut *mut WlStream,
) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (device, to) = unsafe { (given(device, "device")?, place(stream, "stream")?) };
        // SAFETY: as above.
        let stream = unsafe { Stream::from_raw(&device.0.driver, cuda_stream as u64)? };
        *to = Box::into_raw(Box::new(WlStream { stream, device: device.0.clone() }));
        Ok(())
    })
}

/// Lets kernels on a stream begin while those before them end, or not.
///
/// # Safety
/// `stream` is there, and used by no other call, or null; kernels that write weights are waited for as `warploom.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_stream_set_overlapping(stream: *mut WlStream, on: u32) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let stream = unsafe { place(stream, "stream")? };
        if on > 1 {
            return Err(Error::argument("on", format!("{on}; supported are 0 and 1")).into());
        }
        // SAFETY: as above.
        unsafe { stream.stream.set_overlapping(on == 1) };
        Ok(())
    })
}

/// Gives a stream back.
///
/// # Safety
/// `stream` is of [`wl_stream_create`] or [`wl_stream_of_cuda`], there, and used by no other call, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_stream_destroy(stream: *mut WlStream) -> i32 {
    // SAFETY: the caller's promise.
    status(|| unsafe { close(stream, "stream") })
}

/// Waits for everything on a stream.
///
/// # Safety
/// `stream` is there, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_stream_synchronize(stream: *const WlStream) -> i32 {
    // SAFETY: the caller's promise.
    status(|| Ok(unsafe { given(stream, "stream")? }.stream.synchronize()?))
}

/// Copies from the host.
///
/// # Safety
/// `stream` is there, and `from` points to `to.bytes` bytes, or they are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_upload(stream: *const WlStream, to: WlView, from: *const c_void) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (stream, from) = unsafe { (given(stream, "stream")?, given(from.cast::<u8>(), "from")?) };
        let mut to = view_mut("to", to)?;
        // SAFETY: as above.
        let from = unsafe { std::slice::from_raw_parts(from, to.bytes()) };
        Ok(stream.stream.upload(&mut to, from)?)
    })
}

/// Copies to the host, and waits for it.
///
/// # Safety
/// `stream` is there, and `to` points to room for `from.bytes` bytes, or they are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_download(stream: *const WlStream, to: *mut c_void, from: WlView) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let (stream, to) = unsafe { (given(stream, "stream")?, place(to.cast::<u8>(), "to")?) };
        let from = view("from", from)?;
        // SAFETY: as above; bytes that were not written before are not read.
        let to = unsafe { std::slice::from_raw_parts_mut(to, from.bytes()) };
        Ok(stream.stream.download(from, to)?)
    })
}

/// Copies within the device.
///
/// # Safety
/// `stream` is there, or null; the memory is the device's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_copy(stream: *const WlStream, from: WlView, to: WlView) -> i32 {
    status(|| {
        // SAFETY: the caller's promise.
        let stream = unsafe { given(stream, "stream")? };
        let (from, mut to) = (view("from", from)?, view_mut("to", to)?);
        let begins_within = |a: &View, b: u64| (a.address()..a.address() + a.bytes() as u64).contains(&b);
        if begins_within(&from, to.address()) || begins_within(&to.view(), from.address()) {
            return Err(Error::argument("to", "overlaps from").into());
        }
        Ok(stream.stream.copy(from, &mut to)?)
    })
}

/// Sets every byte.
///
/// # Safety
/// As [`wl_copy`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wl_fill(stream: *const WlStream, to: WlView, byte: u8) -> i32 {
    // SAFETY: the caller's promise.
    status(|| Ok(unsafe { given(stream, "stream")? }.stream.fill(&mut view_mut("to", to)?, byte)?))
}
