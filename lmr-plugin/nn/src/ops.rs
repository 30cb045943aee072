//! The operations behind [`super::Forward`], each dispatched to the portable path or the CPU kernels.
//!
//! Images are `f32[B,C,H,W]`, tokens `f32[B,T,D]`. Between two layers the CPU kernels keep both in layouts of their own,
//! which have five dimensions for images and four for tokens; every operation takes either and returns what it was given.

use candle_core::Tensor;

use super::batch_norm::Moments;
use super::pool::Windows;
use super::{Activation, BatchNorm2d, ConvBn, ConvConfig, Layer, Path, Trunk, conv_transpose, cpu, portable};
use crate::{Error, GeometryError, Result};

/// Whether `x` is in the layout of the CPU kernels.
fn is_blocked(x: &Tensor) -> bool {
    x.rank() == 5
}

/// Images in the layout that the following layers like best.
pub fn to_internal(x: &Tensor) -> Result<Tensor> {
    match Path::of(x) {
        Path::Cpu if !is_blocked(x) => Ok(cpu::enter(x)?),
        _ => Ok(x.clone()),
    }
}

/// `f32[B,C,H,W]`, whatever the layout of `x`.
pub fn to_images(x: &Tensor) -> Result<Tensor> {
    if is_blocked(x) { Ok(cpu::leave(x)?) } else { Ok(x.clone()) }
}

/// `f32[B,T,D]`, whatever the layout of the tokens `x`.
pub fn to_tokens(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 4 { Ok(cpu::leave_tokens(x)?) } else { Ok(x.clone()) }
}

/// How many images, tokens' images or rows of features `x` holds.
pub(super) fn rows(x: &Tensor) -> usize {
    if is_blocked(x) { x.dims()[0] * x.dims()[4] } else { x.dims()[0] }
}

/// As many equal shares of the images or rows, in order; differentiable.
pub(super) fn split(x: &Tensor, shares: usize) -> Result<Vec<Tensor>> {
    // Blocks are shared out whole.
    let x = if is_blocked(x) && !x.dims()[0].is_multiple_of(shares) { to_images(x)? } else { x.clone() };
    Ok(x.chunk(shares, 0)?.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?)
}

/// The images or rows of all parts, which have one layout, in order; differentiable.
pub(super) fn join(parts: &[Tensor]) -> Result<Tensor> {
    Ok(Tensor::cat(parts, 0)?)
}

/// Runs `f` on the CPU kernels' layout and returns the result in the layout of `x`.
fn in_blocks<T>(
    x: &Tensor,
    residual: Option<&Tensor>,
    f: impl FnOnce(&Tensor, Option<&Tensor>) -> candle_core::Result<(Tensor, T)>,
) -> Result<(Tensor, T)> {
    let residual = residual.map(to_internal).transpose()?;
    let (y, more) = f(&to_internal(x)?, residual.as_ref())?;
    Ok((if is_blocked(x) { y } else { to_images(&y)? }, more))
}

/// The dimensions `[B,O,H,W]` of a convolution's output, or why there is none.
fn output_dims(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<[usize; 4]> {
    match *x.dims() {
        [g, h, w, c, n] => config.output_dims([g * n, c, h, w], weight),
        _ => config.output_dims(x.dims4()?.into(), weight),
    }
}

/// `activation(conv(x) + bias + residual)`, not recorded for backward, with weights of the caller's choice.
pub fn conv2d_inference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (x, weight, bias) = (x.detach(), weight.detach(), bias.map(Tensor::detach));
    let residual = residual.map(Tensor::detach);
    output_dims(&x, &weight, config)?;
    match Path::of(&x) {
        Path::Cpu => {
            let (bounds, rest) = cpu::fused(activation);
            let run = |x: &Tensor, residual: Option<&Tensor>| {
                Ok((cpu::conv2d_inference(x, &weight, bias.as_ref(), config, residual, bounds)?, ()))
            };
            rest.apply(&in_blocks(&x, residual.as_ref(), run)?.0)
        }
        Path::Portable => {
            let y = portable::conv2d(&x, &weight, config)?;
            let y = match bias {
                Some(bias) => portable::add_channels(&y, &bias)?,
                None => y,
            };
            portable::finish(y, residual.as_ref(), activation)
        }
    }
}

