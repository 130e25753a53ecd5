//! The operations of a GPU's kernels: threads, barriers, copies to shared memory, tensor cores.
//!
//! Addresses in shared memory are numbers of 32 bits until they are used: swizzles are made with exclusive or.

use super::builder::Function;
use super::types::{Element, Space, Type, Value};
use dspc_graph::ir::DType;

/// A 32-bit number: thread indices, positions, shared addresses.
pub(crate) const INT: Type = Type::scalar(Element::I32);
const SHARED: Type = Type::scalar(Element::Pointer(Space::Shared));
/// Four registers that one operation yields.
pub(crate) type Quad = [Value; 4];

/// How 8 × 8 matrices come into registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turned {
    /// As they lie.
    No,
    /// Transposed.
    Yes,
}

impl Function {
    /// A special register, `tid.x` or `ctaid.x` say.
    pub fn special(&mut self, name: &str) -> Value {
        self.value(INT, format!("nvvm.read.ptx.sreg.{name} : i32"))
    }

    /// A 32-bit constant.
    pub fn int32(&mut self, x: u64) -> Value {
        self.int(INT, x as i64)
    }

    /// The same 32-bit number, as one that the compiler does not know: a loop up to it is not written out turn by turn, which would take registers.
    pub fn unknown(&mut self, x: Value) -> Value {
        self.value(INT, format!("llvm.inline_asm \"mov.b32 $0, $1;\", \"=r,r\" {x} : (i32) -> i32"))
    }

    /// Waits for all threads of the block.
    pub fn barrier(&mut self) {
        self.line("nvvm.barrier0");
    }

    /// Waits for all threads of the warp.
    pub fn warp_barrier(&mut self) {
        let all = self.int(INT, -1);
        self.line(format!("nvvm.bar.warp.sync {all} : i32"));
    }

    /// The f32 of the lane whose number differs in these bits.
    pub fn of_lane_across(&mut self, x: Value, bits: u64) -> Value {
        let (all, distance, clamp) = (self.int(INT, -1), self.int32(bits), self.int32(31));
        self.value(x.ty, format!("nvvm.shfl.sync bfly {all}, {x}, {distance}, {clamp} : f32 -> f32"))
    }

    /// 2ˣ in one instruction: two units of error, and denormals are 0.
    pub fn fast_exp2(&mut self, x: Value) -> Value {
        self.intrinsic("llvm.nvvm.ex2.approx.ftz.f", &[x], x.ty)
    }

    /// log₂ x in one instruction, exact to 2⁻²² absolutely.
    pub fn fast_log2(&mut self, x: Value) -> Value {
        self.intrinsic("llvm.nvvm.lg2.approx.ftz.f", &[x], x.ty)
    }

    /// 1 / x in one instruction: one unit of error.
    pub fn fast_reciprocal(&mut self, x: Value) -> Value {
        self.value(x.ty, format!("nvvm.rcp.approx.ftz.f {x} : f32"))
    }

    /// The larger; the number where one is not.
    pub fn max_number(&mut self, a: Value, b: Value) -> Value {
        self.value(a.ty, format!("arith.maxnumf {a}, {b} : {}", a.ty))
    }

    /// The address of a symbol in a memory.
    pub fn address_in(&mut self, space: Space, symbol: &str) -> Value {
        let ty = Type::scalar(Element::Pointer(space));
        self.value(ty, format!("llvm.mlir.addressof @{symbol} : {ty}"))
    }

    /// The number of a shared address.
    pub fn number_of_address(&mut self, address: Value) -> Value {
        self.value(INT, format!("llvm.ptrtoint {address} : {} to i32", address.ty))
    }

    /// The shared address of a number, and a constant number of bytes further.
    pub fn shared_at(&mut self, number: Value, bytes: u64) -> Value {
        let at = self.value(SHARED, format!("llvm.inttoptr {number} : i32 to {SHARED}"));
        self.bytes_after(at, bytes)
    }

