//! The loss scale of half precision, as DeepSpeed's ZeRO has it (`DynamicLossScaler`), on the device.
//!
//! A step whose gradients overflow is not applied. Of the overflows, the first `hysteresis` − 1 only use the hysteresis up; each further one halves the scale, and
//! one at `min` ends the run. After `window` clean steps the scale doubles on the next clean one, and every `window` steps from then on; that refills the hysteresis,
//! as does any clean step where it is counted consecutively.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, Node, NodeId, UnaryFn};
use dspc_spec::settings::{LossScale, Precision};

/// How a precision scales its loss.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scaling {
    /// Not at all.
    None,
    /// By a number that never changes.
    Static(f64),
    /// By one that adapts.
    Dynamic(Scaler),
}

/// The rule's constants.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scaler {
    /// First value.
    pub start: f64,
    /// Clean steps before it doubles.
    pub window: i32,
    /// Overflows before it halves.
    pub hysteresis: i32,
    /// A clean step refills the hysteresis.
    pub consecutive: bool,
    /// Lowest value.
    pub min: f64,
}

impl Scaling {
    /// The scaling that a precision asks for.
    pub fn of(precision: &Precision) -> Self {
        let count = |x: u64| i32::try_from(x).unwrap_or(i32::MAX);
        match precision {
            Precision::Fp32 | Precision::Tf32 | Precision::Bf16 { .. } => Self::None,
            Precision::Fp16 { loss_scale: LossScale::Static(scale) } => Self::Static(*scale),
            Precision::Fp16 {
                loss_scale: LossScale::Dynamic { start, window, hysteresis, consecutive_hysteresis, min },
            } => Self::Dynamic(Scaler {
                start: *start,
                window: count(*window),
                hysteresis: count(*hysteresis),
                consecutive: *consecutive_hysteresis,
                min: *min,
            }),
        }
    }

    /// Whether there is a scale.
    pub fn is_scaled(&self) -> bool {
        !matches!(self, Scaling::None)
    }
}

