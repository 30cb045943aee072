//! Convolutions as Candle operations with hand-written gradients. Each is coarse, because Candle adds up the gradient of
//! every operation's output in a fresh tensor.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::{BatchNorm2d, ConvConfig};
use super::access::{blocked, slice, tensor, with_slice};
use super::correlate::weight_gradient;
use super::gather::{Finish, Gather};
use super::geometry::Geometry;
use super::layout::Dims;
use super::norm::{self, Moments};
use super::weights::Packed;

/// Runs a convolution forward.
fn convolve(x: &[f32], weight: &[f32], geometry: &Geometry, finish: Finish<'_>) -> (Vec<f32>, Vec<Vec<f32>>) {
    let weights = &Packed::forward(weight, geometry);
    let axes = geometry.forward_axes();
    Gather { input: x, from: geometry.x, to: geometry.y, axes, weights, kw: geometry.kw, finish }.run()
}

/// The gradient with respect to a convolution's input.
fn input_gradient(dz: &[f32], weight: &[f32], geometry: &Geometry) -> Vec<f32> {
    let weights = &Packed::backward(weight, geometry);
    let axes = geometry.backward_axes();
    let finish = Finish::Store;
    Gather { input: dz, from: geometry.y, to: geometry.x, axes, weights, kw: geometry.kw, finish }.run().0
}

/// `activation(conv(x) + bias + residual)`, not recorded.
struct Inference {
    geometry: Geometry,
    bias: Option<Vec<f32>>,
    relu: bool,
}

impl Inference {
    fn run(&self, x: &[f32], weight: &[f32], residual: Option<&[f32]>) -> (CpuStorage, Shape) {
        let finish = Finish::Activate { bias: self.bias.as_deref(), residual, relu: self.relu };
        blocked(convolve(x, weight, &self.geometry, finish).0, self.geometry.y)
    }
}

impl CustomOp2 for Inference {
    fn name(&self) -> &'static str {
        "conv-inference"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.run(slice(x, lx)?, slice(w, lw)?, None))
    }
}

impl CustomOp3 for Inference {
    fn name(&self) -> &'static str {
        "conv-residual-inference"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.run(slice(x, lx)?, slice(w, lw)?, Some(slice(r, lr)?)))
    }
}

/// `activation(conv(x) + bias + residual)` of blocked activations, not recorded.
pub(in super::super) fn conv2d_inference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let geometry = Geometry::new(Dims::of(x)?, weight.dims4()?.into(), *config)?;
    check(geometry.y, residual, bias.as_slice())?;
    let bias = bias.map(|b| b.to_vec1::<f32>()).transpose()?;
    let op = Inference { geometry, bias, relu };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match residual {
        Some(residual) => x.apply_op3_no_bwd(&weight, &residual.contiguous()?, &op),
        None => x.apply_op2_no_bwd(&weight, &op),
    }
}

/// What a convolution adds to its result.
enum Affine {
    /// A bias per channel: parameters are `[weight, bias]`.
    Bias,
    /// Batch norm by the batch's statistics: parameters are `[weight, gamma, beta]`.
    BatchNorm(Arc<OnceLock<Stash>>),
}

/// What batch norm keeps for the backward pass.
struct Stash {
    /// The convolution's output.
    z: Vec<f32>,
    /// Mean and biased variance per channel.
    moments: Moments,
}

/// `activation(affine(conv(x)) + residual)`; all parameters come flattened in one tensor, as Candle's operations have at
/// most three arguments.
struct Training {
    geometry: Geometry,
    affine: Affine,
    relu: bool,
}

impl Training {
    fn forward(&self, x: &[f32], params: &[f32], residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let Geometry { y, .. } = self.geometry;
        let (weight, rest) = params.split_at(self.geometry.weight_len());
        let out = match &self.affine {
            Affine::Bias => {
                let finish = Finish::Activate { bias: Some(rest), residual, relu: self.relu };
                convolve(x, weight, &self.geometry, finish).0
            }
            Affine::BatchNorm(stash) => {
                let (z, sums) = convolve(x, weight, &self.geometry, Finish::Statistics);
                let moments = Moments::from_sums(&sums, y);
                let (gamma, beta) = rest.split_at(y.c);
                let scale: Vec<f32> = moments.inv_std().zip(gamma).map(|(s, g)| s * g).collect();
                let shift: Vec<f32> = moments.mean.iter().zip(&scale).zip(beta).map(|((m, s), b)| b - m * s).collect();
                let out = norm::affine(&z, y, &scale, &shift, residual, self.relu);
                if stash.set(Stash { z, moments }).is_err() {
                    bail!("a batch norm operation ran twice");
                }
                out
            }
        };
        Ok(blocked(out, y))
    }

