//! From Candle's tensors to slices.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

/// The values of a tensor, lent; `G` keeps them where they are.
struct Lent<G, T> {
    storage: G,
    range: Range<usize>,
    values: fn(&CpuStorage) -> &[T],
}

impl<G: Deref<Target = Storage>, T> Deref for Lent<G, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(storage) => (self.values)(storage).get(self.range.clone()).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// The codes of a contiguous tensor `u8`.
pub fn codes(x: &Tensor) -> Result<impl Deref<Target = [u8]>> {
    lend(x, |storage| match storage {
        CpuStorage::U8(values) => values,
        _ => &[],
    })
}

/// The values of a contiguous tensor `f32`.
pub fn values(x: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    lend(x, |storage| match storage {
        CpuStorage::F32(values) => values,
        _ => &[],
    })
}

fn lend<T>(x: &Tensor, values: fn(&CpuStorage) -> &[T]) -> Result<impl Deref<Target = [T]>> {
    let (storage, layout) = x.storage_and_layout();
    let (Some((begin, end)), Storage::Cpu(cpu)) = (layout.contiguous_offsets(), &*storage) else {
        bail!("the integer kernels take contiguous tensors on the CPU");
    };
    if values(cpu).len() < end {
        bail!("the integer kernels take bytes and f32, found {:?}", x.dtype());
    }
    Ok(Lent { storage, range: begin..end, values })
}