impl Scaler {
    /// Declares operands clean steps and hysteresis left, and yields scale, clean steps, hysteresis left, and 1 where the run must end (else 0).
    ///
    /// Clean steps are counted from 0 after the start and after an overflow, and from 1 again after a doubling, which keeps the rhythm of `window`.
    pub(super) fn adapt(&self, b: &mut RowBuilder, scale: NodeId, is_finite: NodeId) {
        let (clean, left) = (b.row(), b.row());
        let int = |b: &mut RowBuilder, x: i32| b.node(Node::ConstInt(x));
        let (zero, one, window, full) = (int(b, 0), int(b, 1), int(b, self.window), int(b, self.hysteresis));

        let due = b.binary(BinaryFn::Equal, clean, window);
        let doubled = b.times(scale, 2.0);
        let grown = b.select(due, doubled, scale);
        let counted = b.add(clean, one);
        let counted = b.select(due, one, counted);
        let refilled = if self.consecutive { full } else { b.select(due, full, left) };

        let spent = b.binary(BinaryFn::Equal, left, one);
        let min = b.number(self.min);
        let halved = b.times(scale, 0.5);
        let halved = b.binary(BinaryFn::Max, halved, min);
        let shrunk = b.select(spent, halved, scale);
        let fewer = b.subtract(left, one);
        let fewer = b.select(spent, left, fewer);
        let lowest = b.binary(BinaryFn::LessEqual, scale, min);
        let overflow = b.unary(UnaryFn::Not, is_finite);
        let last = b.binary(BinaryFn::And, spent, lowest);
        let ends = b.binary(BinaryFn::And, overflow, last);
        let (yes, no) = (b.number(1.0), b.number(0.0));

        let scale = b.select(is_finite, grown, shrunk);
        let clean = b.select(is_finite, counted, zero);
        let left = b.select(is_finite, refilled, fewer);
        let ends = b.select(ends, yes, no);
        for node in [scale, clean, left, ends] {
            b.yield_row(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use dspc_graph::evaluate_row_fn;
    use dspc_graph::interpret::Tensor;

    use super::*;
    use crate::optimizer::norm::step_scalars;

    const SCALER: Scaler = Scaler { start: 256.0, window: 2, hysteresis: 2, consecutive: false, min: 1.0 };

    /// DeepSpeed's rules in its own words: the iteration, the last overflow, and the hysteresis.
    struct Reference {
        rule: Scaler,
        scale: f64,
        iteration: i64,
        last_overflow: i64,
        left: i32,
    }

    impl Reference {
        fn new(rule: Scaler) -> Self {
            Self { rule, scale: rule.start, iteration: 0, last_overflow: -1, left: rule.hysteresis }
        }

        /// The scale after a step; `None` where the run ends.
        fn step(&mut self, overflow: bool) -> Option<f64> {
            if overflow {
                if self.rule.hysteresis == 1 || self.left == 1 {
                    if self.scale == self.rule.min {
                        return None;
                    }
                    self.scale = (self.scale / 2.0).max(self.rule.min);
                } else {
                    self.left -= 1;
                }
                self.last_overflow = self.iteration;
            } else {
                if self.rule.consecutive {
                    self.left = self.rule.hysteresis;
                }
                let clean = self.iteration - self.last_overflow - 1;
                if clean > 0 && clean % i64::from(self.rule.window) == 0 {
                    self.scale *= 2.0;
                    if !self.rule.consecutive {
                        self.left = self.rule.hysteresis;
                    }
                }
            }
            self.iteration += 1;
            Some(self.scale)
        }
    }

    /// The same by the row function.
    struct Device {
        rule: Scaler,
        scale: f64,
        clean: f64,
        left: f64,
    }

    impl Device {
        fn new(rule: Scaler) -> Self {
            Self { rule, scale: rule.start, clean: 0.0, left: f64::from(rule.hysteresis) }
        }

        fn step(&mut self, overflow: bool) -> Option<f64> {
            let f = step_scalars(2, None, &Scaling::Dynamic(self.rule), 2);
            let one = |x: f64| Tensor { dims: vec![1], data: vec![x] };
            let squares =
                Tensor { dims: vec![1, 2], data: vec![4.0, if overflow { f64::INFINITY } else { 5.0 }] };
            let (zero, scale) = (one(0.0), Tensor::scalar(self.scale));
            let (clean, left) = (one(self.clean), one(self.left));
            let out = evaluate_row_fn(
                &f,
                &[&squares, &zero, &one(1.0), &one(1.0), &one(1.0), &scale, &clean, &left],
            );
            let number = |i: usize| out[i].data[0];
            (self.scale, self.clean, self.left) = (number(8), number(9), number(10));
            assert_eq!(number(1), f64::from(u8::from(!overflow)));
            (number(11) == 0.0).then_some(self.scale)
        }
    }

    fn scales(rule: Scaler, overflows: &str) -> Vec<Option<f64>> {
        let (mut reference, mut device) = (Reference::new(rule), Device::new(rule));
        overflows
            .chars()
            .map(|c| {
                let expected = reference.step(c == 'x');
                assert_eq!(device.step(c == 'x'), expected, "{rule:?} {overflows}");
                expected
            })
            .collect()
    }

    #[test]
    fn the_scale_doubles_on_the_step_after_the_window() {
        let found: Vec<f64> = scales(SCALER, ".....").into_iter().flatten().collect();
        assert_eq!(found, [256.0, 256.0, 512.0, 512.0, 1024.0]);
    }

    #[test]
    fn the_first_overflow_uses_the_hysteresis_and_the_next_ones_halve() {
        let found: Vec<f64> = scales(SCALER, "x.x.x").into_iter().flatten().collect();
        assert_eq!(found, [256.0, 256.0, 128.0, 128.0, 64.0]);
    }

    #[test]
    fn an_overflow_at_the_minimum_ends_the_run() {
        let low = Scaler { start: 2.0, hysteresis: 1, ..SCALER };
        assert_eq!(scales(low, "xx"), [Some(1.0), None]);
        let patient = Scaler { start: 1.0, ..SCALER };
        assert_eq!(scales(patient, "xx"), [Some(1.0), None]);
    }

    #[test]
    fn every_trajectory_is_deepspeeds() {
        for (window, hysteresis, consecutive) in
            [(1, 1, false), (1, 2, true), (2, 3, false), (3, 2, true), (5, 1, true), (4, 4, false)]
        {
            let rule = Scaler { start: 16.0, window, hysteresis, consecutive, min: 0.5 };
            for pattern in 0u32..256 {
                let overflows = (0..24).map(|i| pattern.wrapping_mul(0x9e37_79b9).rotate_left(i) & 3 == 3);
                let text: String = overflows.map(|x| if x { 'x' } else { '.' }).collect();
                scales(rule, &before_the_end(rule, &text));
            }
        }
    }

    /// The steps up to the one that ends the run.
    fn before_the_end(rule: Scaler, overflows: &str) -> String {
        let mut reference = Reference::new(rule);
        let mut kept = String::new();
        for c in overflows.chars() {
            kept.push(c);
            if reference.step(c == 'x').is_none() {
                break;
            }
        }
        kept
    }

    #[test]
    fn the_gradients_factor_takes_the_scale_away_and_clips() {
        let f = step_scalars(1, Some(1.0), &Scaling::Static(8.0), 2);
        let one = |x: f64| Tensor { dims: vec![1], data: vec![x] };
        let squares = Tensor { dims: vec![1, 1], data: vec![256.0] };
        let operands = [&squares, &one(0.0), &one(1.0), &one(1.0), &one(1.0), &Tensor::scalar(8.0)];
        let out = evaluate_row_fn(&f, &operands);
        assert_eq!((out.len(), out[0].data[0]), (8, 2.0));
        assert!((out[2].data[0] - 1.0 / (2.0 + 1e-6) / 8.0).abs() < 1e-15);
    }

    #[test]
    fn the_first_row_that_is_not_finite_is_named() {
        let f = step_scalars(4, None, &Scaling::None, 2);
        let one = |x: f64| Tensor { dims: vec![1], data: vec![x] };
        let first = |squares: [f64; 4]| {
            let squares = Tensor { dims: vec![1, 4], data: squares.to_vec() };
            evaluate_row_fn(&f, &[&squares, &one(0.0), &one(1.0), &one(1.0), &one(1.0)])[7].data[0]
        };
        assert_eq!(first([1.0, 2.0, 3.0, 4.0]), -1.0);
        assert_eq!(first([1.0, f64::NAN, f64::INFINITY, 4.0]), 1.0);
        assert_eq!(first([f64::INFINITY, 0.0, 0.0, 0.0]), 0.0);
    }
}
