//! Statements: parameters, bindings, repeats.

use std::collections::BTreeSet;

use dspc_source::Span;
use dspc_spec::body::{Callee, Dims, Expr, ExprKind, Name, Statement};

use super::values::Value;
use super::{Elaborator, Frame, Naming, Outcome, Reported, TURNS_MAX, emission, join};
use crate::errors::{CarriedChanges, NameCount, ParamTwice, TooLarge, WrongKind, origin};
use crate::ir::{Block, Carried, Def, Param, ParamId, Repeat, RepeatId, Step, TensorType, ValueId};

impl Elaborator<'_> {
    /// Runs statements; the result expression's value and place. A mistake poisons the names it would have bound, and the rest goes on.
    pub(super) fn statements(
        &mut self,
        statements: &[Statement],
        frame: &mut Frame,
    ) -> Outcome<Option<(Value, Span)>> {
        let mut result = None;
        let mut bad = false;
        for statement in statements {
            self.work(place_of(statement))?;
            match statement {
                Statement::Param { name, dims, init } => {
                    let value = self.param(name, dims, init, frame).unwrap_or(Value::Bad);
                    frame.bind(&name.value, value, name.span);
                }
                Statement::Bind { names, value } => self.bind(names, value, frame),
                Statement::Repeat { count, name, body, span } => {
                    if self.repeat_statement(count, name, body, *span, frame).is_err() {
                        for name in bound_names(body) {
                            frame.bind(&name.value, Value::Bad, name.span);
                        }
                    }
                }
                Statement::Result(expr) => match self.eval(expr, frame) {
                    Ok(value) => result = Some((value, expr.span)),
                    Err(Reported) => bad = true,
                },
            }
        }
        if bad { Err(Reported) } else { Ok(result) }
    }

    fn param(&mut self, name: &Name, dims: &Dims, init: &Expr, frame: &mut Frame) -> Outcome<Value> {
        let known = self.known_dims(dims, frame);
        let init_value = self.eval(init, frame);
        let ty = TensorType::f32(known?);
        let init = match init_value? {
            Value::Init(init) => init,
            Value::Bad => return Err(Reported),
            other => {
                let found = self.describe(&other);
                return self.report(WrongKind {
                    expected: "a way to start a parameter".into(),
                    found,
                    span: init.span,
                    places: vec![],
                    help: Some("`zeros`, `ones`, `normal(0.02)` or `uniform(0.1)`".into()),
                });
            }
        };
        if !self.within_limit(&ty) {
            let what = format!("`{}`", name.value);
            let places = ty.dims.iter().filter_map(origin).collect();
            return self.report(TooLarge {
                what,
                limit: "2^40 elements a tensor".into(),
                span: name.span,
                places,
            });
        }
        let path = join(&frame.path, &name.value);
        let calls: Vec<Span> = self.calls.iter().map(|(_, span)| *span).chain([name.span]).collect();
        if let Some(first) = self.param_calls.get(&path) {
            let at = first.iter().zip(&calls).position(|(a, b)| a != b);
            let at = at.unwrap_or_else(|| first.len().min(calls.len()) - 1);
            let (first, second) = (first[at], calls[at]);
            let are_calls = at + 1 < calls.len();
            return self.report(ParamTwice { path, first, second, are_calls });
        }
        self.param_calls.insert(path.clone(), calls);
        let turns = self.repeat.map(|(_, turns)| turns);
        self.graph.params.push(Param { name: path, ty: ty.clone(), init, turns, span: name.span });
        let id = ParamId(self.graph.params.len() as u32 - 1);
        self.emission.span = name.span;
        let value = self.add(ty, Def::Param(id), Naming::Given(join(&frame.value_path, &name.value)));
        Ok(Value::Tensor(value))
    }

    fn bind(&mut self, names: &[Name], value: &Expr, frame: &mut Frame) {
        let values = match self.eval(value, frame) {
            Ok(Value::Tuple(values)) => values,
            Ok(one) => vec![one],
            Err(Reported) => vec![Value::Bad; names.len()],
        };
        if values.len() != names.len() {
            let span = names.first().map_or(value.span, |n| n.span);
            let span = names.last().map_or(span, |n| span.to(n.span));
            let mistake = NameCount { names: names.len(), values: values.len(), span, value: value.span };
            let _: Outcome<()> = self.report(mistake);
            for name in names {
                frame.bind(&name.value, Value::Bad, name.span);
            }
            return;
        }
        for (name, value) in names.iter().zip(values) {
            if let Value::Tensor(tensor) = value {
                self.name_value(tensor, join(&frame.value_path, &name.value));
            }
            frame.bind(&name.value, value, name.span);
        }
    }

    fn repeat_statement(
        &mut self,
        count: &Expr,
        name: &Name,
        body: &[Statement],
        span: Span,
        frame: &mut Frame,
    ) -> Outcome<()> {
        let turns = self.size(count, frame)?;
        if turns.size > TURNS_MAX {
            let places = origin(&turns).into_iter().collect();
            let what = format!("a repeat of {} turns", turns.size);
            return self.report(TooLarge {
                what,
                limit: format!("{TURNS_MAX} turns"),
                span: count.span,
                places,
            });
        }
        if self.repeat.is_some() {
            return self.unrolled(turns.size, name, body, frame);
        }
        self.rolled(turns.size, name, body, span, frame)
    }

    /// A repeat inside a repeat: its turns one after the other.
    fn unrolled(&mut self, turns: u64, name: &Name, body: &[Statement], frame: &mut Frame) -> Outcome<()> {
        let carried = carried_names(body, frame);
        for turn in 0..turns {
            let mut inner =
                turn_frame(frame, &format!("{}.{turn}", name.value), &format!("{}.{turn}", name.value), body);
            let before = self.diagnostics.len();
            self.statements(body, &mut inner)?;
            if self.diagnostics.len() > before {
                return Err(Reported);
            }
            for (carried, rebound) in &carried {
                let (Some(old), Some(new)) =
                    (frame.names.get(carried).cloned(), inner.names.get(carried).cloned())
                else {
                    continue;
                };
                self.same_type(carried, &old.value, &new.value, old.place, *rebound)?;
                frame.names.insert(carried.clone(), new);
            }
        }
        Ok(())
    }

    fn same_type(&mut self, name: &str, old: &Value, new: &Value, bound: Span, rebound: Span) -> Outcome<()> {
        let same = match (old, new) {
            (Value::Tensor(a), Value::Tensor(b)) => self.graph.ty(*a) == self.graph.ty(*b),
            (Value::Bad, _) | (_, Value::Bad) => return Err(Reported),
            (a, b) => a == b,
        };
        if same {
            return Ok(());
        }
        let (before, after) = (self.describe(old), self.describe(new));
        self.report(CarriedChanges { name: name.to_owned(), before, after, bound, rebound })
    }

    /// A repeat that stays one.
    fn rolled(
        &mut self,
        turns: u64,
        name: &Name,
        body: &[Statement],
        span: Span,
        frame: &mut Frame,
    ) -> Outcome<()> {
        let id = RepeatId(self.repeats);
        self.repeats += 1;
        let mut inner = turn_frame(frame, &format!("{}.*", name.value), &name.value, body);
        self.emission = emission::Place { path: frame.value_path.clone(), origin: frame.path.clone(), span };
        let mut args = vec![];
        for (carried, rebound) in carried_names(body, frame) {
            if let Some(Value::Tensor(init)) = frame.names.get(&carried).map(|b| b.value.clone()) {
                let ty = self.graph.ty(init).clone();
                let naming = Naming::Given(join(&inner.value_path, &carried));
                let arg = self.add(ty, Def::RepeatArg(id), naming);
                inner.bind(&carried, Value::Tensor(arg), rebound);
                args.push(Entering { name: carried, rebound, init, arg });
            }
        }
        let outside = std::mem::take(&mut self.steps);
        self.repeat = Some((id, turns));
        let before = self.diagnostics.len();
        let done = self.statements(body, &mut inner);
        self.repeat = None;
        let steps = std::mem::replace(&mut self.steps, outside);
        done?;
        if self.diagnostics.len() > before {
            return Err(Reported);
        }
        self.emission.span = span;
        let carried = self.carry(id, args, &inner, frame)?;
        let name = name.value.clone();
        let body = Block { steps };
        let repeat = Repeat { id, name, count: turns, reverse: false, mirrors: None, carried, body };
        self.steps.push(Step::Repeat(repeat));
        Ok(())
    }

    /// What turns hand on, and what the names mean after the repeat.
    fn carry(
        &mut self,
        id: RepeatId,
        args: Vec<Entering>,
        inner: &Frame,
        frame: &mut Frame,
    ) -> Outcome<Vec<Carried>> {
        for (name, new) in &inner.names {
            let Some(old) = frame.names.get(name) else { continue };
            if !matches!(old.value, Value::Tensor(_)) && old.value != new.value {
                self.same_type(name, &old.value, &new.value, old.place, new.place)?;
            }
        }
        let mut carried = vec![];
        for Entering { name, rebound, init, arg } in args {
            let Some(new) = inner.names.get(&name).map(|b| b.value.clone()) else { continue };
            let place = frame.names.get(&name).map_or(rebound, |b| b.place);
            self.same_type(&name, &Value::Tensor(init), &new, place, rebound)?;
            let Value::Tensor(result) = new else { continue };
            let ty = self.graph.ty(init).clone();
            let out = self.add(ty, Def::RepeatOut(id), Naming::Given(join(&frame.value_path, &name)));
            carried.push(Carried { init, arg, result, out });
            frame.bind(&name, Value::Tensor(out), rebound);
        }
        Ok(carried)
    }
}

