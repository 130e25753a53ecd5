//! The graph's data: values, ops, blocks, repeats.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dspc_source::Span;

use crate::form::Form;

/// The type of an element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// 32-bit signed integer (ids, counters).
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// The number of this type that is nearest, ties to the even one; a float past the largest is infinite.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::Bf16 => round_to(x, 8, -126, 127),
            DType::F16 => round_to(x, 11, -14, 15),
            DType::I32 => x,
        }
    }
}

/// To `digits` binary digits, fewer below 2^`least`; infinite above 2^(`most` + 1).
fn round_to(x: f64, digits: i32, least: i32, most: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = libm::ilogb(x).max(least);
    let ulp = libm::ldexp(1.0, exponent + 1 - digits);
    let rounded = libm::rint(x / ulp) * ulp;
    if rounded.abs() >= libm::ldexp(1.0, most + 1) { f64::INFINITY.copysign(x) } else { rounded }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
        })
    }
}

/// A dimension: what the user calls it (`T`, `4*D`, or the number itself) and how large it is.
///
/// Equal when the sizes are; the name is for readers.
#[derive(Clone, Debug)]
pub struct Dim {
    /// The name that reports and printed forms show.
    pub name: String,
    /// Its size.
    pub size: u64,
    /// Where the size was said, for reports; travels with the dim through every op.
    pub place: Option<Span>,
}

impl PartialEq for Dim {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size
    }
}

impl Dim {
    /// A dim with a name.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self { name: name.into(), size, place: None }
    }

    /// A dim that is called by its size.
    pub fn of(size: u64) -> Self {
        Self::new(size.to_string(), size)
    }
}

/// Element type and dims. No dims is a scalar.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorType {
    /// Of each element, in memory.
    pub dtype: DType,
    /// Outermost first; row-major.
    pub dims: Vec<Dim>,
}

impl TensorType {
    /// No dims.
    pub fn scalar() -> Self {
        Self::f32(vec![])
    }

    /// The same element type with other dims.
    pub fn with_dims(&self, dims: Vec<Dim>) -> Self {
        Self { dtype: self.dtype, dims }
    }

    /// A type of float elements in the graph's own precision.
    pub fn f32(dims: Vec<Dim>) -> Self {
        Self { dtype: DType::F32, dims }
    }

    /// Product of the sizes; saturates.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |product, d| product.saturating_mul(d.size))
    }

    /// The last dim's size, 1 for a scalar.
    pub fn cols(&self) -> u64 {
        self.dims.last().map_or(1, |d| d.size)
    }

    /// Product of all sizes but the last.
    pub fn rows(&self) -> u64 {
        self.elements() / self.cols().max(1)
    }

    /// Bytes when stored without gaps.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }
}

/// `f32 [B, T, 4*D]`
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if !self.dims.is_empty() {
            let names: Vec<&str> = self.dims.iter().map(|d| d.name.as_str()).collect();
            write!(f, " [{}]", names.join(", "))?;
        }
        Ok(())
    }
}

/// A value of [`Graph::values`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ValueId(pub u32);

/// A parameter of [`Graph::params`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ParamId(pub u32);

/// A repeat; a forward repeat and its mirror in the backward pass have different ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RepeatId(pub u32);

/// How a parameter starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in ± this.
    Uniform(f64),
}

/// A learned tensor; inside a repeat, one for each turn.
#[derive(Clone, PartialEq, Debug)]
pub struct Param {
    /// Dotted path, `h.*.attn.c_attn.weight`: `*` stands for the turn.
    pub name: String,
    /// Of one turn.
    pub ty: TensorType,
    /// How it starts.
    pub init: Init,
    /// Turns of the repeat that owns it; `None` outside a repeat.
    pub turns: Option<u64>,
    /// Its `param` statement.
    pub span: Span,
}

impl Param {
    /// The name in one turn: `*` replaced.
    pub fn name_in(&self, turn: u64) -> String {
        self.name.replacen('*', &turn.to_string(), 1)
    }

