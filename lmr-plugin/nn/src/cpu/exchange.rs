//! From images as callers know them to the layout of the kernels, and back.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::access::{blocked, slice};
use super::layout::Dims;

/// `[B,C,H,W]` to blocked.
fn to_blocked(x: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { h, w, c, n, .. } = dims;
    let mut out = vec![0.0; dims.len()];
    out.par_chunks_mut(w * c * n).enumerate().for_each(|(row, out)| {
        let (g, y) = (row / h, row % h);
        for image in 0..n {
            for channel in 0..c {
                let from = (((g * n + image) * c + channel) * h + y) * w;
                for (position, &value) in x[from..from + w].iter().enumerate() {
                    out[(position * c + channel) * n + image] = value;
                }
            }
        }
    });
    out
}

/// Blocked to `[B,C,H,W]`.
fn to_planes(x: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { h, w, c, n, .. } = dims;
    let mut out = vec![0.0; dims.len()];
    out.par_chunks_mut(h * w).enumerate().for_each(|(plane, out)| {
        let (image, channel) = (plane / c, plane % c);
        let from = image / n * h * w * c * n + channel * n + image % n;
        for (position, out) in out.iter_mut().enumerate() {
            *out = x[from + position * c * n];
        }
    });
    out
}

/// `[B,C,H,W]` to blocked.
struct Enter;

/// Blocked to `[B,C,H,W]`.
struct Leave;

impl CustomOp1 for Enter {
    fn name(&self) -> &'static str {
        "enter-blocked"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l.shape().dims4()?;
        let dims = Dims::of_batch(b, c, h, w);
        Ok(blocked(to_blocked(slice(x, l)?, dims), dims))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(leave(grad)?))
    }
}

impl CustomOp1 for Leave {
    fn name(&self) -> &'static str {
        "leave-blocked"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let [g, h, w, c, n] = *l.dims() else { bail!("expected a blocked activation, found {:?}", l.dims()) };
        let dims = Dims { g, h, w, c, n };
        Ok((CpuStorage::F32(to_planes(slice(x, l)?, dims)), Shape::from((g * n, c, h, w))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(enter(grad)?))
    }
}

/// `[B,C,H,W]` to blocked; differentiable.
pub(crate) fn enter(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Enter)
}

/// Blocked to `[B,C,H,W]`; differentiable.
pub(crate) fn leave(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Leave)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_undoes_entering() {
        let dims = Dims::of_batch(6, 3, 4, 5);
        let x: Vec<f32> = (0..dims.len()).map(|i| i as f32).collect();
        assert_eq!(to_planes(&to_blocked(&x, dims), dims), x);
    }
}
