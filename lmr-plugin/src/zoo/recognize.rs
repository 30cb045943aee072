//! What model a checkpoint is for, from the names and shapes of its tensors.

use candle_core::Device;

use super::{Arch, ModelSpec, naming};
use crate::Result;
use crate::nn::StateDict;
use crate::rng;

/// The shapes of a checkpoint's tensors, under torchvision's names.
pub(super) struct Shapes(StateDict);

impl Shapes {
    /// The dimensions of a tensor, if it is there and has so many.
    pub fn of<const N: usize>(&self, name: &str) -> Option<[usize; N]> {
        self.0.get(name)?.dims().try_into().ok()
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// How many of `prefix0.…`, `prefix1.…`, and so on there are.
    pub fn count(&self, prefix: &str) -> usize {
        let begins = |number: &usize| {
            let start = format!("{prefix}{number}.");
            self.0.range(start.clone()..).next().is_some_and(|(name, _)| name.starts_with(&start))
        };
        (0..).take_while(begins).count()
    }

    /// Whether the stages `layer1`, `layer2` and so on have these numbers of basic blocks.
    pub fn has_basic_blocks(&self, depths: &[usize]) -> bool {
        let stage = |(i, depth): (usize, &usize)| {
            let name = format!("layer{}.", i + 1);
            self.count(&name) == *depth && !self.has(&format!("{name}0.conv3.weight"))
        };
        depths.iter().enumerate().all(stage) && self.has("layer1.0.conv2.weight")
    }
}

impl ModelSpec {
    /// The model that a checkpoint is for, if its architecture is one of [`Arch::ALL`]. What does not show in names and
    /// shapes is left open: the `stem` of MobileNetV2, the `padding` of it and ResNet, and the `norm-eps` of vision
    /// transformers.
    ///
    /// ```
    /// use candle_core::Device;
    /// use lmr_plugin::zoo::{Arch, ModelSpec};
    /// use lmr_plugin::rng;
    ///
    /// let spec = ModelSpec { width: Some(8), ..ModelSpec::new(Arch::Resnet18, 10) };
    /// let state = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?.params().state_dict()?;
    /// assert_eq!(ModelSpec::recognize(&state)?.map(|found| found.resolved()), Some(spec.resolved()));
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn recognize(state: &StateDict) -> Result<Option<Self>> {
        let shapes = Shapes(naming::to_torchvision(state.clone())?);
        let found = Arch::ALL.iter().find_map(|arch| (arch.architecture().recognize)(*arch, &shapes));
        let pooling = naming::pooling(state.keys().map(String::as_str));
        let Some(mut spec) = found.filter(|spec| spec.faults().is_empty()) else { return Ok(None) };
        spec.pooling = pooling.filter(|_| spec.resolved().pooling.is_some());
        spec.widths = spec.widths_in(&shapes)?;
        Ok(Some(spec).filter(|spec| spec.faults().is_empty()))
    }

