//! Building a model from its specification.

use candle_core::Device;

use super::{ModelSpec, Network, ZooError, naming};
use crate::Result;
use crate::model::Classifier;
use crate::nn::{Builder, StateDict};
use crate::rng::Rng;

impl ModelSpec {
    /// A model with freshly drawn parameters.
    pub fn fresh(&self, rng: Rng, device: &Device) -> Result<Box<dyn Classifier>> {
        self.build(&Builder::fresh(rng, device))
    }

    /// A model with the parameters of a checkpoint. Names and shapes must match exactly (`num_batches_tracked` may be
    /// absent); vision transformers may have the names of any scheme in [`naming`], LayerScale, and positions of another
    /// image size ([`ModelSpec::adaptations`]).
    pub fn load(&self, state: StateDict, device: &Device) -> Result<Box<dyn Classifier>> {
        let state = self.adapted(self.translated(state)?)?;
        self.build(&Builder::from_state(state, device))
    }

    /// As [`ModelSpec::load`], but with a head drawn from `rng` in place of the checkpoint's, which may have another number
    /// of classes.
    pub fn load_with_fresh_head(&self, state: StateDict, rng: Rng, device: &Device) -> Result<Box<dyn Classifier>> {
        let mut state = self.adapted(self.translated(state)?)?;
        let fresh = self.fresh(rng, &Device::Cpu)?;
        let head = fresh.head().name();
        let of_head = |(name, _): &(String, _)| name.rsplit_once('.').is_some_and(|(layer, _)| layer == head);
        state.extend(fresh.params().state_dict()?.into_iter().filter(of_head));
        self.build(&Builder::from_state(state, device))
    }

    /// A checkpoint under torchvision's names; an error if they tell another pooling.
    fn translated(&self, state: StateDict) -> Result<StateDict> {
        if let Some(pooling) = self.resolved().pooling {
            let found = naming::pooling(state.keys().map(String::as_str));
            if let Some(found) = found.filter(|found| *found != pooling) {
                return Err(ZooError::Pooling { expected: pooling, found }.into());
            }
        }
        naming::to_torchvision(state)
    }

    fn build(&self, builder: &Builder) -> Result<Box<dyn Classifier>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(ZooError::Spec(faults).into());
        }
        let spec = self.resolved();
        let layers = (spec.arch.architecture().build)(&spec, builder)?;
        Ok(Box::new(Network::new(spec, layers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use crate::zoo::Arch;

    #[test]
    fn a_fresh_head_takes_all_but_the_head() {
        let cpu = Device::Cpu;
        let made = ModelSpec { width: Some(4), ..ModelSpec::new(Arch::PreactResnet18, 7) };
        let state = made.fresh(rng::stream(0, "made"), &cpu).unwrap().params().state_dict().unwrap();
        let other = ModelSpec { classes: 5, ..made };
        assert!(other.load(state.clone(), &cpu).is_err());
        let draw = || other.load_with_fresh_head(state.clone(), rng::stream(1, "head"), &cpu).unwrap();
        let (found, again) = (draw().params().state_dict().unwrap(), draw().params().state_dict().unwrap());
        let values = |state: &StateDict, name: &str| state[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found["linear.weight"].dims(), [5, 32]);
        assert_eq!(values(&found, "linear.weight"), values(&again, "linear.weight"));
        assert_eq!(values(&found, "layer4.1.conv2.weight"), values(&state, "layer4.1.conv2.weight"));
    }
}