/// `activation(conv(x) + bias + residual)`, differentiable in every tensor.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    config: &ConvConfig,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    output_dims(x, weight, config)?;
    match Path::of(x) {
        Path::Cpu => {
            let run = |x: &Tensor, residual: Option<&Tensor>| {
                Ok((cpu::conv2d(x, weight, bias, config, residual, activation)?, ()))
            };
            Ok(in_blocks(x, residual, run)?.0)
        }
        Path::Portable => {
            let y = portable::add_channels(&portable::conv2d(x, weight, config)?, bias)?;
            portable::finish(y, residual, activation)
        }
    }
}

/// `activation(batch_norm(conv(x)) + residual)` with the batch's own statistics, which move the running ones.
pub(super) fn conv_bn_batch(
    x: &Tensor,
    layer: &ConvBn,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (conv, bn) = (layer.conv(), layer.bn());
    let count = check_batch(x, layer)?;
    let beta = shifted_beta(layer)?;
    let (y, moments) = match Path::of(x) {
        Path::Cpu => {
            let (bounds, rest) = cpu::fused(activation);
            let run =
                |x: &Tensor, residual: Option<&Tensor>| cpu::conv_bn(x, cpu_layer(layer, &beta), residual, bounds);
            let (y, moments) = in_blocks(x, residual, run)?;
            (rest.apply(&y)?, moments)
        }
        Path::Portable => {
            let y = portable::conv2d(x, conv.weight(), conv.config())?;
            let (y, moments) = normalized(&y, bn, &beta, count)?;
            (portable::finish(y, residual, activation)?, moments)
        }
    };
    track(layer, moments)?;
    Ok(y)
}

/// Batch norm with the statistics of `x` on the portable path.
fn normalized(x: &Tensor, bn: &BatchNorm2d, beta: &Tensor, count: usize) -> Result<(Tensor, Moments)> {
    let (mean, var) = portable::batch_stats(x)?;
    let y = portable::normalize(x, &mean, &var, bn.weight(), beta)?;
    Ok((y, Moments { mean: mean.flatten_all()?, var: var.flatten_all()?, count }))
}

/// `activation(batch_norm(x))` with the batch's own statistics, which move the running ones.
pub(super) fn batch_norm_batch(x: &Tensor, bn: &BatchNorm2d, activation: Activation) -> Result<Tensor> {
    let channels = bn.weight().elem_count();
    let [b, c, h, w] = image_dims(x)?;
    let count = b * h * w;
    bn.check_count(count)?;
    if c != channels {
        return Err(GeometryError::Channels { layer: bn.name().into(), expected: channels, found: c }.into());
    }
    let (gamma, beta) = (bn.weight().as_tensor(), bn.bias().as_tensor());
    let (y, moments) = match Path::of(x) {
        Path::Cpu => in_blocks(x, None, |x, _| {
            let step = cpu::Step { kind: cpu::Kind::BatchNorm(gamma, beta), input: 0, residual: None, activation };
            let (y, seen) = cpu::trunk(x, &[step])?;
            Ok((y, seen.into_iter().next()))
        })?,
        Path::Portable => {
            let (y, moments) = normalized(x, bn, beta, count)?;
            (activation.apply(&y)?, Some(moments))
        }
    };
    if let Some(moments) = moments {
        bn.track(&moments)?;
    }
    Ok(y)
}