    /// The widths of its prunable layers in a checkpoint, if they are not the architecture's own: filters were removed.
    fn widths_in(&self, shapes: &Shapes) -> Result<Option<Vec<usize>>> {
        // The smallest network of this kind has the same names, and all its widths are as many times smaller. Of blocks that
        // are all alike a single one tells.
        let block = self.arch.architecture().block;
        let (small, factor) = match self.width.filter(|_| block.is_none()) {
            Some(width) => (Self { width: Some(1), widths: None, ..self.clone() }, width),
            None => (Self { depth: self.depth.map(|_| 1), widths: None, ..self.clone() }, 1),
        };
        let network = small.fresh(rng::stream(0, "recognize"), &Device::Cpu)?;
        let (mut own, mut found) = (Vec::new(), Vec::new());
        let blocks = self.depth.filter(|_| block.is_some()).unwrap_or(1);
        for layer in network.prunable() {
            for number in 0..blocks {
                let named = |number: usize| block.map(|block| block.replace('#', &number.to_string()));
                let name = match (named(0), named(number)) {
                    (Some(first), Some(this)) => layer.name.replace(&first, &this),
                    _ => layer.name.to_owned(),
                };
                let Some(weight) = shapes.0.get(&format!("{name}.weight")) else { return Ok(None) };
                own.push(factor * layer.weight.dims()[0]);
                found.push(weight.dims().first().copied().unwrap_or_default());
            }
        }
        Ok((own != found).then_some(found))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::zoo::naming::Scheme;
    use crate::zoo::{Pooling, Stem};

    fn spec(arch: Arch) -> ModelSpec {
        let mut spec = ModelSpec::new(arch, 7).resolved();
        spec.width = spec.width.map(|width| if width % 64 == 0 && width > 64 { width } else { 4 });
        spec.depth = spec.depth.map(|_| 2);
        spec.image_size = spec.image_size.map(|_| 32);
        spec
    }

    /// `spec` without what does not show.
    fn visible(spec: &ModelSpec) -> ModelSpec {
        let stem = spec.stem.filter(|_| spec.arch != Arch::MobilenetV2);
        ModelSpec { stem, padding: None, heads: None, activation: None, pooling: None, norm_eps: None, ..spec.clone() }
    }

    #[rstest]
    fn every_architecture_is_recognized(#[values(1, 3)] channels: usize) {
        for &arch in Arch::ALL {
            let spec = ModelSpec { channels, ..spec(arch) };
            let state = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
            assert_eq!(ModelSpec::recognize(&state).unwrap(), Some(visible(&spec)), "{arch:?}");
        }
    }

    #[rstest]
    #[case(ModelSpec { stem: Some(Stem::Imagenet), width: Some(2), ..ModelSpec::new(Arch::Resnet34, 3) })]
    #[case(ModelSpec { stem: Some(Stem::Imagenet), width: Some(1), ..ModelSpec::new(Arch::Vgg16, 3) })]
    #[case(ModelSpec { width_multiplier: Some(0.35), ..ModelSpec::new(Arch::MobilenetV2, 3) })]
    #[case(ModelSpec { width_multiplier: Some(1.4), ..ModelSpec::new(Arch::MobilenetV2, 3) })]
    #[case(ModelSpec { patch_size: Some(4), image_size: Some(24), depth: Some(1), ..ModelSpec::new(Arch::VitSmall, 3) })]
    fn options_show_in_shapes(#[case] spec: ModelSpec) {
        let spec = spec.resolved();
        let state = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
        assert_eq!(ModelSpec::recognize(&state).unwrap(), Some(visible(&spec)));
    }

    #[rstest]
    fn transformers_are_recognized_under_every_naming(#[values(Scheme::Timm, Scheme::Transformers)] scheme: Scheme) {
        let spec = spec(Arch::VitTiny);
        let state = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
        let renamed = naming::from_torchvision(&state, scheme).unwrap();
        let expected = ModelSpec { pooling: Some(Pooling::ClassToken), ..visible(&spec) };
        assert_eq!(ModelSpec::recognize(&renamed).unwrap(), Some(expected));
    }

    #[test]
    fn the_mean_of_the_patches_shows_in_a_name() {
        let spec = ModelSpec { pooling: Some(Pooling::Mean), ..spec(Arch::VitTiny) };
        let state = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
        let renamed = naming::from_torchvision(&state, Scheme::TimmMean).unwrap();
        let found = ModelSpec::recognize(&renamed).unwrap().unwrap();
        assert_eq!(found.pooling, Some(Pooling::Mean));
        let other = ModelSpec { pooling: Some(Pooling::ClassToken), ..spec };
        let message = other.load(renamed, &Device::Cpu).err().unwrap().to_string();
        assert!(message.contains("pooling: expected \"mean\", as the names of"), "{message}");
    }

    #[test]
    fn another_network_is_not() {
        let spec = spec(Arch::Resnet18);
        let mut state = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
        state.retain(|name, _| !name.starts_with("layer4.1."));
        assert_eq!(ModelSpec::recognize(&state).unwrap(), None);
        assert_eq!(ModelSpec::recognize(&StateDict::new()).unwrap(), None);
    }
}
