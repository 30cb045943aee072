//! What a network is asked to do with a batch.

use crate::forward::{Eval, Forward, Frozen, Train};
use crate::layers::BatchNormMode;

/// How a network runs: what is recorded for backward, and which statistics batch norm uses.
///
/// A network that says layer by layer what it computes is run by the interpreter that [`Mode::with`] lends. One with a forward
/// pass of its own needs to know little more than which [statistics](Mode::batch_statistics) its batch norm takes:
///
/// ```
/// use lmr_nn::{BatchNormMode, Mode};
///
/// // What the layers of `candle_nn` call `train`.
/// let train = |mode: Mode| mode.batch_statistics();
/// assert!(train(Mode::Train(BatchNormMode::Batch)));
/// assert!(!train(Mode::Train(BatchNormMode::Running)) && !train(Mode::Frozen) && !train(Mode::Eval));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Inference: running statistics, nothing recorded for backward.
    Eval,
    /// Inference that is differentiable in the images alone: neither weights nor running statistics may move.
    Frozen,
    /// Training: everything is recorded.
    Train(BatchNormMode),
}

impl Mode {
    /// Whether batch norm normalizes with the batch's own statistics, and moves the running ones.
    pub fn batch_statistics(self) -> bool {
        self == Self::Train(BatchNormMode::Batch)
    }

    /// Calls `run` with the interpreter that does what the mode says: [`Eval`], [`Frozen`] or [`Train`].
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use lmr_nn::{Activation, Builder, Linear, Mode, rng};
    ///
    /// let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
    /// let head = Linear::new(8, 10, &b)?;
    /// let features = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
    /// let logits = Mode::Eval.with(|how| how.linear(&head, &features, Activation::None))?;
    /// assert!(!logits.track_op());
    /// # Ok::<(), lmr_nn::Error>(())
    /// ```
    pub fn with<T>(self, run: impl FnOnce(&mut dyn Forward) -> T) -> T {
        match self {
            Self::Eval => run(&mut Eval),
            Self::Frozen => run(&mut Frozen),
            Self::Train(batch_norm) => run(&mut Train { batch_norm }),
        }
    }
}

/// Training with the batch's own statistics.
impl Default for Mode {
    fn default() -> Self {
        Self::Train(BatchNormMode::Batch)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use rstest::rstest;

    use super::*;
    use crate::layers::{Activation, BatchNorm2d, Conv2d, ConvBn, ConvConfig, ConvSpec};
    use crate::params::Builder;
    use crate::rng;

    /// A convolution records what its mode promises, and batch norm moves its statistics in one mode alone.
    #[rstest]
    #[case(Mode::Eval, false, false, false)]
    #[case(Mode::Frozen, true, false, false)]
    #[case(Mode::Train(BatchNormMode::Running), true, true, false)]
    #[case(Mode::default(), true, true, true)]
    fn modes_differ_in_what_they_record(
        #[case] mode: Mode,
        #[case] images: bool,
        #[case] weights: bool,
        #[case] statistics: bool,
    ) {
        let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
        let config = ConvConfig::default();
        let spec = ConvSpec { in_channels: 2, out_channels: 3, kernel: (1, 1), bias: false, config };
        let conv = Conv2d::new(&spec, &b.pp("conv")).unwrap();
        let layer = ConvBn::new(conv, BatchNorm2d::new(3, &b.pp("bn")).unwrap()).unwrap();
        let x = Var::ones((2, 2, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let y = mode.with(|how| how.convolution((&layer).into(), &x, None, Activation::None)).unwrap();
        let store = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(store.get(&x).is_some(), images);
        assert_eq!(store.get(layer.conv().weight()).is_some(), weights);
        let mean = layer.bn().running_mean().to_vec1::<f32>().unwrap();
        assert_eq!((mean != [0.0; 3], mode.batch_statistics()), (statistics, statistics));
    }
}
