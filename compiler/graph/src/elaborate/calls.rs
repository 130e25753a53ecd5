//! Calls of layers and models: arguments meet parameters, a body runs in its own frame.

use dspc_source::Span;
use dspc_spec::body::{
    Body, Call, DefParam, Definition, DefinitionId, ExprKind, Kind, Name, ParamType, ResultType,
};

use super::values::{Number, Value};
use super::{DEPTH_MAX, Elaborator, Frame, Outcome, Reported, join};
use crate::errors::{ArgumentDims, BadArguments, NoLoss, Place, ResultDiffers, WrongKind, origin, shown};
use crate::ir::{DType, Dim, Input, TensorType};
use crate::ops::Emit;

/// An argument, evaluated.
pub(super) struct Given {
    pub name: Option<Name>,
    pub value: Value,
    pub span: Span,
}

impl Elaborator<'_> {
    /// A call in a body.
    pub(super) fn call_layer(
        &mut self,
        id: DefinitionId,
        call: &Call,
        frame: &mut Frame,
        span: Span,
    ) -> Outcome<Value> {
        let mut given = vec![];
        let mut bad = false;
        for arg in &call.args {
            match self.eval(&arg.value, frame) {
                Ok(value) => {
                    given.push(Given { name: arg.name.clone(), value, span: arg.value.span });
                }
                Err(Reported) => bad = true,
            }
        }
        if bad || given.iter().any(|g| g.value == Value::Bad) {
            return Err(Reported);
        }
        let definition = &self.spec.definitions[id.0 as usize];
        let own = match &call.alias {
            Some(alias) => Some(alias.value.clone()),
            None if frame.passes_path || definition.kind == Kind::Model => None,
            None => Some(definition.name.value.clone()),
        };
        let paths = match own {
            Some(name) => (join(&frame.path, &name), join(&frame.value_path, &name)),
            None => (frame.path.clone(), frame.value_path.clone()),
        };
        let name = paths.1.clone();
        let outside = self.emission.clone();
        let result = self.call_definition(id, given, paths, span);
        self.emission = outside;
        if let Ok(Value::Tensor(value)) = &result
            && !name.is_empty()
        {
            self.rename_derived(*value, name);
        }
        result
    }

    /// Runs a definition's body.
    pub(super) fn call_definition(
        &mut self,
        id: DefinitionId,
        given: Vec<Given>,
        paths: (String, String),
        span: Span,
    ) -> Outcome<Value> {
        self.work(span)?;
        let spec = self.spec;
        let Some(definition) = spec.definitions.get(id.0 as usize) else { return Err(Reported) };
        // The checker has reported circles; the limit guards against what it might not see.
        if self.calls.iter().any(|(caller, _)| *caller == id) || self.calls.len() >= DEPTH_MAX {
            return Err(Reported);
        }
        let mut frame = Frame {
            path: paths.0,
            value_path: paths.1,
            names: Default::default(),
            leading: None,
            passes_path: matches!(definition.body, Body::Alias(_)),
        };
        self.bind_params(definition, given, &mut frame, span)?;
        if definition.kind == Kind::Model && matches!(definition.body, Body::Block(_)) {
            self.note_numbers(definition, &frame);
        }
        self.calls.push((id, span));
        let result = self.body(definition, &mut frame);
        self.calls.pop();
        let (value, place) = result?;
        self.check_result(definition, &value, place, &mut frame)?;
        Ok(value)
    }

    fn note_numbers(&mut self, definition: &Definition, frame: &Frame) {
        let number = |param: &DefParam| {
            let ParamType::Value(name) = &param.ty else { return None };
            let number = match &frame.names.get(&name.value)?.value {
                Value::Number(number) => number.amount.float(),
                Value::Bool(flag) => f64::from(u8::from(*flag)),
                _ => return None,
            };
            Some((param.name.value.clone(), number))
        };
        self.graph.numbers = definition.params.iter().filter_map(number).collect();
    }

    fn body(&mut self, definition: &Definition, frame: &mut Frame) -> Outcome<(Value, Span)> {
        match &definition.body {
            Body::Alias(expr) => Ok((self.eval(expr, frame)?, expr.span)),
            Body::Block(statements) => match self.statements(statements, frame)? {
                Some(result) => Ok(result),
                // The checker has reported it.
                None => Err(Reported),
            },
        }
    }

    fn bind_params(
        &mut self,
        definition: &Definition,
        given: Vec<Given>,
        frame: &mut Frame,
        call: Span,
    ) -> Outcome<()> {
        let arguments = self.match_arguments(definition, given, call)?;
        for (param, given) in definition.params.iter().zip(&arguments) {
            if let (ParamType::Value(name), Some(given)) = (&param.ty, given) {
                frame.bind(&name.value, called(given.value.clone(), &name.value, given.span), given.span);
            }
        }
        for (param, given) in definition.params.iter().zip(&arguments) {
            self.bind_tensor(definition, param, given.as_ref(), frame, call)?;
        }
        for (param, given) in definition.params.iter().zip(&arguments) {
            let (ParamType::Value(name), None) = (&param.ty, given) else { continue };
            let Some(default) = &param.default else {
                return self.missing(definition, param, call);
            };
            let value = self.eval(default, frame)?;
            frame.bind(&name.value, called(value, &name.value, default.span), default.span);
        }
        for (param, given) in definition.params.iter().zip(&arguments) {
            let ParamType::Tensor(dims) = &param.ty else { continue };
            let (Some(Value::Tensor(value)), Some(given)) = (given.as_ref().map(|g| &g.value), given) else {
                continue;
            };
            let actual = self.graph.ty(*value).clone();
            if let Err(mismatch) = self.check_compound_dims(dims, &actual.dims, frame)? {
                return self.misfit(definition, param, mismatch, &actual, given.span);
            }
        }
        Ok(())
    }

    fn missing<T>(&mut self, definition: &Definition, param: &DefParam, call: Span) -> Outcome<T> {
        let message = format!("lacks `{}`", param.name.value);
        self.report(BadArguments {
            function: definition.name.value.clone(),
            message,
            span: call,
            signature: signature(definition),
        })
    }

    fn match_arguments(
        &mut self,
        definition: &Definition,
        given: Vec<Given>,
        call: Span,
    ) -> Outcome<Vec<Option<Given>>> {
        let mut slots: Vec<Option<Given>> = definition.params.iter().map(|_| None).collect();
        let mut bad = false;
        for (i, given) in given.into_iter().enumerate() {
            let slot = match &given.name {
                Some(name) => definition.params.iter().position(|p| p.name.value == name.value),
                None => Some(i).filter(|i| *i < slots.len()),
            };
            let message = match (slot, &given.name) {
                (None, Some(name)) => Some(format!("names `{}`, which it does not have", name.value)),
                (None, None) => Some(format!("gives more than its {} parameters", slots.len())),
                (Some(slot), _) if slots[slot].is_some() => {
                    Some(format!("gives `{}` twice", definition.params[slot].name.value))
                }
                (Some(_), _) => None,
            };
            let span = given.name.as_ref().map_or(given.span, |n| n.span);
            match (message, slot) {
                (Some(message), _) => {
                    let function = definition.name.value.clone();
                    let signature = signature(definition);
                    let _: Outcome<()> = self.report(BadArguments { function, message, span, signature });
                    bad = true;
                }
                (None, Some(slot)) => slots[slot] = Some(given),
                (None, None) => {}
            }
        }
        let _ = call;
        if bad { Err(Reported) } else { Ok(slots) }
    }

    fn bind_tensor(
        &mut self,
        definition: &Definition,
        param: &DefParam,
        given: Option<&Given>,
        frame: &mut Frame,
        call: Span,
    ) -> Outcome<()> {
        let (dims, ids) = match &param.ty {
            ParamType::Tensor(dims) => (dims, false),
            ParamType::Ids(dims) => (dims, true),
            ParamType::Value(_) => return Ok(()),
        };
        let (value, span) = match given {
            Some(given) => (given.value.clone(), given.span),
            None if ids && definition.kind == Kind::Model => (self.model_input(param)?, param.name.span),
            None => return self.missing(definition, param, call),
        };
        let Value::Tensor(tensor) = value else {
            let found = self.describe(&value);
            let expected = if ids { "ids" } else { "a tensor" }.to_owned();
            let places = vec![(param.name.span, format!("`{}` is declared here", param.name.value))];
            return self.report(WrongKind { expected, found, span, places, help: None });
        };
        let actual = self.graph.ty(tensor).clone();
        if (actual.dtype == DType::I32) != ids {
            let (expected, found) = if ids { ("ids", "a float tensor") } else { ("a float tensor", "ids") };
            let places = vec![(param.name.span, format!("`{}` is declared here", param.name.value))];
            let (expected, found) = (expected.into(), found.into());
            return self.report(WrongKind { expected, found, span, places, help: None });
        }
        if let Err(mismatch) = self.bind_dims(dims, &actual.dims, frame, span) {
            return self.misfit(definition, param, mismatch, &actual, span);
        }
        frame.bind(&param.name.value, Value::Tensor(tensor), span);
        Ok(())
    }

    /// What the runtime hands to a model: its `tokens` and `targets`.
    fn model_input(&mut self, param: &DefParam) -> Outcome<Value> {
        if let ParamType::Ids(dims) = &param.ty {
            let named = |i: usize| match dims.dims.get(i).map(|e| &e.kind) {
                Some(ExprKind::Local(name)) => Some(name.clone()),
                _ => None,
            };
            if self.inputs.is_empty() {
                self.batch.place = self.batch.place.or(dims.dims.first().map(|e| e.span));
                self.sequence.place = self.sequence.place.or(dims.dims.get(1).map(|e| e.span));
                self.batch.name = named(0).unwrap_or_else(|| self.batch.name.clone());
                self.sequence.name = named(1).unwrap_or_else(|| self.sequence.name.clone());
            }
        }
        let input = match param.name.value.as_str() {
            "tokens" => Input::Tokens,
            "targets" => Input::Targets,
            other => {
                let found = format!("`{other}`");
                return self.report(WrongKind {
                    expected: "`tokens` or `targets`".into(),
                    found,
                    span: param.name.span,
                    places: vec![],
                    help: Some("these are the ids that training hands to a model".into()),
                });
            }
        };
        Ok(Value::Tensor(self.input(input)))
    }

    fn misfit<T>(
        &mut self,
        definition: &Definition,
        param: &DefParam,
        mismatch: super::dims::Mismatch,
        actual: &TensorType,
        argument: Span,
    ) -> Outcome<T> {
        self.report(ArgumentDims {
            definition: definition.name.value.clone(),
            param: param.name.value.clone(),
            expected: mismatch.expected,
            found: shown(actual),
            argument,
            declaration: mismatch.span,
            places: mismatch.places,
        })
    }

    fn check_result(
        &mut self,
        definition: &Definition,
        value: &Value,
        place: Span,
        frame: &mut Frame,
    ) -> Outcome<()> {
        let values = match value {
            Value::Tuple(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        if values.contains(&Value::Bad) {
            return Err(Reported);
        }
        match &definition.result {
            None => Ok(()),
            Some(ResultType::Loss(_)) => match value {
                Value::Tensor(v) if self.graph.ty(*v).dims.is_empty() => Ok(()),
                other => {
                    let found = self.describe(other);
                    self.report(NoLoss { model: definition.name.value.clone(), found, result: place })
                }
            },
            Some(ResultType::Tensor(dims)) => {
                self.compare_results(definition, std::slice::from_ref(dims), values, place, frame)
            }
            Some(ResultType::Tuple(all)) => self.compare_results(definition, all, values, place, frame),
        }
    }

    fn compare_results(
        &mut self,
        definition: &Definition,
        declared: &[dspc_spec::body::Dims],
        values: &[Value],
        place: Span,
        frame: &mut Frame,
    ) -> Outcome<()> {
        let name = &definition.name.value;
        let whole = declared.first().map_or(definition.name.span, |d| d.span);
        if declared.len() != values.len() {
            let (declared, found) = (count(declared.len()), count(values.len()));
            let definition = name.clone();
            let declaration = whole;
            return self.report(ResultDiffers {
                definition,
                declared,
                found,
                result: place,
                declaration,
                places: vec![],
            });
        }
        for (dims, value) in declared.iter().zip(values) {
            let expected = TensorType::f32(self.known_dims(dims, frame)?);
            let actual = match value {
                Value::Tensor(v) => Some(self.graph.ty(*v).clone()),
                _ => None,
            };
            if actual.as_ref().is_none_or(|a| a.dims != expected.dims) {
                let found = self.describe(value);
                let actual = actual.unwrap_or_else(TensorType::scalar);
                let places = differing_places(&expected.dims, &actual.dims);
                let declaration = dims.span;
                let declared = shown(&expected);
                let definition = name.clone();
                return self.report(ResultDiffers {
                    definition,
                    declared,
                    found,
                    result: place,
                    declaration,
                    places,
                });
            }
        }
        Ok(())
    }

    /// A value in words, for reports.
    pub(super) fn describe(&self, value: &Value) -> String {
        match value {
            Value::Tensor(v) if self.graph.ty(*v).dtype == DType::I32 => {
                format!("ids {}", shown(self.graph.ty(*v)))
            }
            Value::Tensor(v) => match self.graph.ty(*v) {
                ty if ty.dims.is_empty() => "a scalar tensor".to_owned(),
                ty => format!("a tensor {}", shown(ty)),
            },
            Value::Number(n) => format!("the number {}", n.amount.float()),
            Value::Bool(b) => format!("`{b}`"),
            Value::Text(_) => "a text".to_owned(),
            Value::Mask(_) => "a mask".to_owned(),
            Value::Init(_) => "a way to start a parameter".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Tuple(values) => count(values.len()),
            Value::Lambda(_) => "a predicate".to_owned(),
            Value::Bad => "unknown".to_owned(),
        }
    }
}

fn count(values: usize) -> String {
    if values == 1 { "one value".to_owned() } else { format!("{values} values") }
}

/// Where the sizes of the first differing dim were said.
fn differing_places(expected: &[Dim], actual: &[Dim]) -> Vec<Place> {
    let pair = expected.iter().zip(actual).find(|(e, a)| e != a);
    pair.into_iter().flat_map(|(e, a)| [origin(e), origin(a)]).flatten().collect()
}

/// A literal takes the name of the parameter it is given to.
fn called(value: Value, name: &str, span: Span) -> Value {
    match value {
        Value::Number(Number { amount, name: None, place, division }) => Value::Number(Number {
            amount,
            name: Some(name.to_owned()),
            place: place.or(Some(span)),
            division,
        }),
        other => other,
    }
}

/// `block(x, heads, layers)`
fn signature(definition: &Definition) -> String {
    let names: Vec<&str> = definition.params.iter().map(|p| p.name.value.as_str()).collect();
    format!("{}({})", definition.name.value, names.join(", "))
}
