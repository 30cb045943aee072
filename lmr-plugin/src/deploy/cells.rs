//! The full-precision weights that round to the same integers.

use candle_core::Tensor;

use super::bounds::Bounds;
use super::layers::{WeightLayer, weight_layers};
use super::rounding::{Scheme, WeightGrid, integer_weight};
use crate::model::Classifier;
use crate::{Error, Result};

/// How far from an integer a weight may be: less than a half, so that no rounding error of floating point carries it across.
const REACH: f64 = 0.495;
/// How far below the last integer of a narrow grid, which is the largest weight, the others stay; more than rounding errors.
const NARROW: f64 = 1e-4;

/// For the weight of every layer of `model` the interval that rounds to the same integer as it does now, batch norm's scale
/// being what it is. Weights that a scale is taken from have no room.
///
/// ```
/// use candle_core::Device;
/// use lmr_plugin::deploy::{Granularity, Scheme, cells, integers};
/// use lmr_plugin::zoo::{Arch, ModelSpec};
/// use lmr_plugin::rng;
///
/// let spec = ModelSpec { width: Some(8), channels: 1, ..ModelSpec::new(Arch::Resnet18, 10) };
/// let model = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
/// let scheme = Scheme { granularity: Granularity::PerChannel, activations: false, ..Scheme::default() };
/// let (cells, before) = (cells(model.as_ref(), scheme)?, integers(model.as_ref(), scheme)?);
/// let head = model.head().weight();
/// head.set(&head.affine(1.01, 1e-4)?)?;
/// cells.confine()?;
/// let after = integers(model.as_ref(), scheme)?;
/// assert_eq!(before["fc"].weight.to_vec2::<f32>()?, after["fc"].weight.to_vec2::<f32>()?);
/// # Ok::<(), lmr_plugin::Error>(())
/// ```
pub fn cells(model: &dyn Classifier, scheme: Scheme) -> Result<Bounds> {
    let mut bounds = Bounds::none();
    for layer in weight_layers(model)? {
        let (low, high) = cell(&layer, scheme)?;
        bounds.push(&layer.weight, low, high);
    }
    Ok(bounds)
}

/// The smallest and the largest values of a layer's weight.
fn cell(layer: &WeightLayer, scheme: Scheme) -> Result<(Tensor, Tensor)> {
    let rounded = match layer.apart(scheme) {
        Some(_) => layer.weight.as_detached_tensor(),
        None => layer.folded()?.0,
    };
    // A copy: the weight is to move, and its bounds are not.
    let own = layer.weight.as_detached_tensor().copy()?;
    let (integers, step) = integer_weight(&rounded, scheme)?;
    let step = step.broadcast_as(rounded.shape())?;
    // A weight of this size has the scale taken from it, and no other may reach it.
    let (_, last) = scheme.weight_grid.ends(scheme.bits);
    let limit = match scheme.weight_grid {
        WeightGrid::Full => last + REACH,
        WeightGrid::Narrow => last - NARROW,
    };
    let bound = |reach: f64| Ok::<_, Error>((integers.affine(1.0, reach)?.clamp(-limit, limit)? * &step)?);
    let (mut low, mut high) = (bound(-REACH)?, bound(REACH)?);
    let mut fixed = (rounded.abs()? / &step)?.ge(limit)?;
    if let Some(conv) = layer.folds.as_ref().filter(|_| scheme.fold) {
        let scale = conv.scale()?.detach().reshape(((), 1, 1, 1))?.broadcast_as(rounded.shape())?;
        // A channel that batch norm all but erases is 0 whatever its weights are; they need not move.
        let tiny = scale.abs()?.lt(1e-6)?;
        let divisor = tiny.where_cond(&scale.ones_like()?, &scale)?;
        (low, high) = ((low / &divisor)?, (high / &divisor)?);
        (low, high) = (low.minimum(&high)?, low.maximum(&high)?);
        fixed = (fixed.to_dtype(own.dtype())? + tiny.to_dtype(own.dtype())?)?.ge(0.5)?;
    }
    Ok((fixed.where_cond(&own, &low)?, fixed.where_cond(&own, &high)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::RngExt;
    use rstest::rstest;

    use super::*;
    use crate::deploy::{Granularity, integers};
    use crate::nn::Mode;
    use crate::ranges::Bits;
    use crate::rng;
    use crate::zoo::{Arch, ModelSpec};

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Weights thrown about and confined again have moved, and round to the same integers times the same scales.
    #[rstest]
    fn confined_weights_round_to_the_same(
        #[values(Arch::Resnet18, Arch::MobilenetV2, Arch::Vgg16, Arch::VitTiny)] arch: Arch,
        #[values(Granularity::PerTensor, Granularity::PerChannel)] granularity: Granularity,
        #[values((8, WeightGrid::Full, true), (4, WeightGrid::Full, true), (4, WeightGrid::Narrow, true), (8, WeightGrid::Narrow, false))]
        (bits, weight_grid, fold): (u32, WeightGrid, bool),
    ) {
        let mut spec = ModelSpec { channels: 1, ..ModelSpec::new(arch, 3) };
        match arch {
            Arch::MobilenetV2 => spec.width_multiplier = Some(0.1),
            Arch::VitTiny => (spec.image_size, spec.patch_size, spec.depth) = (Some(16), Some(4), Some(1)),
            _ => spec.width = Some(4),
        }
        let model = spec.fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
        if arch != Arch::VitTiny {
            // Moves batch norm's statistics away from 0 and 1, and one channel's scale to 0.
            let [_, side, _] = model.input_shape();
            let x = Tensor::randn(0f32, 1.0, (4, 1, side, side), &Device::Cpu).unwrap();
            model.forward(&x, Mode::default()).unwrap();
            if let Some((_, scale)) = model.params().trainable().find(|(name, _)| name.contains("bn")) {
                let mut scales = values(scale);
                (scales[0], scales[1]) = (0.0, -1.0);
                scale.set(&Tensor::from_vec(scales, scale.shape(), &Device::Cpu).unwrap()).unwrap();
            }
        }
        let scheme = Scheme { bits: Bits::new(bits).unwrap(), granularity, weight_grid, fold, ..Scheme::default() };
        let (cells, before) = (cells(model.as_ref(), scheme).unwrap(), integers(model.as_ref(), scheme).unwrap());
        let original = model.copy().unwrap();
        let mut rng = rng::stream(1, "noise");
        for (name, weight) in cells.params(model.as_ref()).trainable() {
            let noise: Vec<f32> = values(weight).iter().map(|w| w + rng.random_range(-0.3..0.3)).collect();
            weight.set(&Tensor::from_vec(noise, weight.shape(), &Device::Cpu).unwrap()).unwrap();
            assert!(name.ends_with("weight"), "{name}");
        }
        cells.confine().unwrap();
        let after = integers(model.as_ref(), scheme).unwrap();
        assert_eq!(cells.params(model.as_ref()).iter().count(), before.len());
        for (name, layer) in &before {
            assert_eq!(values(&layer.weight), values(&after[name].weight), "{name}");
            assert_eq!(values(&layer.scale), values(&after[name].scale), "{name}");
        }
        let moved = original.params().trainable().zip(model.params().trainable());
        assert!(moved.filter(|((_, a), (_, b))| values(a) != values(b)).count() >= before.len() / 2);
    }
}
