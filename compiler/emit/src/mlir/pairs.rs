//! 16-bit numbers two to a register, and words that lanes exchange.

use super::builder::Function;
use super::gpu::INT;
use super::types::{Element, Type, Value};
use dspc_graph::ir::DType;

impl Function {
    /// The two numbers of a register, as f32.
    pub fn unpack_halves(&mut self, dtype: DType, word: Value) -> [Value; 2] {
        if dtype == DType::F16 {
            let pair = self.reshape(word, Element::F16, 2);
            return [0, 1].map(|i| {
                let x = self.extract(pair, i);
                self.widen_half(x)
            });
        }
        // A bfloat16 is the upper half of an f32.
        let low = self.shl(word, 16);
        let mask = self.int(word.ty, 0xFFFF_0000u32 as i32 as i64);
        let high = self.and(word, mask);
        [self.float_of_bits(low), self.float_of_bits(high)]
    }

    /// The word of the lane whose number differs in these bits.
    pub fn word_of_lane_across(&mut self, x: Value, bits: u64) -> Value {
        let (all, distance, clamp) = (self.int(INT, -1), self.int32(bits), self.int32(31));
        self.value(INT, format!("nvvm.shfl.sync bfly {all}, {x}, {distance}, {clamp} : i32 -> i32"))
    }

    /// tanh x in one instruction: a relative error of 2⁻¹¹.
    pub fn fast_tanh(&mut self, x: Value) -> Value {
        let f32 = Type::scalar(Element::F32);
        self.value(f32, format!("llvm.inline_asm \"tanh.approx.f32 $0, $1;\", \"=f,f\" {x} : (f32) -> f32"))
    }
}
