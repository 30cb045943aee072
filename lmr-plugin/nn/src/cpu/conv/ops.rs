//! Convolutions as Candle operations with hand-written gradients.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::finish::Finish;
use super::geometry::Geometry;
use super::kernels::{convolve, input_gradient, weight_gradient};
use crate::cpu::access::{blocked, slice, tensor, with_slice};
use crate::cpu::activation::{Bounds, activate};
use crate::cpu::layout::Dims;
use crate::cpu::norm;
use crate::layers::{Activation, ConvConfig};

/// `activation(conv(x) + bias + residual)`.
struct Convolution {
    geometry: Geometry,
    bias: Option<Vec<f32>>,
    bounds: Bounds,
}

impl Convolution {
    fn run(&self, x: &[f32], weight: &[f32], residual: Option<&[f32]>) -> (CpuStorage, Shape) {
        let finish = Finish::Activate { bias: self.bias.as_deref(), residual, bounds: self.bounds };
        let mut y = vec![0.0; self.geometry.y.len()];
        convolve(x, weight, &self.geometry, finish, &mut y);
        blocked(y, self.geometry.y)
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv-inference"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.run(slice(x, lx)?, slice(w, lw)?, None))
    }
}

impl CustomOp3 for Convolution {
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

/// Refuses a residual or values per channel that do not fit the output.
pub(crate) fn check(y: Dims, residual: Option<&Tensor>, channels: &[&Tensor]) -> Result<()> {
    if let Some(residual) = residual.filter(|r| *r.dims() != y.shape()) {
        bail!("convolution: a residual of {:?} does not fit an output of {:?}", residual.dims(), y.shape());
    }
    if let Some(other) = channels.iter().find(|t| *t.dims() != [y.c]) {
        bail!("convolution: expected {} values, one per channel, found {:?}", y.c, other.dims());
    }
    Ok(())
}

/// `activation(conv(x) + bias + residual)` of blocked activations, not recorded.
pub(crate) fn conv2d_inference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    bounds: Bounds,
) -> Result<Tensor> {
    let geometry = Geometry::new(Dims::of(x)?, weight.dims4()?.into(), *config)?;
    check(geometry.y, residual, bias.as_slice())?;
    let bias = bias.map(|b| b.to_vec1::<f32>()).transpose()?;
    let op = Convolution { geometry, bias, bounds };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match residual {
        Some(residual) => x.apply_op3_no_bwd(&weight, &residual.contiguous()?, &op),
        None => x.apply_op2_no_bwd(&weight, &op),
    }
}

/// `conv(x) + bias` with gradients; the third argument is the bias.
struct Biased(Geometry);

impl CustomOp3 for Biased {
    fn name(&self) -> &'static str {
        "conv-bias"
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
        let finish = Finish::Activate { bias: Some(slice(b, lb)?), residual: None, bounds: Bounds::NONE };
        let mut y = vec![0.0; self.0.y.len()];
        convolve(slice(x, lx)?, slice(w, lw)?, &self.0, finish, &mut y);
        Ok(blocked(y, self.0.y))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = &self.0;
        with_slice(dy, |dy| {
            let dx = match x.track_op() {
                true => {
                    let mut dx = vec![0.0; geometry.x.len()];
                    with_slice(weight, |weight| {
                        input_gradient(dy, weight, geometry, None, &mut dx);
                        Ok(())
                    })?;
                    Some(tensor(dx, &geometry.x.shape())?)
                }
                false => None,
            };
            let dw = match weight.track_op() {
                true => Some(with_slice(x, |x| tensor(weight_gradient(x, dy, geometry), weight.dims()))?),
                false => None,
            };
            let db = match bias.track_op() {
                true => Some(tensor(norm::channel_sums(dy, geometry.y), bias.dims())?),
                false => None,
            };
            Ok((dx, dw, db))
        })
    }
}

/// `activation(conv(x) + bias + residual)` of blocked activations; differentiable.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let geometry = Geometry::new(Dims::of(x)?, weight.dims4()?.into(), *config)?;
    check(geometry.y, residual, &[bias])?;
    let y = x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Biased(geometry))?;
    let y = match residual {
        Some(residual) => (y + residual)?,
        None => y,
    };
    activate(&y, activation)
}
