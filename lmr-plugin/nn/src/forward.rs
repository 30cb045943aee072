//! A network says once what it computes; a [`Forward`] says how: to train, to infer fast, to calibrate, as integers.

use candle_core::{Tensor, Var};

use super::{
    Activation, BatchNorm2d, BatchNormMode, Conv2d, ConvBn, ConvConfig, ConvTranspose2d, LayerNorm, Linear,
    PatchEmbedding, Trunk, ops,
};
use crate::Result;

/// A layer with weights.
#[derive(Clone, Copy, Debug)]
pub enum Weighted<'a> {
    /// A convolution with the batch norm behind it.
    ConvBn(&'a ConvBn),
    /// A convolution.
    Conv(&'a Conv2d),
    /// A fully connected layer.
    Linear(&'a Linear),
}

impl Weighted<'_> {
    /// The full name.
    pub fn name(&self) -> &str {
        match self {
            Self::ConvBn(layer) => layer.conv().name(),
            Self::Conv(layer) => layer.name(),
            Self::Linear(layer) => layer.name(),
        }
    }

    /// The weight as the layer holds it, output channels first.
    pub fn weight(&self) -> &Var {
        match self {
            Self::ConvBn(layer) => layer.conv().weight(),
            Self::Conv(layer) => layer.weight(),
            Self::Linear(layer) => layer.weight(),
        }
    }

    /// How its kernel moves over an image; that of a linear layer is a single tap.
    pub fn config(&self) -> ConvConfig {
        match self {
            Self::ConvBn(layer) => *layer.conv().config(),
            Self::Conv(layer) => *layer.config(),
            Self::Linear(_) => ConvConfig::default(),
        }
    }

    /// Weight and bias with batch norm folded in, detached from everything.
    pub fn folded(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = match self {
            Self::ConvBn(layer) => {
                let (weight, bias) = layer.folded()?;
                return Ok((weight, Some(bias)));
            }
            Self::Conv(layer) => (layer.weight(), layer.bias()),
            Self::Linear(layer) => (layer.weight(), layer.bias()),
        };
        Ok((weight.as_detached_tensor(), bias.map(|bias| bias.as_detached_tensor())))
    }

    /// As [`Weighted::folded`], but differentiable.
    fn folded_with_gradient(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = match self {
            Self::ConvBn(layer) => {
                let (weight, bias) = layer.folded_with_gradient()?;
                return Ok((weight, Some(bias)));
            }
            Self::Conv(layer) => (layer.weight(), layer.bias()),
            Self::Linear(layer) => (layer.weight(), layer.bias()),
        };
        Ok((weight.as_tensor().clone(), bias.map(|bias| bias.as_tensor().clone())))
    }
}

/// An interpreter of a network: it is handed every operation in turn, with the layer that owns the weights.
///
/// Without any override it infers: running statistics are folded into the convolutions and nothing is recorded.
///
/// Images are `f32[B,C,H,W]`. What [`Forward::input`] makes of them, and what the layers up to
/// [`Forward::global_avg_pool`] or [`Forward::flatten`] pass on, is the interpreter's own affair: [`Train`] and [`Eval`]
/// return a layout of five dimensions on the CPU. They accept images everywhere and answer them with images.
///
/// Tokens, from [`Forward::embed`] to [`Forward::class_token`], are `f32[B,T,D]`, or a layout of four dimensions.
pub trait Forward {
    /// What of a tensor an operation sees: by default a copy that backward does not follow.
    fn recorded(&self, x: &Tensor) -> Tensor {
        x.detach()
    }

    /// The weight and the bias that a layer computes with.
    fn weights(&mut self, layer: Weighted<'_>) -> Result<(Tensor, Option<Tensor>)> {
        layer.folded()
    }

    /// The network's input, before the first convolution.
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::to_internal(&self.recorded(x))
    }

    /// `activation(batch_norm(conv(x)) + residual)`.
    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (weight, bias) = self.weights(Weighted::ConvBn(layer))?;
        ops::conv2d_inference(x, &weight, bias.as_ref(), layer.conv().config(), residual, activation)
    }

    /// `activation(conv(x) + residual)`.
    fn conv(
        &mut self,
        layer: &Conv2d,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (weight, bias) = self.weights(Weighted::Conv(layer))?;
        ops::conv2d_inference(x, &weight, bias.as_ref(), layer.config(), residual, activation)
    }

    /// `activation(batch_norm(x))`, where a convolution follows rather than precedes.
    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (scale, shift) = layer.scale_shift(true)?;
        ops::scale_shift(&self.recorded(x), &scale, &shift, activation)
    }

    /// The transposed convolution; images.
    fn conv_transpose(&mut self, layer: &ConvTranspose2d, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.recorded(layer.weight()), self.recorded(layer.bias()));
        ops::conv_transpose2d(&self.recorded(x), &weight, &bias)
    }

    /// Bilinear enlargement to twice the height and width.
    fn upsample(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::upsample2d(&self.recorded(x))
    }

    /// The convolutional part of a network. The default runs its nodes one by one.
    fn trunk(&mut self, trunk: &Trunk, x: &Tensor) -> Result<Tensor> {
        trunk.run(self, x)
    }

    /// Max pooling; padding never wins.
    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        ops::max_pool2d(&self.recorded(x), kernel, stride, padding)
    }

    /// Average pooling; padding counts as zeros.
    fn avg_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
        ops::avg_pool2d(&self.recorded(x), kernel, stride, padding)
    }

    /// Averages windows that cover the image evenly, so that `size` (height, width) is left.
    fn adaptive_avg_pool(&mut self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        ops::adaptive_avg_pool2d(&self.recorded(x), size)
    }

    /// The mean over space: `f32[B,C]`.
    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::global_avg_pool(&self.recorded(x))
    }

    /// Images as rows: `f32[B,C·H·W]`.
    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::to_images(&self.recorded(x))?.flatten_from(1)?)
    }

    /// `activation(x · Wᵀ + b)` for `f32[B,D]` or tokens.
    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (weight, bias) = self.weights(Weighted::Linear(layer))?;
        ops::linear(&self.recorded(x), &weight, bias.as_ref(), activation)
    }

    /// Tokens from the network's input: those of the patches behind the class token, with the positions added.
    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.weights(Weighted::Conv(layer.conv()))?;
        let (class, position) = (self.recorded(layer.class()), self.recorded(layer.position()));
        ops::embed(&self.recorded(images), (&weight, bias.as_ref()), &class, &position)
    }

    /// Layer normalization of every token.
    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.recorded(layer.weight()), self.recorded(layer.bias()));
        ops::layer_norm(&self.recorded(x), &weight, &bias, layer.eps())
    }

    /// `softmax(q · kᵀ / √d) · v` per head; the `3·D` features of a token are q, k and v, each head after head.
    fn attend(&mut self, qkv: &Tensor, heads: usize) -> Result<Tensor> {
        ops::attend(&self.recorded(qkv), heads)
    }

    /// The sum of two activations of the same layout.
    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((self.recorded(x) + self.recorded(y))?)
    }

    /// The first token of every image: `f32[B,D]`.
    fn class_token(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::class_token(&self.recorded(x))
    }
}

