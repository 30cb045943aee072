//! The basic block of a residual network.

use super::ConvBn;

/// `relu(second(relu(first(x))) + shortcut(x))` (He et al., 2016).
#[derive(Clone, Debug)]
pub struct BasicBlock {
    /// The first layer.
    pub first: ConvBn,
    /// The second layer.
    pub second: ConvBn,
    /// What `x` goes through before it is added; without, `x` itself is added.
    pub shortcut: Option<ConvBn>,
}

impl BasicBlock {
    /// The layers in the order they run.
    pub fn layers(&self) -> impl Iterator<Item = &ConvBn> {
        [Some(&self.first), self.shortcut.as_ref(), Some(&self.second)].into_iter().flatten()
    }
}
