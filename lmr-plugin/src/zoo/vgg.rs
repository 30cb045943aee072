//! VGG-16 (Simonyan & Zisserman, 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition"), with and
//! without batch norm, with torchvision's names.
//!
//! For small images the head is the one of the CIFAR literature: global average pooling and a linear layer `classifier`.
//! Torchvision's dropout (0.5 before the two last layers of the ImageNet head) is off, also in training.

use super::conv_net::{ConvNet, Neck};
use super::naming::Names;
use super::recognize::Shapes;
use super::registry::Architecture;
use super::spec::{Options, given};
use super::twins::Timm;
use super::widths::Widths;
use super::{Arch, DENSE, ModelSpec, Stem, conv};
use crate::Result;
use crate::nn::{Activation, BatchNorm2d, Builder, ConvBn, Layer, Linear, Padding, Trunk};

/// Convolutions of every stage, and their channels in multiples of the first's.
const STAGES: [(usize, usize); 5] = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)];

/// What the convolutions' output is pooled to before the ImageNet head.
const POOLED: usize = 7;

pub(super) const VGG16: Architecture = Architecture {
    // Five poolings leave nothing of less.
    smallest_side: 32,
    names: NAMES,
    timm: |spec| timm("vgg16", spec),
    ..Architecture::new(
        OPTIONS,
        |arch, shapes| recognize(arch, false, shapes),
        |spec, b| Ok(Box::new(build(spec, false, b)?)),
    )
};

pub(super) const VGG16_BN: Architecture = Architecture {
    // Five poolings leave nothing of less.
    smallest_side: 32,
    names: NAMES,
    timm: |spec| timm("vgg16_bn", spec),
    ..Architecture::new(
        OPTIONS,
        |arch, shapes| recognize(arch, true, shapes),
        |spec, b| Ok(Box::new(build(spec, true, b)?)),
    )
};

const OPTIONS: Options = Options { stem: Some(Stem::Cifar), width: Some(64), ..Options::NONE };

const NAMES: &[Names] =
    &[Names { title: "torchvision VGG", marks: &["features.0.", "classifier."], translation: None }];

/// timm's, which pools images of another size in another way before the head.
fn timm(name: &'static str, spec: &ModelSpec) -> Option<Timm> {
    let same = spec.stem == Some(Stem::Imagenet) && spec.width == Some(64);
    let (arguments, ends) = (Default::default(), ["features.0", "head.fc"]);
    same.then_some(Timm { name, arguments, features: 4096, ends, scheme: None, image: Some([224, 224]) })
}

/// The network that a checkpoint is for.
fn recognize(arch: Arch, batch_norm: bool, shapes: &Shapes) -> Option<ModelSpec> {
    let [first, channels, ..] = shapes.of::<4>("features.0.weight")?;
    // The hidden layers tell the width also where filters were removed.
    let (stem, [classes, _], width) = match shapes.of("classifier.weight") {
        Some(head) => (Stem::Cifar, head, first),
        None => (Stem::Imagenet, shapes.of("classifier.6.weight")?, shapes.of::<2>("classifier.0.weight")?[0] / 64),
    };
    let spec = ModelSpec { channels, stem: Some(stem), width: Some(width), ..ModelSpec::new(arch, classes) };
    let last = if batch_norm { "features.41.running_mean" } else { "features.28.weight" };
    (shapes.has(last) && shapes.has("features.1.running_mean") == batch_norm).then_some(spec)
}

/// VGG-16, with or without batch norm behind every convolution.
fn build(spec: &ModelSpec, batch_norm: bool, b: &Builder) -> Result<ConvNet> {
    let width = given(spec.width, "width")?;
    let (mut trunk, mut widths, mut channels, mut index) = (Trunk::default(), Widths::of(spec), spec.channels, 0);
    for (count, multiple) in STAGES {
        for _ in 0..count {
            let to = widths.take(width * multiple)?;
            let conv = conv((channels, to), 3, DENSE, true, &b.pp("features").pp(index))?;
            let layer = match batch_norm {
                true => Layer::ConvBn(ConvBn::new(conv, BatchNorm2d::new(to, &b.pp("features").pp(index + 1))?)?),
                false => Layer::Conv(conv),
            };
            trunk.push(layer, Activation::Relu);
            channels = to;
            // The numbers count ReLU and pooling, too.
            index += if batch_norm { 3 } else { 2 };
        }
        trunk.push(Layer::MaxPool(2, 2, Padding::Symmetric(0)), Activation::None);
        index += 1;
    }
    widths.finish()?;
    let b_head = b.pp("classifier");
    let (mut neck, mut head_builder, mut features) = (Neck::Average, b_head.clone(), channels);
    if given(spec.stem, "stem")? == Stem::Imagenet {
        features = 64 * width;
        let first = Linear::new(channels * POOLED * POOLED, features, &b_head.pp(0))?;
        let second = Linear::new(features, features, &b_head.pp(3))?;
        neck = Neck::Hidden(POOLED, vec![first, second]);
        head_builder = b_head.pp(6);
    }
    let head = Linear::new(features, spec.classes, &head_builder)?;
    ConvNet::new(trunk, neck, head, b)
}
