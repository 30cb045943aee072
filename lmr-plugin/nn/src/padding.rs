//! What lies around an image where a kernel reaches beyond it.

use std::fmt;

/// Positions around an image that a convolution reads as zeros, and that never win in max pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// So many on every side, as in PyTorch.
    Symmetric(usize),
    /// TensorFlow's `SAME`: as many as make `⌈size / stride⌉` outputs, and where that is odd, one more behind the image than
    /// before it.
    Same,
}

impl Padding {
    /// How many come before `size` positions and how many behind, for a kernel that spans `extent` of them.
    pub fn around(self, size: usize, extent: usize, stride: usize) -> (usize, usize) {
        match self {
            Self::Symmetric(each) => (each, each),
            Self::Same => {
                let outputs = size.div_ceil(stride.max(1));
                let total = (outputs.saturating_sub(1) * stride + extent).saturating_sub(size);
                (total / 2, total - total / 2)
            }
        }
    }

    /// How many outputs a kernel that spans `extent` positions has on `size` of them; `None` where it does not fit.
    pub fn outputs(self, size: usize, extent: usize, stride: usize) -> Option<usize> {
        let (before, behind) = self.around(size, extent, stride);
        (before + size + behind).checked_sub(extent).map(|room| room / stride + 1)
    }
}

impl fmt::Display for Padding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symmetric(each) => each.fmt(f),
            Self::Same => f.write_str("\"same\""),
        }
    }
}

impl From<usize> for Padding {
    fn from(each: usize) -> Self {
        Self::Symmetric(each)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// TensorFlow's documented rule for `SAME`.
    #[rstest]
    #[case::even(224, 3, 2, (0, 1), 112)]
    #[case::odd(7, 3, 2, (1, 1), 4)]
    #[case::seven(224, 7, 2, (2, 3), 112)]
    #[case::stride_1(5, 3, 1, (1, 1), 5)]
    #[case::even_kernel(5, 2, 1, (0, 1), 5)]
    #[case::point(6, 1, 2, (0, 0), 3)]
    #[case::small(1, 3, 2, (1, 1), 1)]
    fn same_pads_behind(
        #[case] size: usize,
        #[case] extent: usize,
        #[case] stride: usize,
        #[case] around: (usize, usize),
        #[case] outputs: usize,
    ) {
        assert_eq!(Padding::Same.around(size, extent, stride), around);
        assert_eq!(Padding::Same.outputs(size, extent, stride), Some(outputs));
    }

    #[test]
    fn a_kernel_that_does_not_fit_has_no_outputs() {
        assert_eq!(Padding::Symmetric(1).outputs(1, 5, 1), None);
        assert_eq!(Padding::from(2).outputs(1, 5, 1), Some(1));
    }
}
