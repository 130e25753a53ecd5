//! Matrix products on the card: what one is, whatever runs it. The library's plan is `plan`, which of its algorithms is `choose`, what was
//! measured once is `lock`.

pub(super) mod choose;
pub(super) mod lock;
pub(super) mod plan;

use super::super::call::Address;
use super::super::element_bytes;
use super::call::Launch;
use dspc_program::ElementType;
use std::fmt;

/// A matrix in memory, row-major; `transposed` where it is stored the other way round than it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub(super) at: Address,
    pub(super) dtype: ElementType,
    pub(super) stride: u64,
    pub(super) transposed: bool,
}

/// A vector and its element type.
pub(super) type Vector = (Address, ElementType);

/// What happens besides the product, in one kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extra {
    Bias {
        bias: Vector,
    },
    BiasGelu {
        bias: Vector,
        pre: Side,
    },
    GeluGradient {
        pre: Side,
    },
    /// Over the summed dim, for each column of b.
    SumOfB {
        sum: Vector,
    },
    /// Over the summed dim, for each row of a.
    SumOfA {
        sum: Vector,
    },
}

/// Sizes and switches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) tf32: bool,
    pub(super) accumulate: bool,
}

/// One product of the program.
pub(super) struct Product {
    /// Which plan of the program's distinct ones.
    pub(super) plan: usize,
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) c: Side,
    pub(super) extra: Option<Extra>,
    /// Our kernel for the same.
    pub(super) own: Option<Launch>,
    /// A row kernel over the result.
    pub(super) after: Option<Launch>,
}

impl Product {
    pub(super) fn new(
        plan: usize,
        sides: [Side; 3],
        extra: Option<Extra>,
        own: Option<Launch>,
        after: Option<Launch>,
    ) -> Self {
        let ([a, b, c], extra) = upright(sides, extra);
        Self { plan, a, b, c, extra, own, after }
    }
}

/// The same product with c as it is stored: cᵀ = bᵀ · aᵀ.
fn upright([a, b, c]: [Side; 3], extra: Option<Extra>) -> ([Side; 3], Option<Extra>) {
    if !c.transposed {
        return ([a, b, c], extra);
    }
    let turned = |side: Side| Side { transposed: !side.transposed, ..side };
    let extra = match extra {
        Some(Extra::SumOfB { sum }) => Some(Extra::SumOfA { sum }),
        other => other,
    };
    ([turned(b), turned(a), Side { transposed: false, ..c }], extra)
}

/// A stored matrix without its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SideKey {
    pub(super) dtype: ElementTypeKey,
    pub(super) stride: u64,
    pub(super) transposed: bool,
    /// Bytes that every address of it is a multiple of, at most 256.
    pub(super) align: u32,
}

/// An element type that has an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum ElementTypeKey {
    F32,
    Bf16,
    F16,
}

impl ElementTypeKey {
    /// Products of whole numbers are refused before.
    fn of(dtype: ElementType) -> Self {
        match dtype {
            ElementType::F32 | ElementType::I32 => Self::F32,
            ElementType::Bf16 => Self::Bf16,
            ElementType::F16 => Self::F16,
        }
    }
}

/// What happens besides, without addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum ExtraKey {
    Nothing,
    Bias { bias: ElementTypeKey },
    BiasGelu { bias: ElementTypeKey, pre: SideKey },
    GeluGradient { pre: SideKey },
    SumOfB { sum: ElementTypeKey },
    SumOfA { sum: ElementTypeKey },
}

/// All that an algorithm's speed and an answer's bits follow from: products of one key share a plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) tf32: bool,
    pub(super) accumulate: bool,
    pub(super) a: SideKey,
    pub(super) b: SideKey,
    pub(super) c: SideKey,
    pub(super) extra: ExtraKey,
}

impl Key {
    pub(super) fn new(shape: Shape, [a, b, c]: [&Side; 3], extra: Option<&Extra>) -> Self {
        let (m, n) = if c.transposed { (shape.n, shape.m) } else { (shape.m, shape.n) };
        let ([a, b, c], extra) = upright([*a, *b, *c], extra.copied());
        let vector = |(_, dtype): Vector| ElementTypeKey::of(dtype);
        let extra = match extra {
            None => ExtraKey::Nothing,
            Some(Extra::Bias { bias }) => ExtraKey::Bias { bias: vector(bias) },
            Some(Extra::BiasGelu { bias, pre }) => {
                ExtraKey::BiasGelu { bias: vector(bias), pre: SideKey::of(&pre) }
            }
            Some(Extra::GeluGradient { pre }) => ExtraKey::GeluGradient { pre: SideKey::of(&pre) },
            Some(Extra::SumOfB { sum }) => ExtraKey::SumOfB { sum: vector(sum) },
            Some(Extra::SumOfA { sum }) => ExtraKey::SumOfA { sum: vector(sum) },
        };
        Self {
            m,
            n,
            k: shape.k,
            tf32: shape.tf32,
            accumulate: shape.accumulate,
            a: SideKey::of(&a),
            b: SideKey::of(&b),
            c: SideKey::of(&c),
            extra,
        }
    }
}

