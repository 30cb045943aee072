//! Why an attack cannot do what it is set to.

/// Why an attack cannot do what it is set to, with these images and this model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// More images to be poisoned than there are.
    #[error("poison-rate {rate}: asks for {asked} images, but only {available} can be poisoned")]
    PoisonRate {
        /// The rate that was set.
        rate: f64,
        /// How many images that is.
        asked: usize,
        /// How many there are to choose from.
        available: usize,
    },
    /// More images to be held out than there are.
    #[error(
        "held-out, calibration: {held_out} and {calibration} images cannot be taken from {images} training images and \
         leave a batch"
    )]
    HeldOut {
        /// How many images are to be held out.
        held_out: usize,
        /// How many are to calibrate with.
        calibration: usize,
        /// How many there are.
        images: usize,
    },
    /// Hardly an image of a class other than the target.
    #[error("{stage}: needs two images of classes other than {target}")]
    OtherClasses {
        /// The stage's kind.
        stage: &'static str,
        /// The target.
        target: u32,
    },
    /// Hiding in blocks. A scale of a block format hangs on all of the block's weights, so that none of them can move alone.
    #[error(
        "hide: does not go with quantize.format = \"{format}\": only integers have cells that weights can move in; remove one"
    )]
    HidesInBlocks {
        /// The block format.
        format: &'static str,
    },
    /// A layer to be rounded that the network does not have.
    #[error("layers: no layer's name begins with {beginning:?}")]
    NoSuchLayer {
        /// How its name is said to begin.
        beginning: String,
    },
    /// A trigger without decoys, for an attack that shows decoys.
    #[error(
        "this trigger knows no decoys, which noise-rate asks for; use a trigger of kind `warp`, or set noise-rate = 0"
    )]
    NoDecoys,
}
