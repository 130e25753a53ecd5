//! Layers that call themselves, directly or through others: their size would have no end.

use dspc_source::Span;

use super::ownership::calls_of;
use crate::body::{Definition, DefinitionId};
use crate::errors::{Mistakes, Recursion};

/// Reports each call that closes a circle. No recursion of our own: a chain may be as long as the file.
pub(super) fn report(definitions: &[Definition], mistakes: &mut Mistakes) {
    let calls: Vec<Vec<(DefinitionId, Span)>> = definitions.iter().map(calls_of).collect();
    let mut done = vec![false; definitions.len()];
    let mut open = vec![false; definitions.len()];
    for start in 0..definitions.len() {
        let mut stack: Vec<(usize, usize)> = vec![];
        if !done[start] {
            open[start] = true;
            stack.push((start, 0));
        }
        while let Some((at, next)) = stack.last_mut() {
            let at = *at;
            let Some((callee, span)) = calls[at].get(*next).copied() else {
                (open[at], done[at]) = (false, true);
                stack.pop();
                continue;
            };
            *next += 1;
            let callee = callee.0 as usize;
            if callee >= definitions.len() || done[callee] {
                continue;
            }
            if open[callee] {
                mistakes.add(recursion(definitions, &stack, callee, span));
            } else {
                open[callee] = true;
                stack.push((callee, 0));
            }
        }
    }
}

fn recursion(definitions: &[Definition], stack: &[(usize, usize)], callee: usize, call: Span) -> Recursion {
    let from = stack.iter().position(|(at, _)| *at == callee).unwrap_or(0);
    let mut names: Vec<&str> =
        stack[from..].iter().map(|(at, _)| definitions[*at].name.value.as_str()).collect();
    names.push(&definitions[callee].name.value);
    Recursion { name: definitions[callee].name.clone(), call, circle: names.join(" → ") }
}
