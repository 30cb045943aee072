//! Residual networks of basic blocks (He et al., 2016, "Deep Residual Learning for Image Recognition"), with
//! torchvision's names.

use super::conv_net::{ConvNet, Neck};
use super::recognize::Shapes;
use super::spec::{Options, given};
use super::{Arch, ModelSpec, Stem, conv_bn};
use crate::Result;
use crate::nn::{Activation, Builder, Layer, Linear, Node, Trunk};

/// `relu(second(relu(first(x))) + shortcut)`; the shortcut is `x`, or a convolution of it.
fn block(trunk: &mut Trunk, (from, to): (usize, usize), stride: usize, b: &Builder) -> Result<()> {
    let x = trunk.last();
    let first = conv_bn((from, to), 3, stride, &b.pp("conv1"), &b.pp("bn1"))?;
    let hidden = trunk.push(Layer::ConvBn(first), Activation::Relu);
    let second = conv_bn((to, to), 3, 1, &b.pp("conv2"), &b.pp("bn2"))?;
    let shortcut = if stride != 1 || from != to {
        let b = b.pp("downsample");
        let layer = Layer::ConvBn(conv_bn((from, to), 1, stride, &b.pp(0), &b.pp(1))?);
        trunk.push_node(Node { layer, input: x, residual: None, activation: Activation::None })
    } else {
        x
    };
    let layer = Layer::ConvBn(second);
    trunk.push_node(Node { layer, input: hidden, residual: Some(shortcut), activation: Activation::Relu });
    Ok(())
}

pub(super) const OPTIONS: Options = Options { stem: Some(Stem::Cifar), width: Some(64), ..Options::NONE };

/// The network with `depths` blocks in its stages that a checkpoint is for.
pub(super) fn recognize(arch: Arch, depths: &[usize], shapes: &Shapes) -> Option<ModelSpec> {
    let [width, channels, kernel, _] = shapes.of("conv1.weight")?;
    let [classes, _] = shapes.of("fc.weight")?;
    let stem = Some(if kernel == 3 { Stem::Cifar } else { Stem::Imagenet });
    let spec = ModelSpec { channels, stem, width: Some(width), ..ModelSpec::new(arch, classes) };
    (shapes.has("bn1.weight") && shapes.has_basic_blocks(depths)).then_some(spec)
}

/// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is ResNet-18.
pub(super) fn build(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<ConvNet> {
    let (stem, width) = (given(spec.stem, "stem")?, given(spec.width, "width")?);
    let (kernel, stride) = match stem {
        Stem::Cifar => (3, 1),
        Stem::Imagenet => (7, 2),
    };
    let mut trunk = Trunk::default();
    let first = conv_bn((spec.channels, width), kernel, stride, &b.pp("conv1"), &b.pp("bn1"))?;
    trunk.push(Layer::ConvBn(first), Activation::Relu);
    if stem == Stem::Imagenet {
        trunk.push(Layer::MaxPool(3, 2, 1), Activation::None);
    }
    let mut channels = width;
    for (stage, &depth) in depths.iter().enumerate() {
        let to = width << stage;
        for i in 0..depth {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            block(&mut trunk, (channels, to), stride, &b.pp(format!("layer{}", stage + 1)).pp(i))?;
            channels = to;
        }
    }
    let head = Linear::new(channels, spec.classes, &b.pp("fc"))?;
    ConvNet::new(spec, trunk, Neck::Average, head, b)
}
