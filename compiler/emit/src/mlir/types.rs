//! Types of SSA values: an element, and how many lanes of it.

use std::fmt;

/// What one lane holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Element {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16, where the machine converts it.
    Bf16,
    /// A condition.
    I1,
    /// 8 bits: small tables.
    I8,
    /// 16 bits: bf16 in memory.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits: items and element offsets.
    I64,
    /// An address.
    Pointer(Space),
    /// A map of the copy engine, an argument of a GPU kernel.
    TensorMap,
}

/// Which memory an address is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Space {
    /// The CPU's.
    Generic,
    /// A GPU's.
    Global,
    /// A block's own.
    Shared,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::I1 => "i1",
            Element::I8 => "i8",
            Element::I16 => "i16",
            Element::I32 => "i32",
            Element::I64 => "i64",
            Element::Pointer(Space::Generic) | Element::TensorMap => "!llvm.ptr",
            Element::Pointer(Space::Global) => "!llvm.ptr<1>",
            Element::Pointer(Space::Shared) => "!llvm.ptr<3>",
        })
    }
}

/// The type of a value. One lane is a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Type {
    /// Of each lane.
    pub element: Element,
    /// How many.
    pub lanes: u32,
}

impl Type {
    /// One lane.
    pub const fn scalar(element: Element) -> Self {
        Type { element, lanes: 1 }
    }

    /// Several lanes; one gives a scalar.
    pub const fn vector(element: Element, lanes: u32) -> Self {
        Type { element, lanes }
    }

    /// As many lanes of another element.
    pub const fn of(self, element: Element) -> Self {
        Type { element, lanes: self.lanes }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lanes {
            1 => self.element.fmt(f),
            n => write!(f, "vector<{n}x{}>", self.element),
        }
    }
}

/// An SSA value: the name its text has, and its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Value {
    pub(super) id: u32,
    /// Which result of an operation that has several.
    pub(super) part: Option<u32>,
    /// Its type.
    pub ty: Type,
}

impl Value {
    /// Lanes of its type.
    pub fn lanes(self) -> u32 {
        self.ty.lanes
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            None => write!(f, "%{}", self.id),
            Some(part) => write!(f, "%{}#{part}", self.id),
        }
    }
}
