//! Tables: contents that are a formula, computed in f64 and rounded once.

use dspc_program::{Formula, LrSchedule};

/// Learning rate at applied step `t`, from 0.
pub(crate) fn learning_rate(schedule: &LrSchedule, t: u64) -> f64 {
    let warm = |peak: f64, warmup: u64| (t < warmup).then(|| peak * (t + 1) as f64 / (warmup + 1) as f64);
    // From 0 at `from` to 1 at `to`, 1 after it.
    let progress = |from: u64, to: u64| match (t.saturating_sub(from), to.saturating_sub(from)) {
        (_, 0) => 1.0,
        (done, all) => (done as f64 / all as f64).min(1.0),
    };
    match *schedule {
        LrSchedule::Constant { lr, warmup } => warm(lr, warmup).unwrap_or(lr),
        LrSchedule::Linear { peak, warmup, floor, steps } => {
            warm(peak, warmup).unwrap_or_else(|| peak + (floor - peak) * progress(warmup, steps))
        }
        LrSchedule::Cosine { peak, warmup, floor, steps } => warm(peak, warmup).unwrap_or_else(|| {
            let x = progress(warmup, steps);
            floor + (peak - floor) * (1.0 + libm::cos(std::f64::consts::PI * x)) / 2.0
        }),
        LrSchedule::WarmupStableDecay { peak, warmup, decay, floor, steps } => warm(peak, warmup)
            .unwrap_or_else(|| {
                let begin = steps.saturating_sub(decay).max(warmup);
                if t < begin { peak } else { peak + (floor - peak) * progress(begin, steps) }
            }),
    }
}

/// A table's elements.
pub(crate) fn contents(formula: &Formula, schedule: &LrSchedule, elements: u64) -> Vec<f32> {
    (0..elements).map(|e| element(formula, schedule, e) as f32).collect()
}

fn element(formula: &Formula, schedule: &LrSchedule, e: u64) -> f64 {
    match *formula {
        Formula::LearningRate => learning_rate(schedule, e),
        Formula::BiasCorrection { beta } => 1.0 - libm::pow(beta, (e + 1) as f64),
        Formula::Decay { power } => 1.0 - libm::pow((e + 1) as f64, -power),
        Formula::RopeCos { base, cols } => libm::cos(angle(base, cols, e)),
        Formula::RopeSin { base, cols } => {
            let sin = libm::sin(angle(base, cols, e));
            if e % cols.max(1) < cols / 2 { -sin } else { sin }
        }
        Formula::Constant(x) => x,
    }
}

fn angle(base: f64, cols: u64, e: u64) -> f64 {
    let cols = cols.max(1);
    let (row, col) = (e / cols, e % cols);
    let i = col % (cols / 2).max(1);
    row as f64 * libm::pow(base, -2.0 * i as f64 / cols as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn warm_up_is_linear_and_never_zero() {
        let schedule = LrSchedule::Constant { lr: 1.0, warmup: 3 };
        for (t, lr) in [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (1000, 1.0)] {
            close(learning_rate(&schedule, t), lr);
        }
    }

    #[test]
    fn decays_reach_their_floor_and_stay() {
        let cosine = LrSchedule::Cosine { peak: 1.0, warmup: 10, floor: 0.1, steps: 110 };
        let linear = LrSchedule::Linear { peak: 1.0, warmup: 10, floor: 0.1, steps: 110 };
        let stable =
            LrSchedule::WarmupStableDecay { peak: 1.0, warmup: 10, decay: 50, floor: 0.1, steps: 110 };
        for schedule in [&cosine, &linear, &stable] {
            close(learning_rate(schedule, 10), 1.0);
            close(learning_rate(schedule, 110), 0.1);
            close(learning_rate(schedule, u64::MAX), 0.1);
        }
        close(learning_rate(&cosine, 60), 0.55);
        close(learning_rate(&linear, 60), 0.55);
        close(learning_rate(&stable, 60), 1.0);
        close(learning_rate(&stable, 85), 0.55);
        close(learning_rate(&LrSchedule::Cosine { peak: 1.0, warmup: 9, floor: 0.0, steps: 9 }, 9), 0.0);
    }

    #[test]
    fn formulas() {
        let schedule = LrSchedule::Constant { lr: 0.5, warmup: 0 };
        assert_eq!(contents(&Formula::LearningRate, &schedule, 2), [0.5, 0.5]);
        assert_eq!(contents(&Formula::BiasCorrection { beta: 0.5 }, &schedule, 3), [0.5, 0.75, 0.875]);
        assert_eq!(
            contents(&Formula::Decay { power: 0.5 }, &schedule, 4),
            [0.0, 0.292_893_23, 0.422_649_74, 0.5]
        );
        assert_eq!(contents(&Formula::Constant(2.0), &schedule, 1), [2.0]);
        let cos = contents(&Formula::RopeCos { base: 100.0, cols: 4 }, &schedule, 12);
        let sin = contents(&Formula::RopeSin { base: 100.0, cols: 4 }, &schedule, 12);
        assert_eq!(cos[..4], [1.0; 4]);
        assert_eq!(
            cos[8..],
            [2f64.cos() as f32, 0.2f64.cos() as f32, 2f64.cos() as f32, 0.2f64.cos() as f32]
        );
        assert_eq!(
            sin[4..8],
            [-1f64.sin() as f32, -0.1f64.sin() as f32, 1f64.sin() as f32, 0.1f64.sin() as f32]
        );
        assert!(
            contents(&Formula::RopeSin { base: 1.0, cols: 0 }, &schedule, 2).iter().all(|x| x.is_finite())
        );
    }
}
