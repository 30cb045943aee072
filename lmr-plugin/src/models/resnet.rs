//! Residual networks of basic blocks (He et al., 2016, "Deep Residual Learning for Image Recognition"), with
//! torchvision's names.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Classifier, ModelSpec};
use crate::Result;
use crate::nn::{
    Activation, BasicBlock, BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Forward, Linear, Params,
};

/// How the network begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3x3 convolution with stride 1 and no pooling: for images of up to about 64x64.
    #[default]
    Cifar,
    /// A 7x7 convolution with stride 2, then 3x3 max-pooling with stride 2: for photographs.
    Imagenet,
}

/// A residual network.
pub struct ResNet {
    spec: ModelSpec,
    stem: ConvBn,
    blocks: Vec<BasicBlock>,
    head: Linear,
    params: Params,
}

fn conv_bn((from, to): (usize, usize), kernel: usize, stride: usize, conv: &Builder, bn: &Builder) -> Result<ConvBn> {
    let config = ConvConfig { stride, padding: kernel / 2, ..ConvConfig::default() };
    let spec = ConvSpec { in_channels: from, out_channels: to, kernel: (kernel, kernel), bias: false, config };
    ConvBn::new(Conv2d::new(&spec, conv)?, BatchNorm2d::new(to, bn)?)
}

fn basic_block(channels: (usize, usize), stride: usize, b: &Builder) -> Result<BasicBlock> {
    let (from, to) = channels;
    let first = conv_bn(channels, 3, stride, &b.pp("conv1"), &b.pp("bn1"))?;
    let second = conv_bn((to, to), 3, 1, &b.pp("conv2"), &b.pp("bn2"))?;
    let shortcut = if stride != 1 || from != to {
        let b = b.pp("downsample");
        Some(conv_bn(channels, 1, stride, &b.pp(0), &b.pp(1))?)
    } else {
        None
    };
    Ok(BasicBlock { first, second, shortcut })
}

impl ResNet {
    /// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is ResNet-18.
    pub fn new(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<Self> {
        let (kernel, stride) = match spec.stem {
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        };
        let stem = conv_bn((spec.channels, spec.width), kernel, stride, &b.pp("conv1"), &b.pp("bn1"))?;
        let mut channels = spec.width;
        let mut blocks = Vec::new();
        for (stage, &depth) in depths.iter().enumerate() {
            let to = spec.width << stage;
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let b = b.pp(format!("layer{}", stage + 1)).pp(block);
                blocks.push(basic_block((channels, to), stride, &b)?);
                channels = to;
            }
        }
        let head = Linear::new(channels, spec.classes, &b.pp("fc"))?;
        Ok(Self { spec: spec.clone(), stem, blocks, head, params: b.finish()? })
    }
}

impl Classifier for ResNet {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn convolutions(&self) -> Vec<&Conv2d> {
        let blocks = self.blocks.iter().flat_map(BasicBlock::layers);
        std::iter::once(&self.stem).chain(blocks).map(ConvBn::conv).collect()
    }

    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let x = how.input(images)?;
        let mut x = how.conv_bn(&self.stem, &x, None, Activation::Relu)?;
        if self.spec.stem == Stem::Imagenet {
            x = how.max_pool(&x, 3, 2, 1)?;
        }
        x = how.basic_blocks(&self.blocks, &x)?;
        how.global_avg_pool(&x)
    }
}
