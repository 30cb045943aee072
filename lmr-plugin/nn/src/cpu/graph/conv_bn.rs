//! A layer with batch norm as a Candle operation with a hand-written gradient.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::cpu::access::{blocked, slice, tensor, with_slice};
use crate::cpu::activation::Bounds;
use crate::cpu::conv::finish::Finish;
use crate::cpu::conv::geometry::Geometry;
use crate::cpu::conv::kernels::{convolve, input_gradient, weight_gradient};
use crate::cpu::conv::ops::check;
use crate::layers::ConvConfig;
use crate::layers::Moments;

use super::links::Parameters;
use crate::cpu::layout::Dims;
use crate::cpu::norm::Norm;
use crate::cpu::scratch::Scratch;
use crate::cpu::stash::{Stash, keep, kept};

/// The tensors of a convolution with batch norm.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a> {
    pub weight: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub config: &'a ConvConfig,
}

impl<'a> Tensors<'a> {
    fn geometry(&self, x: Dims) -> Result<Geometry> {
        let geometry = Geometry::new(x, self.weight.dims4()?.into(), *self.config)?;
        check(geometry.y, None, &[self.gamma, self.beta])?;
        Ok(geometry)
    }

    fn parameters(&self) -> [&'a Tensor; 3] {
        [self.weight, self.gamma, self.beta]
    }
}

/// The statistics that a layer saw.
fn moments(trace: &Trace, geometry: &Geometry) -> Result<Moments> {
    let of = |values: &[f32]| tensor(values.to_vec(), &[geometry.y.c]);
    Ok(Moments { mean: of(&trace.norm.mean)?, var: of(&trace.norm.var)?, count: geometry.y.count() })
}

/// What a layer with batch norm keeps for its backward pass.
pub(crate) struct Trace {
    /// The convolution's output.
    pub z: Scratch,
    pub norm: Norm,
}

/// Fills `y` with `activation(batch_norm(conv(x)) + residual)` by the batch's statistics; parameters are weight, gamma and beta.
pub(crate) fn forward(
    x: &[f32],
    [weight, gamma, beta]: [&[f32]; 3],
    geometry: &Geometry,
    residual: Option<&[f32]>,
    bounds: Bounds,
    y: &mut [f32],
) -> Trace {
    let mut z = Scratch::take(geometry.y.len());
    let sums = convolve(x, weight, geometry, Finish::Statistics, &mut z);
    let norm = Norm::new(&sums, geometry.y, gamma, beta);
    norm.apply(&z, geometry.y, residual, bounds, y);
    Trace { z, norm }
}

/// From the gradient `dz` with respect to the convolution's output: fills `dx`, if wanted, and returns the gradient of the
/// weight.
pub(crate) fn backward(
    x: &[f32],
    weight: &[f32],
    geometry: &Geometry,
    dz: &[f32],
    dx: Option<&mut [f32]>,
    more: Option<&[f32]>,
) -> Vec<f32> {
    if let Some(dx) = dx {
        input_gradient(dz, weight, geometry, more, dx);
    }
    weight_gradient(x, dz, geometry)
}

/// One layer, with or without a residual.
struct Single {
    geometry: Geometry,
    parameters: Parameters,
    bounds: Bounds,
    stash: Stash<Trace>,
}

/// The parameters of the `i`-th layer: weight, gamma, beta.
fn of_layer<'a>(parameters: &[&'a [f32]], i: usize) -> [&'a [f32]; 3] {
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
pub(crate) fn conv_bn(
    x: &Tensor,
    layer: Tensors<'_>,
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
