//! 16-bit numbers two to a register, words that lanes exchange, and TF32.

use super::builder::Function;
use super::gpu::{INT, Quad};
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

    /// The f32 in a word to 11 bits of fraction, to nearest.
    pub fn round_to_tf32(&mut self, word: Value) -> Value {
        self.value(
            INT,
            format!("llvm.inline_asm \"cvt.rna.tf32.f32 $0, $1;\", \"=r,r\" {word} : (i32) -> i32"),
        )
    }

    /// c + a b by the tensor cores: 16 × 8 times 8 × 8 of TF32, sums in f32.
    pub fn multiply_tf32(&mut self, a: Quad, b: [Value; 2], c: Quad) -> Quad {
        let list = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        let text = format!(
            "nvvm.mma.sync A[{}] B[{}] C[{}] {{layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, multiplicandAPtxType = #nvvm.mma_type<tf32>, multiplicandBPtxType = #nvvm.mma_type<tf32>, shape = #nvvm.shape<m = 16, n = 8, k = 8>}} : (i32, i32, f32) -> !llvm.struct<(f32, f32, f32, f32)>",
            list(&a),
            list(&b),
            list(&c)
        );
        self.quad(Element::F32, text)
    }
}
