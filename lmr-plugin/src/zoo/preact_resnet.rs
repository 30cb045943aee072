//! Residual networks with pre-activation (He et al., 2016, "Identity Mappings in Deep Residual Networks"), as
//! BackdoorBench builds and names them: a 3x3 stem, no batch norm behind the last block.

use super::conv_net::{ConvNet, Neck};
use super::naming::Names;
use super::recognize::Shapes;
use super::registry::Architecture;
use super::spec::{Options, given};
use super::widths::Widths;
use super::{Arch, DENSE, ModelSpec, Steps, conv, conv_bn, resnet};
use crate::Result;
use crate::nn::{Activation, BatchNorm2d, Builder, Layer, Linear, Node, Trunk};

/// `conv2(relu(bn2(conv1(a)))) + shortcut` with `a = relu(bn1(x))`; the shortcut is `x`, or a convolution of `a`. Takes and
/// returns how many channels there really are; `from` and `to` are the architecture's own.
fn block(
    trunk: &mut Trunk,
    (from, to): (usize, usize),
    (channels, steps): (usize, Steps),
    widths: &mut Widths<'_>,
    b: &Builder,
) -> Result<usize> {
    let x = trunk.last();
    let a = trunk.push(Layer::BatchNorm(BatchNorm2d::new(channels, &b.pp("bn1"))?), Activation::Relu);
    let shortcut = if steps.stride != 1 || from != to {
        let layer = conv((channels, widths.take(to)?), 1, steps, false, &b.pp("shortcut").pp(0))?;
        trunk.push(Layer::Conv(layer), Activation::None)
    } else {
        x
    };
    let inner = widths.take(to)?;
    let first = conv_bn((channels, inner), 3, steps, &b.pp("conv1"), &b.pp("bn2"))?;
    let first = Node { layer: Layer::ConvBn(first), input: a, residual: None, activation: Activation::Relu };
    let hidden = trunk.push_node(first);
    let out = widths.take(to)?;
    let second = Layer::Conv(conv((inner, out), 3, DENSE, false, &b.pp("conv2"))?);
    trunk.push_node(Node { layer: second, input: hidden, residual: Some(shortcut), activation: Activation::None });
    Ok(out)
}

pub(super) const PREACT_RESNET18: Architecture = Architecture {
    names: NAMES,
    ..Architecture::new(
        Options { width: Some(64), ..Options::NONE },
        |arch, shapes| recognize(arch, &[2, 2, 2, 2], shapes),
        |spec, b| Ok(Box::new(build(spec, &[2, 2, 2, 2], b)?)),
    )
};

const NAMES: &[Names] = &[
    Names {
        title: "PreActResNet (kuangliu, BackdoorBench)",
        marks: &["conv1.", "layer1.0.conv1.", "linear."],
        translation: None,
    },
    Names { title: "timm ResNetV2", marks: &["stem.conv", "stages.0.blocks.0.conv1."], translation: None },
];

/// The network with `depths` blocks in its stages that a checkpoint is for.
fn recognize(arch: Arch, depths: &[usize], shapes: &Shapes) -> Option<ModelSpec> {
    let [width, channels, ..] = shapes.of::<4>("conv1.weight")?;
    let [classes, _] = shapes.of("linear.weight")?;
    let spec = ModelSpec { channels, width: Some(width), ..ModelSpec::new(arch, classes) };
    // The same names with a batch norm behind the stem are a network without pre-activation.
    (!shapes.has("bn1.weight") && shapes.has_basic_blocks(depths)).then_some(spec)
}

/// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is PreAct-ResNet-18.
fn build(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<ConvNet> {
    let width = given(spec.width, "width")?;
    let (mut trunk, mut widths) = (Trunk::default(), Widths::of(spec));
    let mut channels = widths.take(width)?;
    trunk.push(Layer::Conv(conv((spec.channels, channels), 3, DENSE, false, &b.pp("conv1"))?), Activation::None);
    channels = resnet::stages(&mut trunk, (width, channels), depths, DENSE.padding, &mut widths, b, block)?;
    widths.finish()?;
    let head = Linear::new(channels, spec.classes, &b.pp("linear"))?;
    ConvNet::new(trunk, Neck::Average, head, b)
}
