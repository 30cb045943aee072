//! Vision transformers (Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words"), with torchvision's names; timm's and
//! transformers' are translated by [`super::naming`]. Dropout is off, also in training.

use candle_core::Tensor;

use super::network::Layers;
use super::recognize::Shapes;
use super::spec::{Options, given};
use super::widths::Widths;
use super::{Arch, ModelSpec};
use crate::Result;
use crate::model::{ChannelGroup, Prunable, Slice};
use crate::nn::{
    Activation, Builder, Conv2d, ConvConfig, ConvSpec, Forward, LayerNorm, Linear, Params, PatchEmbedding,
    SelfAttention,
};

/// A vision transformer.
pub(super) struct VisionTransformer {
    embedding: PatchEmbedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    params: Params,
}

/// `x + attention(norm(x))`, then the same with an MLP.
struct Block {
    norms: (LayerNorm, LayerNorm),
    attention: SelfAttention,
    /// To the hidden units, 4·D unless some were removed, and back.
    mlp: (Linear, Linear),
}

impl Block {
    fn new(features: usize, hidden: usize, heads: usize, eps: f64, b: &Builder) -> Result<Self> {
        let first = LayerNorm::new(features, eps, &b.pp("ln_1"))?;
        let attention = SelfAttention::new(features, heads, &b.pp("self_attention"))?;
        let second = LayerNorm::new(features, eps, &b.pp("ln_2"))?;
        let wide = Linear::narrow_normal(features, hidden, &b.pp("mlp").pp(0))?;
        let narrow = Linear::narrow_normal(hidden, features, &b.pp("mlp").pp(3))?;
        Ok(Self { norms: (first, second), attention, mlp: (wide, narrow) })
    }

    fn forward(&self, how: &mut dyn Forward, x: &Tensor) -> Result<Tensor> {
        let normal = how.layer_norm(&self.norms.0, x)?;
        let mixed = self.attention.forward(how, &normal)?;
        let x = how.add(x, &mixed)?;
        let normal = how.layer_norm(&self.norms.1, &x)?;
        let hidden = how.linear(&self.mlp.0, &normal, Activation::Gelu)?;
        let more = how.linear(&self.mlp.1, &hidden, Activation::None)?;
        Ok(how.add(&x, &more)?)
    }
}

impl VisionTransformer {
    pub(super) const fn options(width: usize) -> Options {
        Options {
            width: Some(width),
            image_size: Some(224),
            patch_size: Some(16),
            depth: Some(12),
            norm_eps: Some(1e-6),
            ..Options::NONE
        }
    }

    /// The transformer of this width that a checkpoint is for. ε of its layer norms does not show.
    pub(super) fn recognize(arch: Arch, width: usize, shapes: &Shapes) -> Option<ModelSpec> {
        let [features, channels, patch, _] = shapes.of("conv_proj.weight")?;
        let [_, tokens, _] = shapes.of("encoder.pos_embedding")?;
        let [classes, _] = shapes.of("heads.head.weight")?;
        let image = patch * tokens.checked_sub(1)?.isqrt();
        let spec = ModelSpec {
            channels,
            width: Some(features),
            image_size: Some(image),
            patch_size: Some(patch),
            depth: Some(shapes.count("encoder.layers.encoder_layer_")),
            ..ModelSpec::new(arch, classes)
        };
        (features == width).then_some(spec)
    }

    /// A transformer with `heads` heads, which divide the width.
    pub fn new(spec: &ModelSpec, heads: usize, b: &Builder) -> Result<Self> {
        let (features, eps) = (given(spec.width, "width")?, given(spec.norm_eps, "norm-eps")?);
        let (image, patch) = (given(spec.image_size, "image-size")?, given(spec.patch_size, "patch-size")?);
        let conv = ConvSpec {
            in_channels: spec.channels,
            out_channels: features,
            kernel: (patch, patch),
            bias: true,
            config: ConvConfig { stride: patch, ..ConvConfig::default() },
        };
        let conv = Conv2d::new(&conv, &b.pp("conv_proj"))?;
        let encoder = b.pp("encoder");
        let patches = (image / patch).pow(2);
        let embedding = PatchEmbedding::new(conv, patches, (b, "class_token"), (&encoder, "pos_embedding"))?;
        let mut widths = Widths::of(spec);
        let mut blocks = Vec::new();
        for i in 0..given(spec.depth, "depth")? {
            let b = encoder.pp("layers").pp(format!("encoder_layer_{i}"));
            blocks.push(Block::new(features, widths.take(4 * features)?, heads, eps, &b)?);
        }
        widths.finish()?;
        let norm = LayerNorm::new(features, eps, &encoder.pp("ln"))?;
        let head = Linear::new(features, spec.classes, &b.pp("heads").pp("head"))?;
        Ok(Self { embedding, blocks, norm, head, params: b.finish()? })
    }
}

impl Layers for VisionTransformer {
    fn params(&self) -> &Params {
        &self.params
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn prunable(&self) -> Vec<Prunable<'_>> {
        self.blocks.iter().map(|block| (&block.mlp.0).into()).collect()
    }

    fn channel_groups(&self) -> Result<Vec<ChannelGroup>> {
        let group = |(index, block): (usize, &Block)| {
            let (wide, narrow) = (block.mlp.0.name(), block.mlp.1.name());
            let slices = vec![
                Slice::channels(format!("{wide}.weight")),
                Slice::channels(format!("{wide}.bias")),
                Slice::inputs(format!("{narrow}.weight"), 1),
            ];
            ChannelGroup { makers: vec![index], slices }
        };
        Ok(self.blocks.iter().enumerate().map(group).collect())
    }

    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let mut x = how.embed(&self.embedding, images)?;
        for block in &self.blocks {
            x = block.forward(how, &x)?;
        }
        // Only the class token is read, so only it is normalized.
        let x = how.class_token(&x)?;
        Ok(how.layer_norm(&self.norm, &x)?)
    }
}
