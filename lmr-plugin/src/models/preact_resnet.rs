//! Residual networks with pre-activation (He et al., 2016, "Identity Mappings in Deep Residual Networks"), as
//! BackdoorBench builds and names them: a 3x3 stem, no batch norm behind the last block.

use super::conv_net::{ConvNet, Neck};
use super::recognize::Shapes;
use super::spec::{Options, given};
use super::{Arch, ModelSpec, conv, conv_bn};
use crate::Result;
use crate::nn::{Activation, BatchNorm2d, Builder, Layer, Linear, Node, Trunk};

/// `conv2(relu(bn2(conv1(a)))) + shortcut` with `a = relu(bn1(x))`; the shortcut is `x`, or a convolution of `a`.
fn block(trunk: &mut Trunk, (from, to): (usize, usize), stride: usize, b: &Builder) -> Result<()> {
    let x = trunk.last();
    let a = trunk.push(Layer::BatchNorm(BatchNorm2d::new(from, &b.pp("bn1"))?), Activation::Relu);
    let shortcut = match stride != 1 || from != to {
        true => trunk.push(Layer::Conv(conv((from, to), 1, stride, false, &b.pp("shortcut").pp(0))?), Activation::None),
        false => x,
    };
    let first = conv_bn((from, to), 3, stride, &b.pp("conv1"), &b.pp("bn2"))?;
    let first = Node { layer: Layer::ConvBn(first), input: a, residual: None, activation: Activation::Relu };
    let hidden = trunk.push_node(first);
    let second = Layer::Conv(conv((to, to), 3, 1, false, &b.pp("conv2"))?);
    trunk.push_node(Node { layer: second, input: hidden, residual: Some(shortcut), activation: Activation::None });
    Ok(())
}

pub(super) const OPTIONS: Options = Options { width: Some(64), ..Options::NONE };

/// The network with `depths` blocks in its stages that a checkpoint is for.
pub(super) fn recognize(arch: Arch, depths: &[usize], shapes: &Shapes) -> Option<ModelSpec> {
    let [width, channels, ..] = shapes.of::<4>("conv1.weight")?;
    let [classes, _] = shapes.of("linear.weight")?;
    let spec = ModelSpec { channels, width: Some(width), ..ModelSpec::new(arch, classes) };
    // The same names with a batch norm behind the stem are a network without pre-activation.
    (!shapes.has("bn1.weight") && shapes.has_basic_blocks(depths)).then_some(spec)
}

/// A network with `depths` blocks in its stages: `[2, 2, 2, 2]` is PreAct-ResNet-18.
pub(super) fn build(spec: &ModelSpec, depths: &[usize], b: &Builder) -> Result<ConvNet> {
    let width = given(spec.width, "width")?;
    let mut trunk = Trunk::default();
    trunk.push(Layer::Conv(conv((spec.channels, width), 3, 1, false, &b.pp("conv1"))?), Activation::None);
    let mut channels = width;
    for (stage, &depth) in depths.iter().enumerate() {
        let to = width << stage;
        for i in 0..depth {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            block(&mut trunk, (channels, to), stride, &b.pp(format!("layer{}", stage + 1)).pp(i))?;
            channels = to;
        }
    }
    let head = Linear::new(channels, spec.classes, &b.pp("linear"))?;
    ConvNet::new(spec, trunk, Neck::Average, head, b)
}
