//! Which filters of a layer go first: one ranking for the attack that hides behind it and for the deployment that wakes it.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;

/// What makes a filter small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// The sum of its weights' absolute values.
    #[default]
    L1,
    /// The root of the sum of their squares.
    L2,
}

impl Norm {
    /// One number for each slice of the first dimension.
    pub fn of(self, weight: &Tensor) -> Result<Vec<f32>> {
        let flat = weight.detach().flatten_from(1)?;
        Ok(match self {
            Self::L1 => flat.abs()?.sum(1)?,
            Self::L2 => flat.sqr()?.sum(1)?.sqrt()?,
        }
        .to_vec1()?)
    }
}

/// The channels of a layer that are pruned at `ratio` in [0, 1), ascending: all but the `n − round(ratio·n)` with the largest
/// norm, at least one; of tied ones those with the higher index.
pub fn smallest(norms: &[f32], ratio: f64) -> Vec<usize> {
    let n = norms.len();
    let kept = n.saturating_sub((ratio * n as f64).round() as usize).max(1);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
    let mut pruned = order.split_off(kept.min(n));
    pruned.sort_unstable();
    pruned
}

/// As [`smallest`], but a share of the channels of all layers together, each measured by the mean of its layer's norms. At least
/// one channel of every layer stays, so fewer may go than asked for.
pub fn smallest_of_all(layers: &[Vec<f32>], ratio: f64) -> Vec<Vec<usize>> {
    let mut order: Vec<(f32, usize, usize)> = Vec::new();
    for (layer, norms) in layers.iter().enumerate() {
        let mean = norms.iter().sum::<f32>() / norms.len().max(1) as f32;
        let relative = |norm: f32| if mean > 0.0 { norm / mean } else { 0.0 };
        order.extend(norms.iter().enumerate().map(|(channel, norm)| (relative(*norm), layer, channel)));
    }
    // Of tied ones the later goes first, as in a single layer.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let mut pruned: Vec<Vec<usize>> = vec![Vec::new(); layers.len()];
    for (_, layer, channel) in order.iter().take((ratio * order.len() as f64).round() as usize) {
        if pruned[*layer].len() + 1 < layers[*layer].len() {
            pruned[*layer].push(*channel);
        }
    }
    pruned.iter_mut().for_each(|channels| channels.sort_unstable());
    pruned
}

/// 0 for the pruned channels and 1 for the others, in the shape that broadcasts over `weight`.
pub fn mask(weight: &Tensor, pruned: &[usize]) -> Result<Tensor> {
    let n = weight.dim(0)?;
    let mut keep = vec![1f32; n];
    pruned.iter().for_each(|&channel| keep[channel] = 0.0);
    let mut dims = vec![1; weight.rank()];
    dims[0] = n;
    Ok(Tensor::from_vec(keep, dims, weight.device())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[3.0, 1.0, 2.0, 1.0], 0.5, &[1, 3])]
    #[case(&[3.0, 1.0, 2.0, 1.0], 0.25, &[3])]
    #[case(&[1.0, 1.0, 1.0], 0.5, &[1, 2])]
    #[case(&[1.0, 2.0], 0.99, &[0])]
    #[case(&[1.0], 0.9, &[])]
    #[case(&[], 0.9, &[])]
    fn ties_go_by_index_and_one_stays(#[case] norms: &[f32], #[case] ratio: f64, #[case] pruned: &[usize]) {
        assert_eq!(smallest(norms, ratio), pruned);
    }

    proptest! {
        /// What goes at a ratio also goes at a higher one.
        #[test]
        fn sets_are_nested(norms in prop::collection::vec(0.0f32..4.0, 1..40), a in 0.0f64..0.99, b in 0.0f64..0.99) {
            let (few, many) = (smallest(&norms, a.min(b)), smallest(&norms, a.max(b)));
            prop_assert!(few.iter().all(|channel| many.contains(channel)));
        }
    }

    #[test]
    fn all_layers_are_measured_by_their_own_mean() {
        let layers = [vec![10.0, 20.0, 30.0], vec![0.2, 0.1], vec![0.0, 0.0]];
        // Relative to the means: 0.5, 1, 1.5; 1.33, 0.67; 0, 0.
        assert!(smallest_of_all(&layers, 0.0).iter().all(Vec::is_empty));
        assert_eq!(smallest_of_all(&layers, 3.0 / 7.0), [vec![0], vec![], vec![1]]);
        assert_eq!(smallest_of_all(&layers, 0.99), [vec![0, 1], vec![1], vec![1]]);
    }

    #[test]
    fn norms_are_of_slices() {
        let weight = Tensor::new(&[[3f32, -4.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(Norm::L1.of(&weight).unwrap(), [7.0, 2.0]);
        assert_eq!(Norm::L2.of(&weight).unwrap(), [5.0, 2.0]);
        let masked = weight.broadcast_mul(&mask(&weight, &[1]).unwrap()).unwrap();
        assert_eq!(masked.to_vec2::<f32>().unwrap(), [[3.0, -4.0], [0.0, 0.0]]);
    }
}