/// The convolutional part of a network with the batch's own statistics, in one operation; `None` where the path has none.
pub(super) fn trunk_batch(x: &Tensor, trunk: &Trunk) -> Result<Option<Tensor>> {
    let gelu = trunk.nodes().iter().any(|node| node.activation == Activation::Gelu);
    if Path::of(x) != Path::Cpu || !is_blocked(x) || trunk.nodes().is_empty() || gelu {
        return Ok(None);
    }
    let (mut dims, mut betas) = (vec![image_dims(x)?], Vec::new());
    for node in trunk.nodes() {
        let from = *dims.get(node.input).ok_or(Error::NodeOrder { value: node.input })?;
        let [b, c, h, w] = from;
        dims.push(match &node.layer {
            Layer::ConvBn(layer) => {
                let to = layer.conv().config().output_dims(from, layer.conv().weight())?;
                layer.bn().check_count(to[0] * to[2] * to[3])?;
                to
            }
            Layer::Conv(conv) => conv.config().output_dims(from, conv.weight())?,
            Layer::BatchNorm(bn) => {
                bn.check_count(b * h * w)?;
                from
            }
            Layer::MaxPool(kernel, stride, padding) => {
                let (h, w) = portable::pooled_size((h, w), *kernel, *stride, *padding)?;
                [b, c, h, w]
            }
        });
        betas.push(match &node.layer {
            Layer::ConvBn(layer) => Some(shifted_beta(layer)?),
            _ => None,
        });
    }
    let mut steps = Vec::new();
    for (i, node) in trunk.nodes().iter().enumerate() {
        let kind = match &node.layer {
            Layer::ConvBn(layer) => {
                let beta = betas[i].as_ref().unwrap_or(layer.bn().bias());
                cpu::Kind::ConvBn(layer.conv().weight(), layer.bn().weight(), beta, layer.conv().config())
            }
            Layer::Conv(conv) => {
                cpu::Kind::Conv(conv.weight(), conv.bias().map(|bias| bias.as_tensor()), conv.config())
            }
            Layer::BatchNorm(bn) => cpu::Kind::BatchNorm(bn.weight(), bn.bias()),
            Layer::MaxPool(kernel, stride, padding) => {
                let [_, _, h, w] = dims[i + 1];
                cpu::Kind::MaxPool((h, w), *kernel, *stride, *padding)
            }
        };
        let (input, residual, activation) = (node.input, node.residual, node.activation);
        steps.push(cpu::Step { kind, input, residual, activation });
    }
    let (y, seen) = cpu::trunk(x, &steps)?;
    let mut seen = seen.into_iter();
    for node in trunk.nodes() {
        match &node.layer {
            Layer::ConvBn(layer) => seen.next().map(|moments| track(layer, moments)).transpose()?,
            Layer::BatchNorm(bn) => seen.next().map(|moments| bn.track(&moments)).transpose()?,
            Layer::Conv(_) | Layer::MaxPool(..) => None,
        };
    }
    Ok(Some(y))
}

/// Values per channel that a layer normalizes, if its shapes fit and there are enough.
fn check_batch(x: &Tensor, layer: &ConvBn) -> Result<usize> {
    let [b, _, h, w] = output_dims(x, layer.conv().weight(), layer.conv().config())?;
    layer.bn().check_count(b * h * w)?;
    Ok(b * h * w)
}

/// β, recorded with the convolution's bias, if any: batch norm cancels that bias, which therefore only needs a gradient,
/// of zero.
fn shifted_beta(layer: &ConvBn) -> Result<Tensor> {
    let beta = layer.bn().bias().as_tensor();
    match layer.conv().bias() {
        Some(bias) => Ok((beta + (bias.as_tensor() - bias.as_tensor())?)?),
        None => Ok(beta.clone()),
    }
}

fn cpu_layer<'a>(layer: &'a ConvBn, beta: &'a Tensor) -> cpu::Layer<'a> {
    let conv = layer.conv();
    cpu::Layer { weight: conv.weight(), gamma: layer.bn().weight(), beta, config: conv.config() }
}

/// Moves the running statistics towards those of a convolution's output without its bias.
fn track(layer: &ConvBn, mut moments: Moments) -> Result<()> {
    if let Some(bias) = layer.conv().bias() {
        moments.mean = (moments.mean + bias.as_detached_tensor())?;
    }
    layer.bn().track(&moments)
}

/// `[B,C,H,W]` of images in any layout.
fn image_dims(x: &Tensor) -> Result<[usize; 4]> {
    match *x.dims() {
        [g, h, w, c, n] => Ok([g * n, c, h, w]),
        [b, c, h, w] => Ok([b, c, h, w]),
        ref other => Err(GeometryError::NotImages { found: other.to_vec() }.into()),
    }
}

