//! Linear layers of tokens: 1x1 convolutions.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::layout::TokenDims;
use crate::cpu::access::{slice, tensor, with_slice};
use crate::cpu::activation::{Bounds, activate_in_place, fused, slope_in_place};
use crate::cpu::conv::finish::Finish;
use crate::cpu::conv::geometry::Geometry;
use crate::cpu::conv::kernels::{convolve, input_gradient, weight_gradient};
use crate::cpu::layout::Dims;
use crate::cpu::norm::channel_sums;
use crate::cpu::scratch::Scratch;
use crate::cpu::stash::{Stash, keep, kept};
use crate::layers::{Activation, ConvConfig};

/// `activation(W · x + b)` for every token.
struct Linear {
    geometry: Geometry,
    activation: Activation,
    /// What the activation is applied to, where backward needs it.
    before: Option<Stash<Scratch>>,
}

/// `conv(x)` by one-image parts where a batch of one block would leave threads idle.
fn project(x: &[f32], weight: &[f32], geometry: &Geometry, bias: &[f32], bounds: Bounds, y: &mut [f32]) {
    /// Output features of a part.
    const PART: usize = 96;
    let finish = |bias| Finish::Activate { bias: Some(bias), residual: None, bounds };
    if geometry.y.g > 1 {
        convolve(x, weight, geometry, finish(bias), y);
        return;
    }
    let (inputs, n) = (geometry.x.c, geometry.y.n);
    let parts = weight.par_chunks(PART * inputs).zip(bias.par_chunks(PART));
    y.par_chunks_mut(PART * n).zip(parts).for_each(|(y, (weight, bias))| {
        let geometry = Geometry { y: Dims { c: bias.len(), ..geometry.y }, ..*geometry };
        convolve(x, weight, &geometry, finish(bias), y);
    });
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = &self.geometry;
        let mut y = vec![0.0; geometry.y.len()];
        let (bounds, rest) = fused(self.activation);
        project(slice(x, lx)?, slice(w, lw)?, geometry, slice(b, lb)?, bounds, &mut y);
        if rest != Activation::None {
            if let Some(stash) = &self.before {
                let mut before = Scratch::take(y.len());
                before.copy_from_slice(&y);
                keep(stash, before)?;
            }
            activate_in_place(&mut y, rest);
        }
        let [g, _, images, tokens] = lx.shape().dims4()?.into();
        Ok((CpuStorage::F32(y), Shape::from((g, geometry.y.c, images, tokens))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = &self.geometry;
        let mut dz = Scratch::take(geometry.y.len());
        with_slice(dy, |dy| {
            dz.copy_from_slice(dy);
            Ok(())
        })?;
        match (self.activation, &self.before) {
            (activation, _) if Bounds::of(activation).is_some() => with_slice(y, |y| {
                slope_in_place(&mut dz, y, activation);
                Ok(())
            })?,
            (activation, Some(stash)) => slope_in_place(&mut dz, kept(stash)?, activation),
            (_, None) => bail!("a linear layer that was not recorded ran backward"),
        }
        let dx = match x.track_op() {
            true => {
                let mut dx = vec![0.0; geometry.x.len()];
                with_slice(weight, |weight| {
                    input_gradient(&dz, weight, geometry, None, &mut dx);
                    Ok(())
                })?;
                Some(tensor(dx, x.dims())?)
            }
            false => None,
        };
        let dw = with_slice(x, |x| Ok(weight_gradient(x, &dz, geometry)))?;
        let db = channel_sums(&dz, geometry.y);
        Ok((dx, Some(tensor(dw, weight.dims())?), Some(tensor(db, bias.dims())?)))
    }
}

/// `activation(W · x + b)` of blocked tokens; differentiable.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let dims = TokenDims::of(x)?;
    let (outputs, inputs) = weight.dims2()?;
    if inputs != dims.d || bias.dims() != [outputs] {
        let (weight, bias) = (weight.dims(), bias.dims());
        bail!("linear: a weight of {weight:?} and a bias of {bias:?} do not fit tokens of {} features", dims.d);
    }
    let geometry = Geometry::new(dims.dims(), [outputs, inputs, 1, 1], ConvConfig::default())?;
    let recorded = x.track_op() || weight.track_op() || bias.track_op();
    let op = Linear { geometry, activation, before: recorded.then(Stash::default) };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}
