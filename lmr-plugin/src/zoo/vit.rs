//! Vision transformers (Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words"), with torchvision's names; timm's and
//! transformers' are translated. Dropout is off, also in training.

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::naming::{Names, Rules, Scheme};
use super::network::Layers;
use super::options::{HiddenActivation, Pooling};
use super::recognize::Shapes;
use super::registry::Architecture;
use super::spec::{Options, given};
use super::twins::{Timm, Transformers};
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
    pooling: Pooling,
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
    activation: Activation,
}

impl Block {
    fn new(spec: &ModelSpec, hidden: usize, b: &Builder) -> Result<Self> {
        let (features, eps) = (given(spec.width, "width")?, given(spec.norm_eps, "norm-eps")?);
        let heads = given(spec.heads, "heads")?;
        let activation = match given(spec.activation, "activation")? {
            HiddenActivation::Gelu => Activation::Gelu,
            HiddenActivation::Relu => Activation::Relu,
        };
        let first = LayerNorm::new(features, eps, &b.pp("ln_1"))?;
        let attention = SelfAttention::new(features, heads, &b.pp("self_attention"))?;
        let second = LayerNorm::new(features, eps, &b.pp("ln_2"))?;
        let wide = Linear::narrow_normal(features, hidden, &b.pp("mlp").pp(0))?;
        let narrow = Linear::narrow_normal(hidden, features, &b.pp("mlp").pp(3))?;
        Ok(Self { norms: (first, second), attention, mlp: (wide, narrow), activation })
    }

    fn forward(&self, how: &mut dyn Forward, x: &Tensor) -> Result<Tensor> {
        let normal = how.layer_norm(&self.norms.0, x)?;
        let mixed = self.attention.forward(how, &normal)?;
        let x = how.add(x, &mixed)?;
        let normal = how.layer_norm(&self.norms.1, &x)?;
        let hidden = how.linear(&self.mlp.0, &normal, self.activation)?;
        let more = how.linear(&self.mlp.1, &hidden, Activation::None)?;
        Ok(how.add(&x, &more)?)
    }
}

pub(super) const TINY: Architecture =
    Architecture { timm: |spec| timm("vit_tiny_patch16_224", spec), ..architecture::<192, 3>() };

pub(super) const SMALL: Architecture =
    Architecture { timm: |spec| timm("vit_small_patch16_224", spec), ..architecture::<384, 6>() };

pub(super) const BASE: Architecture =
    Architecture { timm: |spec| timm("vit_base_patch16_224", spec), ..architecture::<768, 12>() };

/// Transformers of this width with so many heads.
const fn architecture<const WIDTH: usize, const HEADS: usize>() -> Architecture {
    let options = Options {
        width: Some(WIDTH),
        image_size: Some(224),
        patch_size: Some(16),
        depth: Some(12),
        heads: Some(HEADS),
        activation: Some(HiddenActivation::Gelu),
        pooling: Some(Pooling::ClassToken),
        norm_eps: Some(1e-6),
        ..Options::NONE
    };
    Architecture {
        names: NAMES,
        block: Some(BLOCK),
        transformers,
        ..Architecture::new(
            options,
            |arch, shapes| VisionTransformer::recognize(arch, WIDTH, shapes),
            |spec, b| Ok(Box::new(VisionTransformer::new(spec, b)?)),
        )
    }
}

const BLOCK: &str = "encoder.layers.encoder_layer_#.";

const NAMES: &[Names] = &[
    Names { title: "torchvision ViT", marks: &[BLOCK], translation: Some((Scheme::Torchvision, &[])) },
    Names { title: "timm ViT", marks: &["blocks.#.attn.qkv."], translation: Some((Scheme::Timm, TIMM)) },
    Names {
        title: "timm ViT with the mean of its tokens",
        marks: &["blocks.#.attn.qkv.", "fc_norm."],
        translation: Some((Scheme::TimmMean, TIMM_MEAN)),
    },
    Names {
        title: "transformers ViT",
        marks: &["vit.encoder.layer.#."],
        translation: Some((Scheme::Transformers, TRANSFORMERS)),
    },
    Names {
        title: "transformers ViT",
        marks: &["vit.layers.#."],
        translation: Some((Scheme::Transformers5, TRANSFORMERS5)),
    },
];

/// timm's names; the last norm is called otherwise where it follows the pooling.
macro_rules! timm_rules {
    ($norm:literal) => {
        &[
            ("class_token", "cls_token"),
            ("encoder.pos_embedding", "pos_embed"),
            ("conv_proj.", "patch_embed.proj."),
            ("encoder.layers.encoder_layer_#.ln_1.", "blocks.#.norm1."),
            ("encoder.layers.encoder_layer_#.self_attention.in_proj_", "blocks.#.attn.qkv."),
            ("encoder.layers.encoder_layer_#.self_attention.out_proj.", "blocks.#.attn.proj."),
            ("encoder.layers.encoder_layer_#.ln_2.", "blocks.#.norm2."),
            ("encoder.layers.encoder_layer_#.mlp.0.", "blocks.#.mlp.fc1."),
            ("encoder.layers.encoder_layer_#.mlp.3.", "blocks.#.mlp.fc2."),
            ("encoder.ln.", $norm),
            ("heads.head.", "head."),
        ]
    };
}