impl SideKey {
    fn of(side: &Side) -> Self {
        let Address { base, stride, slots, .. } = side.at;
        let bits = base.addr() | if slots > 1 { stride } else { 0 };
        let align = 1 << bits.trailing_zeros().min(8);
        Self {
            dtype: ElementTypeKey::of(side.dtype),
            stride: side.stride,
            transposed: side.transposed,
            align,
        }
    }
}

impl Side {
    /// Bytes from its first element to the end of its last, stored as `rows` runs of `cols`.
    fn bytes(&self, rows: u64, cols: u64) -> u64 {
        let (rows, cols) = if self.transposed { (cols, rows) } else { (rows, cols) };
        ((rows - 1) * self.stride + cols) * element_bytes(self.dtype)
    }
}

impl fmt::Display for ElementTypeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl fmt::Display for SideKey {
    /// `bf16.T/1024@256`: the type, `.T` if transposed, the stride, the alignment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let turned = if self.transposed { ".T" } else { "" };
        write!(f, "{}{turned}/{}@{}", self.dtype, self.stride, self.align)
    }
}

impl fmt::Display for Key {
    /// `8192×4096×1024 bf16/1024@256 · bf16/4096@256 → bf16/4096@256 bias_gelu(bf16, bf16/4096@256)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { m, n, k, a, b, c, .. } = self;
        write!(f, "{m}×{n}×{k} {a} · {b} → {c}")?;
        f.write_str(if self.accumulate { " added" } else { "" })?;
        f.write_str(if self.tf32 { " tf32" } else { "" })?;
        match self.extra {
            ExtraKey::Nothing => Ok(()),
            ExtraKey::Bias { bias } => write!(f, " bias({bias})"),
            ExtraKey::BiasGelu { bias, pre } => write!(f, " bias_gelu({bias}, {pre})"),
            ExtraKey::GeluGradient { pre } => write!(f, " gelu_gradient({pre})"),
            ExtraKey::SumOfB { sum } => write!(f, " sum_of_b({sum})"),
            ExtraKey::SumOfA { sum } => write!(f, " sum_of_a({sum})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(base: usize, dtype: ElementType, stride: u64, transposed: bool) -> Side {
        let base = std::ptr::without_provenance_mut(base);
        let at = Address { base, stride: 96, slots: 2, add: 0, turn: true, micro: false };
        Side { at, dtype, stride, transposed }
    }

    #[test]
    fn a_key_says_all_that_matters_and_no_address() {
        let shape = Shape { m: 8, n: 16, k: 32, tf32: false, accumulate: true };
        let key = |base| {
            let a = side(base, ElementType::Bf16, 32, false);
            let (b, c) = (side(512, ElementType::Bf16, 32, true), side(4, ElementType::F32, 16, false));
            Key::new(shape, [&a, &b, &c], None)
        };
        assert_eq!(key(1024), key(4096));
        assert_ne!(key(1024), key(1040));
        assert_eq!(key(1024).to_string(), "8×16×32 bf16/32@32 · bf16.T/32@32 → f32/16@4 added");
    }

    #[test]
    fn a_result_that_is_stored_turned_is_the_product_of_the_turned_factors() {
        let shape = Shape { m: 8, n: 16, k: 32, tf32: true, accumulate: false };
        let a = side(256, ElementType::F32, 32, false);
        let b = side(512, ElementType::F32, 16, false);
        let c = side(1024, ElementType::F32, 8, true);
        let sum = (a.at, ElementType::F32);
        let key = Key::new(shape, [&a, &b, &c], Some(&Extra::SumOfB { sum }));
        assert_eq!(key.to_string(), "16×8×32 f32.T/16@32 · f32.T/32@32 → f32/8@32 tf32 sum_of_a(f32)");
        let product = Product::new(0, [a, b, c], None, None, None);
        assert_eq!(product.a.at.base, b.at.base);
        assert!(product.a.transposed && product.b.transposed && !product.c.transposed);
        assert_eq!(product.a.bytes(16, 32), 4 * 32 * 16);
    }
}