    /// Elements over all turns.
    pub fn elements_total(&self) -> u64 {
        self.ty.elements() * self.turns.unwrap_or(1)
    }
}

/// An input that the runtime fills.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// `i32 [B, T]`: token ids.
    Tokens,
    /// `i32 [B, T]`: the id that follows each token; -100 where there is none.
    Targets,
    /// `f32` scalar: 1 / (targets in the whole batch, over all micro-batches and ranks). The loss is a sum times this.
    InvTargets,
    /// `i32 [4]`: seed low, seed high, step attempted, first sample of the micro-batch. Drives Philox.
    Rng,
    /// `f32` scalar: the loss's own gradient, in half precision. The optimizer step keeps it, not the runtime.
    LossScale,
}

/// A table that is a function of its shape alone; the runtime computes it once, in f64.
#[derive(Clone, PartialEq, Debug)]
pub enum Table {
    /// `[T, D]`: cos(t · θ^(-2i/D)), i = column modulo D/2.
    RopeCos {
        /// θ, 10000 by default.
        base: f64,
    },
    /// `[T, D]`: sin of the same, negated in the first half of the columns.
    RopeSin {
        /// θ.
        base: f64,
    },
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum Def {
    /// The runtime.
    Input(Input),
    /// A parameter; inside its repeat, that of the turn.
    Param(ParamId),
    /// A table.
    Table(Table),
    /// An op's output.
    Op,
    /// What a repeat's turn receives.
    RepeatArg(RepeatId),
    /// What a repeat yields in the end.
    RepeatOut(RepeatId),
}

/// A value: written once, named for readers.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// The user's name, or a derived one with a suffix (`x`, `dx`, `ln_1.mean`). Unique in a graph.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Where it comes from.
    pub def: Def,
    /// The spec's line, if there is one.
    pub span: Option<Span>,
}

/// What an op may not do: fail after [`Op::infer`] accepted its operands.
///
/// One op, one file under `ops/`. A pass never matches over all ops: it asks.
pub trait Op: fmt::Debug + Send + Sync {
    /// The name in the printed form: `layer_norm`.
    fn name(&self) -> &'static str;

    /// Attributes in the printed form, `eps 1e-5`; empty if there are none.
    fn attributes(&self) -> String {
        String::new()
    }

    /// Suffixes of the results after the first, for their names: `mean` makes `ln_1.mean`.
    fn result_suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether an operand that is one number everywhere makes every result that number everywhere.
    fn keeps_constants(&self) -> bool {
        false
    }

    /// The types of the outputs, or what is wrong with the operands.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError>;

    /// Emits the gradients of the inputs, in their order; `None` where an input has none (ids).
    ///
    /// `outputs` are the op's own results; `grads` their gradients, `None` where nothing uses them.
    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>>;

    /// Meaning in f64: the reference that all else is tested against.
    fn evaluate(&self, inputs: &[&crate::interpret::Tensor]) -> Vec<crate::interpret::Tensor>;

    /// Floating-point operations and bytes of memory traffic, unfused.
    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost;

    /// How the kernel layer computes it.
    fn form(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Form;
}

/// What an op does to the machine.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cost {
    /// Floating-point operations (a multiply-add is two).
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Operands that do not fit an op: said in the op's words, turned into a diagnostic by the elaborator.
#[derive(Clone, PartialEq, Debug)]
pub struct ShapeError {
    /// The two operands that disagree (or one twice).
    pub operands: (usize, usize),
    /// The dim of each that disagrees, where it is one: reports then say where the two sizes come from.
    pub dims: Option<(usize, usize)>,
    /// `the last dim of the left operand is 128, and the first of the right one is 127`
    pub message: String,
}

impl ShapeError {
    /// Operands that disagree as wholes.
    pub fn new(a: usize, b: usize, message: impl Into<String>) -> Self {
        Self { operands: (a, b), dims: None, message: message.into() }
    }

