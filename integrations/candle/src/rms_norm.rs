//! RMSNorm.

use bytemuck::Pod;
use candle_core::{
    CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage,
};
use half::{bf16, f16};
use warploom::{
    driver::{Stream, View, ViewMut},
    kernels::{RmsNormArgs, Rows, RowsMut},
};

use crate::{
    device::{self, Kernels, Simulated},
    layout::{Argument, Span},
};

const OP: &str = "rms_norm";

/// y = round(weight · round(x / √(mean(x²) + eps))) over the last dimension: `(…, width)` and `(width)` to `(…, width)`, in
/// bf16, f16 or f32. Rounded where Hugging Face's `LlamaRMSNorm` and candle's `rms_norm_slow` round.
///
/// `x` is used with its strides where all its rows are equally far apart. There is no gradient.
///
/// # Errors
/// Types, shapes and layouts that do not fit, an `eps` that is negative or not finite, tensors on different devices, and what the
/// device says.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps })
}

/// [`rms_norm`] as an operation of x and weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean of squares.
    pub eps: f32,
}

/// A call of which the arguments have been checked.
struct Call {
    eps: f32,
    dtype: DType,
    rows: usize,
    width: usize,
    stride: usize,
    x: Span,
    weight: Span,
}

impl RmsNorm {
    fn check(&self, x: (&Layout, DType), weight: (&Layout, DType)) -> Result<Call> {
        let x = Argument { op: OP, name: "x", layout: x.0, dtype: x.1 };
        let weight = Argument { op: OP, name: "weight", layout: weight.0, dtype: weight.1 };
        x.check_type(&[DType::BF16, DType::F16, DType::F32])?;
        weight.check_same_type(&x)?;
        x.check_not_empty()?;
        let [features] = weight.dims_as("(width)")?;
        let (width, elements) = (*x.dims().last().unwrap_or(&0), x.layout.shape().elem_count());
        if features != width {
            return weight.refuse(format!("has {features} features and x {width}, its last dimension"));
        }
        weight.rows(1)?;
        Ok(Call {
            eps: self.eps,
            dtype: x.dtype,
            rows: elements / width,
            width,
            stride: x.rows(1)?,
            x: x.span()?,
            weight: weight.span()?,
        })
    }
}

impl Call {
    fn launch(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        x: View,
        weight: View,
        y: ViewMut,
    ) -> warploom::Result<()> {
        let &Call { eps, dtype, rows, width, stride, .. } = self;
        let args = RmsNormArgs {
            dtype: device::dtype(dtype),
            rows,
            width,
            eps,
            x: Rows { view: x, stride },
            residual: None,
            weight,
            y: RowsMut { view: y, stride: width },
            stats: None,
            positions: None,
        };
        kernels.rms_norm.launch(stream, &args)
    }

    fn simulate<T: Pod + WithDType>(&self, x: &CpuStorage, weight: &CpuStorage) -> Result<CpuStorage> {
        let on = Simulated::new(OP)?;
        let (x, weight) =
            (on.upload(x.as_slice::<T>()?, self.x)?, on.upload(weight.as_slice::<T>()?, self.weight)?);
        let mut y = on.allocate(self.rows * self.width * size_of::<T>())?;
        self.launch(on.kernels, &on.stream, x.view(), weight.view(), y.view_mut())
            .map_err(device::failed(OP))?;
        on.download::<T>(&y)
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let call = self.check((x_layout, x.dtype()), (weight_layout, weight.dtype()))?;
        let y = match call.dtype {
            DType::BF16 => call.simulate::<bf16>(x, weight),
            DType::F16 => call.simulate::<f16>(x, weight),
            _ => call.simulate::<f32>(x, weight),
        };
        Ok((y?, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        weight: &candle_core::CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let call = self.check((x_layout, x.dtype()), (weight_layout, weight.dtype()))?;
        let y = match call.dtype {
            DType::BF16 => call.run::<bf16>(x, weight),
            DType::F16 => call.run::<f16>(x, weight),
            _ => call.run::<f32>(x, weight),
        };
        Ok((y?, x_layout.shape().clone()))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{
        CudaStorage, Result, WithDType,
        backend::BackendStorage,
        cuda_backend::{CudaDType, cudarc::driver::DeviceRepr},
    };
    use warploom::driver::interop;

    use super::{Call, OP};
    use crate::device::{self, failed};

    impl Call {
        pub fn run<T: CudaDType + DeviceRepr + WithDType>(
            &self,
            x: &CudaStorage,
            weight: &CudaStorage,
        ) -> Result<CudaStorage> {
            let device = x.device();
            let kernels = device::cuda::kernels(device).map_err(failed(OP))?;
            let stream = device.cuda_stream();
            let on = interop::stream(&kernels.driver, &stream).map_err(failed(OP))?;
            // SAFETY: the kernel writes all of it.
            let mut y = unsafe { device.alloc::<T>(self.rows * self.width)? };
            {
                let x = interop::read(x.as_cuda_slice::<T>()?, &stream);
                let weight = interop::read(weight.as_cuda_slice::<T>()?, &stream);
                let mut y = interop::write(&mut y, &stream);
                let (x, weight) = (
                    x.view().slice(self.x.bytes(self.dtype)),
                    weight.view().slice(self.weight.bytes(self.dtype)),
                );
                self.launch(kernels, &on, x, weight, y.view_mut()).map_err(failed(OP))?;
            }
            Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
        }
    }
}
