//! Dims: sizes from expressions, names bound by tensors, both places of a disagreement.

use dspc_source::Span;
use dspc_spec::body::{Dims, Expr, ExprKind};

use super::values::{Number, Value};
use super::{Elaborator, Frame, Outcome};
use crate::errors::{Place, SizeNotWhole, WrongKind, origin};
use crate::ir::Dim;

impl Elaborator<'_> {
    /// The size that an expression is.
    pub(super) fn size(&mut self, expr: &Expr, frame: &mut Frame) -> Outcome<Dim> {
        match self.eval(expr, frame)? {
            Value::Number(number) => self.number_as_size(&number, expr.span),
            Value::Bad => Err(super::Reported),
            other => {
                let found = self.describe(&other);
                self.report(WrongKind {
                    expected: "a size".into(),
                    found,
                    span: expr.span,
                    places: vec![],
                    help: None,
                })
            }
        }
    }

    /// A number as a size.
    pub(super) fn number_as_size(&mut self, number: &Number, span: Span) -> Outcome<Dim> {
        if let Some(mut dim) = number.dim() {
            dim.place = dim.place.or(Some(span));
            return Ok(dim);
        }
        let parts = number.division.as_ref().map(|d| {
            format!("{} / {} = {} / {}", d.0.text(), d.1.text(), d.0.amount.float(), d.1.amount.float())
        });
        let sides = number.division.iter().flat_map(|d| [&d.0, &d.1]);
        let mut places: Vec<Place> = sides.filter_map(|n| n.dim().as_ref().and_then(origin)).collect();
        places.extend(number.place.map(|said| (said, "it comes from here".to_owned())));
        let text = number.name.clone().unwrap_or_else(|| self.sources.slice(span).to_owned());
        self.report(SizeNotWhole { text, value: number.amount.float(), span, places, parts })
    }

    /// Dims that are all known.
    pub(super) fn known_dims(&mut self, dims: &Dims, frame: &mut Frame) -> Outcome<Vec<Dim>> {
        let mut all = match (&dims.leading, &frame.leading) {
            (Some(_), Some((leading, _))) => leading.clone(),
            _ => vec![],
        };
        for expr in &dims.dims {
            all.push(self.size(expr, frame)?);
        }
        Ok(all)
    }

    /// Binds the lone names of a parameter's dims to a tensor's, and says what disagrees; compound dims are for [`Self::check_compound_dims`].
    pub(super) fn bind_dims(
        &mut self,
        declared: &Dims,
        actual: &[Dim],
        frame: &mut Frame,
        argument: Span,
    ) -> Result<(), Mismatch> {
        let fits = if declared.leading.is_some() {
            actual.len() >= declared.dims.len()
        } else {
            actual.len() == declared.dims.len()
        };
        if !fits {
            let least = if declared.leading.is_some() { "at least " } else { "" };
            let expected = format!("{least}{} dims are expected", declared.dims.len());
            return Err(Mismatch { expected, span: declared.span, places: vec![] });
        }
        let (leading, rest) = actual.split_at(actual.len() - declared.dims.len());
        if let Some(dots) = declared.leading {
            match &frame.leading {
                Some((bound, place)) if bound != leading => {
                    let places = vec![(*place, "`..` stands for other dims here".to_owned())];
                    return Err(Mismatch {
                        expected: "`..` is the same everywhere".into(),
                        span: dots,
                        places,
                    });
                }
                Some(_) => {}
                None => frame.leading = Some((leading.to_vec(), argument)),
            }
        }
        for (expr, dim) in declared.dims.iter().zip(rest) {
            let ExprKind::Local(name) = &expr.kind else { continue };
            match frame.names.get(name).map(|b| (&b.value, b.place)) {
                None => {
                    let mut dim = dim.clone();
                    if dim.name == dim.size.to_string() {
                        dim.name = name.clone();
                    }
                    dim.place = dim.place.or(Some(argument));
                    frame.bind(name, Value::Number(Number::of_dim(&dim)), argument);
                }
                Some((Value::Number(bound), place)) => {
                    if bound.dim().is_none_or(|b| b.size != dim.size) {
                        return Err(disagreement(name, bound, place, dim, expr.span));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Compares the dims of a parameter that are expressions with a tensor's.
    pub(super) fn check_compound_dims(
        &mut self,
        declared: &Dims,
        actual: &[Dim],
        frame: &mut Frame,
    ) -> Outcome<Result<(), Mismatch>> {
        let Some(skip) = actual.len().checked_sub(declared.dims.len()) else { return Ok(Ok(())) };
        for (expr, dim) in declared.dims.iter().zip(&actual[skip..]) {
            if matches!(expr.kind, ExprKind::Local(_)) {
                continue;
            }
            let expected = self.size(expr, frame)?;
            if expected != *dim {
                let number = Number::of_dim(&expected);
                let text = self.sources.slice(expr.span).to_owned();
                return Ok(Err(disagreement(&text, &number, expr.span, dim, expr.span)));
            }
        }
        Ok(Ok(()))
    }
}

/// A tensor's dims and a declaration's disagree.
pub(super) struct Mismatch {
    pub expected: String,
    pub span: Span,
    pub places: Vec<Place>,
}

fn disagreement(name: &str, bound: &Number, place: Span, dim: &Dim, declared: Span) -> Mismatch {
    let size = bound.amount.float();
    let expected = format!("`{name}` would be {size} and {} at once", dim.size);
    let mut places = vec![];
    match bound.place {
        Some(said) => places.push((said, format!("`{name}` is {size} because of this"))),
        None => places.push((place, format!("`{name}` is {size} here"))),
    }
    places.extend(dim.place.map(|said| (said, format!("{} comes from here", dim.size))));
    Mismatch { expected, span: declared, places }
}
