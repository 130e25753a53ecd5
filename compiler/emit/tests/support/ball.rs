//! Numbers with a bound on what f32 arithmetic may have made of them: a running error analysis in f64.

const U: f64 = 5.960_464_477_539_063e-8;
/// What underflow may cost an operation.
const TINY: f64 = 1.2e-38;

/// A number and a bound on the error of its f32 computation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ball {
    /// The number, in f64.
    pub x: f64,
    /// The bound.
    pub e: f64,
}

impl Ball {
    /// Without error.
    pub fn exact(x: f64) -> Self {
        Ball { x, e: 0.0 }
    }

    /// After an operation whose own error is at most `ulps` units in the last place.
    fn rounded(x: f64, e: f64, ulps: f64) -> Self {
        Ball { x, e: e + 2.0 * ulps * U * x.abs() + TINY }
    }

    pub fn add(self, o: Ball) -> Ball {
        Ball::rounded(self.x + o.x, self.e + o.e, 0.5)
    }
    pub fn neg(self) -> Ball {
        Ball { x: -self.x, e: self.e }
    }
    pub fn mul(self, o: Ball) -> Ball {
        Ball::rounded(self.x * o.x, self.x.abs() * o.e + o.x.abs() * self.e + self.e * o.e, 0.5)
    }
    pub fn div(self, o: Ball) -> Ball {
        let x = self.x / o.x;
        let below = (o.x.abs() - o.e).max(0.0);
        Ball::rounded(x, (self.e + x.abs() * o.e) / below, 1.0)
    }
    /// A function with its slope's largest size near x, and its own error.
    fn function(self, y: f64, slope: f64, ulps: f64) -> Ball {
        Ball::rounded(y, slope * self.e, ulps)
    }
    pub fn exp(self) -> Ball {
        self.function(self.x.exp(), (self.x + self.e).exp(), 2.0)
    }
    pub fn log(self) -> Ball {
        self.function(self.x.ln(), 1.0 / (self.x - self.e).max(0.0), 2.0)
    }
    pub fn sqrt(self) -> Ball {
        let y = self.x.sqrt();
        self.function(y, 1.0 / (2.0 * (self.x - self.e).max(0.0).sqrt()), 0.5)
    }
    pub fn rsqrt(self) -> Ball {
        let y = 1.0 / self.x.sqrt();
        self.function(y, 0.5 * (self.x - self.e).max(0.0).powf(-1.5), 2.0)
    }
    pub fn tanh(self) -> Ball {
        self.function(self.x.tanh(), 1.0, 5.0)
    }
    pub fn erf(self) -> Ball {
        self.function(libm::erf(self.x), 1.13, 5.0)
    }
    pub fn abs(self) -> Ball {
        Ball { x: self.x.abs(), e: self.e }
    }
    pub fn max(self, o: Ball) -> Ball {
        Ball { x: either_nan(self.x, o.x).unwrap_or(self.x.max(o.x)), e: self.e.max(o.e) }
    }
    pub fn min(self, o: Ball) -> Ball {
        Ball { x: either_nan(self.x, o.x).unwrap_or(self.x.min(o.x)), e: self.e.max(o.e) }
    }
    /// A sum of many: 8 √K u Σ|x| for its own roundings, in whatever order.
    pub fn sum(all: &[Ball]) -> Ball {
        let x = all.iter().map(|b| b.x).sum();
        let size: f64 = all.iter().map(|b| b.x.abs()).sum();
        let e: f64 = all.iter().map(|b| b.e).sum();
        Ball { x, e: e + 8.0 * (all.len() as f64).sqrt() * U * size }
    }
    /// Whether a difference could have another sign in f32.
    pub fn is_unsure(self, o: Ball) -> bool {
        (self.x - o.x).abs() <= self.e + o.e && self.e + o.e > 0.0
    }
}

/// The larger and the smaller of a NaN and anything is NaN.
fn either_nan(a: f64, b: f64) -> Option<f64> {
    (a.is_nan() || b.is_nan()).then_some(f64::NAN)
}
