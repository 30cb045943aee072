//! Which range of values the integers of an activation stand for.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FormError;
use super::places::Places;
use super::points::{AtPoints, layers_of};
use super::rounding::{ActivationGrid, Scheme};
use crate::Result;
use crate::data::CleanSet;
use crate::model::Model;
use crate::nn::Eval;
use crate::predict;
use crate::ranges::Percentile;
use crate::run::Run;
use crate::stage::Finding;

/// How ranges are chosen from what activations do on the calibration images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Calibration {
    /// From the smallest to the largest value.
    #[default]
    MinMax,
    /// The middle `percentile` of all values, in (50, 100]: `{ percentile = 99.99 }`. What lies outside is cut off.
    Percentile(Percentile),
    /// Of the whole range and smaller ones, in steps of a hundredth, the one that rounds with the least squared error.
    Histogram,
}

/// Smallest and largest value at every place where activations are rounded, by its name: `input`; a layer's name for what the
/// layer and what follows it compute; `<place>/sum` and `<place>/attend` for a residual sum and attention behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranges(pub BTreeMap<String, (f32, f32)>);

impl Ranges {
    /// The range of an activation point.
    pub(super) fn at(&self, point: &str) -> Result<(f32, f32)> {
        let found = self.0.get(point).copied();
        Ok(found.ok_or_else(|| FormError::NoRange { point: point.into() })?)
    }
}

impl Finding for Ranges {
    const NAME: &'static str = "activation-ranges";
}

/// Bins of a histogram over an activation's whole range.
const BINS: usize = 2048;

impl Calibration {
    /// The ranges of a network's activations on the clean images.
    pub(super) fn measure(self, model: &Model, scheme: Scheme, clean: &CleanSet, run: &Run<'_>) -> Result<Ranges> {
        let whole = RefCell::new(BTreeMap::new());
        watch(model, scheme.places, clean, run, |x, point| widen(&mut whole.borrow_mut(), x, point))?;
        let whole = whole.into_inner();
        if self == Self::MinMax {
            return Ok(Ranges(whole));
        }
        let counts = whole.keys().map(|point| (point.clone(), vec![0u64; BINS])).collect::<BTreeMap<_, _>>();
        let counts = RefCell::new(counts);
        watch(model, scheme.places, clean, run, |x, point| {
            let mut counts = counts.borrow_mut();
            match (whole.get(point), counts.get_mut(point)) {
                (Some(range), Some(counts)) => count(counts, *range, x),
                _ => Err(FormError::OtherPoints.into()),
            }
        })?;
        let choose = |(range, counts): ((f32, f32), Vec<u64>)| match self {
            Self::MinMax => range,
            Self::Percentile(share) => middle(range, &counts, share.get() / 100.0),
            Self::Histogram => closest(range, &counts, scheme.activation_grid),
        };
        let counted = whole.into_iter().zip(counts.into_inner().into_values());
        Ok(Ranges(counted.map(|((point, range), counts)| (point, choose((range, counts)))).collect()))
    }
}

/// Shows every activation of every calibration image, with the name of its point.
fn watch(
    model: &Model,
    places: Places,
    clean: &CleanSet,
    run: &Run<'_>,
    see: impl Fn(&Tensor, &str) -> Result<()>,
) -> Result<()> {
    let network = model.full_precision()?;
    let layers = layers_of(network)?;
    let forward = |pixels: &Tensor| {
        let act = |x: &Tensor, point: &str| see(x, point).map(|()| x.clone());
        layers.interpret(&mut AtPoints::new(Eval, (network, places), act), &model.normalization().apply(pixels)?)
    };
    predict::logits(&forward, &clean.images, None, model.device(), (run, "calibrate"))?;
    Ok(())
}

/// Widens the range of an activation point by the values of `x`.
fn widen(seen: &mut BTreeMap<String, (f32, f32)>, x: &Tensor, point: &str) -> Result<()> {
    let flat = x.flatten_all()?;
    let (low, high) = (flat.min(0)?.to_scalar::<f32>()?, flat.max(0)?.to_scalar::<f32>()?);
    match seen.get_mut(point) {
        Some(range) => *range = (range.0.min(low), range.1.max(high)),
        None => drop(seen.insert(point.to_string(), (low, high))),
    }
    Ok(())
}