    /// Gradients of the input (if wanted), of the parameters and of the residual (if there is one).
    fn backward(
        &self,
        x: &Tensor,
        params: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor, Option<Tensor>)> {
        let dims = self.geometry.y;
        let masked = match self.relu && (residual.is_some() || matches!(self.affine, Affine::Bias)) {
            true => Some(tensor(with_slice(dy, |dy| with_slice(y, |y| Ok(norm::mask(dy, y))))?, &dims.shape())?),
            false => None,
        };
        let relu = self.relu && masked.is_none();
        let g = masked.as_ref().unwrap_or(dy);
        with_slice(params, |params| {
            let (weight, rest) = params.split_at(self.geometry.weight_len());
            let (dz, extra) = match &self.affine {
                Affine::Bias => (None, with_slice(g, |g| Ok(norm::channel_sums(g, dims)))?),
                Affine::BatchNorm(stash) => {
                    let Some(stash) = stash.get() else { bail!("batch norm was not run forward") };
                    let (dz, extra) = with_slice(g, |g| with_slice(y, |y| Ok(stash.backward(g, y, rest, dims, relu))))?;
                    (Some(dz), extra)
                }
            };
            let convolution = |dz: &[f32]| {
                let dx = match x.track_op() {
                    true => Some(tensor(input_gradient(dz, weight, &self.geometry), &self.geometry.x.shape())?),
                    false => None,
                };
                let mut dparams = with_slice(x, |x| Ok(weight_gradient(x, dz, &self.geometry)))?;
                dparams.extend(extra);
                let len = dparams.len();
                Ok((dx, tensor(dparams, &[len])?))
            };
            let (dx, dparams) = match &dz {
                Some(dz) => convolution(dz),
                None => with_slice(g, convolution),
            }?;
            Ok((dx, dparams, residual.filter(|r| r.track_op()).map(|_| g.clone())))
        })
    }
}

impl Moments {
    fn inv_std(&self) -> impl Iterator<Item = f32> {
        self.var.iter().map(|&v| (1.0 / (f64::from(v) + BatchNorm2d::EPS).sqrt()) as f32)
    }
}

impl Stash {
    /// The gradient with respect to the convolution's output, and those of gamma and beta in one vector.
    fn backward(&self, dy: &[f32], y: &[f32], params: &[f32], dims: Dims, relu: bool) -> (Vec<f32>, Vec<f32>) {
        let gamma = &params[..dims.c];
        let (sum, product) = norm::gradient_sums(dy, y, &self.z, &self.moments.mean, dims, relu);
        let count = dims.count() as f64;
        let (mut scale, mut slope, mut shift) = (Vec::new(), Vec::new(), Vec::new());
        let mut dgamma = Vec::with_capacity(2 * dims.c);
        for (channel, inv_std) in self.moments.inv_std().enumerate() {
            let (inv_std, mean) = (f64::from(inv_std), f64::from(self.moments.mean[channel]));
            let a = f64::from(gamma[channel]) * inv_std;
            let b = -a * inv_std * inv_std * product[channel] / count;
            scale.push(a as f32);
            slope.push(b as f32);
            shift.push((-a * sum[channel] / count - b * mean) as f32);
            dgamma.push((product[channel] * inv_std) as f32);
        }
        let dz = norm::gradient(dy, y, &self.z, dims, [&scale, &slope, &shift], relu);
        dgamma.extend(sum.iter().map(|&s| s as f32));
        (dz, dgamma)
    }
}

impl CustomOp2 for Training {
    fn name(&self) -> &'static str {
        "conv-training"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, p: &CpuStorage, lp: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(p, lp)?, None)
    }

    fn bwd(&self, x: &Tensor, params: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dparams, _) = self.backward(x, params, None, y, dy)?;
        Ok((dx, Some(dparams)))
    }
}

impl CustomOp3 for Training {
    fn name(&self) -> &'static str {
        "conv-residual-training"
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
        residual: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dparams, dresidual) = self.backward(x, params, Some(residual), y, dy)?;
        Ok((dx, Some(dparams), dresidual))
    }
}

/// Refuses a residual or a bias that does not fit the output.
fn check(y: Dims, residual: Option<&Tensor>, channels: &[&Tensor]) -> Result<()> {
    if let Some(residual) = residual.filter(|r| *r.dims() != y.shape()) {
        bail!("convolution: a residual of {:?} does not fit an output of {:?}", residual.dims(), y.shape());
    }
    if let Some(other) = channels.iter().find(|t| *t.dims() != [y.c]) {
        bail!("convolution: expected {} values, one per channel, found {:?}", y.c, other.dims());
    }
    Ok(())
}

/// Parameters flattened into one tensor, which autograd takes apart again.
fn flatten(params: &[&Tensor]) -> Result<Tensor> {
    let flat = params.iter().map(|p| p.flatten_all()).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

fn record(x: &Tensor, params: &[&Tensor], residual: Option<&Tensor>, op: Training) -> Result<Tensor> {
    let (x, params) = (x.contiguous()?, flatten(params)?);
    match residual {
        Some(residual) => x.apply_op3(&params, &residual.contiguous()?, op),
        None => x.apply_op2(&params, op),
    }
}

/// `activation(conv(x) + bias + residual)` of blocked activations; differentiable.
pub(in super::super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let geometry = Geometry::new(Dims::of(x)?, weight.dims4()?.into(), *config)?;
    check(geometry.y, residual, &[bias])?;
    record(x, &[weight, bias], residual, Training { geometry, affine: Affine::Bias, relu })
}

/// `activation(batch_norm(conv(x)) + residual)` of blocked activations, differentiable, with mean and biased variance of
/// the batch.
pub(in super::super) fn conv_bn(
    x: &Tensor,
    [weight, gamma, beta]: [&Tensor; 3],
    config: &ConvConfig,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, (Tensor, Tensor))> {
    let geometry = Geometry::new(Dims::of(x)?, weight.dims4()?.into(), *config)?;
    check(geometry.y, residual, &[gamma, beta])?;
    let stash = Arc::new(OnceLock::new());
    let op = Training { geometry, affine: Affine::BatchNorm(stash.clone()), relu };
    let y = record(x, &[weight, gamma, beta], residual, op)?;
    let Some(Stash { moments, .. }) = stash.get() else { bail!("batch norm left no statistics") };
    let c = [geometry.y.c];
    Ok((y, (tensor(moments.mean.clone(), &c)?, tensor(moments.var.clone(), &c)?)))
}
