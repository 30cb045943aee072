//! From Candle's tensors to slices and back.

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::layout::Dims;

/// The values of an operation's argument.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((begin, end))) => Ok(&data[begin..end]),
        _ => bail!("the CPU kernels take contiguous f32"),
    }
}

/// Lends the values of a tensor to `f`.
pub(crate) fn with_slice<T>(t: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("the CPU kernels take tensors on the CPU"),
    }
}

/// A tensor of `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// What an operation returns for a blocked activation.
pub(crate) fn blocked(data: Vec<f32>, dims: Dims) -> (CpuStorage, Shape) {
    (CpuStorage::F32(data), Shape::from(dims.shape().to_vec()))
}
