//! A product as cuBLASLt takes it. The library counts column by column: a row-major matrix is its own transpose there, so c = a · b is asked
//! for as cᵀ = bᵀ · aᵀ, and b is the library's A.

use super::super::super::call::Counters;
use super::super::context::Gpu;
use super::super::fault;
use super::super::memory::Block;
use super::{ElementTypeKey, Extra, ExtraKey, Key, Product, SideKey};
use crate::error::Error;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
    cublasLtReductionScheme_t as Reduction, cudaDataType_t as DataType,
};
use std::ffi::c_void;

/// What NVIDIA asks for on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Split sums go through the workspace in f32, in a fixed order, or there are none: never through atomics, and never rounded in between.
const REDUCTIONS: u32 = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// An algorithm as the library describes it.
pub(in super::super) type Algorithm = sys::cublasLtMatmulAlgo_t;

/// The library, and memory for its split sums. One stream uses it.
pub(in super::super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Block,
}

impl Lt {
    /// The library was found.
    pub(in super::super) fn new() -> Result<Self, Error> {
        let workspace = Block::new(WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(fault::cublas("starting cuBLASLt"))?;
        Ok(Self { handle, workspace })
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        _ = unsafe { result::destroy_handle(self.handle) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A row-major matrix of `rows × cols` as stored, seen column by column.
    fn new(side: &SideKey, rows: u64, cols: u64) -> Result<Self, CublasError> {
        let (rows, cols) = if side.transposed { (cols, rows) } else { (rows, cols) };
        result::create_matrix_layout(data_type(side.dtype), cols, rows, side.stride as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn set<T>(&self, attribute: Attribute, value: T) -> Result<(), CublasError> {
        let at = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the description lives; the value is of the attribute's own type and is copied.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, at, size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made with the plan, destroyed once.
        _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What the library must know of a product, addresses apart.
pub(in super::super) struct Plan {
    key: Key,
    description: Description,
    a: Layout,
    b: Layout,
    c: Layout,
}

impl Plan {
    pub(in super::super) fn new(key: &Key) -> Result<Self, Error> {
        Self::build(key).map_err(fault::cublas(format!("describing the product {key}")))
    }

    fn build(key: &Key) -> Result<Self, CublasError> {
        let compute = match (key.a.dtype, key.tf32) {
            (ElementTypeKey::F32, true) => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let description = Description(result::create_matmul_desc(compute, DataType::CUDA_R_32F)?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(key.b.transposed))?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(key.a.transposed))?;
        let (epilogue, vector, matrix) = match &key.extra {
            ExtraKey::Nothing => (Epilogue::CUBLASLT_EPILOGUE_DEFAULT, None, None),
            ExtraKey::Bias { bias } => (Epilogue::CUBLASLT_EPILOGUE_BIAS, Some(bias), None),
            ExtraKey::BiasGelu { bias, pre } => {
                (Epilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS, Some(bias), Some(pre))
            }
            ExtraKey::GeluGradient { pre } => (Epilogue::CUBLASLT_EPILOGUE_DGELU, None, Some(pre)),
            ExtraKey::SumOfB { sum } => (Epilogue::CUBLASLT_EPILOGUE_BGRADA, Some(sum), None),
            ExtraKey::SumOfA { sum } => (Epilogue::CUBLASLT_EPILOGUE_BGRADB, Some(sum), None),
        };
        description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        if let Some(&dtype) = vector {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(dtype))?;
        }
        if let Some(pre) = matrix {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, pre.stride as i64)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, data_type(pre.dtype))?;
        }
        let a = Layout::new(&key.b, key.k, key.n)?;
        let b = Layout::new(&key.a, key.m, key.k)?;
        let c = Layout::new(&key.c, key.m, key.n)?;
        Ok(Self { key: *key, description, a, b, c })
    }

    /// Points the description at this product's vectors and matrices.
    fn aim(&self, product: &Product, counters: Counters) -> Result<(), CublasError> {
        let (vector, matrix) = match &product.extra {
            None => (None, None),
            Some(Extra::Bias { bias }) => (Some(bias), None),
            Some(Extra::BiasGelu { bias, pre }) => (Some(bias), Some(pre)),
            Some(Extra::GeluGradient { pre }) => (None, Some(pre)),
            Some(Extra::SumOfB { sum } | Extra::SumOfA { sum }) => (Some(sum), None),
        };
        if let Some((at, _)) = vector {
            self.description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, at.at(counters))?;
        }
        if let Some(pre) = matrix {
            let at = pre.at.at(counters);
            self.description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, at)?;
        }
        Ok(())
    }

    /// Algorithms that the library would try for it, the likeliest first; none where it cannot do it at all.
    pub(in super::super) fn candidates(
        &self,
        lt: &Lt,
        product: &Product,
        most: usize,
    ) -> Result<Vec<Algorithm>, Error> {
        self.asked(lt, product, most)
            .map_err(fault::cublas(format!("asking for algorithms of the product {}", self.key)))
    }

    fn asked(&self, lt: &Lt, product: &Product, most: usize) -> Result<Vec<Algorithm>, CublasError> {
        self.aim(product, Counters::default())?;
        let preference = Wish(result::create_matmul_pref()?);
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, lt.workspace.bytes as u64)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTIONS)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, self.key.b.align)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, self.key.a.align)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, self.key.c.align)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, self.key.c.align)?;
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(most);
        let mut count = 0;
        // SAFETY: all objects live, and the array holds `most` results.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                lt.handle,
                self.description.0,
                self.a.0,
                self.b.0,
                self.c.0,
                self.c.0,
                preference.0,
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        match status.result() {
            Ok(()) => {}
            Err(CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
                | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => return Ok(vec![]),
            Err(error) => return Err(error),
        }
        // SAFETY: the library wrote so many.
        unsafe { found.set_len((count as usize).min(most)) };
        let good = found.iter().filter(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(good.map(|result| result.algo).collect())
    }

    /// Whether an algorithm, from a lock file, can do this product.
    pub(in super::super) fn accepts(&self, lt: &Lt, product: &Product, algorithm: &Algorithm) -> bool {
        let mut result = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        self.aim(product, Counters::default()).is_ok()
            // SAFETY: all objects live; the result is read only where the library filled it in.
            && unsafe {
                let (a, b, c) = (self.a.0, self.b.0, self.c.0);
                let status = sys::cublasLtMatmulAlgoCheck(
                    lt.handle, self.description.0, a, b, c, c, algorithm, result.as_mut_ptr(),
                );
                status.result().is_ok() && result.assume_init().workspaceSize <= lt.workspace.bytes
            }
    }

    /// Starts the product.
    pub(in super::super) fn run(
        &self,
        lt: &Lt,
        gpu: &Gpu,
        product: &Product,
        algorithm: &Algorithm,
        counters: Counters,
    ) -> Result<(), CublasError> {
        self.aim(product, counters)?;
        let (alpha, beta) = (1f32, if self.key.accumulate { 1f32 } else { 0.0 });
        let c = product.c.at.at(counters).cast::<c_void>();
        // SAFETY: the matrices were checked to lie in the arenas; scalars are read before the call returns; the schedule orders the product
        // after what it reads.
        unsafe {
            result::matmul(
                lt.handle,
                self.description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                product.b.at.at(counters).cast_const().cast(),
                self.a.0,
                product.a.at.at(counters).cast_const().cast(),
                self.b.0,
                c.cast_const(),
                self.c.0,
                c,
                self.c.0,
                algorithm,
                std::ptr::without_provenance_mut(lt.workspace.at as usize),
                lt.workspace.bytes,
                gpu.stream.cast(),
            )
        }
    }
}

struct Wish(sys::cublasLtMatmulPreference_t);

impl Wish {
    fn set<T>(&self, attribute: Preference, value: T) -> Result<(), CublasError> {
        let at = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the preference lives; the value is of the attribute's own type and is copied.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, at, size_of::<T>()) }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        // SAFETY: made in one place, destroyed once.
        _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn data_type(dtype: ElementTypeKey) -> DataType {
    match dtype {
        ElementTypeKey::F32 => DataType::CUDA_R_32F,
        ElementTypeKey::Bf16 => DataType::CUDA_R_16BF,
        ElementTypeKey::F16 => DataType::CUDA_R_16F,
    }
}
