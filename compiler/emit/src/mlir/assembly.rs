//! PTX inside a function, where MLIR has no operation for an instruction or keeps its operands from us.

use super::builder::Function;
use super::types::{Element, Type, Value};
use std::fmt::Write;

impl Function {
    /// PTX with side effects on memory, written in place. `updated` values are read and written, `fresh` ones only written, `inputs` only read.
    ///
    /// Numbers in the text: `$0` and on are the updated, then the fresh ones; the inputs begin at [`first_input`]. Results come in that order.
    pub fn assembly(
        &mut self,
        text: &str,
        updated: &[Value],
        fresh: &[Type],
        inputs: &[Value],
    ) -> Vec<Value> {
        let outputs: Vec<Type> = updated.iter().map(|v| v.ty).chain(fresh.iter().copied()).collect();
        let mut constraints: Vec<String> = outputs.iter().map(|ty| format!("={}", letter(*ty))).collect();
        constraints.extend((0..updated.len()).map(|i| i.to_string()));
        constraints.extend(inputs.iter().map(|v| letter(v.ty).to_string()));
        constraints.push("~{memory}".to_string());
        let operands: Vec<&Value> = updated.iter().chain(inputs).collect();
        let names: Vec<String> = operands.iter().map(|v| v.to_string()).collect();
        let types: Vec<String> = operands.iter().map(|v| v.ty.to_string()).collect();
        let mut line = format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{}\" {} : ({})",
            constraints.join(","),
            names.join(", "),
            types.join(", ")
        );
        match outputs.as_slice() {
            [] => {
                line += " -> ()";
                self.line(line);
                vec![]
            }
            [one] => {
                let _ = write!(line, " -> {one}");
                vec![self.value(*one, line)]
            }
            _ => {
                let list: Vec<String> = outputs.iter().map(Type::to_string).collect();
                let ty = format!("!llvm.struct<({})>", list.join(", "));
                let _ = write!(line, " -> {ty}");
                let all = self.value(outputs[0], line);
                let part = |(i, out): (usize, &Type)| {
                    self.value(*out, format!("llvm.extractvalue {all}[{i}] : {ty}"))
                };
                outputs.iter().enumerate().map(part).collect()
            }
        }
    }
}

/// The number of [`Function::assembly`]'s first input.
pub(crate) fn first_input(updated: usize, fresh: usize) -> usize {
    2 * updated + fresh
}

fn letter(ty: Type) -> char {
    match ty.element {
        Element::F32 => 'f',
        Element::I64 | Element::Pointer(_) | Element::TensorMap => 'l',
        Element::I16 | Element::F16 | Element::Bf16 => 'h',
        Element::I1 | Element::I8 | Element::I32 => 'r',
    }
}