    /// One dim of each disagrees.
    pub fn dims(a: (usize, usize), b: (usize, usize), message: impl Into<String>) -> Self {
        Self { operands: (a.0, b.0), dims: Some((a.1, b.1)), message: message.into() }
    }
}

/// What a gradient rule may do.
pub trait GradientBuilder {
    /// Emits an op; its outputs' names are `name` with suffixes where there are several.
    fn emit(&mut self, op: Arc<dyn Op>, inputs: &[ValueId], name: &str) -> Vec<ValueId>;
    /// The type of a value.
    fn ty(&self, value: ValueId) -> TensorType;
    /// The name of a value.
    fn name(&self, value: ValueId) -> String;
    /// Whether a value's gradient is wanted at all (a parameter depends on it).
    fn needs_gradient(&self, value: ValueId) -> bool;
}

/// One op of a block.
#[derive(Clone, Debug)]
pub struct OpNode {
    /// What it does.
    pub op: Arc<dyn Op>,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Dotted path of the layer call it came from, `h.*.attn`; for people.
    pub origin: String,
}

/// A value carried round a repeat.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Carried {
    /// Its value before the first turn.
    pub init: ValueId,
    /// What a turn sees.
    pub arg: ValueId,
    /// What a turn yields.
    pub result: ValueId,
    /// Its value after the last turn.
    pub out: ValueId,
}

/// `repeat L as h { … }`: a block done `count` times. There is no repeat inside a repeat.
#[derive(Clone, Debug)]
pub struct Repeat {
    /// Identity.
    pub id: RepeatId,
    /// `h`
    pub name: String,
    /// Number of turns.
    pub count: u64,
    /// Turns go from the last to the first; set in the backward pass.
    pub reverse: bool,
    /// The forward repeat whose values of the same turn the body may use.
    pub mirrors: Option<RepeatId>,
    /// Values carried from turn to turn.
    pub carried: Vec<Carried>,
    /// One turn.
    pub body: Block,
}

/// A step of a block.
#[derive(Clone, Debug)]
pub enum Step {
    /// An op.
    Op(OpNode),
    /// A repeat.
    Repeat(Repeat),
}

/// Steps in order.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The steps; each uses only values written before.
    pub steps: Vec<Step>,
}

/// A tensor program.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// The compile-time numbers of the model, by the names that callers use: `layers → 12`; those of the innermost where models are made of
    /// models.
    pub numbers: BTreeMap<String, f64>,
    /// Learned tensors.
    pub params: Vec<Param>,
    /// All values.
    pub values: Vec<Value>,
    /// The program.
    pub body: Block,
    /// The scalar to make small.
    pub loss: Option<ValueId>,
    /// What the loss compares with the targets, `[B, T, V]`; generation reads it.
    pub logits: Option<ValueId>,
}

impl Graph {
    /// A value's data.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// A value's type.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.value(id).ty
    }

    /// A parameter's data.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0 as usize]
    }

    /// Appends a value.
    pub fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId(self.values.len() as u32 - 1)
    }

    /// Elements of all parameters, over all turns.
    pub fn param_elements(&self) -> u64 {
        self.params.iter().map(Param::elements_total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn sixteen_bits_round_to_the_nearest_and_to_even() {
        let bf16 = |x: f64| DType::Bf16.round(x);
        assert_eq!(bf16(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(bf16(1.0 + 3.0 / 256.0), 1.0 + 2.0 / 128.0);
        assert_eq!(bf16(1.0 + 1.1 / 256.0), 1.0 + 1.0 / 128.0);
        assert_eq!(bf16(3.4e38), f64::INFINITY);
        assert_eq!(bf16(-1e-45), 0.0);
        let f16 = |x: f64| DType::F16.round(x);
        assert_eq!((f16(65504.0), f16(65519.0), f16(65520.0)), (65504.0, 65504.0, f64::INFINITY));
        assert_eq!(f16(1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(f16(2f64.powi(-24)), 2f64.powi(-24));
        assert_eq!(f16(2f64.powi(-25)), 0.0);
        assert!(f16(f64::NAN).is_nan() && f16(f64::NEG_INFINITY) == f64::NEG_INFINITY);
    }
}
