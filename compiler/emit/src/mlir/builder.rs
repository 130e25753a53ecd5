//! Writes one function as MLIR text: a call writes a line and yields the value's name.
//!
//! All lanes of a vector follow the same operation, so an emitter reads the same for one lane and for sixteen. Constants are
//! written once, at the function's head. Strings of MLIR stay in this file and in [`super::ops`].

use super::types::{Element, Type, Value};
use std::collections::HashMap;
use std::fmt::Write;

/// A function while it is written.
pub(crate) struct Function {
    head: String,
    body: String,
    next: u32,
    depth: usize,
    constants: HashMap<(Type, Constant), Value>,
}

/// What a constant holds, in bits, so that it can be a key.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Constant {
    /// The same bits in all lanes.
    Splat(u64),
    /// Integers, lane by lane.
    Lanes(Vec<i64>),
}

impl Function {
    /// An empty body whose arguments have these types.
    pub fn new(arguments: &[Type]) -> (Self, Vec<Value>) {
        let values =
            arguments.iter().enumerate().map(|(i, &ty)| Value { id: i as u32, part: None, ty }).collect();
        let next = arguments.len() as u32;
        let f =
            Function { head: String::new(), body: String::new(), next, depth: 2, constants: HashMap::new() };
        (f, values)
    }

    /// The whole text. `attributes` follows the arguments, empty or with a leading space.
    pub fn finish(mut self, symbol: &str, arguments: &[Type], attributes: &str) -> String {
        self.line("llvm.return");
        let list: Vec<_> =
            arguments.iter().enumerate().map(|(i, ty)| format!("%{i}: {ty}{}", passing(*ty))).collect();
        format!("  llvm.func @{symbol}({}){attributes} {{\n{}{}  }}\n", list.join(", "), self.head, self.body)
    }