/// `activation(x · scale + shift)` with a scale and a shift per channel; differentiable in every tensor.
pub(super) fn scale_shift(x: &Tensor, scale: &Tensor, shift: &Tensor, activation: Activation) -> Result<Tensor> {
    match Path::of(x) {
        // A depthwise convolution of one tap.
        Path::Cpu => {
            let groups = scale.elem_count();
            let weight = scale.reshape((groups, 1, 1, 1))?;
            conv2d(x, &weight, shift, &ConvConfig { groups, ..ConvConfig::default() }, None, activation)
        }
        Path::Portable => {
            let scaled = x.broadcast_mul(&scale.reshape((1, (), 1, 1))?)?;
            activation.apply(&portable::add_channels(&scaled, shift)?)
        }
    }
}

/// Max pooling; padding never wins, and the first maximum of a window gets the gradient.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    let size = portable::pooled_size((h, w), kernel, stride, padding)?;
    match Path::of(x) {
        Path::Cpu => {
            let run = |x: &Tensor, _: Option<&Tensor>| Ok((cpu::max_pool2d(x, size, kernel, stride, padding)?, ()));
            Ok(in_blocks(x, None, run)?.0)
        }
        Path::Portable => portable::max_pool2d(x, size, kernel, stride, padding),
    }
}

/// Average pooling; padding counts as zeros.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    let (oh, ow) = portable::pooled_size((h, w), kernel, stride, padding)?;
    let windows = |size, outputs| Windows::sliding(size, outputs, kernel, stride, padding);
    average(x, (h, w), windows(h, oh), windows(w, ow))
}

/// Averages windows that cover the image evenly, so that `size` (height, width) is left.
pub fn adaptive_avg_pool2d(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    if size == (h, w) {
        return Ok(x.clone());
    }
    average(x, (h, w), Windows::adaptive(h, size.0)?, Windows::adaptive(w, size.1)?)
}

/// Twice the height and width, between pixels linearly; as PyTorch does it without aligned corners. Differentiable.
pub fn upsample2d(x: &Tensor) -> Result<Tensor> {
    let [_, _, h, w] = image_dims(x)?;
    average(x, (h, w), Windows::doubled(h), Windows::doubled(w))
}

/// The transposed convolution of a [`super::ConvTranspose2d`] with `weight` `f32[C,O,4,4]` and `bias` `f32[O]`, differentiable
/// in every tensor. Answers with images, whatever the layout of `x`.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (weight, bias) = conv_transpose::as_convolution(weight, bias)?;
    let config = ConvConfig { padding: 1, ..ConvConfig::default() };
    conv_transpose::interleave(&to_images(&conv2d(x, &weight, &bias, &config, None, Activation::None)?)?)
}

fn average(x: &Tensor, (h, w): (usize, usize), rows: Windows, columns: Windows) -> Result<Tensor> {
    match Path::of(x) {
        Path::Cpu => Ok(in_blocks(x, None, |x, _| Ok((cpu::average(x, rows, columns)?, ())))?.0),
        Path::Portable => {
            let kind = (x.dtype(), x.device());
            portable::average(x, (&rows.matrix(h, kind)?, &columns.matrix(w, kind)?))
        }
    }
}

/// The mean over height and width: `f32[B,C]`.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    match is_blocked(x) {
        true => Ok(cpu::global_avg_pool(x)?),
        false => Ok(x.flatten_from(2)?.mean(2)?),
    }
}

