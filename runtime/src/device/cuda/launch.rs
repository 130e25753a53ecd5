//! Starts one kernel: pointers, the turn, tensor maps.

use super::super::call::{Counters, Operand};
use super::call::{Launch, Part};
use super::context::Gpu;
use super::fault;
use crate::error::Error;
use cudarc::driver::{result, sys};
use dspc_program::{ElementType, TensorMap};
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Starts the functions of a kernel, one after the other.
pub(super) fn launch(gpu: &Gpu, launch: &Launch, counters: Counters, origin: &str) -> Result<(), Error> {
    let values: Vec<u64> = launch.operands.iter().map(|operand| value(operand, counters)).collect();
    launch_on(gpu, &launch.parts, values, origin)
}

/// The same, on operands that come from elsewhere.
pub(super) fn launch_on(gpu: &Gpu, parts: &[Part], mut values: Vec<u64>, origin: &str) -> Result<(), Error> {
    for part in parts {
        let called = || format!("kernel `{}` of `{origin}`", part.symbol);
        let mut maps = encoded(part, &values).map_err(|e| fault::driver(called())(e))?;
        let values = values.iter_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        let maps = maps.iter_mut().map(|map| std::ptr::from_mut(map).cast::<c_void>());
        let mut params: Vec<*mut c_void> = values.chain(maps).collect();
        let [x, y, z] = part.grid;
        // SAFETY: the function takes these parameters, by the contract of `GpuLaunch`; operands were checked to lie in the arenas.
        unsafe {
            let block = (part.block, 1, 1);
            result::launch_kernel(part.function, (x, y, z), block, part.shared, gpu.stream, &mut params)
        }
        .map_err(fault::driver(called()))?;
    }
    Ok(())
}

fn value(operand: &Operand, counters: Counters) -> u64 {
    match operand {
        Operand::At(address) => address.at(counters).addr() as u64,
        Operand::Turn => counters.turn,
    }
}

fn encoded(part: &Part, values: &[u64]) -> Result<Vec<sys::CUtensorMap>, result::DriverError> {
    part.maps.iter().map(|(map, dtype)| encode(map, *dtype, values[map.operand as usize])).collect()
}

fn encode(map: &TensorMap, dtype: ElementType, at: u64) -> Result<sys::CUtensorMap, result::DriverError> {
    use sys::{
        CUtensorMapDataType_enum as Data, CUtensorMapFloatOOBfill_enum as Fill,
        CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
        CUtensorMapSwizzle_enum as Swizzle,
    };
    let data = match dtype {
        ElementType::F32 => Data::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        ElementType::Bf16 => Data::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        ElementType::F16 => Data::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        ElementType::I32 => Data::CU_TENSOR_MAP_DATA_TYPE_INT32,
    };
    let swizzle = match map.swizzle {
        32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let each = vec![1u32; map.dims.len()];
    let mut out = MaybeUninit::uninit();
    // SAFETY: all arrays have the tensor's dims, by the lowering's check; the address is the operand's.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            out.as_mut_ptr(),
            data,
            map.dims.len() as u32,
            std::ptr::without_provenance_mut(at as usize),
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            each.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()?;
        Ok(out.assume_init())
    }
}
