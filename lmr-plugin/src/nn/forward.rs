//! A network says once what it computes; a [`Forward`] says how: to train, to infer fast, to calibrate, as integers.

use candle_core::Tensor;

use super::{Activation, BatchNormMode, ConvBn, Linear, ops};
use crate::Result;

/// An interpreter of a network: it is handed every operation in turn, with the layer that owns the weights.
///
/// Images are `f32[B,C,H,W]`. What [`Forward::input`] makes of them, and what the layers up to
/// [`Forward::global_avg_pool`] pass on, is the interpreter's own affair: [`Train`] and [`Eval`] return a layout of five
/// dimensions on the CPU. They accept images everywhere and answer them with images.
pub trait Forward {
    /// The network's input, before the first layer.
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    /// `activation(batch_norm(conv(x)) + residual)`.
    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor>;

    /// `relu(second(relu(first(x))) + shortcut(x))`; without a shortcut, `x` itself is added.
    fn basic_block(
        &mut self,
        first: &ConvBn,
        second: &ConvBn,
        shortcut: Option<&ConvBn>,
        x: &Tensor,
    ) -> Result<Tensor> {
        compose_block(self, first, second, shortcut, x)
    }

    /// Max pooling; padding never wins.
    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor>;

    /// The mean over space: `f32[B,C]`.
    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor>;

    /// `x · Wᵀ + b` for `f32[B,D]`: `f32[B,K]`.
    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor>;
}

/// A block as three calls of [`Forward::conv_bn`].
fn compose_block<F: Forward + ?Sized>(
    how: &mut F,
    first: &ConvBn,
    second: &ConvBn,
    shortcut: Option<&ConvBn>,
    x: &Tensor,
) -> Result<Tensor> {
    let hidden = how.conv_bn(first, x, None, Activation::Relu)?;
    let residual = match shortcut {
        Some(shortcut) => how.conv_bn(shortcut, x, None, Activation::None)?,
        None => x.clone(),
    };
    how.conv_bn(second, &hidden, Some(&residual), Activation::Relu)
}

/// Differentiable: everything is recorded for backward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Train {
    /// Which statistics batch norm normalizes with.
    pub batch_norm: BatchNormMode,
}

/// Inference: running statistics folded into the convolutions, nothing recorded for backward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Eval;

impl Forward for Train {
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::to_internal(x)
    }

    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        match self.batch_norm {
            BatchNormMode::Batch => ops::conv_bn_batch(x, layer, residual, activation),
            BatchNormMode::Running => {
                let (weight, bias) = layer.fold(false)?;
                ops::conv2d(x, &weight, &bias, layer.conv().config(), residual, activation)
            }
        }
    }

    fn basic_block(
        &mut self,
        first: &ConvBn,
        second: &ConvBn,
        shortcut: Option<&ConvBn>,
        x: &Tensor,
    ) -> Result<Tensor> {
        if self.batch_norm == BatchNormMode::Batch
            && let Some(y) = ops::basic_block_batch(x, first, second, shortcut)?
        {
            return Ok(y);
        }
        compose_block(self, first, second, shortcut, x)
    }

    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        ops::max_pool2d(x, kernel, stride, padding)
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::global_avg_pool(x)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        layer.apply(x, false)
    }
}

impl Forward for Eval {
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::to_internal(&x.detach())
    }

    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (weight, bias) = layer.folded()?;
        ops::conv2d_inference(x, &weight, Some(&bias), layer.conv().config(), residual, activation)
    }

    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        ops::max_pool2d(&x.detach(), kernel, stride, padding)
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::global_avg_pool(&x.detach())
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        layer.apply(x, true)
    }
}
