//! Calls of the graph's own functions: arguments checked against their parameters, misuse said in the user's words.

use dspc_source::Span;
use dspc_spec::body::Call;

use super::values::{Number, Value};
use super::{Elaborator, Frame, Outcome, Reported, emission};
use crate::errors::{
    BadArguments, HeadsDoNotDivide, OutOfRange, Place, ShapeMismatch, TooLarge, WrongKind, origin, shown,
};
use crate::ir::{DType, Dim, ValueId};
use crate::ops::{Argument, Arguments, Build, Expects, FUNCTIONS, Function, Misuse};

/// What was called, as the user wrote it.
pub(super) enum Called<'a> {
    /// `+`
    Operator(&'static str),
    /// One of the graph's functions.
    Function(&'a Function, &'a Arguments),
}

impl Elaborator<'_> {
    /// A function without parameters, by its name alone.
    pub(super) fn constant(&mut self, at: usize) -> Outcome<Value> {
        let none = Arguments { values: vec![], places: vec![], origins: vec![] };
        match FUNCTIONS[at].build {
            Build::Init(f) => Ok(Value::Init(f(&none))),
            Build::Mask(f) => Ok(Value::Mask(f(&none))),
            Build::Ops(_) | Build::OpsOrNumber(..) | Build::Number(_) => Err(Reported),
        }
    }

    pub(super) fn call_function(
        &mut self,
        at: usize,
        call: &Call,
        frame: &mut Frame,
        span: Span,
    ) -> Outcome<Value> {
        let Some(function) = FUNCTIONS.get(at) else { return Err(Reported) };
        let mut given: Vec<(Option<String>, Value, Span)> = vec![];
        for arg in &call.args {
            let value = self.eval(&arg.value, frame)?;
            given.push((arg.name.as_ref().map(|n| n.value.clone()), value, arg.value.span));
        }
        let slots = self.slots(function, given, span)?;
        if let (Build::OpsOrNumber(_, f), [Some((Value::Number(n), place))]) =
            (function.build, slots.as_slice())
        {
            return self.computed(f(n.amount.float()), n, *place);
        }
        let mut arguments = Arguments { values: vec![], places: vec![], origins: vec![] };
        for (i, slot) in slots.into_iter().enumerate() {
            arguments.places.push(slot.as_ref().map(|s| s.1));
            arguments.origins.push(slot.as_ref().and_then(|s| match &s.0 {
                Value::Number(number) => number.place,
                _ => None,
            }));
            let value = match slot {
                Some((value, place)) => Some(self.argument(function, i, value, place, frame)?),
                None => None,
            };
            arguments.values.push(value);
        }
        self.emission = emission::Place { path: frame.value_path.clone(), origin: frame.path.clone(), span };
        match function.build {
            Build::Init(f) => Ok(Value::Init(f(&arguments))),
            Build::Mask(f) => Ok(Value::Mask(f(&arguments))),
            Build::Number(f) => {
                let (a, b) = (arguments.number(0).unwrap_or(0.0), arguments.number(1).unwrap_or(0.0));
                Ok(Value::Number(Number::literal(f(a, b), span)))
            }
            Build::Ops(f) | Build::OpsOrNumber(f, _) => match f(self, &arguments) {
                Ok(values) => match values.as_slice() {
                    [one] => Ok(Value::Tensor(*one)),
                    all => Ok(Value::Tuple(all.iter().map(|v| Value::Tensor(*v)).collect())),
                },
                Err(misuse) => {
                    let operands = operand_places(&arguments);
                    self.report_misuse(Called::Function(function, &arguments), misuse, &operands, span)
                }
            },
        }
    }

    fn computed(&mut self, x: f64, from: &Number, place: Span) -> Outcome<Value> {
        if !x.is_finite() {
            let what = format!("the result for {}", from.text());
            return self.report(TooLarge {
                what,
                limit: "a finite number".into(),
                span: place,
                places: vec![],
            });
        }
        Ok(Value::Number(Number::literal(x, place)))
    }

    /// Arguments by parameter: those without a name first, in order.
    fn slots(
        &mut self,
        function: &Function,
        given: Vec<(Option<String>, Value, Span)>,
        span: Span,
    ) -> Outcome<Vec<Option<(Value, Span)>>> {
        let mut slots: Vec<Option<(Value, Span)>> = vec![None; function.params.len()];
        let variadic = function.params.first().is_some_and(|p| p.expects == Expects::Tensors);
        let mut message = None;
        let mut several = vec![];
        for (i, (name, value, place)) in given.into_iter().enumerate() {
            let slot = match &name {
                Some(name) => function.params.iter().position(|p| p.name == name),
                None if variadic => {
                    several.push((value, place));
                    continue;
                }
                None => Some(i).filter(|i| *i < slots.len()),
            };
            match (slot, name) {
                (Some(slot), _) if slots[slot].is_none() => slots[slot] = Some((value, place)),
                (Some(slot), _) => {
                    message = Some((format!("gives `{}` twice", function.params[slot].name), place))
                }
                (None, Some(name)) => {
                    message = Some((format!("names `{name}`, which it does not have"), place))
                }
                (None, None) => message = Some((format!("gives more than {} arguments", slots.len()), place)),
            }
        }
        if variadic && !several.is_empty() {
            slots[0] = Some((Value::List(several), span));
        }
        let lacks = function.params.iter().zip(&slots).find(|(p, s)| !p.optional && s.is_none());
        if let (None, Some((param, _))) = (&message, lacks) {
            message = Some((format!("lacks `{}`", param.name), span));
        }
        match message {
            None => Ok(slots),
            Some((message, span)) => self.report(BadArguments {
                function: function.builtin.name.to_owned(),
                message,
                span,
                signature: function.builtin.signature.to_owned(),
            }),
        }
    }

    /// A value as the parameter expects it.
    fn argument(
        &mut self,
        function: &Function,
        i: usize,
        value: Value,
        place: Span,
        frame: &Frame,
    ) -> Outcome<Argument> {
        let param = &function.params[i];
        let ids = |e: &Self, v: ValueId| e.graph.ty(v).dtype == DType::I32;
        let refused = match (param.expects, value) {
            (_, Value::Bad) => return Err(Reported),
            (Expects::Tensor, Value::Tensor(v)) if !ids(self, v) => return Ok(Argument::Tensor(v)),
            (Expects::Ids, Value::Tensor(v)) if ids(self, v) => return Ok(Argument::Tensor(v)),
            (Expects::Number, Value::Number(n)) => return Ok(Argument::Number(n.amount.float())),
            (Expects::Index, Value::Number(n))
                if n.amount.float() >= 0.0 && n.amount.float().fract() == 0.0 =>
            {
                return Ok(Argument::Number(n.amount.float()));
            }
            (Expects::Size, Value::Number(n)) => return Ok(Argument::Size(self.number_as_size(&n, place)?)),
            (Expects::Flag, Value::Bool(flag)) => return Ok(Argument::Flag(flag)),
            (Expects::Mask, value @ (Value::Mask(_) | Value::Lambda(_))) => {
                return Ok(Argument::Mask(self.as_mask(value, place, frame)?));
            }
            (Expects::Sizes, Value::List(items)) => return self.sizes(items),
            (Expects::Tensors, Value::List(items)) => return self.tensors(items),
            (_, other) => other,
        };
        let found = self.describe(&refused);
        self.report(WrongKind {
            expected: param.expects.words().to_owned(),
            found,
            span: place,
            places: vec![],
            help: Some(format!(
                "`{}` is parameter `{}` of `{}`",
                self.sources.slice(place),
                param.name,
                function.builtin.signature
            )),
        })
    }

    fn sizes(&mut self, items: Vec<(Value, Span)>) -> Outcome<Argument> {
        let mut dims: Vec<Dim> = vec![];
        for (item, place) in items {
            match item {
                Value::Number(n) => dims.push(self.number_as_size(&n, place)?),
                other => {
                    let found = self.describe(&other);
                    return self.wrong("a size", &found, place);
                }
            }
        }
        Ok(Argument::Sizes(dims))
    }

    fn tensors(&mut self, items: Vec<(Value, Span)>) -> Outcome<Argument> {
        let mut tensors = vec![];
        for (item, place) in items {
            match item {
                Value::Tensor(v) if self.graph.ty(v).dtype != DType::I32 => tensors.push(v),
                other => {
                    let found = self.describe(&other);
                    return self.wrong("a tensor", &found, place);
                }
            }
        }
        Ok(Argument::Tensors(tensors))
    }

    /// A misuse in the user's words.
    pub(super) fn report_misuse<T>(
        &mut self,
        called: Called,
        misuse: Misuse,
        operands: &[(ValueId, Span)],
        call: Span,
    ) -> Outcome<T> {
        let function = match &called {
            Called::Function(function, arguments) => Some((*function, *arguments)),
            Called::Operator(_) => None,
        };
        match misuse {
            Misuse::Shape { inputs, error } => {
                let mut places: Vec<Place> = vec![];
                let (a, b) = error.operands;
                for at in [a, b] {
                    let Some(value) = inputs.get(at) else { continue };
                    let place = operands.iter().find(|(v, _)| v == value);
                    places.extend(
                        place.map(|(v, span)| (*span, format!("this is {}", shown(self.graph.ty(*v))))),
                    );
                }
                if let Some((da, db)) = error.dims {
                    for (at, dim) in [(a, da), (b, db)] {
                        let dims = inputs.get(at).map(|v| &self.graph.ty(*v).dims);
                        places.extend(dims.and_then(|d| d.get(dim)).and_then(origin));
                    }
                }
                let op = match called {
                    Called::Function(function, _) => function.builtin.name,
                    Called::Operator(word) => word,
                };
                self.report(ShapeMismatch { op, message: error.message, call, places })
            }
            Misuse::Heads { param, heads, tensor } => {
                let width = self.graph.ty(tensor).dims.last().cloned().unwrap_or_else(|| Dim::of(1));
                let mut places: Vec<Place> = [origin(&heads), origin(&width)].into_iter().flatten().collect();
                let given = function.and_then(|(_, args)| args.places.get(param).copied().flatten());
                places.extend(given.map(|span| (span, format!("{} heads", heads.size))));
                let halves = heads.size > 0 && width.size.is_multiple_of(heads.size);
                self.report(HeadsDoNotDivide { heads, width, call, places, halves })
            }
            Misuse::Range { param, message } => {
                let place = function.and_then(|(_, args)| args.places.get(param).copied().flatten());
                let said = function.and_then(|(_, args)| args.origins.get(param).copied().flatten());
                let said = said.map(|span| (span, "it comes from here".to_owned()));
                let (name, param) =
                    function.map_or(("", ""), |(f, _)| (f.builtin.name, f.params[param].name));
                self.report(OutOfRange { function: name, param, message, span: place.unwrap_or(call), said })
            }
            Misuse::Limit { what, limit } => {
                self.report(TooLarge { what, limit, span: call, places: vec![] })
            }
        }
    }
}

/// The tensors among arguments, and where each was written.
fn operand_places(arguments: &Arguments) -> Vec<(ValueId, Span)> {
    let pairs = arguments.values.iter().zip(&arguments.places);
    let tensors = pairs.filter_map(|(value, place)| match (value, place) {
        (Some(Argument::Tensor(v)), Some(span)) => Some((*v, *span)),
        _ => None,
    });
    tensors.collect()
}
