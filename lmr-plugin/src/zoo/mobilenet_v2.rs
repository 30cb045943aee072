//! MobileNetV2 (Sandler et al., 2018, "Inverted Residuals and Linear Bottlenecks"), with torchvision's names. Dropout
//! before the head is off, also in training.

use super::ZooError;
use super::conv_net::{ConvNet, Neck};
use super::naming::Names;
use super::options::PaddingRule;
use super::recognize::Shapes;
use super::registry::Architecture;
use super::spec::{Options, given};
use super::widths::Widths;
use super::{Arch, DENSE, ModelSpec, Stem, Steps, conv_bn};
use crate::Result;
use crate::nn::{Activation, BatchNorm2d, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Layer, Linear, Node, Trunk};

/// Expansion, channels, blocks and stride of the stages.
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// `channels · multiplier` as a multiple of 8, at most 10% below.
fn scaled(channels: usize, multiplier: f64) -> usize {
    let exact = channels as f64 * multiplier;
    let rounded = ((exact + 4.0) / 8.0).floor().max(1.0) * 8.0;
    (if rounded < 0.9 * exact { rounded + 8.0 } else { rounded }) as usize
}

fn depthwise(channels: usize, steps: Steps, b: &Builder) -> Result<ConvBn> {
    let config = ConvConfig { stride: steps.stride, padding: steps.padding.of(3), dilation: 1, groups: channels };
    let spec = ConvSpec { in_channels: channels, out_channels: channels, kernel: (3, 3), bias: false, config };
    Ok(ConvBn::new(Conv2d::new(&spec, &b.pp(0))?, BatchNorm2d::new(channels, &b.pp(1))?)?)
}

/// Expands to `hidden` channels, filters each of them, and projects to `to` channels without activation. Takes and returns how
/// many channels there really are; `from`, `hidden` and `to` are the architecture's own.
fn inverted_residual(
    trunk: &mut Trunk,
    (from, hidden, to): (usize, usize, usize),
    (channels, steps): (usize, Steps),
    widths: &mut Widths<'_>,
    b: &Builder,
) -> Result<usize> {
    let (x, mut index, mut wide) = (trunk.last(), 0, channels);
    if hidden != from {
        let b = b.pp(index);
        wide = widths.take(hidden)?;
        trunk.push(Layer::ConvBn(conv_bn((channels, wide), 1, DENSE, &b.pp(0), &b.pp(1))?), Activation::Relu6);
        index += 1;
    }
    let filtered = widths.take(hidden)?;
    if filtered != wide {
        return Err(ZooError::DepthwiseWidth { expected: wide, found: filtered }.into());
    }
    let input = trunk.push(Layer::ConvBn(depthwise(wide, steps, &b.pp(index))?), Activation::Relu6);
    let out = widths.take(to)?;
    let project = conv_bn((wide, out), 1, DENSE, &b.pp(index + 1), &b.pp(index + 2))?;
    let residual = (steps.stride == 1 && from == to).then_some(x);
    trunk.push_node(Node { layer: Layer::ConvBn(project), input, residual, activation: Activation::None });
    Ok(out)
}

pub(super) const MOBILENET_V2: Architecture =
    Architecture { names: NAMES, ..Architecture::new(OPTIONS, recognize, |spec, b| Ok(Box::new(build(spec, b)?))) };

const OPTIONS: Options = Options {
    stem: Some(Stem::Cifar),
    padding: Some(PaddingRule::Torch),
    width_multiplier: Some(1.0),
    ..Options::NONE
};

const NAMES: &[Names] = &[
    Names {
        title: "torchvision MobileNetV2",
        marks: &["features.0.0.", "features.1.conv.0.", "classifier."],
        translation: None,
    },
    Names {
        title: "timm MobileNetV2",
        marks: &["conv_stem.", "blocks.0.0.conv_dw.", "classifier."],
        translation: None,
    },
];

/// The network that a checkpoint is for. The stem's stride does not show.
fn recognize(arch: Arch, shapes: &Shapes) -> Option<ModelSpec> {
    let [first, channels, ..] = shapes.of::<4>("features.0.0.weight")?;
    let [last, narrow, ..] = shapes.of::<4>("features.18.0.weight")?;
    let [classes, _] = shapes.of("classifier.1.weight")?;
    let fits = |m: &f64| (scaled(32, *m), scaled(320, *m), scaled(1280, m.max(1.0))) == (first, narrow, last);
    // In hundredths, those that are published first: several multipliers round to the same channels.
    let published = [100, 75, 50, 35, 25, 10, 110, 120, 130, 140, 150, 200];
    let multiplier = published.into_iter().chain(10..=400).map(|percent| f64::from(percent) / 100.0).find(fits)?;
    Some(ModelSpec { channels, width_multiplier: Some(multiplier), ..ModelSpec::new(arch, classes) })
}

/// The network.
fn build(spec: &ModelSpec, b: &Builder) -> Result<ConvNet> {
    let multiplier = given(spec.width_multiplier, "width-multiplier")?;
    let stride = match given(spec.stem, "stem")? {
        Stem::Cifar | Stem::CifarPool => 1,
        Stem::Imagenet => 2,
    };
    let padding = given(spec.padding, "padding")?;
    let features = b.pp("features");
    let (mut trunk, mut widths) = (Trunk::default(), Widths::of(spec));
    let mut from = scaled(32, multiplier);
    let mut channels = widths.take(from)?;
    let (conv, bn) = (features.pp(0).pp(0), features.pp(0).pp(1));
    let first = conv_bn((spec.channels, channels), 3, Steps { stride, padding }, &conv, &bn)?;
    trunk.push(Layer::ConvBn(first), Activation::Relu6);
    let mut index = 1;
    for (expansion, to, blocks, stride) in STAGES {
        let to = scaled(to, multiplier);
        for block in 0..blocks {
            let stride = if block == 0 { stride } else { 1 };
            let b = features.pp(index).pp("conv");
            let own = (from, expansion * from, to);
            channels = inverted_residual(&mut trunk, own, (channels, Steps { stride, padding }), &mut widths, &b)?;
            from = to;
            index += 1;
        }
    }
    let last = widths.take(scaled(1280, multiplier.max(1.0)))?;
    widths.finish()?;
    let (conv, bn) = (features.pp(index).pp(0), features.pp(index).pp(1));
    trunk.push(Layer::ConvBn(conv_bn((channels, last), 1, DENSE, &conv, &bn)?), Activation::Relu6);
    let head = Linear::new(last, spec.classes, &b.pp("classifier").pp(1))?;
    ConvNet::new(trunk, Neck::Average, head, b)
}
