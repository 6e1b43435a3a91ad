//! cuBLASLt, looked for when it is asked for. Sections named here are of NVIDIA's cuBLAS documentation, 13.0.
//!
//! Its matrices lie by columns: out by rows, [rows, features], is what it calls D, features × rows, of A = the weight, inputs × features
//! and transposed, and B = x, inputs × rows.

use std::{ffi::c_void, ptr, sync::Arc};

use cudarc::cublaslt::{
    result::{self, CublasError},
    sys::{
        self, cublasComputeType_t as ComputeType, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
        cublasLtMatmulDescAttributes_t as DescriptionAttribute, cublasLtMatmulHeuristicResult_t,
        cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t,
        cudaDataType as DataType,
    },
};

use super::{Cuda, Driver, Handle, ProductShape, Products, Way, is_library_present};
use crate::{
    dtype::Dtype,
    error::{Error, Result},
};

/// The operation CUBLAS_OP_T.
const TRANSPOSED: i32 = 1;
/// CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE.
const REDUCTION_COMPUTE_TYPE: u32 = 2;
/// Its names, of which cudarc takes the first that is there.
const LIBRARY: [&str; 5] =
    ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12", "cublasLt64_13.dll", "cublasLt64_12.dll"];
/// The oldest version whose numbers are those used here.
const OLDEST: usize = 120_000;
/// Recommended for Hopper ("cublasSetWorkspace").
const WORKSPACE: usize = 32 << 20;

type Answer<T> = std::result::Result<T, CublasError>;

/// The library on one GPU.
pub(super) struct CublasLt(Arc<Library>);

struct Library {
    cuda: Arc<Cuda>,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
}

// SAFETY: "the cuBLASLt handle is thread safe" for products that do not share a workspace, which `Way::launch` asks for; the descriptions of
// a product are only read after they are made.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl CublasLt {
    pub fn new(cuda: Arc<Cuda>) -> Result<Self> {
        // Without the library the first call of cudarc panics.
        if !is_library_present(&LIBRARY) {
            let advice = "install CUDA's libraries, or put their folder into LD_LIBRARY_PATH";
            let reason = format!("there is no cuBLASLt (libcublasLt.so.13): {advice}");
            return Err(Error::device(cuda.name(), reason));
        }
        // SAFETY: returns a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST {
            let reason = format!("cuBLASLt is of version {version}; {OLDEST} and later are supported");
            return Err(Error::device(cuda.name(), reason));
        }
        let handle = called(&cuda, "starting cuBLASLt", result::create_handle)?;
        let workspace = cuda.allocate(WORKSPACE);
        let library = Library { workspace: *workspace.as_ref().unwrap_or(&0), cuda, handle };
        workspace.map(|_| CublasLt(Arc::new(library)))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.workspace != 0 {
            // SAFETY: its own; launches that use it are waited for.
            unsafe { self.cuda.free(self.workspace) };
        }
        // SAFETY: made by `new`; no `Way` is left, since each holds the library, and freeing the workspace has waited for the last launch.
        let _ = called(&self.cuda, "ending cuBLASLt", || unsafe { result::destroy_handle(self.handle) });
    }
}

/// Calls the library in the GPU's context, and says what was attempted if it fails.
fn called<T>(cuda: &Cuda, what: &str, work: impl FnOnce() -> Answer<T>) -> Result<T> {
    cuda.in_context(work)?.map_err(|e| Error::device(cuda.name(), format!("{what}: {:?}", e.0)))
}

impl Products for CublasLt {
    fn name(&self) -> &'static str {
        "cuBLASLt"
    }

    fn ways(&self, shape: &ProductShape, most: usize) -> Result<Vec<Box<dyn Way>>> {
        let library = &self.0;
        if !matches!(shape.dtype, Dtype::Bf16 | Dtype::F16) {
            return Ok(vec![]);
        }
        let product = Arc::new(Product::new(library.clone(), shape)?);
        let found = called(&library.cuda, "asking cuBLASLt for algorithms", || product.algorithms(most))?;
        let way = |algorithm| Box::new(Algorithm { product: product.clone(), algorithm }) as Box<dyn Way>;
        Ok(found.into_iter().map(way).collect())
    }
}

/// A product as the library describes it.
struct Product {
    library: Arc<Library>,
    description: cublasLtMatmulDesc_t,
    weight: cublasLtMatrixLayout_t,
    x: cublasLtMatrixLayout_t,
    out: cublasLtMatrixLayout_t,
    beta: f32,
}

