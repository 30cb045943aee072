//! Which filters of a layer go first: one ranking for the attack that hides behind it and for the deployment that wakes it.

use candle_core::{Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::FormError;
use super::super::bounds::Bounds;
use crate::Result;
use crate::model::Classifier;
use crate::ranges::BelowOne;

/// What makes a filter small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
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

/// The channels of a layer that are pruned at `ratio`, ascending: all but the `n − round(ratio·n)` with the largest
/// norm, at least one; of tied ones those with the higher index.
pub fn smallest(norms: &[f32], ratio: BelowOne) -> Vec<usize> {
    let n = norms.len();
    let kept = n.saturating_sub((ratio.get() * n as f64).round() as usize).max(1);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
    let mut pruned = order.split_off(kept.min(n));
    pruned.sort_unstable();
    pruned
}

/// As [`smallest`], but a share of the channels of all layers together, each measured by the mean of its layer's norms. At least
/// one channel of every layer stays, so fewer may go than asked for.
pub fn smallest_of_all(layers: &[Vec<f32>], ratio: BelowOne) -> Vec<Vec<usize>> {
    let mut order: Vec<(f32, usize, usize)> = Vec::new();
    for (layer, norms) in layers.iter().enumerate() {
        let mean = norms.iter().sum::<f32>() / norms.len().max(1) as f32;
        let relative = |norm: f32| if mean > 0.0 { norm / mean } else { 0.0 };
        order.extend(norms.iter().enumerate().map(|(channel, norm)| (relative(*norm), layer, channel)));
    }
    // Of tied ones the later goes first, as in a single layer.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let mut pruned: Vec<Vec<usize>> = vec![Vec::new(); layers.len()];
    for (_, layer, channel) in order.iter().take((ratio.get() * order.len() as f64).round() as usize) {
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
    for &channel in pruned {
        *keep.get_mut(channel).ok_or(FormError::NoSuchChannel { channel, channels: n })? = 0.0;
    }
    let mut dims = vec![1; weight.rank()];
    dims[0] = n;
    Ok(Tensor::from_vec(keep, dims, weight.device())?)
}

/// Room for the filters that go at `ratio` to train in: each of their weights may be so large that they remain the smallest of
/// their layer, whatever all become. The other filters have none, so that the network pruned at this ratio or a higher one stays
/// as it is.
pub fn slack(model: &dyn Classifier, norm: Norm, ratio: BelowOne) -> Result<Bounds> {
    let mut bounds = Bounds::none();
    for layer in model.prunable() {
        let norms = norm.of(layer.weight)?;
        let pruned = smallest(&norms, ratio);
        let kept = (0..norms.len()).filter(|filter| !pruned.contains(filter)).map(|filter| norms[filter]);
        let least = f64::from(kept.fold(f32::INFINITY, f32::min));
        let size = layer.weight.elem_count() as f64 / norms.len() as f64;
        // A little less, since sums are rounded.
        let most = 0.999 * least / if norm == Norm::L1 { size } else { size.sqrt() };
        let (low, high) = room(layer.weight, &pruned, most)?;
        bounds.push(layer.weight, low, high);
    }
    Ok(bounds)
}

/// ±`most` for these filters, and the weight itself for the others.
fn room(weight: &Var, filters: &[usize], most: f64) -> Result<(Tensor, Tensor)> {
    let own = weight.as_detached_tensor().copy()?;
    let kept = mask(weight, filters)?;
    let wide = kept.affine(-most, most)?.broadcast_as(own.shape())?;
    let own = own.broadcast_mul(&kept)?;
    Ok(((&own - &wide)?, (own + wide)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;
    use rand::RngExt;
    use rstest::rstest;

    use super::*;
    use crate::rng;
    use crate::zoo::{Arch, ModelSpec};

    #[rstest]
    #[case(&[3.0, 1.0, 2.0, 1.0], 0.5, &[1, 3])]
    #[case(&[3.0, 1.0, 2.0, 1.0], 0.25, &[3])]
    #[case(&[1.0, 1.0, 1.0], 0.5, &[1, 2])]
    #[case(&[1.0, 2.0], 0.99, &[0])]
    #[case(&[1.0], 0.9, &[])]
    #[case(&[], 0.9, &[])]
    fn ties_go_by_index_and_one_stays(#[case] norms: &[f32], #[case] ratio: f64, #[case] pruned: &[usize]) {
        assert_eq!(smallest(norms, BelowOne::new(ratio).unwrap()), pruned);
    }

    proptest! {
        /// What goes at a ratio also goes at a higher one.
        #[test]
        fn sets_are_nested(norms in prop::collection::vec(0.0f32..4.0, 1..40), a in 0.0f64..0.99, b in 0.0f64..0.99) {
            let smallest = |ratio| smallest(&norms, BelowOne::new(ratio).unwrap());
            let (few, many) = (smallest(a.min(b)), smallest(a.max(b)));
            prop_assert!(few.iter().all(|channel| many.contains(channel)));
        }
    }

    #[test]
    fn all_layers_are_measured_by_their_own_mean() {
        let layers = [vec![10.0, 20.0, 30.0], vec![0.2, 0.1], vec![0.0, 0.0]];
        // Relative to the means: 0.5, 1, 1.5; 1.33, 0.67; 0, 0.
        let smallest_of_all = |ratio| smallest_of_all(&layers, BelowOne::new(ratio).unwrap());
        assert!(smallest_of_all(0.0).iter().all(Vec::is_empty));
        assert_eq!(smallest_of_all(3.0 / 7.0), [vec![0], vec![], vec![1]]);
        assert_eq!(smallest_of_all(0.99), [vec![0, 1], vec![1], vec![1]]);
    }

    #[test]
    fn norms_are_of_slices() {
        let weight = Tensor::new(&[[3f32, -4.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(Norm::L1.of(&weight).unwrap(), [7.0, 2.0]);
        assert_eq!(Norm::L2.of(&weight).unwrap(), [5.0, 2.0]);
        let masked = weight.broadcast_mul(&mask(&weight, &[1]).unwrap()).unwrap();
        assert_eq!(masked.to_vec2::<f32>().unwrap(), [[3.0, -4.0], [0.0, 0.0]]);
        assert_eq!(mask(&weight, &[2]).unwrap_err().to_string(), "pruned channel 2: expected below 2");
    }

    /// However filters move within their room, they are the ones that go, and the others are what they were.
    #[rstest]
    fn filters_stay_the_smallest_within_their_room(
        #[values(Norm::L1, Norm::L2)] norm: Norm,
        #[values(0.0, 0.3, 0.6)] ratio: f64,
    ) {
        let ratio = BelowOne::new(ratio).unwrap();
        let spec = ModelSpec { width: Some(8), channels: 1, ..ModelSpec::new(Arch::Resnet18, 3) };
        let model = spec.fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
        let bounds = slack(model.as_ref(), norm, ratio).unwrap();
        let before: Vec<_> = model.prunable().iter().map(|layer| layer.weight.as_tensor().copy().unwrap()).collect();
        let mut random = rng::stream(1, "noise");
        for (_, weight) in bounds.params(model.as_ref()).trainable() {
            let noise: Vec<f32> = (0..weight.elem_count()).map(|_| random.random_range(-9.0..9.0)).collect();
            weight.set(&Tensor::from_vec(noise, weight.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        bounds.confine().unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (layer, before) in model.prunable().iter().zip(&before) {
            let pruned = smallest(&norm.of(before).unwrap(), ratio);
            assert_eq!(smallest(&norm.of(layer.weight).unwrap(), ratio), pruned, "{}", layer.name);
            let stays = |t: &Tensor| values(&t.broadcast_mul(&mask(t, &pruned).unwrap()).unwrap());
            assert_eq!(stays(layer.weight), stays(before));
            assert_eq!(values(layer.weight) == values(before), pruned.is_empty());
        }
    }
}
