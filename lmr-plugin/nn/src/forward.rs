//! A network says once what it computes; a [`Forward`] says how: to train, to infer fast, to calibrate, as integers.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::layers::{
    Activation, BatchNorm2d, BatchNormMode, Conv2d, ConvTranspose2d, Convolution, Layer, LayerNorm, Linear, Node,
    PatchEmbedding, SelfAttention, Trunk, Weighted,
};
use crate::ops;
use crate::padding::Padding;

/// An interpreter of a network: it is handed every operation in turn, with the layer that owns the weights.
///
/// Without any override it infers: running statistics are folded into the convolutions and nothing is recorded.
///
/// Images are `f32[B,C,H,W]`. What [`Forward::input`] makes of them, and what the layers up to
/// [`Forward::global_avg_pool`] or [`Forward::flatten`] pass on, is the interpreter's own affair: [`Train`] and [`Eval`]
/// return another [`Layout`](crate::Layout) on the CPU. They accept images everywhere and answer them with images. The same
/// holds for tokens, from [`Forward::embed`] to [`Forward::class_token`], which are `f32[B,T,D]`.
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

    /// `activation(conv(x) + residual)`, with batch norm behind the convolution if the layer has one.
    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (weight, bias) = self.weights(layer.into())?;
        ops::conv2d_inference(x, &weight, bias.as_ref(), layer.conv().config(), residual, activation)
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
    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
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

    /// The mean over all tokens of every image but the first: `f32[B,D]`.
    fn mean_patch(&mut self, x: &Tensor) -> Result<Tensor> {
        ops::mean_patch(&self.recorded(x))
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

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        recorded_convolution(layer.conv(), self.weights(layer.into())?, x, residual, activation)
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

/// A convolution with the weight and the bias of an interpreter, differentiable in everything that they depend on.
fn recorded_convolution(
    conv: &Conv2d,
    (weight, bias): (Tensor, Option<Tensor>),
    x: &Tensor,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
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

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        match (layer, self.batch_norm) {
            (Convolution::Normed(layer), BatchNormMode::Batch) => ops::conv_bn_batch(x, layer, residual, activation),
            _ => recorded_convolution(layer.conv(), self.weights(layer.into())?, x, residual, activation),
        }
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

impl Trunk {
    /// Runs the nodes one by one.
    pub(crate) fn run<F: Forward + ?Sized>(&self, how: &mut F, x: &Tensor) -> Result<Tensor> {
        // A value is dropped after its last reader, so that inference holds few.
        let mut readers = vec![0usize; self.nodes().len() + 1];
        for value in self.nodes().iter().flat_map(Node::values) {
            *readers.get_mut(value).ok_or_else(|| missing(value))? += 1;
        }
        let mut values = vec![Some(x.clone())];
        for node in self.nodes() {
            let value = |i: usize| values.get(i).and_then(Option::as_ref).ok_or_else(|| missing(i));
            let (x, residual) = (value(node.input)?, node.residual.map(value).transpose()?);
            let y = match &node.layer {
                Layer::ConvBn(layer) => how.convolution(layer.into(), x, residual, node.activation)?,
                Layer::Conv(conv) => how.convolution(conv.into(), x, residual, node.activation)?,
                Layer::BatchNorm(bn) => how.batch_norm(bn, x, node.activation)?,
                Layer::MaxPool(kernel, stride, padding) => how.max_pool(x, *kernel, *stride, *padding)?,
            };
            for value in node.values() {
                readers[value] -= 1;
                if readers[value] == 0 {
                    values[value] = None;
                }
            }
            values.push(Some(y));
        }
        values.pop().flatten().ok_or_else(|| missing(0))
    }
}

fn missing(value: usize) -> Error {
    Error::NodeOrder { value }
}

impl SelfAttention {
    /// Runs the attention on tokens.
    pub fn forward(&self, how: &mut dyn Forward, x: &Tensor) -> Result<Tensor> {
        let qkv = how.linear(&self.qkv, x, Activation::None)?;
        let mixed = how.attend(&qkv, self.heads)?;
        how.linear(&self.out, &mixed, Activation::None)
    }
}
