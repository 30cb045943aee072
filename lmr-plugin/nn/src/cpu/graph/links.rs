//! How parameters reach an operation with more than Candle's three arguments.
//!
//! The operation reads their values directly. For the gradients, every parameter gives one number, a link, and the links
//! joined in one tensor are an argument: so autograd runs the operation's backward pass, which leaves the gradients in
//! slots, before it asks each link for the gradient of its parameter. Joining the parameters themselves would copy all of
//! them several times in each direction.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use crate::cpu::access::{slice, tensor};

type Slot = Arc<Mutex<Option<Vec<f32>>>>;

/// One parameter's way to its gradient.
struct Link(Slot);

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        "parameter-link"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    fn bwd(&self, parameter: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(gradient) => Ok(Some(tensor(gradient, parameter.dims())?)),
            None => bail!("a parameter's gradient was asked for before it was computed"),
        }
    }
}

/// Parameters of an operation.
pub(crate) struct Parameters {
    values: Vec<Tensor>,
    slots: Vec<Slot>,
}

impl Parameters {
    /// The parameters, and the argument that links them.
    pub fn new(parameters: &[&Tensor]) -> Result<(Self, Tensor)> {
        let slots: Vec<Slot> = parameters.iter().map(|_| Slot::default()).collect();
        let link = |(parameter, slot): (&&Tensor, &Slot)| parameter.apply_op1(Link(slot.clone()));
        let links = parameters.iter().zip(&slots).map(link).collect::<Result<Vec<_>>>()?;
        let values = parameters.iter().map(|p| p.detach().contiguous()).collect::<Result<_>>()?;
        Ok((Self { values, slots }, Tensor::cat(&links, 0)?))
    }

    /// Lends the values of all parameters to `f`.
    pub fn with<T>(&self, f: impl FnOnce(&[&[f32]]) -> Result<T>) -> Result<T> {
        let guards: Vec<_> = self.values.iter().map(Tensor::storage_and_layout).collect();
        let mut slices = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cpu(storage) => slices.push(slice(storage, layout)?),
                _ => bail!("the CPU kernels take tensors on the CPU"),
            }
        }
        f(&slices)
    }

    /// Leaves the gradients for the links, and returns that of the links themselves.
    pub fn resolve(&self, gradients: Vec<Vec<f32>>) -> Result<Tensor> {
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradient);
        }
        tensor(vec![0.0; self.slots.len()], &[self.slots.len()])
    }
}
