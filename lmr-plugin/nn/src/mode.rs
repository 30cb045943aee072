//! What a network is asked to do with a batch.

use super::{BatchNormMode, Eval, Forward, Frozen, Train};

/// How a network runs: what is recorded for backward, and which statistics batch norm uses.
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

    /// Calls `run` with the interpreter that does what the mode says.
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
