//! Residual networks of basic blocks (He et al., 2016, "Deep Residual Learning for Image Recognition"), with
//! torchvision's names.

use super::conv_net::{ConvNet, Neck};
use super::naming::{Names, Rules, Scheme};
use super::options::PaddingRule;
use super::recognize::Shapes;
use super::registry::Architecture;
use super::spec::{Options, given};
use super::twins::Timm;
use super::widths::Widths;
use super::{Arch, DENSE, ModelSpec, Stem, Steps, conv_bn};
use crate::Result;
use crate::nn::{Activation, Builder, Layer, Linear, Node, Trunk};

/// `relu(second(relu(first(x))) + shortcut)`; the shortcut is `x`, or a convolution of it. Takes and returns how many channels
/// there really are; `from` and `to` are the architecture's own.
fn block(
    trunk: &mut Trunk,
    (from, to): (usize, usize),
    (channels, steps): (usize, Steps),
    widths: &mut Widths<'_>,
    b: &Builder,
) -> Result<usize> {
    let x = trunk.last();
    let inner = widths.take(to)?;
    let projected = if steps.stride != 1 || from != to { Some(widths.take(to)?) } else { None };
    let out = widths.take(to)?;
    // Built in this order, which decides what a seed draws for each.
    let first = conv_bn((channels, inner), 3, steps, &b.pp("conv1"), &b.pp("bn1"))?;
    let second = conv_bn((inner, out), 3, DENSE, &b.pp("conv2"), &b.pp("bn2"))?;
    let hidden = trunk.push(Layer::ConvBn(first), Activation::Relu);
    let shortcut = match projected {
        Some(to) => {
            let b = b.pp("downsample");
            let layer = Layer::ConvBn(conv_bn((channels, to), 1, steps, &b.pp(0), &b.pp(1))?);
            trunk.push_node(Node { layer, input: x, residual: None, activation: Activation::None })
        }
        None => x,
    };
    let layer = Layer::ConvBn(second);
    trunk.push_node(Node { layer, input: hidden, residual: Some(shortcut), activation: Activation::Relu });
    Ok(out)
}

/// A block that is appended to the trunk: see [`block`].
type Block = fn(&mut Trunk, (usize, usize), (usize, Steps), &mut Widths<'_>, &Builder) -> Result<usize>;

/// Stages `layer1`, `layer2` and so on with `depths` blocks, each twice as wide as the one before. Takes the first stage's own
/// width and how many channels there really are; returns how many there are then.
pub(super) fn stages(
    trunk: &mut Trunk,
    (width, mut channels): (usize, usize),
    depths: &[usize],
    padding: PaddingRule,
    widths: &mut Widths<'_>,
    b: &Builder,
    block: Block,
) -> Result<usize> {
    let mut from = width;
    for (stage, &depth) in depths.iter().enumerate() {
        let to = width << stage;
        for i in 0..depth {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            let b = b.pp(format!("layer{}", stage + 1)).pp(i);
            channels = block(trunk, (from, to), (channels, Steps { stride, padding }), widths, &b)?;
            from = to;
        }
    }
    Ok(channels)
}

pub(super) const RESNET18: Architecture = Architecture {
    names: NAMES,
    timm: |spec| timm("resnet18", spec),
    ..Architecture::new(
        OPTIONS,
        |arch, shapes| recognize(arch, &[2, 2, 2, 2], shapes),
        |spec, b| Ok(Box::new(build(spec, &[2, 2, 2, 2], b)?)),
    )
};

pub(super) const RESNET34: Architecture = Architecture {
    names: NAMES,
    timm: |spec| timm("resnet34", spec),
    ..Architecture::new(
        OPTIONS,
        |arch, shapes| recognize(arch, &[3, 4, 6, 3], shapes),
        |spec, b| Ok(Box::new(build(spec, &[3, 4, 6, 3], b)?)),
    )
};

const OPTIONS: Options =
    Options { stem: Some(Stem::Cifar), padding: Some(PaddingRule::Torch), width: Some(64), ..Options::NONE };

/// kuangliu's names: the head and the projections beside the first block of every stage but the first.
const KUANGLIU: Rules = &[
    ("layer2.0.downsample.", "layer2.0.shortcut."),
    ("layer3.0.downsample.", "layer3.0.shortcut."),
    ("layer4.0.downsample.", "layer4.0.shortcut."),
    ("fc.", "linear."),
];

const NAMES: &[Names] = &[
    Names { title: "torchvision ResNet", marks: &["conv1.", "layer1.0.conv1.", "fc."], translation: None },
    Names {
        title: "ResNet with `linear` and `shortcut` (kuangliu)",
        marks: &["conv1.", "bn1.", "layer1.0.conv1.", "layer2.0.shortcut.", "linear."],
        translation: Some((Scheme::Kuangliu, KUANGLIU)),
    },
    Names { title: "transformers ResNet", marks: &["resnet.embedder.", "resnet.encoder.stages.0."], translation: None },
];

/// timm's, whose residual networks are for photographs.
fn timm(name: &'static str, spec: &ModelSpec) -> Option<Timm> {
    let same = spec.stem == Some(Stem::Imagenet) && spec.width == Some(64) && spec.padding == Some(PaddingRule::Torch);
    let (arguments, ends) = (Default::default(), ["conv1", "fc"]);
    same.then_some(Timm { name, arguments, features: 512, ends, scheme: None, image: None })
}

/// The network with `depths` blocks in its stages that a checkpoint is for.
fn recognize(arch: Arch, depths: &[usize], shapes: &Shapes) -> Option<ModelSpec> {
    let [width, channels, kernel, _] = shapes.of("conv1.weight")?;
    let [classes, _] = shapes.of("fc.weight")?;
    let stem = Some(if kernel == 3 { Stem::Cifar } else { Stem::Imagenet });
    let spec = ModelSpec { channels, stem, width: Some(width), ..ModelSpec::new(arch, classes) };
    (shapes.has("bn1.weight") && shapes.has_basic_blocks(depths)).then_some(spec)
}

/// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is ResNet-18.
fn build(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<ConvNet> {
    let (stem, width) = (given(spec.stem, "stem")?, given(spec.width, "width")?);
    let padding = given(spec.padding, "padding")?;
    let (kernel, stride) = match stem {
        Stem::Cifar | Stem::CifarPool => (3, 1),
        Stem::Imagenet => (7, 2),
    };
    let (mut trunk, mut widths) = (Trunk::default(), Widths::of(spec));
    let mut channels = widths.take(width)?;
    let first = conv_bn((spec.channels, channels), kernel, Steps { stride, padding }, &b.pp("conv1"), &b.pp("bn1"))?;
    trunk.push(Layer::ConvBn(first), Activation::Relu);
    if stem != Stem::Cifar {
        trunk.push(Layer::MaxPool(3, 2, padding.of(3)), Activation::None);
    }
    channels = stages(&mut trunk, (width, channels), depths, padding, &mut widths, b, block)?;
    widths.finish()?;
    let head = Linear::new(channels, spec.classes, &b.pp("fc"))?;
    ConvNet::new(trunk, Neck::Average, head, b)
}
