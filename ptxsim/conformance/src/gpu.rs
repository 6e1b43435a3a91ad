//! Cases on a GPU, through the driver.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fs,
    path::PathBuf,
    sync::Arc,
};

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DriverError, result, sys};

use crate::{Error, Identity, Outcome, Result, Runner, Source, cases::Case};

/// The kernels are PTX 9.0, which CUDA 13.0 brought.
const OLDEST_CUDA: i32 = 13000;

/// What is loaded onto the GPU.
#[derive(Clone, Debug)]
pub enum Image {
    /// The kernels' PTX, which the driver compiles.
    Ptx,
    /// A folder with one fatbin for each file of kernels, such as `scalar.fatbin`.
    Fatbins(PathBuf),
}

/// A GPU with its kernels.
pub struct Gpu {
    name: String,
    stream: Arc<CudaStream>,
    modules: HashMap<&'static str, sys::CUmodule>,
    image: Image,
    capability: u32,
    identity: Identity,
}

impl Gpu {
    /// The GPU with that number.
    ///
    /// # Errors
    /// [`Error::Driver`] if there is no driver, an older one than the kernels need, or no such GPU.
    pub fn new(ordinal: usize, image: Image) -> Result<Gpu> {
        let name = format!("cuda:{ordinal}");
        let refuse = |message: String| Error::Driver { device: name.clone(), message };
        let failed = |what: &str, e: DriverError| refuse(format!("{what}: {}", words(e)));
        // SAFETY: looks for the library and loads it; NVIDIA's runs no code of ours then.
        if !unsafe { sys::is_culib_present() } {
            return Err(refuse("no NVIDIA driver: libcuda.so.1 is not there; run on a machine with a GPU, or with --device sim".into()));
        }
        let mut version = 0;
        // SAFETY: writes one int, and may be called before anything else.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|e| failed("the driver's version", e))?;
        if version < OLDEST_CUDA {
            return Err(refuse(format!(
                "its driver runs CUDA {} at most; the kernels need 13.0, so driver 580 or newer",
                cuda_version(version)
            )));
        }
        let count = CudaContext::device_count().map_err(|e| failed("the driver", e))?;
        if ordinal >= count.max(0) as usize {
            return Err(refuse(format!("there is no such GPU; the driver sees {count}")));
        }
        let context = CudaContext::new(ordinal).map_err(|e| failed("making a context", e))?;
        let (major, minor) = context.compute_capability().map_err(|e| failed("the compute capability", e))?;
        let kernel_driver = fs::read_to_string("/proc/driver/nvidia/version").ok();
        let kernel_driver = kernel_driver.as_deref().and_then(kernel_driver_version);
        let identity = Identity {
            device: context.name().map_err(|e| failed("the name", e))?,
            compute_capability: Some(format!("{major}.{minor}")),
            driver: Some(format!("{}, CUDA {}", kernel_driver.unwrap_or("unknown"), cuda_version(version))),
            code: match image {
                Image::Ptx => "PTX, compiled by the driver".into(),
                Image::Fatbins(_) => "fatbin".into(),
            },
            date: Identity::today(),
        };
        let capability = (major * 10 + minor).max(0) as u32;
        Ok(Gpu {
            name,
            stream: context.default_stream(),
            modules: HashMap::new(),
            image,
            capability,
            identity,
        })
    }

    fn module(&mut self, source: Source) -> Result<sys::CUmodule> {
        if let Some(module) = self.modules.get(source.name) {
            return Ok(*module);
        }
        let (what, image) = match &self.image {
            Image::Ptx => (source.name.to_string(), source.ptx.as_bytes().to_vec()),
            Image::Fatbins(folder) => {
                let path = folder.join(source.stem()).with_extension("fatbin");
                let image = fs::read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
                (path.display().to_string(), image)
            }
        };
        // PTX text ends in a zero; behind a fatbin one is ignored.
        let image = [image, vec![0]].concat();
        self.stream.context().bind_to_thread().map_err(|e| self.failed("the context", e))?;
        // SAFETY: the image is a whole fatbin or PTX text with a zero at its end, and the driver copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(|e| self.failed(&format!("loading {what}"), e))?;
        self.modules.insert(source.name, module);
        Ok(module)
    }

    fn failed(&self, what: &str, e: DriverError) -> Error {
        Error::Driver { device: self.name.clone(), message: format!("{what}: {}", words(e)) }
    }

    fn launch(&self, module: sys::CUmodule, case: &Case) -> std::result::Result<Vec<u8>, DriverError> {
        let entry = CString::new(case.entry.as_str()).expect("a kernel's name that PTX has holds no zero");
        // SAFETY: the module is loaded and never unloaded.
        let function = unsafe { result::module::get_function(module, entry) }?;
        let input = self.stream.clone_htod(&case.input)?;
        let mut output = self.stream.clone_htod(&vec![0xff_u8; case.output_bytes()])?;
        {
            let (mut input, _reading) = input.device_ptr(&self.stream);
            let (mut output, _writing) = output.device_ptr_mut(&self.stream);
            let mut n = case.n;
            let mut parameters: [*mut c_void; 3] =
                [(&raw mut input).cast(), (&raw mut output).cast(), (&raw mut n).cast()];
            // SAFETY: three parameters as the kernels of README.md take them; the buffers outlive the launch.
            unsafe {
                result::launch_kernel(
                    function,
                    (case.blocks(), 1, 1),
                    (32, 1, 1),
                    0,
                    self.stream.cu_stream(),
                    &mut parameters,
                )
            }?;
        }
        self.stream.synchronize()?;
        self.stream.clone_dtoh(&output)
    }
}

impl Runner for Gpu {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn run(&mut self, case: &Case) -> Result<Outcome> {
        let target = case.source.target();
        if target > self.capability {
            return Ok(Outcome::NotRun(format!("it needs sm_{target}, the GPU is sm_{}", self.capability)));
        }
        let module = self.module(case.source)?;
        let output = self.launch(module, case);
        output.map(Outcome::Output).map_err(|e| Error::Kernel { case: case.name.clone(), message: words(e) })
    }
}

/// The driver's name for an error and what it says of it.
fn words(e: DriverError) -> String {
    let said = e.error_string().ok().map(|text| format!(" ({})", text.to_string_lossy()));
    format!("{:?}{}", e.0, said.unwrap_or_default())
}

fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The version in /proc/driver/nvidia/version: the first word that begins like 580.65.
fn kernel_driver_version(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| {
        let mut parts = word.split('.');
        let mut number =
            || parts.next().is_some_and(|p| p.len() > 1 && p.bytes().all(|b| b.is_ascii_digit()));
        number() && number()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_versions() {
        let text =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)";
        assert_eq!(kernel_driver_version(text), Some("580.65.06"));
        assert_eq!(kernel_driver_version("no driver"), None);
        assert_eq!(cuda_version(13010), "13.1");
    }
}
