//! How the learning rate moves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ranges::Shares;

/// How the learning rate moves over a training; warm-up comes on top.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Schedule {
    /// Stays where it is.
    Constant,
    /// Falls to 0 along half a cosine.
    #[default]
    Cosine,
    /// Rises linearly from a tenth over the first 30% of the steps, then falls to 0 along half a cosine.
    OneCycle,
    /// Falls to a tenth at each of these shares of all steps, in (0, 1) and ascending: `{ steps = [0.5, 0.75] }`.
    Steps(Shares),
}

impl Schedule {
    /// The factor on the base learning rate at `step` of `total`, after `warmup` steps of linear rise.
    pub fn factor(&self, step: usize, total: usize, warmup: usize) -> f64 {
        let cosine = |from: usize| {
            let progress = step.saturating_sub(from) as f64 / total.saturating_sub(from).max(1) as f64;
            0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
        };
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => cosine(warmup),
            Self::OneCycle => {
                let peak = total * 3 / 10;
                if step < peak { 0.1 + 0.9 * (step + 1) as f64 / peak as f64 } else { cosine(peak) }
            }
            Self::Steps(shares) => {
                let passed = shares.iter().filter(|share| step as f64 >= share * total as f64).count();
                0.1f64.powi(passed as i32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn steps(shares: &[f64]) -> Schedule {
        Schedule::Steps(Shares::new(shares.iter().copied()).unwrap())
    }

    #[rstest]
    #[case(Schedule::Constant, 0, 0, 1.0)]
    #[case(Schedule::Cosine, 0, 0, 1.0)]
    #[case(Schedule::Cosine, 50, 0, 0.5)]
    #[case(Schedule::Cosine, 4, 10, 0.5)]
    #[case(Schedule::Cosine, 10, 10, 1.0)]
    #[case(steps(&[0.5, 0.75]), 49, 0, 1.0)]
    #[case(steps(&[0.5, 0.75]), 50, 0, 0.1)]
    #[case(steps(&[0.5, 0.75]), 75, 0, 0.01)]
    #[case(Schedule::OneCycle, 29, 0, 1.0)]
    #[case(Schedule::OneCycle, 100, 0, 0.0)]
    fn schedules_pass_through(
        #[case] schedule: Schedule,
        #[case] step: usize,
        #[case] warmup: usize,
        #[case] factor: f64,
    ) {
        assert!((schedule.factor(step, 100, warmup) - factor).abs() < 1e-9);
    }
}