/// Differentiable: everything is recorded for backward.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lmr_nn::{Activation, Builder, Forward, Linear, Train, rng};
///
/// let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
/// let head = Linear::new(8, 10, &b.pp("head"))?;
/// let params = b.finish()?;
/// let features = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let loss = Train::default().linear(&head, &features, Activation::None)?.sqr()?.mean_all()?;
/// let gradients = loss.backward()?;
/// assert!(params.trainable().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), lmr_nn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Train {
    /// Which statistics batch norm normalizes with.
    pub batch_norm: BatchNormMode,
}

/// Inference: running statistics folded into the convolutions, nothing recorded for backward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Eval;

impl Forward for Eval {}

/// Inference that is differentiable in the images alone: for attacks that move pixels against a network and must not move
/// the network, neither its weights nor its running statistics.
///
/// ```
/// use candle_core::{DType, Device, Var};
/// use lmr_nn::{Activation, Builder, Forward, Frozen, Linear, rng};
///
/// let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
/// let head = Linear::new(8, 10, &b.pp("head"))?;
/// let params = b.finish()?;
/// let features = Var::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let gradients = Frozen.linear(&head, &features, Activation::None)?.sum_all()?.backward()?;
/// assert!(gradients.get(&features).is_some());
/// assert!(params.trainable().all(|(_, var)| gradients.get(var).is_none()));
/// # Ok::<(), lmr_nn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Frozen;

impl Forward for Frozen {
    fn recorded(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        frozen_conv(x, Weighted::ConvBn(layer), layer.conv(), residual, activation)
    }

    fn conv(
        &mut self,
        layer: &Conv2d,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        frozen_conv(x, Weighted::Conv(layer), layer, residual, activation)
    }

    fn conv_transpose(&mut self, layer: &ConvTranspose2d, x: &Tensor) -> Result<Tensor> {
        ops::conv_transpose2d(x, &layer.weight().as_detached_tensor(), &layer.bias().as_detached_tensor())
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.weights(Weighted::Conv(layer.conv()))?;
        let (class, position) = (layer.class().detach(), layer.position().detach());
        ops::embed(images, (&weight, bias.as_ref()), &class, &position)
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &layer.weight().detach(), &layer.bias().detach(), layer.eps())
    }
}

/// A convolution with detached weights, differentiable in its input.
fn frozen_conv(
    x: &Tensor,
    layer: Weighted<'_>,
    conv: &Conv2d,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (weight, bias) = layer.folded()?;
    let bias = match bias {
        Some(bias) => bias,
        None => Tensor::zeros(conv.out_channels(), weight.dtype(), weight.device())?,
    };
    ops::conv2d(x, &weight, &bias, conv.config(), residual, activation)
}

impl Forward for Train {
    fn recorded(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn weights(&mut self, layer: Weighted<'_>) -> Result<(Tensor, Option<Tensor>)> {
        layer.folded_with_gradient()
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

    fn conv(
        &mut self,
        layer: &Conv2d,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let bias = match layer.bias() {
            Some(bias) => bias.as_tensor().clone(),
            None => Tensor::zeros(layer.out_channels(), layer.weight().dtype(), layer.weight().device())?,
        };
        ops::conv2d(x, layer.weight(), &bias, layer.config(), residual, activation)
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self.batch_norm {
            BatchNormMode::Batch => ops::batch_norm_batch(x, layer, activation),
            BatchNormMode::Running => {
                let (scale, shift) = layer.scale_shift(false)?;
                ops::scale_shift(x, &scale, &shift, activation)
            }
        }
    }

    fn trunk(&mut self, trunk: &Trunk, x: &Tensor) -> Result<Tensor> {
        if self.batch_norm == BatchNormMode::Batch
            && let Some(y) = ops::trunk_batch(x, trunk)?
        {
            return Ok(y);
        }
        trunk.run(self, x)
    }
}