/// Adds the values of `x` to the histogram of an activation point.
fn count(counts: &mut [u64], (low, high): (f32, f32), x: &Tensor) -> Result<()> {
    let scale = if high > low { counts.len() as f32 / (high - low) } else { 0.0 };
    for value in x.flatten_all()?.to_vec1::<f32>()? {
        let bin = ((value - low) * scale) as usize;
        counts[bin.min(counts.len() - 1)] += 1;
    }
    Ok(())
}

/// The values between which the middle `share` of a histogram lies, to a bin.
fn middle((low, high): (f32, f32), counts: &[u64], share: f64) -> (f32, f32) {
    let width = (high - low) / counts.len() as f32;
    let outside = (0.5 * (1.0 - share) * counts.iter().sum::<u64>() as f64).round() as u64;
    // How many bins may be left out from an end without losing more than that.
    let spared = |counts: &mut dyn Iterator<Item = &u64>| {
        let mut left = outside;
        counts.take_while(|count| left.checked_sub(**count).map(|rest| left = rest).is_some()).count() as f32
    };
    let below = spared(&mut counts.iter());
    let above = spared(&mut counts.iter().rev());
    (low + below * width, high - above * width)
}

/// The range, or a smaller one, that rounds the histogram's values with the least squared error.
fn closest((low, high): (f32, f32), counts: &[u64], grid: ActivationGrid) -> (f32, f32) {
    let width = f64::from(high - low) / counts.len() as f64;
    let error = |(low_end, high_end): (f32, f32)| {
        let grid = grid.of(low_end, high_end);
        let of_bin = |(bin, count): (usize, &u64)| {
            let value = f64::from(low) + (bin as f64 + 0.5) * width;
            let rounded = (value / grid.scale).round_ties_even().clamp(grid.low, grid.high) * grid.scale;
            *count as f64 * (value - rounded).powi(2)
        };
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(of_bin).sum::<f64>()
    };
    let ranges = (20..=100).rev().map(|percent| (low * percent as f32 / 100.0, high * percent as f32 / 100.0));
    let mut best = ((low, high), f64::INFINITY);
    for range in ranges {
        let error = error(range);
        if error < best.1 {
            best = (range, error);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(1.0, (-1.0, 3.0))]
    #[case(0.8, (0.0, 2.0))]
    #[case(0.6, (0.0, 2.0))]
    fn the_middle_leaves_out_both_ends(#[case] share: f64, #[case] expected: (f32, f32)) {
        assert_eq!(middle((-1.0, 3.0), &[1, 4, 4, 1], share), expected);
    }

    #[test]
    fn the_closest_range_gives_up_a_lonely_value() {
        let mut counts = vec![0; BINS];
        counts[..BINS / 4].fill(1000);
        assert_eq!(closest((0.0, 4.0), &counts, ActivationGrid::Affine), (0.0, 1.0), "nothing lies above 1");
        counts[BINS - 1] = 1;
        let (low, high) = closest((0.0, 4.0), &counts, ActivationGrid::Affine);
        assert!(low == 0.0 && high > 1.0 && high < 4.0, "{high}");
        counts.fill(1000);
        assert_eq!(closest((-2.0, 2.0), &counts, ActivationGrid::Affine).1, 2.0, "all values count alike");
    }

    #[rstest]
    #[case(r#""min-max""#, Ok(Calibration::MinMax))]
    #[case(r#"{ "percentile": 99.9 }"#, Ok(Calibration::Percentile(Percentile::literal(99.9))))]
    #[case(r#"{ "percentile": 50 }"#, Err("expected a number in (50, 100], found 50"))]
    #[case(r#"{ "percentile": 100.5 }"#, Err("expected a number in (50, 100], found 100.5"))]
    fn percentiles_have_a_range(#[case] text: &str, #[case] expected: Result<Calibration, &str>) {
        match (serde_json::from_str::<Calibration>(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().starts_with(expected), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }
}
