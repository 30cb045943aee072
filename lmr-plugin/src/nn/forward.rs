//! A network says once what it computes; a [`Forward`] says how: to train, to infer fast, to calibrate, as integers.

use candle_core::Tensor;

use super::{Activation, BasicBlock, BatchNormMode, ConvBn, Linear, ops};
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

    /// Basic blocks, one after the other. The default runs their layers through [`Forward::conv_bn`].
    fn basic_blocks(&mut self, blocks: &[BasicBlock], x: &Tensor) -> Result<Tensor> {
        run_blocks(self, blocks, x)
    }

    /// Max pooling; padding never wins.
    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor>;

    /// The mean over space: `f32[B,C]`.
    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor>;

    /// `x · Wᵀ + b` for `f32[B,D]`: `f32[B,K]`.
    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor>;
}

/// Basic blocks as calls of [`Forward::conv_bn`].
fn run_blocks<F: Forward + ?Sized>(how: &mut F, blocks: &[BasicBlock], x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for block in blocks {
        let hidden = how.conv_bn(&block.first, &x, None, Activation::Relu)?;
        let residual = match &block.shortcut {
            Some(shortcut) => how.conv_bn(shortcut, &x, None, Activation::None)?,
            None => x,
        };
        x = how.conv_bn(&block.second, &hidden, Some(&residual), Activation::Relu)?;
    }
    Ok(x)
}

/// Differentiable: everything is recorded for backward.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lmr_plugin::{models::{Arch, ModelSpec, Stem}, nn::Train, rng};
///
/// let spec = ModelSpec { arch: Arch::Resnet18, stem: Stem::Cifar, width: 8, classes: 10, channels: 1 };
/// let model = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
/// let images = Tensor::zeros((4, 1, 28, 28), DType::F32, &Device::Cpu)?;
/// let loss = model.forward(&mut Train::default(), &images)?.sqr()?.mean_all()?;
/// let gradients = loss.backward()?;
/// assert!(model.params().trainable().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), lmr_plugin::Error>(())
/// ```
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
                let (weight, bias) = layer.folded_with_gradient()?;
                ops::conv2d(x, &weight, &bias, layer.conv().config(), residual, activation)
            }
        }
    }

    fn basic_blocks(&mut self, blocks: &[BasicBlock], x: &Tensor) -> Result<Tensor> {
        if self.batch_norm == BatchNormMode::Batch
            && let Some(y) = ops::basic_blocks_batch(x, blocks)?
        {
            return Ok(y);
        }
        run_blocks(self, blocks, x)
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
