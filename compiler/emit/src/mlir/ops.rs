//! The operations emitters use, one method each.

use super::builder::Function;
use super::types::{Element, Space, Type, Value};

/// How two integers compare; signed but for the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Below,
}

impl Function {
    fn same(&mut self, op: &str, a: Value, b: Value) -> Value {
        debug_assert_eq!(a.ty, b.ty, "{op}");
        self.value(a.ty, format!("arith.{op} {a}, {b} : {}", a.ty))
    }

    /// a + b, floats.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.same("addf", a, b)
    }
    /// a − b, floats.
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.same("subf", a, b)
    }
    /// a · b, floats.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.same("mulf", a, b)
    }
    /// a / b, floats.
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.same("divf", a, b)
    }
    /// a · b + c, rounded once.
    pub fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.value(a.ty, format!("math.fma {a}, {b}, {c} : {}", a.ty))
    }
    /// −a
    pub fn neg(&mut self, a: Value) -> Value {
        self.value(a.ty, format!("arith.negf {a} : {}", a.ty))
    }
    /// |a|
    pub fn abs(&mut self, a: Value) -> Value {
        let bits = self.bits(a);
        let mask = self.int(bits.ty, 0x7FFF_FFFF);
        let bits = self.and(bits, mask);
        self.float_of_bits(bits)
    }
    /// √a, correctly rounded.
    pub fn sqrt(&mut self, a: Value) -> Value {
        self.value(a.ty, format!("math.sqrt {a} : {}", a.ty))
    }
    /// The larger; NaN if either is. The zeros count as equal.
    pub fn max(&mut self, a: Value, b: Value) -> Value {
        self.value(a.ty, format!("arith.maximumf {a}, {b} fastmath<nsz> : {}", a.ty))
    }
    /// The smaller; NaN if either is. The zeros count as equal.
    pub fn min(&mut self, a: Value, b: Value) -> Value {
        self.value(a.ty, format!("arith.minimumf {a}, {b} fastmath<nsz> : {}", a.ty))
    }
    /// At most `high`; a NaN stays. One instruction where the machine has one.
    pub fn at_most(&mut self, a: Value, high: Value) -> Value {
        let above = self.compare("ogt", a, high);
        self.select(above, high, a)
    }
    /// At least `low`; a NaN stays.
    pub fn at_least(&mut self, a: Value, low: Value) -> Value {
        let below = self.compare("olt", a, low);
        self.select(below, low, a)
    }
    /// Compares floats with an MLIR predicate.
    pub fn compare(&mut self, predicate: &str, a: Value, b: Value) -> Value {
        self.value(a.ty.of(Element::I1), format!("arith.cmpf {predicate}, {a}, {b} : {}", a.ty))
    }
    /// Compares integers.
    pub fn order(&mut self, order: Order, a: Value, b: Value) -> Value {
        debug_assert_eq!(a.ty, b.ty);
        let predicate = match order {
            Order::Equal => "eq",
            Order::NotEqual => "ne",
            Order::Less => "slt",
            Order::LessEqual => "sle",
            Order::Below => "ult",
        };
        self.value(a.ty.of(Element::I1), format!("arith.cmpi {predicate}, {a}, {b} : {}", a.ty))
    }
    /// `condition ? a : b`, lane by lane.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        debug_assert_eq!(a.ty, b.ty);
        match a.ty.lanes {
            1 => self.value(a.ty, format!("arith.select {condition}, {a}, {b} : {}", a.ty)),
            _ => self.value(a.ty, format!("arith.select {condition}, {a}, {b} : {}, {}", condition.ty, a.ty)),
        }
    }

    /// a + b, integers.
    pub fn addi(&mut self, a: Value, b: Value) -> Value {
        self.same("addi", a, b)
    }
    /// a − b, integers.
    pub fn subi(&mut self, a: Value, b: Value) -> Value {
        self.same("subi", a, b)
    }
    /// a · b, integers.
    pub fn muli(&mut self, a: Value, b: Value) -> Value {
        self.same("muli", a, b)
    }
    /// a / b, unsigned.
    pub fn divu(&mut self, a: Value, b: Value) -> Value {
        self.same("divui", a, b)
    }
    /// a / b, signed, towards 0.
    pub fn divs(&mut self, a: Value, b: Value) -> Value {
        self.same("divsi", a, b)
    }
    /// What [`Function::divs`] leaves.
    pub fn rems(&mut self, a: Value, b: Value) -> Value {
        self.same("remsi", a, b)
    }
    /// a mod b, unsigned.
    pub fn remu(&mut self, a: Value, b: Value) -> Value {
        self.same("remui", a, b)
    }
    /// The smaller, unsigned.
    pub fn minu(&mut self, a: Value, b: Value) -> Value {
        self.same("minui", a, b)
    }
    /// The larger, unsigned.
    pub fn maxu(&mut self, a: Value, b: Value) -> Value {
        self.same("maxui", a, b)
    }
    /// Bitwise and; of conditions, both.
    pub fn and(&mut self, a: Value, b: Value) -> Value {
        self.same("andi", a, b)
    }
    /// Bitwise or; of conditions, either.
    pub fn or(&mut self, a: Value, b: Value) -> Value {
        self.same("ori", a, b)
    }
    /// Bitwise exclusive or.
    pub fn xor(&mut self, a: Value, b: Value) -> Value {
        self.same("xori", a, b)
    }
    /// a · 2ⁿ
    pub fn shl(&mut self, a: Value, n: i64) -> Value {
        let n = self.int(a.ty, n);
        self.same("shli", a, n)
    }
    /// a / 2ⁿ, unsigned.
    pub fn shr(&mut self, a: Value, n: i64) -> Value {
        let n = self.int(a.ty, n);
        self.same("shrui", a, n)
    }
    /// a / 2ⁿ, towards −∞.
    pub fn shr_signed(&mut self, a: Value, n: i64) -> Value {
        let n = self.int(a.ty, n);
        self.same("shrsi", a, n)
    }
    /// a + a constant.
    pub fn plus(&mut self, a: Value, n: u64) -> Value {
        if n == 0 {
            return a;
        }
        let n = self.int(a.ty, n as i64);
        self.addi(a, n)
    }
    /// a · a constant.
    pub fn times(&mut self, a: Value, n: u64) -> Value {
        if n == 1 {
            return a;
        }
        let n = self.int(a.ty, n as i64);
        self.muli(a, n)
    }

    fn convert(&mut self, op: &str, a: Value, element: Element) -> Value {
        let to = a.ty.of(element);
        self.value(to, format!("arith.{op} {a} : {} to {to}", a.ty))
    }
    /// Wider, filled with zeros.
    pub fn zero_extend(&mut self, a: Value, element: Element) -> Value {
        self.convert("extui", a, element)
    }
    /// Wider, filled with the sign.
    pub fn sign_extend(&mut self, a: Value, element: Element) -> Value {
        self.convert("extsi", a, element)
    }
    /// The low bits.
    pub fn truncate(&mut self, a: Value, element: Element) -> Value {
        self.convert("trunci", a, element)
    }
    /// From a signed integer.
    pub fn float_of_int(&mut self, a: Value) -> Value {
        self.convert("sitofp", a, Element::F32)
    }
    /// Half or bfloat16 to single.
    pub fn widen_half(&mut self, a: Value) -> Value {
        self.convert("extf", a, Element::F32)
    }
    /// Single to half, to nearest even.
    pub fn narrow_half(&mut self, a: Value) -> Value {
        self.convert("truncf", a, Element::F16)
    }
    /// Single to bfloat16, to nearest even, by the machine.
    pub fn narrow_bfloat(&mut self, a: Value) -> Value {
        self.convert("truncf", a, Element::Bf16)
    }
    /// The bits of a single.
    pub fn bits(&mut self, a: Value) -> Value {
        self.convert("bitcast", a, Element::I32)
    }
    /// A single of these bits.
    pub fn float_of_bits(&mut self, a: Value) -> Value {
        self.convert("bitcast", a, Element::F32)
    }
    /// The same scalar in all lanes.
    pub fn broadcast(&mut self, a: Value, lanes: u32) -> Value {
        if lanes == 1 {
            return a;
        }
        let to = Type::vector(a.ty.element, lanes);
        self.value(to, format!("vector.broadcast {a} : {} to {to}", a.ty))
    }
    /// One lane.
    pub fn extract(&mut self, a: Value, lane: u32) -> Value {
        let to = Type::scalar(a.ty.element);
        self.value(to, format!("vector.extract {a}[{lane}] : {} from {}", a.ty.element, a.ty))
    }
    /// The same bits as lanes of another size.
    pub fn reshape(&mut self, a: Value, element: Element, lanes: u32) -> Value {
        let to = Type::vector(element, lanes);
        if to.lanes == 1 || a.lanes() == 1 {
            return self.value(to, format!("llvm.bitcast {a} : {} to {to}", a.ty));
        }
        self.value(to, format!("vector.bitcast {a} : {} to {to}", a.ty))
    }
    /// One vector of as many scalars.
    pub fn gather(&mut self, lanes: &[Value]) -> Value {
        let to = Type::vector(lanes[0].ty.element, lanes.len() as u32);
        if lanes.len() == 1 {
            return lanes[0];
        }
        let list: Vec<_> = lanes.iter().map(Value::to_string).collect();
        self.value(to, format!("vector.from_elements {} : {to}", list.join(", ")))
    }
    /// Calls an intrinsic of LLVM.
    pub fn intrinsic(&mut self, name: &str, arguments: &[Value], ty: Type) -> Value {
        let names: Vec<_> = arguments.iter().map(Value::to_string).collect();
        let types: Vec<_> = arguments.iter().map(|a| a.ty.to_string()).collect();
        self.value(
            ty,
            format!("llvm.call_intrinsic \"{name}\"({}) : ({}) -> {ty}", names.join(", "), types.join(", ")),
        )
    }
    /// Lanes of a, then of b, by number.
    pub fn shuffle(&mut self, a: Value, b: Value, lanes: &[u32]) -> Value {
        let list: Vec<_> = lanes.iter().map(u32::to_string).collect();
        let to = Type::vector(a.ty.element, lanes.len() as u32);
        self.value(to, format!("vector.shuffle {a}, {b} [{}] : {}, {}", list.join(", "), a.ty, b.ty))
    }

    /// The address so many elements further.
    pub fn offset(&mut self, pointer: Value, elements: Value, of: Element) -> Value {
        let p = pointer.ty;
        self.value(
            p,
            format!("llvm.getelementptr {pointer}[{elements}] : ({p}, {}) -> {p}, {of}", elements.ty),
        )
    }
    /// Reads; `aligned` is what the address is a multiple of.
    pub fn load(&mut self, pointer: Value, ty: Type, aligned: u64) -> Value {
        let p = pointer.ty;
        self.value(ty, format!("llvm.load {pointer} {{alignment = {aligned} : i64}} : {p} -> {ty}"))
    }
    /// Writes.
    pub fn store(&mut self, value: Value, pointer: Value, aligned: u64) {
        let (p, ty) = (pointer.ty, value.ty);
        self.line(format!("llvm.store {value}, {pointer} {{alignment = {aligned} : i64}} : {ty}, {p}"));
    }
    /// Reads the lanes of the mask; the others are 0.
    pub fn load_masked(&mut self, pointer: Value, mask: Value, ty: Type, aligned: u64) -> Value {
        let zero = match ty.element {
            Element::F32 => self.float(ty.lanes, 0.0),
            Element::F16 => {
                let bits = self.int(ty.of(Element::I16), 0);
                self.convert("bitcast", bits, Element::F16)
            }
            _ => self.int(ty, 0),
        };
        self.value(
            ty,
            format!(
                "llvm.intr.masked.load {pointer}, {mask}, {zero} {{alignment = {aligned} : i32}} : ({}, {}, {ty}) -> {ty}",
                pointer.ty, mask.ty
            ),
        )
    }
    /// Writes the lanes of the mask.
    pub fn store_masked(&mut self, value: Value, pointer: Value, mask: Value, aligned: u64) {
        self.line(format!(
            "llvm.intr.masked.store {value}, {pointer}, {mask} {{alignment = {aligned} : i32}} : {}, {} into {}",
            value.ty, mask.ty, pointer.ty
        ));
    }
    /// A global constant.
    pub fn address_of(&mut self, symbol: &str) -> Value {
        self.value(Self::pointer_type(), format!("llvm.mlir.addressof @{symbol} : !llvm.ptr"))
    }
    /// The CPU's memory.
    pub fn pointer_type() -> Type {
        Type::scalar(Element::Pointer(Space::Generic))
    }
}
