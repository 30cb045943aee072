//! The same as `custom_loop` on a small vision transformer of `candle_nn`'s parts.
//!
//! ```text
//! cargo run --package lmr-plugin --example custom_transformer
//! ```
//!
//! Two of Candle's fused operations have no gradient and say nothing: `LayerNorm::forward` and `softmax_last_dim`. What is to be
//! trained takes `layer_norm_slow` and `softmax` instead. A transformer has few filters, so it says itself what pruning ranks: the
//! hidden units of its MLPs.

mod fashion_mnist;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{AdamW, Conv2d, Conv2dConfig, LayerNorm, Module, Optimizer, VarBuilder, VarMap, ops};
use fashion_mnist::{Result, draw, expect, load, report};
use lmr_plugin::attacks::Attack;
use lmr_plugin::data::{Augment, CleanSet, Images, Normalization, stratified_split};
use lmr_plugin::deploy::{Deployment, Quantize, StructuredPrune};
use lmr_plugin::model::{Classifier, Model, Prunable};
use lmr_plugin::nn::{Linear, Mode, Params, StateDict};
use lmr_plugin::optim::Rule;
use lmr_plugin::purify::{DeltaPrune, Estimate, LogitRepel, Recover};
use lmr_plugin::ranges::{BelowOne, Positive, Times};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::stage::{Examination, Planted};
use lmr_plugin::train::{Defaults, Recipe};
use lmr_plugin::triggers::{Patch, TriggerConfig};

const FEATURES: usize = 32;
const HEADS: usize = 4;
const BLOCKS: usize = 1;
const PATCH: usize = 7;
const TOKENS: usize = (28 / PATCH) * (28 / PATCH);

/// `x + attention(norm(x))`, then the same with an MLP.
struct Block {
    norms: [LayerNorm; 2],
    qkv: candle_nn::Linear,
    out: candle_nn::Linear,
    mlp: [candle_nn::Linear; 2],
}

impl Block {
    fn new(vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let norm = |name: &str| candle_nn::layer_norm(FEATURES, 1e-6, vb.pp(name));
        Ok(Self {
            norms: [norm("norm1")?, norm("norm2")?],
            qkv: candle_nn::linear(FEATURES, 3 * FEATURES, vb.pp("qkv"))?,
            out: candle_nn::linear(FEATURES, FEATURES, vb.pp("out"))?,
            mlp: [
                candle_nn::linear(FEATURES, 2 * FEATURES, vb.pp("mlp1"))?,
                candle_nn::linear(2 * FEATURES, FEATURES, vb.pp("mlp2"))?,
            ],
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let size = FEATURES / HEADS;
        let qkv =
            self.qkv.forward(&norm(&self.norms[0], x)?)?.reshape((b, t, 3, HEADS, size))?.permute((2, 0, 3, 1, 4))?;
        let part = |i: usize| qkv.get(i)?.contiguous();
        let scores = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? / (size as f64).sqrt())?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&part(2)?)?;
        let x = (x + self.out.forward(&mixed.transpose(1, 2)?.reshape((b, t, FEATURES))?)?)?;
        let hidden = self.mlp[0].forward(&norm(&self.norms[1], &x)?)?.gelu_erf()?;
        &x + self.mlp[1].forward(&hidden)?
    }
}

/// Layer norm whose gradient arrives.
fn norm(layer: &LayerNorm, x: &Tensor) -> candle_core::Result<Tensor> {
    let zeros = layer.weight().zeros_like()?;
    ops::layer_norm_slow(x, layer.weight(), layer.bias().unwrap_or(&zeros), 1e-6)
}

/// The network: ordinary Candle.
struct Vit {
    patches: Conv2d,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    vars: VarMap,
}

impl Vit {
    fn new(device: &Device) -> candle_core::Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, device);
        let config = Conv2dConfig { stride: PATCH, ..Conv2dConfig::default() };
        candle_nn::linear(FEATURES, 10, vb.pp("head"))?;
        Ok(Self {
            patches: candle_nn::conv2d(1, FEATURES, PATCH, config, vb.pp("patches"))?,
            positions: vb.get_with_hints((1, TOKENS, FEATURES), "positions", candle_nn::init::ZERO)?,
            blocks: (0..BLOCKS).map(|i| Block::new(&vb.pp(format!("block{i}")))).collect::<candle_core::Result<_>>()?,
            norm: candle_nn::layer_norm(FEATURES, 1e-6, vb.pp("norm"))?,
            vars,
        })
    }

    fn features(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let tokens = self.patches.forward(images)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let mut x = tokens.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        norm(&self.norm, &x)?.mean(1)
    }
}

/// The network as stages see it.
struct Adapted {
    net: Vit,
    params: Params,
    head: Linear,
    hidden: Vec<Linear>,
}