fn place_of(statement: &Statement) -> Span {
    match statement {
        Statement::Param { name, .. } => name.span,
        Statement::Bind { value, .. } => value.span,
        Statement::Repeat { span, .. } => *span,
        Statement::Result(expr) => expr.span,
    }
}

/// A value that enters a repeat under a name that the repeat binds again.
struct Entering {
    name: String,
    rebound: Span,
    init: ValueId,
    arg: ValueId,
}

/// A turn's frame: the names of outside, a path of its own.
fn turn_frame(frame: &Frame, path: &str, value_path: &str, body: &[Statement]) -> Frame {
    let mut inner = frame.clone();
    inner.path = join(&frame.path, path);
    inner.value_path = join(&frame.value_path, value_path);
    inner.passes_path = has_one_call(body);
    inner
}

/// The names that a body binds, repeats inside it included.
fn bound_names(body: &[Statement]) -> Vec<Name> {
    let mut names = vec![];
    for statement in body {
        match statement {
            Statement::Param { name, .. } => names.push(name.clone()),
            Statement::Bind { names: bound, .. } => names.extend(bound.iter().cloned()),
            Statement::Repeat { body, .. } => names.extend(bound_names(body)),
            Statement::Result(_) => {}
        }
    }
    names
}

/// The names of outside that a body binds again, each once, and where it does so last.
fn carried_names(body: &[Statement], frame: &Frame) -> Vec<(String, Span)> {
    let names = bound_names(body);
    let mut seen = BTreeSet::new();
    let mut carried = vec![];
    for name in &names {
        if frame.names.contains_key(&name.value) && seen.insert(name.value.clone()) {
            let last = names.iter().rev().find(|n| n.value == name.value).unwrap_or(name);
            carried.push((name.value.clone(), last.span));
        }
    }
    carried
}

