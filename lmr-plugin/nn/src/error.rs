//! The one error type of the crate.

use crate::nearest::nearest;
use crate::padding::Padding;

/// What can go wrong in a layer or an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Candle refused an operation (shape, dtype, device).
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Tensors do not fit the parameters they were meant for.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Sizes that do not go together.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Two variables of one name.
    #[error("two variables are called `{name}`")]
    DuplicateName {
        /// What both are called.
        name: String,
    },
    /// A layer's parameter is not there.
    #[error("there is no parameter `{name}`{}", perhaps(near))]
    NoParameter {
        /// What was looked for.
        name: String,
        /// Names that come near, the nearest first.
        near: Vec<String>,
    },
    /// Batch norm of a batch was asked for where there is but one value per channel.
    #[error("{layer}: one value per channel has no variance; train with a batch of at least 2")]
    NoVariance {
        /// The layer's full name.
        layer: String,
    },
    /// A node of a [`Trunk`](crate::Trunk) reads a value that no earlier node gives.
    #[error("a node reads value {value} before there is one")]
    NodeOrder {
        /// The value's number.
        value: usize,
    },
    /// Forms of a network that has no batch norm to share ([`Branches`](crate::Branches)).
    #[error("{layer}: forms of a vision transformer cannot be trained together, only of a CNN")]
    NoBranches {
        /// The layer's full name.
        layer: String,
    },
    /// What an interpreter ([`Forward`](crate::Forward)) or a form of the caller's own failed with.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// Names that may be meant.
fn perhaps(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; perhaps one of `{}`", near.join("`, `")),
    }
}

/// Sizes of tensors, kernels and images that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// A stride, dilation, number of groups or side of a kernel is 0.
    #[error(
        "convolution: nothing may be 0 in stride {stride}, dilation {dilation}, {groups} groups, kernel {}x{}",
        kernel.0, kernel.1
    )]
    Zero {
        /// Positions between two outputs.
        stride: usize,
        /// Positions between two taps.
        dilation: usize,
        /// Independent parts of the channels.
        groups: usize,
        /// Height and width.
        kernel: (usize, usize),
    },
    /// A weight that is not one of an input's channels in so many groups.
    #[error("convolution: {channels} input channels and a weight of {weight:?} do not fit {groups} groups")]
    Weight {
        /// Channels of the input.
        channels: usize,
        /// The weight's dimensions.
        weight: Vec<usize>,
        /// Independent parts of the channels.
        groups: usize,
    },
    /// An image that its kernel does not fit into.
    #[error(
        "convolution: a {}x{} image is smaller than its {}x{} kernel", image.0, image.1, kernel.0, kernel.1
    )]
    Image {
        /// Height and width.
        image: (usize, usize),
        /// Height and width.
        kernel: (usize, usize),
    },
    /// Channels that groups do not share evenly.
    #[error("{layer}: {inputs} and {outputs} channels do not divide into {groups} groups")]
    Groups {
        /// The layer's full name.
        layer: String,
        /// Channels of the input.
        inputs: usize,
        /// Channels of the output.
        outputs: usize,
        /// Independent parts of the channels.
        groups: usize,
    },
    /// A batch norm over other channels than its convolution gives.
    #[error("{conv} and {bn} differ in channels")]
    ConvBn {
        /// The convolution's full name.
        conv: String,
        /// The batch norm's full name.
        bn: String,
    },
    /// Another number of channels than a layer was built for.
    #[error("{layer}: expected {expected} channels, found {found}")]
    Channels {
        /// The layer's full name.
        layer: String,
        /// What it was built for.
        expected: usize,
        /// What it was given.
        found: usize,
    },
    /// A fully connected layer of tensors that are none.
    #[error("{layer}: expected a weight [K,D] and perhaps a bias [K], found {dims:?}")]
    Linear {
        /// The layer's full name.
        layer: String,
        /// The weight's dimensions, and the bias's if there is one.
        dims: Vec<Vec<usize>>,
    },
    /// A pooling window that does not fit its image.
    #[error(
        "pooling: kernel {kernel} (at most 15), stride {stride} and padding {padding} do not fit a {}x{} image",
        image.0, image.1
    )]
    Pooling {
        /// Height and width.
        image: (usize, usize),
        /// Side of the window.
        kernel: usize,
        /// Positions between two windows.
        stride: usize,
        /// Positions added around the image.
        padding: Padding,
    },
    /// Tokens among which there is none of a patch.
    #[error("expected a class token and tokens of patches, found {found:?}")]
    NoPatches {
        /// The dimensions.
        found: Vec<usize>,
    },
    /// Pooling from or to nothing.
    #[error("adaptive pooling: {from} cannot become {to}")]
    AdaptivePooling {
        /// Positions there are.
        from: usize,
        /// Positions wanted.
        to: usize,
    },
    /// A tensor that holds no images.
    #[error("expected images, found {found:?}")]
    NotImages {
        /// Its dimensions.
        found: Vec<usize>,
    },
    /// A tensor that holds no tokens.
    #[error("attention: expected tokens, found {found:?}")]
    NotTokens {
        /// Its dimensions.
        found: Vec<usize>,
    },
    /// Features that are not three times those of so many heads.
    #[error("attention: {features} features are not q, k and v of {heads} heads")]
    Attention {
        /// Features of a token.
        features: usize,
        /// Heads.
        heads: usize,
    },
    /// Features that heads do not share evenly.
    #[error("{layer}: {features} features do not divide into {heads} heads")]
    Heads {
        /// The layer's full name.
        layer: String,
        /// Features of a token.
        features: usize,
        /// Heads.
        heads: usize,
    },
    /// Images that do not divide into as many patches as there are positions.
    #[error(
        "{}x{}x{} images do not divide into {patches} patches of {}x{}x{}",
        image[0], image[1], image[2], patch[0], patch[1], patch[2]
    )]
    Patches {
        /// Channels, height and width.
        image: [usize; 3],
        /// How many there are to be.
        patches: usize,
        /// Channels, height and width.
        patch: [usize; 3],
    },
}

/// What a checkpoint lacks or has too much of; all faults at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsError {
    /// Names the model needs and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names the checkpoint has and the model does not know.
    pub unexpected: Vec<String>,
    /// `name: expected shape, found shape` where they differ, or a dtype that cannot be read.
    pub mismatched: Vec<String>,
}

impl std::error::Error for WeightsError {}

impl WeightsError {
    /// An error, if there is any fault.
    pub(crate) fn into_result(self) -> Result<(), Self> {
        if self == Self::default() { Ok(()) } else { Err(self) }
    }

    /// A missing name with the unexpected one that is perhaps meant.
    fn with_nearest(&self, name: &str) -> String {
        // Long lists come from another architecture, where every guess would be wrong.
        if self.unexpected.len() > 100 {
            return name.to_string();
        }
        match nearest(name, self.unexpected.iter().map(String::as_str), name.len() / 4).first() {
            Some(other) => format!("{name} (perhaps `{other}`)"),
            None => name.to_string(),
        }
    }
}

impl std::fmt::Display for WeightsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        let missing: Vec<String> = self.missing.iter().map(|name| self.with_nearest(name)).collect();
        for (what, names) in
            [("missing", &missing), ("unexpected", &self.unexpected), ("of another shape", &self.mismatched)]
        {
            if let Some((shown, rest)) = names.split_at_checked(names.len().min(6)).filter(|(s, _)| !s.is_empty()) {
                let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
                parts.push(format!("{} {what}: {}{more}", names.len(), shown.join(", ")));
            }
        }
        write!(f, "the checkpoint does not fit the model: {}", parts.join("; "))
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
