//! What kinds of triggers there are once they are built, and building them again from stored tensors.

use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{Trigger, TriggerError};
use crate::data::Normalization;
use crate::nn::StateDict;
use crate::{Error, Result};

/// How a trigger's tensors are to be understood.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub(super) name: &'static str,
    restore: fn(StateDict, [usize; 3]) -> Result<Arc<dyn Trigger>>,
}

impl Form {
    /// A form by its name in files, with what builds the trigger from its tensors, all of them finite, for images of (channels,
    /// height, width): it refuses tensors of another shape or out of range, missing ones and unknown ones.
    pub const fn new(name: &'static str, restore: fn(StateDict, [usize; 3]) -> Result<Arc<dyn Trigger>>) -> Self {
        Self { name, restore }
    }

    /// The name in files.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The trigger that [`Trigger::tensors`] came from, for images of `image` (channels, height, width). Refuses tensors of
    /// another shape, out of range or not finite, missing ones and unknown ones.
    pub fn restore(self, state: StateDict, image: [usize; 3]) -> Result<Arc<dyn Trigger>> {
        if let Some((name, _)) = state.iter().find(|(_, tensor)| !is_finite(tensor)) {
            return Err(TriggerError::NotFinite { name: shorten(name) }.into());
        }
        (self.restore)(state, image)
    }
}

/// A stored name may be of any length.
pub(super) fn shorten(name: &str) -> String {
    name.chars().take(60).collect()
}

fn is_finite(tensor: &Tensor) -> bool {
    let values = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
    values.is_ok_and(|values| values.iter().all(|v| v.is_finite()))
}

/// Takes a float tensor of the given shape out of a state, converted to f32.
pub(super) fn take(state: &mut StateDict, name: &str, shape: &[usize]) -> Result<Tensor> {
    let Some(tensor) = state.remove(name) else {
        return Err(TriggerError::Missing { name: name.into() }.into());
    };
    if tensor.dims() != shape || !tensor.dtype().is_float() {
        return Err(TriggerError::Shape {
            name: name.into(),
            expected: shape.to_vec(),
            found: tensor.dims().to_vec(),
            dtype: tensor.dtype().as_str(),
        }
        .into());
    }
    Ok(tensor.to_dtype(DType::F32)?)
}

/// Refuses values outside the range.
pub(super) fn in_range(name: &str, tensor: &Tensor, range: RangeInclusive<f32>) -> Result<()> {
    // Rounding may have carried a value just past the end.
    let slack = 1e-6;
    let (low, high) = (range.start() - slack, range.end() + slack);
    match tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().find(|v| !(low..=high).contains(v)) {
        Some(found) => {
            let (low, high) = range.into_inner();
            Err(TriggerError::Range { name: name.into(), low, high, found }.into())
        }
        None => Ok(()),
    }
}

/// Takes a normalization out of a state: `mean` and `std`, `f32[C]`.
pub(super) fn take_normalization(state: &mut StateDict, channels: usize) -> Result<Normalization> {
    let mut values = |name: &str| Ok::<_, Error>(take(state, name, &[channels])?.to_vec1()?);
    let normalization = Normalization { mean: values("mean")?, std: values("std")? };
    normalization.validate(channels)?;
    Ok(normalization)
}

/// The other way round.
pub(super) fn put_normalization(state: &mut StateDict, normalization: &Normalization) -> Result<()> {
    for (name, values) in [("mean", &normalization.mean), ("std", &normalization.std)] {
        state.insert(name.into(), Tensor::new(values.as_slice(), &candle_core::Device::Cpu)?);
    }
    Ok(())
}

/// Takes everything whose name begins with `prefix` and a dot out of a state, without them.
pub(super) fn take_part(state: &mut StateDict, prefix: &str) -> StateDict {
    let dotted = format!("{prefix}.");
    let names: Vec<String> = state.keys().filter(|name| name.starts_with(&dotted)).cloned().collect();
    names.iter().filter_map(|name| Some((name[dotted.len()..].to_string(), state.remove(name)?))).collect()
}

/// The other way round.
pub(super) fn put_part(state: &mut StateDict, prefix: &str, part: StateDict) {
    state.extend(part.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)));
}

/// Refuses a state from which not everything was taken.
pub(super) fn nothing_left(state: &StateDict) -> Result<()> {
    match state.keys().next() {
        Some(name) => Err(TriggerError::Unknown { name: shorten(name) }.into()),
        None => Ok(()),
    }
}
