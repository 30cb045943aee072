//! A layer with batch norm as a Candle operation with a hand-written gradient.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::ConvConfig;
use super::super::batch_norm::Moments;
use super::access::{blocked, slice, tensor, with_slice};
use super::activation::Bounds;
use super::conv::check;
use super::geometry::Geometry;
use super::layer::{Trace, backward, forward};
use super::layout::Dims;
use super::links::Parameters;
use super::scratch::Scratch;

/// A convolution with batch norm.
#[derive(Clone, Copy)]
pub(in super::super) struct Layer<'a> {
    pub weight: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub config: &'a ConvConfig,
}

impl<'a> Layer<'a> {
    pub(super) fn geometry(&self, x: Dims) -> Result<Geometry> {
        let geometry = Geometry::new(x, self.weight.dims4()?.into(), *self.config)?;
        check(geometry.y, None, &[self.gamma, self.beta])?;
        Ok(geometry)
    }

    pub(super) fn parameters(&self) -> [&'a Tensor; 3] {
        [self.weight, self.gamma, self.beta]
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
    parameters: Parameters,
    bounds: Bounds,
    stash: Stash<Trace>,
}

/// The parameters of the `i`-th layer: weight, gamma, beta.
pub(super) fn of_layer<'a>(parameters: &[&'a [f32]], i: usize) -> [&'a [f32]; 3] {
    [parameters[3 * i], parameters[3 * i + 1], parameters[3 * i + 2]]
}

impl Single {
    fn forward(&self, x: &[f32], residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; self.geometry.y.len()];
        let trace = self.parameters.with(|parameters| {
            Ok(forward(x, of_layer(parameters, 0), &self.geometry, residual, self.bounds, &mut y))
        })?;
        keep(&self.stash, trace)?;
        Ok(blocked(y, self.geometry.y))
    }

    /// Gradients of input and links, from that of the output in `grad`, cut off at `bounds` yet.
    fn backward(&self, x: &Tensor, mut grad: Scratch, bounds: Bounds) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (geometry, trace) = (&self.geometry, kept(&self.stash)?);
        let mut dx = x.track_op().then(|| vec![0.0; geometry.x.len()]);
        let [dgamma, dbeta] = trace.norm.backward_in_place(&trace.z, geometry.y, &mut grad, bounds);
        let dweight = with_slice(x, |x| {
            self.parameters.with(|p| Ok(backward(x, of_layer(p, 0)[0], geometry, &grad, dx.as_deref_mut(), None)))
        })?;
        let links = self.parameters.resolve(vec![dweight, dgamma, dbeta])?;
        Ok((dx.map(|dx| tensor(dx, x.dims())).transpose()?, Some(links)))
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

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, copy(dy)?, self.bounds)
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
        _: &CpuStorage,
        _: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, Some(slice(r, lr)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grad = copy(dy)?;
        with_slice(y, |y| {
            self.bounds.slope_in_place(&mut grad, y);
            Ok(())
        })?;
        let dresidual = tensor(grad.to_vec(), y.dims())?;
        let (dx, links) = self.backward(x, grad, Bounds::NONE)?;
        Ok((dx, links, Some(dresidual)))
    }
}

/// `batch_norm(conv(x)) + residual`, cut off at `bounds`, of blocked activations, with the batch's statistics; differentiable.
pub(in super::super) fn conv_bn(
    x: &Tensor,
    layer: Layer<'_>,
    residual: Option<&Tensor>,
    bounds: Bounds,
) -> Result<(Tensor, Moments)> {
    let geometry = layer.geometry(Dims::of(x)?)?;
    check(geometry.y, residual, &[])?;
    let stash = Stash::default();
    let (parameters, links) = Parameters::new(&layer.parameters())?;
    let (x, op) = (x.contiguous()?, Single { geometry, parameters, bounds, stash: stash.clone() });
    let y = match residual {
        Some(residual) => x.apply_op3(&links, &residual.contiguous()?, op),
        None => x.apply_op2(&links, op),
    }?;
    Ok((y, moments(kept(&stash)?, &geometry)?))
}
