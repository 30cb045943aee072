//! Which channels of a network belong together: what is added channel by channel can only be removed channel by channel.

use super::ZooError;
use crate::Result;
use crate::model::{ChannelGroup, Slice};
use crate::nn::{BatchNorm2d, Conv2d, Layer, Trunk};

/// Which values of a trunk have the same channels: a forest over them, whose roots stand for groups.
struct Values(Vec<usize>);

impl Values {
    fn root(&self, mut value: usize) -> usize {
        while self.0[value] != value {
            value = self.0[value];
        }
        value
    }

    /// The earlier one stands for both.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

/// The groups of a trunk, without those of its input. `reader` is what reads its output.
pub(super) fn of_trunk(trunk: &Trunk, reader: Slice) -> Result<Vec<ChannelGroup>> {
    let mut values = Values((0..=trunk.nodes().len()).collect());
    for (index, node) in trunk.nodes().iter().enumerate() {
        let out = index + 1;
        match &node.layer {
            Layer::ConvBn(layer) if !is_dense(layer.conv())? => values.join(out, node.input),
            Layer::Conv(conv) if !is_dense(conv)? => values.join(out, node.input),
            Layer::ConvBn(_) | Layer::Conv(_) => {}
            Layer::BatchNorm(_) | Layer::MaxPool(..) => values.join(out, node.input),
        }
        if let Some(residual) = node.residual {
            values.join(out, residual);
        }
    }
    let mut groups: Vec<(usize, ChannelGroup)> = Vec::new();
    let mut group = |value: usize, maker: Option<usize>, slices: Vec<Slice>| {
        let root = values.root(value);
        if root == values.root(0) {
            return;
        }
        let at = groups.iter().position(|(known, _)| *known == root).unwrap_or_else(|| {
            groups.push((root, ChannelGroup { makers: Vec::new(), slices: Vec::new() }));
            groups.len() - 1
        });
        groups[at].1.makers.extend(maker);
        groups[at].1.slices.extend(slices);
    };
    let mut convolutions = 0..;
    for (index, node) in trunk.nodes().iter().enumerate() {
        let (out, mut made) = (index + 1, Vec::new());
        let conv = match &node.layer {
            Layer::ConvBn(layer) => {
                made.extend(of_batch_norm(layer.bn()));
                layer.conv()
            }
            Layer::Conv(conv) => conv,
            Layer::BatchNorm(bn) => {
                group(out, None, of_batch_norm(bn).collect());
                continue;
            }
            Layer::MaxPool(..) => continue,
        };
        made.push(Slice::channels(format!("{}.weight", conv.name())));
        made.extend(conv.bias().map(|_| Slice::channels(format!("{}.bias", conv.name()))));
        group(out, convolutions.next(), made);
        if is_dense(conv)? {
            group(node.input, None, vec![Slice::inputs(format!("{}.weight", conv.name()), 1)]);
        }
    }
    group(trunk.last(), None, vec![reader]);
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// Whether every output channel reads every input channel; the other kind that there is reads its own alone.
fn is_dense(conv: &Conv2d) -> Result<bool> {
    match conv.config().groups {
        1 => Ok(true),
        groups if groups == conv.out_channels() && conv.weight().dims()[1] == 1 => Ok(false),
        groups => Err(ZooError::Groups { layer: conv.name().into(), groups }.into()),
    }
}

fn of_batch_norm(bn: &BatchNorm2d) -> impl Iterator<Item = Slice> + use<> {
    let names = ["weight", "bias", "running_mean", "running_var"].map(|tensor| format!("{}.{tensor}", bn.name()));
    names.into_iter().map(Slice::channels)
}