/// Whether a body calls layers exactly once, without `as`.
fn has_one_call(body: &[Statement]) -> bool {
    let mut calls = vec![];
    for statement in body {
        match statement {
            Statement::Bind { value, .. } => calls_in(value, &mut calls),
            Statement::Result(expr) => calls_in(expr, &mut calls),
            Statement::Repeat { .. } | Statement::Param { .. } => return false,
        }
    }
    calls == [false]
}

/// For each call of a layer, whether it has an `as`.
fn calls_in(expr: &Expr, calls: &mut Vec<bool>) {
    match &expr.kind {
        ExprKind::Call(call) => {
            if matches!(call.callee, Callee::Definition(_)) {
                calls.push(call.alias.is_some());
            }
            call.args.iter().for_each(|a| calls_in(&a.value, calls));
        }
        ExprKind::Unary(_, x) | ExprKind::Lambda(_, x) => calls_in(x, calls),
        ExprKind::Binary { left, right, .. } => {
            calls_in(left, calls);
            calls_in(right, calls);
        }
        ExprKind::Index { value, indices } => {
            calls_in(value, calls);
            indices.iter().for_each(|i| calls_in(i, calls));
        }
        ExprKind::Range(a, b) => [a, b].into_iter().flatten().for_each(|x| calls_in(x, calls)),
        ExprKind::List(xs) | ExprKind::Tuple(xs) => xs.iter().for_each(|x| calls_in(x, calls)),
        ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Bool(_) | ExprKind::Local(_) => {}
    }
}