impl Adapted {
    fn new(net: Vit) -> lmr_plugin::Result<Self> {
        let vars = net.vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let params = Params::from_vars(vars)?;
        let layer = |name: &str| Linear::from_params(&params, name);
        let hidden = (0..BLOCKS).map(|i| layer(&format!("block{i}.mlp1"))).collect::<std::result::Result<_, _>>()?;
        Ok(Self { head: layer("head")?, hidden, net, params })
    }
}

impl Classifier for Adapted {
    fn params(&self) -> &Params {
        &self.params
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn input_shape(&self) -> [usize; 3] {
        [1, 28, 28]
    }

    fn features(&self, images: &Tensor, _: Mode) -> lmr_plugin::Result<Tensor> {
        Ok(self.net.features(images)?)
    }

    fn rebuild(&self, state: StateDict, device: &Device) -> lmr_plugin::Result<Box<dyn Classifier>> {
        let copy = Self::new(Vit::new(device)?)?;
        copy.params.load_state_dict(&state)?;
        Ok(Box::new(copy))
    }

    fn prunable(&self) -> Vec<Prunable<'_>> {
        self.hidden.iter().map(Into::into).collect()
    }
}

/// A transformer's training: AdamW, whoever trains.
fn adamw<D: Defaults>(epochs: usize) -> lmr_plugin::Result<Recipe<D>> {
    let (epochs, lr) = (Times::new(epochs)?, Positive::literal(1e-3));
    Ok(Recipe { epochs, lr, optimizer: Rule::AdamW, augment: Augment::NONE, ..Recipe::default() })
}

fn main() -> Result<()> {
    let (device, run) = (Device::Cpu, Run::quiet(0));
    let images = load()?;
    let (ours, rest) = stratified_split(images.labels(), 10, 250, 0)?;
    let clean = CleanSet::new(images.select(&ours)?)?;
    let (train, test) = (images.select(&rest[..2000])?, images.select(&rest[2000..3000])?);

    let adapted = Adapted::new(Vit::new(&device)?)?;
    draw(&adapted.params, 0.5)?;
    let model = Model::new(Box::new(adapted), Normalization { mean: vec![0.2860], std: vec![0.3530] })?;
    let vars: Vec<_> = model.network().params().trainable().map(|(_, var)| var.clone()).collect();
    let mut adam = AdamW::new_lr(vars, 2e-3)?;
    let mut shuffle = rng::stream(0, "custom-transformer");
    let mut epoch = |images: &Images, rate: f64| -> Result<()> {
        adam.set_learning_rate(rate);
        for batch in rng::permutation(&mut shuffle, images.len()).chunks(100) {
            let (pixels, labels) = images.batch(batch, &device)?;
            let logits = model.forward(&pixels, Mode::default())?;
            adam.backward_step(&candle_nn::loss::cross_entropy(&logits, &labels)?)?;
        }
        Ok(())
    };
    for rate in [2e-3, 2e-3, 2e-3, 1e-3, 5e-4, 2e-4] {
        epoch(&train, rate)?;
    }

    let planted = Planted { trigger: Patch::default().build(1, 28, 28)?, target: 0 };
    let examination = Examination::new(test).with_trigger(planted.clone());
    let before = report("trained", &model, &examination, &run)?;
    Attack { training: adamw(10)?, ..Attack::default() }.implant(&model, &train, &planted, &run)?;
    let received = report("attacked", &model, &examination, &run)?;

    // The defaults are for convolutional networks.
    let estimated = Estimate::default().estimate(&model, &clean, &run)?;
    println!("backdoor class {}, collapse {:.2}, votes {:?}", estimated.class, estimated.collapse, estimated.votes);
    let repel = LogitRepel { training: adamw(10)?, ..LogitRepel::default() };
    let repelled = repel.repel(&model, estimated.backdoor_class(), &clean, &run)?;
    let columns = DeltaPrune::default().prune(&model, &repelled.delta)?;
    let recover = Recover { training: adamw(10)?, ..Recover::default() };
    recover.recover(&model, &repelled.received, &columns, &clean, &run)?;
    let purified = report("purified", &model, &examination, &run)?;

    let int8 = Deployment::Quantize(Quantize { activations: false, ..Quantize::default() });
    report("8-bit weights", &int8.deploy(&model, &clean, &run)?, &examination, &run)?;
    let pruned = StructuredPrune { ratio: BelowOne::literal(0.1), ..StructuredPrune::default() };
    let pruned = Deployment::Prune(pruned).deploy(&model, &clean, &run)?;
    report("without 10% of units", &pruned, &examination, &run)?;

    expect("ACC as trained", before.acc, 0.5..=1.0)?;
    expect("ASR as attacked", received.asr.unwrap_or_default(), 0.1..=1.0)?;
    expect("ASR that went", received.asr.unwrap_or_default() - purified.asr.unwrap_or(1.0), 0.05..=1.0)?;
    expect("ACC lost", received.acc - purified.acc, -1.0..=0.1)
}
