//! Residual networks of basic blocks (He et al., 2016, "Deep Residual Learning for Image Recognition"), with
//! torchvision's names.

use candle_core::Tensor;

use super::spec::{Options, given};
use super::{Classifier, ModelSpec, Prunable, Stem, conv_bn};
use crate::Result;
use crate::nn::{Activation, BasicBlock, Builder, ConvBn, Forward, Linear, Params};

/// A residual network.
pub struct ResNet {
    spec: ModelSpec,
    stem: ConvBn,
    blocks: Vec<BasicBlock>,
    head: Linear,
    params: Params,
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
    pub(super) const OPTIONS: Options = Options { stem: Some(Stem::Cifar), width: Some(64), ..Options::NONE };

    /// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is ResNet-18.
    pub fn new(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<Self> {
        let (kernel, stride) = match given(spec.stem, "stem")? {
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        };
        let width = given(spec.width, "width")?;
        let stem = conv_bn((spec.channels, width), kernel, stride, &b.pp("conv1"), &b.pp("bn1"))?;
        let mut channels = width;
        let mut blocks = Vec::new();
        for (stage, &depth) in depths.iter().enumerate() {
            let to = width << stage;
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

    fn prunable(&self) -> Vec<Prunable<'_>> {
        let blocks = self.blocks.iter().flat_map(BasicBlock::layers);
        std::iter::once(&self.stem).chain(blocks).map(|layer| layer.conv().into()).collect()
    }

    fn features(&self, how: &mut dyn Forward, images: &Tensor) -> Result<Tensor> {
        let x = how.input(images)?;
        let mut x = how.conv_bn(&self.stem, &x, None, Activation::Relu)?;
        if self.spec.stem == Some(Stem::Imagenet) {
            x = how.max_pool(&x, 3, 2, 1)?;
        }
        x = how.basic_blocks(&self.blocks, &x)?;
        how.global_avg_pool(&x)
    }
}