// SAFETY: as for `Library`.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    fn new(library: Arc<Library>, shape: &ProductShape) -> Result<Self> {
        let of = match shape.dtype {
            Dtype::F16 => DataType::CUDA_R_16F,
            _ => DataType::CUDA_R_16BF,
        };
        let cuda = library.cuda.clone();
        let mut product = Product {
            library,
            description: ptr::null_mut(),
            weight: ptr::null_mut(),
            x: ptr::null_mut(),
            out: ptr::null_mut(),
            beta: if shape.add { 1.0 } else { 0.0 },
        };
        let layout = |rows: usize, columns: usize, stride: usize| {
            result::create_matrix_layout(of, rows as u64, columns as u64, stride as i64)
        };
        // What was made before one of them fails, `drop` gives back.
        called(&cuda, "describing a product to cuBLASLt", || {
            product.description =
                result::create_matmul_desc(ComputeType::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F)?;
            let attribute = DescriptionAttribute::CUBLASLT_MATMUL_DESC_TRANSA;
            let (value, bytes) = (ptr::from_ref(&TRANSPOSED).cast(), size_of_val(&TRANSPOSED));
            // SAFETY: the description has just been made, and the attribute is one operation.
            unsafe { result::set_matmul_desc_attribute(product.description, attribute, value, bytes) }?;
            product.weight = layout(shape.inputs, shape.features, shape.weight_stride)?;
            product.x = layout(shape.inputs, shape.rows, shape.x_stride)?;
            product.out = layout(shape.features, shape.rows, shape.out_stride)?;
            Ok(())
        })?;
        Ok(product)
    }

    fn algorithms(&self, most: usize) -> Answer<Vec<cublasLtMatmulAlgo_t>> {
        let preference = result::create_matmul_pref()?;
        // As `Way::launch` has them; and split sums are added in f32, not rounded to the type on their way.
        let numbers = [
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 16_u32),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 16),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 16),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 16),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTION_COMPUTE_TYPE),
        ];
        let set = || {
            let set = |attribute, value: *const c_void, bytes| {
                // SAFETY: the preference has just been made, and each attribute is a number of that size.
                unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }
            };
            let most = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            set(most, ptr::from_ref(&WORKSPACE).cast(), size_of_val(&WORKSPACE))?;
            numbers.iter().try_for_each(|(attribute, value)| {
                set(*attribute, ptr::from_ref(value).cast(), size_of_val(value))
            })
        };
        // SAFETY: all numbers, of which zeros are some; the status is that of success.
        let mut found: Vec<cublasLtMatmulHeuristicResult_t> = vec![unsafe { std::mem::zeroed() }; most];
        let mut count = 0;
        let asked = set().and_then(|()| {
            // SAFETY: the preference has just been made, the descriptions are this product's, and `found` has room for as many as are asked
            // for.
            unsafe {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.library.handle,
                    self.description,
                    self.weight,
                    self.x,
                    self.out,
                    self.out,
                    preference,
                    most as i32,
                    found.as_mut_ptr(),
                    &mut count,
                )
                .result()
            }
        });
        // SAFETY: made above, once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        match asked {
            // "If there are no heuristics": a product that the library does not have.
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(vec![]),
            asked => asked?,
        }
        found.truncate(count.max(0) as usize);
        let fits = |found: &cublasLtMatmulHeuristicResult_t| {
            found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE
        };
        Ok(found.iter().filter(|found| fits(found)).map(|found| found.algo).collect())
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: each was made once by `new` or is null.
        let _ = called(&self.library.cuda, "forgetting a product", || unsafe {
            for layout in [self.weight, self.x, self.out] {
                if !layout.is_null() {
                    result::destroy_matrix_layout(layout)?;
                }
            }
            match self.description.is_null() {
                true => Ok(()),
                false => result::destroy_matmul_desc(self.description),
            }
        });
    }
}

/// A product with the algorithm for it.
struct Algorithm {
    product: Arc<Product>,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Way for Algorithm {
    unsafe fn launch(&self, stream: Handle, x: u64, weight: u64, out: u64) -> Result<()> {
        let Product { library, description, weight: weights, x: rows, out: result, beta } = &*self.product;
        let at = |address: u64| address as *mut c_void;
        let (one, beta) = (ptr::from_ref(&1.0_f32).cast(), ptr::from_ref(beta).cast());
        let workspace = at(library.workspace);
        // SAFETY: handle, descriptions and algorithm are there for as long as `self`, the workspace is as large as was said when the algorithm
        // was asked for, and addresses and sizes are the caller's promise.
        called(&library.cuda, "a product by cuBLASLt", || unsafe {
            sys::cublasLtMatmul(
                library.handle,
                *description,
                one,
                at(weight),
                *weights,
                at(x),
                *rows,
                beta,
                at(out),
                *result,
                at(out),
                *result,
                &self.algorithm,
                workspace,
                WORKSPACE,
                stream.0 as sys::cudaStream_t,
            )
            .result()
        })
    }
}