/// Runs `f` on blocked tokens and returns the result in the layout of `x`.
fn in_token_blocks(x: &Tensor, f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor> {
    match x.rank() {
        4 => Ok(f(x)?),
        _ => Ok(cpu::leave_tokens(&f(&cpu::enter_tokens(x)?)?)?),
    }
}

/// Whether the CPU kernels take `x` as tokens; a plain matrix they leave to Candle.
fn on_token_kernels(x: &Tensor) -> bool {
    Path::of(x) == Path::Cpu && x.rank() > 2
}

/// `activation(x · Wᵀ + b)` over the last dimension of `f32[B,D]` or tokens; differentiable in every tensor.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if on_token_kernels(x) {
        let zeros = match bias {
            Some(_) => None,
            None => Some(Tensor::zeros(weight.dim(0)?, x.dtype(), x.device())?),
        };
        if let Some(bias) = bias.or(zeros.as_ref()) {
            return in_token_blocks(x, |x| cpu::linear(x, weight, bias, activation));
        }
    }
    let y = portable::linear(x, weight)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    activation.apply(&y)
}

/// Layer norm over the last dimension of `f32[B,D]` or tokens; differentiable in every tensor.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    match on_token_kernels(x) {
        true => in_token_blocks(x, |x| cpu::layer_norm(x, gamma, beta, eps)),
        false => portable::layer_norm(x, gamma, beta, eps),
    }
}

/// Attention of `heads` heads: tokens of `3·D` features, q, k and v, to tokens of `D` features. Differentiable.
pub fn attend(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let features = match *qkv.dims() {
        [_, _, features] | [_, features, _, _] => features,
        ref other => return Err(GeometryError::NotTokens { found: other.to_vec() }.into()),
    };
    if heads == 0 || !features.is_multiple_of(3 * heads) {
        return Err(GeometryError::Attention { features, heads }.into());
    }
    match Path::of(qkv) {
        Path::Cpu => in_token_blocks(qkv, |qkv| cpu::attend(qkv, heads)),
        Path::Portable => portable::attend(qkv, heads),
    }
}

/// Tokens of images in any layout: the class token, then every patch through a linear map, rows first; plus positions.
/// `weight` is `f32[D,C,p,p]` for patches of p by p pixels, `class` `f32[1,1,D]`, `position` `f32[1,T,D]`.
pub(super) fn embed(
    images: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    class: &Tensor,
    position: &Tensor,
) -> Result<Tensor> {
    let images = to_images(images)?;
    let (b, c, h, w) = images.dims4()?;
    let (features, channels, patch, _) = weight.dims4()?;
    let tokens = position.dim(1)?;
    let fits = c == channels && h.is_multiple_of(patch) && w.is_multiple_of(patch);
    if !fits || 1 + (h / patch) * (w / patch) != tokens {
        let (image, patch) = ([c, h, w], [channels, patch, patch]);
        return Err(GeometryError::Patches { image, patches: tokens - 1, patch }.into());
    }
    let (rows, columns) = (h / patch, w / patch);
    let patches = images.contiguous()?.reshape(&[b, c, rows, patch, columns, patch])?.permute([0, 2, 4, 1, 3, 5])?;
    // The class token is a patch of zeros whose bias is the token itself.
    let patches = patches.contiguous()?.reshape((b, rows * columns, c * patch * patch))?.pad_with_zeros(1, 1, 0)?;
    let weight = weight.reshape((features, c * patch * patch))?;
    let offset = match bias {
        Some(bias) => {
            let bias = bias.reshape((1, 1, features))?.broadcast_as((1, tokens - 1, features))?;
            Tensor::cat(&[class, &bias.contiguous()?], 1)?
        }
        None => class.pad_with_zeros(1, 0, tokens - 1)?,
    };
    let offset = (offset + position)?;
    match Path::of(&images) {
        Path::Cpu => {
            let x = linear(&cpu::enter_tokens(&patches)?, &weight, None, Activation::None)?;
            Ok(x.broadcast_add(&offset.transpose(1, 2)?.unsqueeze(2)?)?)
        }
        Path::Portable => Ok(portable::linear(&patches, &weight)?.broadcast_add(&offset)?),
    }
}

/// The first token of every image: `f32[B,D]`.
pub(super) fn class_token(x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [g, d, images, _] => {
            Ok(x.narrow(3, 0, 1)?.squeeze(3)?.transpose(1, 2)?.contiguous()?.reshape((g * images, d))?)
        }
        _ => Ok(x.narrow(1, 0, 1)?.squeeze(1)?),
    }
}
