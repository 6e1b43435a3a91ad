//! The kernels, loaded once for each device.

use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use candle_core::{CpuStorage, Error, Result, WithDType};
use warploom::{
    driver::{Buffer, Driver, Policy, Simulator, Stream},
    kernels::{AttentionDecode, AttentionPrefill, Dtype, RmsNorm},
};

use crate::layout::Span;

/// Kernels on one device.
pub(crate) struct Kernels {
    pub driver: Arc<dyn Driver>,
    pub rms_norm: RmsNorm,
    pub decode: AttentionDecode,
    pub prefill: AttentionPrefill,
}

impl Kernels {
    fn load(driver: Arc<dyn Driver>) -> warploom::Result<Self> {
        Ok(Kernels {
            rms_norm: RmsNorm::load(&driver)?,
            decode: AttentionDecode::load(&driver)?,
            prefill: AttentionPrefill::load(&driver)?,
            driver,
        })
    }
}

/// What warploom says of an operation, as candle's error.
pub(crate) fn failed(op: &'static str) -> impl Fn(warploom::Error) -> Error {
    move |e| Error::Msg(format!("{op}: {e}")).bt()
}

/// The type that candle calls by the same name.
pub(crate) fn dtype(of: candle_core::DType) -> Dtype {
    match of {
        candle_core::DType::BF16 => Dtype::Bf16,
        candle_core::DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    }
}

/// The simulated GPU that stands for candle's CPU.
fn simulator(op: &'static str) -> Result<&'static Kernels> {
    static SIMULATED: OnceLock<warploom::Result<Kernels>> = OnceLock::new();
    let loaded = SIMULATED.get_or_init(|| Kernels::load(Arc::new(Simulator::new(Policy::default()))));
    loaded.as_ref().map_err(|e| Error::Msg(format!("{op}: {e}")).bt())
}

/// A call on the simulator.
pub(crate) struct Simulated {
    pub kernels: &'static Kernels,
    pub stream: Stream,
    op: &'static str,
}

impl Simulated {
    pub fn new(op: &'static str) -> Result<Self> {
        let kernels = simulator(op)?;
        Ok(Simulated { kernels, stream: Stream::new(&kernels.driver).map_err(failed(op))?, op })
    }

    /// A copy of what the span has, and nothing around it: what is read beyond is reported.
    pub fn upload<T: Pod>(&self, data: &[T], span: Span) -> Result<Buffer> {
        Buffer::from_slice(&self.stream, &data[span.range()]).map_err(failed(self.op))
    }

    /// Memory for so many bytes.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(&self.kernels.driver, bytes).map_err(failed(self.op))
    }

    /// What a buffer has.
    pub fn download<T: Pod + WithDType>(&self, from: &Buffer) -> Result<CpuStorage> {
        let mut data = vec![T::zeroed(); from.bytes() / size_of::<T>()];
        self.stream.download(from.view(), &mut data).map_err(failed(self.op))?;
        Ok(T::to_cpu_storage_owned(data))
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    //! GPUs: kernels by GPU, which all of its streams share.

    use std::{
        cell::RefCell,
        collections::BTreeMap,
        rc::Rc,
        sync::{Mutex, PoisonError},
    };

    use candle_core::{
        CudaDevice, Result,
        cuda_backend::{DeviceId, cudarc::driver::CudaSlice},
    };
    use warploom::driver::interop;

    use super::Kernels;

    /// The kernels of a device's GPU. The first call for a GPU loads them.
    pub fn kernels(device: &CudaDevice) -> warploom::Result<&'static Kernels> {
        static LOADED: Mutex<BTreeMap<usize, &'static Kernels>> = Mutex::new(BTreeMap::new());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = device.cuda_stream();
        let ordinal = stream.context().ordinal();
        if let Some(kernels) = loaded.get(&ordinal) {
            return Ok(kernels);
        }
        let driver = interop::device(stream.context())?;
        // For good: a process has few GPUs.
        let kernels: &'static Kernels = Box::leak(Box::new(Kernels::load(driver)?));
        loaded.insert(ordinal, kernels);
        Ok(kernels)
    }

    /// Most arrays that a thread keeps.
    const KEPT: usize = 32;

    type Kept = (DeviceId, Vec<i32>, Rc<CudaSlice<i32>>);

    thread_local! {
        // By thread, as candle's streams are: nothing orders an upload on one before a launch on another.
        static NUMBERS: RefCell<Vec<Kept>> = const { RefCell::new(vec![]) };
    }

    /// These numbers in the device's memory: uploaded where they are not among those that the thread used last.
    pub fn numbers(device: &CudaDevice, numbers: Vec<i32>) -> Result<Rc<CudaSlice<i32>>> {
        NUMBERS.with_borrow_mut(|kept| {
            if let Some(i) = kept.iter().position(|(id, of, _)| *id == device.id() && *of == numbers) {
                kept[..=i].rotate_right(1);
            } else {
                let slice = Rc::new(device.clone_htod(&numbers)?);
                kept.truncate(KEPT - 1);
                kept.insert(0, (device.id(), numbers, slice));
            }
            Ok(kept[0].2.clone())
        })
    }
}
