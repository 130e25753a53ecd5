//! The last dim in equal parts: views.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::concat::Concat;
use super::function::{Build, Expects, Function, Misuse, Parameter};
use super::pad::Pad;
use super::{gradient_name, sum_of_gradients};
use crate::form::{Form, View};
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};

pub(crate) const SPLIT: Function = Function {
    builtin: Builtin {
        name: "split",
        signature: "split(x, parts)",
        doc: "The last dim in equal parts: `q, k, v = split(x, 3)`.",
    },
    params: &[Parameter::required("x", Expects::Tensor), Parameter::required("parts", Expects::Size)],
    build: Build::Ops(|e, args| {
        let (x, parts) = (args.tensor(0), args.size(1).map_or(1, |d| d.size));
        if parts > 1024 {
            return Err(Misuse::Range { param: 1, message: "may be at most 1024".into() });
        }
        let ty = e.ty(x);
        let last = ty.dims.last().cloned().unwrap_or_else(|| Dim::of(1));
        let name = part_name(&last, parts);
        let part = Dim { name, size: last.size / parts, place: last.place };
        e.emit(Arc::new(Split { parts, part }), &[x])
    }),
};

/// `3*D` in 3 parts is `D`.
fn part_name(dim: &Dim, parts: u64) -> String {
    match dim.name.strip_prefix(&format!("{parts}*")) {
        Some(rest) if !rest.contains(['+', '-', '/']) => rest.to_owned(),
        _ if dim.name == dim.size.to_string() => (dim.size / parts).to_string(),
        _ => format!("{}/{parts}", dim.name),
    }
}

/// Result i is `i · part .. (i + 1) · part` of the last dim.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Split {
    /// How many.
    pub parts: u64,
    /// The last dim of each.
    pub part: Dim,
}

impl Op for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn attributes(&self) -> String {
        format!("in {}", self.parts)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let x = inputs[0];
        let Some((last, leading)) = x.dims.split_last() else {
            return Err(ShapeError::new(0, 0, "a scalar cannot be split"));
        };
        if self.part.size.checked_mul(self.parts) != Some(last.size) {
            let message = format!("the last dim, {}, is no multiple of {} parts", last.size, self.parts);
            let at = (0, x.dims.len() - 1);
            return Err(ShapeError::dims(at, at, message));
        }
        let mut dims = leading.to_vec();
        dims.push(self.part.clone());
        Ok(vec![x.with_dims(dims); self.parts as usize])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let name = gradient_name(&g.name(inputs[0]));
        let ty = g.ty(inputs[0]);
        let dim = ty.dims.len() - 1;
        if let Some(all) = grads.iter().copied().collect::<Option<Vec<_>>>() {
            let op = Concat { dim, whole: ty.dims[dim].clone() };
            return vec![Some(g.emit(Arc::new(op), &all, &name)[0])];
        }
        let mut sum = None;
        for (i, dy) in grads.iter().enumerate() {
            let Some(dy) = dy else { continue };
            let op = Pad { dim, start: i as u64 * self.part.size, size: ty.dims[dim].clone() };
            let padded = g.emit(Arc::new(op), &[*dy], &name)[0];
            sum = Some(match sum {
                None => padded,
                Some(so_far) => g.emit(sum_of_gradients(), &[so_far, padded], &name)[0],
            });
        }
        vec![sum]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let (cols, part) = (x.cols(), self.part.size as usize);
        let mut dims = x.dims.clone();
        dims[x.dims.len() - 1] = part;
        let piece = |p: usize| Tensor::from_fn(&dims, |i| x.data[i / part * cols + p * part + i % part]);
        (0..self.parts as usize).map(piece).collect()
    }

    fn cost(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Cost {
        Cost::default()
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let dim = inputs[0].dims.len() - 1;
        Form::View((0..self.parts).map(|i| View::Slice { dim, start: i * self.part.size }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_side_by_side_are_the_whole() {
        let x = Tensor::from_fn(&[2, 3, 6], |i| i as f64);
        let parts = Split { parts: 3, part: Dim::of(2) }.evaluate(&[&x]);
        assert_eq!(parts[1].data[..4], [2.0, 3.0, 8.0, 9.0]);
        let whole = Concat { dim: 2, whole: Dim::of(6) }.evaluate(&parts.iter().collect::<Vec<_>>());
        assert_eq!(whole, [x]);
    }

    #[test]
    fn a_part_of_three_widths_is_a_width() {
        assert_eq!(part_name(&Dim::new("3*D", 24), 3), "D");
        assert_eq!(part_name(&Dim::new("F", 24), 3), "F/3");
        assert_eq!(part_name(&Dim::of(24), 3), "8");
    }
}