const TIMM: Rules = timm_rules!("norm.");
const TIMM_MEAN: Rules = timm_rules!("fc_norm.");

const TRANSFORMERS: Rules = &[
    ("class_token", "vit.embeddings.cls_token"),
    ("encoder.pos_embedding", "vit.embeddings.position_embeddings"),
    ("conv_proj.", "vit.embeddings.patch_embeddings.projection."),
    ("encoder.layers.encoder_layer_#.ln_1.", "vit.encoder.layer.#.layernorm_before."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_q_", "vit.encoder.layer.#.attention.attention.query."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_k_", "vit.encoder.layer.#.attention.attention.key."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_v_", "vit.encoder.layer.#.attention.attention.value."),
    ("encoder.layers.encoder_layer_#.self_attention.out_proj.", "vit.encoder.layer.#.attention.output.dense."),
    ("encoder.layers.encoder_layer_#.ln_2.", "vit.encoder.layer.#.layernorm_after."),
    ("encoder.layers.encoder_layer_#.mlp.0.", "vit.encoder.layer.#.intermediate.dense."),
    ("encoder.layers.encoder_layer_#.mlp.3.", "vit.encoder.layer.#.output.dense."),
    ("encoder.ln.", "vit.layernorm."),
    ("heads.head.", "classifier."),
];

const TRANSFORMERS5: Rules = &[
    ("class_token", "vit.embeddings.cls_token"),
    ("encoder.pos_embedding", "vit.embeddings.position_embeddings"),
    ("conv_proj.", "vit.embeddings.patch_embeddings.projection."),
    ("encoder.layers.encoder_layer_#.ln_1.", "vit.layers.#.layernorm_before."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_q_", "vit.layers.#.attention.q_proj."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_k_", "vit.layers.#.attention.k_proj."),
    ("encoder.layers.encoder_layer_#.self_attention.in_proj_v_", "vit.layers.#.attention.v_proj."),
    ("encoder.layers.encoder_layer_#.self_attention.out_proj.", "vit.layers.#.attention.o_proj."),
    ("encoder.layers.encoder_layer_#.ln_2.", "vit.layers.#.layernorm_after."),
    ("encoder.layers.encoder_layer_#.mlp.0.", "vit.layers.#.mlp.fc1."),
    ("encoder.layers.encoder_layer_#.mlp.3.", "vit.layers.#.mlp.fc2."),
    ("encoder.ln.", "vit.layernorm."),
    ("heads.head.", "classifier."),
];

/// ε of the layer norms of timm's vision transformers, which no `config.json` can change.
const TIMM_NORM_EPS: f64 = 1e-6;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn timm(name: &'static str, spec: &ModelSpec) -> Option<Timm> {
    let mut arguments = json!({
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
    });
    if spec.activation == Some(HiddenActivation::Relu) {
        arguments["act_layer"] = json!("relu");
    }
    let mut scheme = Scheme::Timm;
    if spec.pooling == Some(Pooling::Mean) {
        arguments["global_pool"] = json!("avg");
        scheme = Scheme::TimmMean;
    }
    let (arguments, features) = (object(arguments), spec.width?);
    let (ends, scheme) = (["patch_embed.proj", "head"], Some(scheme));
    let same = spec.norm_eps == Some(TIMM_NORM_EPS);
    same.then_some(Timm { name, arguments, features, ends, scheme, image: None })
}

/// transformers' `ViTConfig`, if it has such a model.
fn transformers(spec: &ModelSpec) -> Option<Transformers> {
    let config = json!({
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.width.map(|width| 4 * width),
        "hidden_act": spec.activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": spec.norm_eps,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_channels": spec.channels,
        "qkv_bias": true,
        "encoder_stride": spec.patch_size,
    });
    // Its classifier reads the class token, whatever the configuration says.
    (spec.pooling == Some(Pooling::ClassToken)).then(|| Transformers {
        class: "ViTForImageClassification",
        model_type: "vit",
        config: object(config),
    })
}

impl VisionTransformer {
    /// The transformer of this width that a checkpoint is for. ε of its layer norms does not show.
    fn recognize(arch: Arch, width: usize, shapes: &Shapes) -> Option<ModelSpec> {
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

    fn new(spec: &ModelSpec, b: &Builder) -> Result<Self> {
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
            blocks.push(Block::new(spec, widths.take(4 * features)?, &b)?);
        }
        widths.finish()?;
        let norm = LayerNorm::new(features, eps, &encoder.pp("ln"))?;
        let head = Linear::new(features, spec.classes, &b.pp("heads").pp("head"))?;
        Ok(Self { embedding, blocks, pooling: given(spec.pooling, "pooling")?, norm, head, params: b.finish()? })
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
        // Only what the head reads is normalized.
        let x = match self.pooling {
            Pooling::ClassToken => how.class_token(&x)?,
            Pooling::Mean => how.mean_patch(&x)?,
        };
        Ok(how.layer_norm(&self.norm, &x)?)
    }
}
