//! A layer with batch norm as a Candle operation with a hand-written gradient.
//!
//! Candle's operations have at most three arguments, so a layer's parameters come flattened in one tensor, `[weight,
//! gamma, beta]`, which autograd takes apart again.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::ConvConfig;
use super::super::batch_norm::Moments;
use super::access::{blocked, slice, tensor, with_slice};
use super::conv::{check, masked};
use super::geometry::Geometry;
use super::layer::{Trace, backward, forward};
use super::layout::Dims;
use super::scratch::Scratch;

/// A convolution with batch norm.
#[derive(Clone, Copy)]
pub(in super::super) struct Layer<'a> {
    pub weight: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub config: &'a ConvConfig,
}

impl Layer<'_> {
    pub(super) fn geometry(&self, x: Dims) -> Result<Geometry> {
        let geometry = Geometry::new(x, self.weight.dims4()?.into(), *self.config)?;
        check(geometry.y, None, &[self.gamma, self.beta])?;
        Ok(geometry)
    }

    pub(super) fn params(&self) -> Result<[Tensor; 3]> {
        Ok([self.weight.flatten_all()?, self.gamma.clone(), self.beta.clone()])
    }
}

/// The statistics that a layer saw.
pub(super) fn moments(trace: &Trace, geometry: &Geometry) -> Result<Moments> {
    let of = |values: &[f32]| tensor(values.to_vec(), &[geometry.y.c]);
    Ok(Moments { mean: of(&trace.norm.mean)?, var: of(&trace.norm.var)?, count: geometry.y.count() })
}

/// What a forward pass leaves for the backward pass.
pub(super) type Stash<T> = Arc<OnceLock<T>>;

pub(super) fn keep<T>(stash: &Stash<T>, value: T) -> Result<()> {
    stash.set(value).or_else(|_| bail!("an operation with a backward pass ran twice"))
}

pub(super) fn kept<T>(stash: &Stash<T>) -> Result<&T> {
    match stash.get() {
        Some(value) => Ok(value),
        None => bail!("an operation ran backward before it ran forward"),
    }
}

/// One layer, with or without a residual.
struct Single {
    geometry: Geometry,
    relu: bool,
    stash: Stash<Trace>,
}

impl Single {
    fn forward(&self, x: &[f32], params: &[f32], residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; self.geometry.y.len()];
        keep(&self.stash, forward(x, params, &self.geometry, residual, self.relu, &mut y))?;
        Ok(blocked(y, self.geometry.y))
    }

    /// Gradients of input and parameters, from that of the output in `grad`; `relu` if it is yet to be masked.
    fn backward(
        &self,
        x: &Tensor,
        params: &Tensor,
        mut grad: Scratch,
        relu: bool,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (geometry, trace) = (&self.geometry, kept(&self.stash)?);
        let mut dx = x.track_op().then(|| vec![0.0; geometry.x.len()]);
        let daffine = trace.norm.backward_in_place(&trace.z, geometry.y, &mut grad, relu);
        let mut dparams =
            with_slice(x, |x| with_slice(params, |p| Ok(backward(x, p, geometry, &grad, dx.as_deref_mut(), None))))?;
        dparams.extend(daffine);
        Ok((dx.map(|dx| tensor(dx, x.dims())).transpose()?, Some(tensor(dparams, params.dims())?)))
    }
}

/// A copy to work on in place.
fn copy(t: &Tensor) -> Result<Scratch> {
    with_slice(t, |t| {
        let mut copy = Scratch::take(t.len());
        copy.copy_from_slice(t);
        Ok(copy)
    })
}

impl CustomOp2 for Single {
    fn name(&self) -> &'static str {
        "conv-bn"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, p: &CpuStorage, lp: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(p, lp)?, None)
    }

    fn bwd(&self, x: &Tensor, params: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, params, copy(dy)?, self.relu)
    }
}

impl CustomOp3 for Single {
    fn name(&self) -> &'static str {
        "conv-bn-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        p: &CpuStorage,
        lp: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(p, lp)?, Some(slice(r, lr)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dresidual = if self.relu { masked(dy, y)? } else { dy.contiguous()? };
        let (dx, dparams) = self.backward(x, params, copy(&dresidual)?, false)?;
        Ok((dx, dparams, Some(dresidual)))
    }
}

/// `activation(batch_norm(conv(x)) + residual)` of blocked activations, with the batch's statistics; differentiable.
pub(in super::super) fn conv_bn(
    x: &Tensor,
    layer: Layer<'_>,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, Moments)> {
    let geometry = layer.geometry(Dims::of(x)?)?;
    check(geometry.y, residual, &[])?;
    let stash = Stash::default();
    let op = Single { geometry, relu, stash: stash.clone() };
    let (x, params) = (x.contiguous()?, Tensor::cat(&layer.params()?, 0)?);
    let y = match residual {
        Some(residual) => x.apply_op3(&params, &residual.contiguous()?, op),
        None => x.apply_op2(&params, op),
    }?;
    Ok((y, moments(kept(&stash)?, &geometry)?))
}