    /// A line without a result.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.body.extend(std::iter::repeat_n("  ", self.depth));
        self.body.push_str(text.as_ref());
        self.body.push('\n');
    }

    /// A remark for readers of the text.
    pub fn comment(&mut self, text: impl AsRef<str>) {
        self.line(format!("// {}", text.as_ref()));
    }

    /// A line with a result of this type.
    pub fn value(&mut self, ty: Type, text: impl AsRef<str>) -> Value {
        let value = self.fresh(ty);
        self.line(format!("{value} = {}", text.as_ref()));
        value
    }

    fn fresh(&mut self, ty: Type) -> Value {
        self.next += 1;
        Value { id: self.next - 1, part: None, ty }
    }

    fn constant(&mut self, ty: Type, key: Constant, text: String) -> Value {
        if let Some(&value) = self.constants.get(&(ty, key.clone())) {
            return value;
        }
        let value = self.fresh(ty);
        let text = match (ty.lanes, ty.element) {
            (1, Element::I1) => text,
            (1, _) => format!("{text} : {ty}"),
            _ => format!("dense<{text}> : {ty}"),
        };
        let _ = writeln!(self.head, "    {value} = arith.constant {text}");
        self.constants.insert((ty, key), value);
        value
    }

    /// A float in all lanes, by its bits.
    pub fn float(&mut self, lanes: u32, x: f32) -> Value {
        let ty = Type::vector(Element::F32, lanes);
        let bits = x.to_bits();
        let plain = x.is_finite() && x == x.trunc() && x.abs() < 1e6;
        self.constant(
            ty,
            Constant::Splat(bits.into()),
            if plain { format!("{x:?}") } else { format!("0x{bits:08X}") },
        )
    }

    /// An integer in all lanes; of 32 bits, its low ones.
    pub fn int(&mut self, ty: Type, x: i64) -> Value {
        let text = match ty.element {
            Element::I1 => (x != 0).to_string(),
            Element::I32 => (x as i32).to_string(),
            _ => x.to_string(),
        };
        self.constant(ty, Constant::Splat(x as u64), text)
    }

    /// A 64-bit scalar.
    pub fn index(&mut self, x: u64) -> Value {
        self.int(Type::scalar(Element::I64), x as i64)
    }

    /// An integer a lane.
    pub fn lanes(&mut self, element: Element, xs: &[i64]) -> Value {
        let ty = Type::vector(element, xs.len() as u32);
        if let [x] = xs {
            return self.int(ty, *x);
        }
        let list: Vec<_> = match element {
            Element::I1 => xs.iter().map(|&x| (x != 0).to_string()).collect(),
            _ => xs.iter().map(i64::to_string).collect(),
        };
        self.constant(ty, Constant::Lanes(xs.to_vec()), format!("[{}]", list.join(", ")))
    }

    /// Stack memory of the whole call, a multiple of 64 bytes and on such a boundary.
    pub fn stack(&mut self, floats: u64) -> Value {
        let count = self.index(floats.next_multiple_of(16));
        let value = self.fresh(Type::scalar(Element::Pointer(super::Space::Generic)));
        let _ = writeln!(
            self.head,
            "    {value} = llvm.alloca {count} x f32 {{alignment = 64 : i64}} : (i64) -> !llvm.ptr"
        );
        value
    }

    /// `for i in from..to by step`, carrying values round. The body gets i and the carried values and returns the next ones.
    pub fn for_range<E>(
        &mut self,
        (from, to, step): (Value, Value, Value),
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Result<Vec<Value>, E>,
    ) -> Result<Vec<Value>, E> {
        let i = self.fresh(from.ty);
        let inner: Vec<_> = carried.iter().map(|v| self.fresh(v.ty)).collect();
        let result = self.fresh(from.ty);
        let types = types_of(carried);
        let range = format!("scf.for {i} = {from} to {to} step {step}");
        match carried {
            [] => self.line(format!("{range} : {} {{", from.ty)),
            _ => {
                let pairs: Vec<_> = inner.iter().zip(carried).map(|(a, b)| format!("{a} = {b}")).collect();
                let count = if carried.len() == 1 { String::new() } else { format!(":{}", carried.len()) };
                let pairs = pairs.join(", ");
                self.line(format!(
                    "{result}{count} = {range} iter_args({pairs}) -> ({types}) : {} {{",
                    from.ty
                ));
            }
        }
        self.depth += 1;
        let next = body(self, i, &inner)?;
        if !carried.is_empty() {
            self.line(format!("scf.yield {} : {types}", names_of(&next)));
        }
        self.depth -= 1;
        self.line("}");
        Ok(results(result, carried))
    }

    /// [`Function::for_range`] for a body that cannot fail.
    pub fn fold(
        &mut self,
        range: (Value, Value, Value),
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let Ok(values) = self
            .for_range(range, carried, |f, i, values| Ok::<_, std::convert::Infallible>(body(f, i, values)));
        values
    }

    /// [`Function::fold`] from 0 in equal steps, carrying nothing.
    pub fn repeat(&mut self, to: u64, step: u64, body: impl FnOnce(&mut Self, Value)) {
        let range = (self.index(0), self.index(to), self.index(step));
        self.fold(range, &[], |f, i, _| {
            body(f, i);
            vec![]
        });
    }

    /// Only where the condition holds.
    pub fn only_if(&mut self, condition: Value, body: impl FnOnce(&mut Self)) {
        self.line(format!("scf.if {condition} {{"));
        self.depth += 1;
        body(self);
        self.depth -= 1;
        self.line("}");
    }

    /// The body's values where the condition holds, else these.
    pub fn replace_if(
        &mut self,
        condition: Value,
        values: &[Value],
        body: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> Vec<Value> {
        let [first, ..] = values else {
            self.only_if(condition, |f| {
                body(f);
            });
            return vec![];
        };
        let result = self.fresh(first.ty);
        let types = types_of(values);
        let count = if values.len() == 1 { String::new() } else { format!(":{}", values.len()) };
        self.line(format!("{result}{count} = scf.if {condition} -> ({types}) {{"));
        self.depth += 1;
        let next = body(self);
        self.line(format!("scf.yield {} : {types}", names_of(&next)));
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        self.line(format!("scf.yield {} : {types}", names_of(values)));
        self.depth -= 1;
        self.line("}");
        results(result, values)
    }

    /// The one where the condition holds, the other elsewhere.
    pub fn either(
        &mut self,
        condition: Value,
        holds: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        self.line(format!("scf.if {condition} {{"));
        self.depth += 1;
        holds(self);
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        otherwise(self);
        self.depth -= 1;
        self.line("}");
    }
}

/// How an argument is passed, if not as it is.
fn passing(ty: Type) -> &'static str {
    match ty.element {
        Element::TensorMap => {
            " {llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant}"
        }
        _ => "",
    }
}

fn types_of(values: &[Value]) -> String {
    values.iter().map(|v| v.ty.to_string()).collect::<Vec<_>>().join(", ")
}

fn names_of(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
}

fn results(first: Value, like: &[Value]) -> Vec<Value> {
    match like {
        [one] => vec![Value { ty: one.ty, ..first }],
        _ => (0..).zip(like).map(|(i, v)| Value { part: Some(i), ty: v.ty, ..first }).collect(),
    }
}