    /// The address a constant number of bytes further.
    pub fn bytes_after(&mut self, address: Value, bytes: u64) -> Value {
        if bytes == 0 {
            return address;
        }
        let bytes = self.int32(bytes);
        self.offset(address, bytes, Element::I8)
    }

    /// Copies 16 or 4 bytes to shared memory, later; only the first `size` come from there, the others are 0.
    pub fn copy_async(&mut self, to: Value, from: Value, bytes: u32, size: Option<Value>) {
        let cache = if bytes == 16 { "cg" } else { "ca" };
        let types = format!("{}, {}", to.ty, from.ty);
        self.line(match size {
            None => format!("nvvm.cp.async.shared.global {to}, {from}, {bytes}, cache = {cache} : {types}"),
            Some(size) => {
                format!("nvvm.cp.async.shared.global {to}, {from}, {bytes}, cache = {cache}, {size} : {types}, i32")
            }
        });
    }

    /// Ends a group of copies.
    pub fn commit_copies(&mut self) {
        self.line("nvvm.cp.async.commit.group");
    }

    /// Waits until all but the last `open` groups of copies are there.
    pub fn await_copies(&mut self, open: u64) {
        self.line(format!("nvvm.cp.async.wait.group {open}"));
    }

    pub(super) fn quad(&mut self, element: Element, text: String) -> Quad {
        let all = self.value(Type::scalar(element), text);
        let ty = format!("!llvm.struct<({element}, {element}, {element}, {element})>");
        [0, 1, 2, 3]
            .map(|i| self.value(Type::scalar(element), format!("llvm.extractvalue {all}[{i}] : {ty}")))
    }

    /// Four 8 × 8 matrices of 16-bit elements; lane 8i + r addresses row r of matrix i.
    pub fn load_matrices(&mut self, address: Value, turned: Turned) -> Quad {
        let layout = if turned == Turned::Yes { "col" } else { "row" };
        self.quad(
            Element::I32,
            format!(
                "nvvm.ldmatrix {address} {{num = 4 : i32, layout = #nvvm.mma_layout<{layout}>, shape = #nvvm.ld_st_matrix_shape<m = 8, n = 8>, eltType = #nvvm.ld_st_matrix_elt_type<b16>}} : ({SHARED}) -> !llvm.struct<(i32, i32, i32, i32)>"
            ),
        )
    }

    /// c + a b by the tensor cores: 16 × 16 times 16 × 8, sums in f32.
    pub fn multiply_matrices(&mut self, dtype: DType, a: Quad, b: [Value; 2], c: Quad) -> Quad {
        let (name, ty) = if dtype == DType::F16 { ("f16", "vector<2xf16>") } else { ("bf16", "i32") };
        let list = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        let (a, b) = match dtype {
            DType::F16 => (a.map(|x| self.pair_of(x)), b.map(|x| self.pair_of(x))),
            _ => (a, b),
        };
        let text = format!(
            "nvvm.mma.sync A[{}] B[{}] C[{}] {{layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, multiplicandAPtxType = #nvvm.mma_type<{name}>, multiplicandBPtxType = #nvvm.mma_type<{name}>, shape = #nvvm.shape<m = 16, n = 8, k = 16>}} : ({ty}, {ty}, f32) -> !llvm.struct<(f32, f32, f32, f32)>",
            list(&a),
            list(&b),
            list(&c)
        );
        self.quad(Element::F32, text)
    }

    fn pair_of(&mut self, x: Value) -> Value {
        self.reshape(x, Element::F16, 2)
    }

    /// Two numbers, rounded, in one register.
    pub fn pack_halves(&mut self, dtype: DType, low: Value, high: Value) -> Value {
        let pair = self.gather(&[low, high]);
        let pair = if dtype == DType::F16 { self.narrow_half(pair) } else { self.narrow_bfloat(pair) };
        self.reshape(pair, Element::I32, 1)
    }
}
