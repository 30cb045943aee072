//! What there is to know about an architecture, all of which its own file says.

use super::Arch;
use super::naming::Names;
use super::network::Layers;
use super::recognize::Shapes;
use super::spec::{ModelSpec, Options};
use super::twins::{Timm, Transformers};
use crate::Result;
use crate::nn::Builder;

/// An architecture.
pub(super) struct Architecture {
    /// The keys that apply to it, with their defaults.
    pub options: Options,
    /// What model of this architecture a checkpoint is for, if it is for one. Its tensors have the names that models here
    /// have.
    pub recognize: fn(Arch, &Shapes) -> Option<ModelSpec>,
    /// Builds its layers from a specification whose options are filled in.
    pub build: fn(&ModelSpec, &Builder) -> Result<Box<dyn Layers>>,
    /// Side of the smallest square images that it takes.
    pub smallest_side: usize,
    /// How libraries name its tensors; the names that models here have come first.
    pub names: &'static [Names],
    /// How the name of a block begins, `#` for its number, if there are `depth` blocks that are all alike.
    pub block: Option<&'static str>,
    /// timm's model that computes the same as one of these options, if there is one.
    pub timm: fn(&ModelSpec) -> Option<Timm>,
    /// transformers' model that does.
    pub transformers: fn(&ModelSpec) -> Option<Transformers>,
}

impl Architecture {
    /// One that no library has.
    pub const fn new(
        options: Options,
        recognize: fn(Arch, &Shapes) -> Option<ModelSpec>,
        build: fn(&ModelSpec, &Builder) -> Result<Box<dyn Layers>>,
    ) -> Self {
        Self {
            options,
            recognize,
            build,
            smallest_side: 1,
            names: &[],
            block: None,
            timm: |_| None,
            transformers: |_| None,
        }
    }
}

/// `Name: file::ENTRY`, with the documentation that the schema shows.
macro_rules! architectures {
    ($($(#[doc = $doc:literal])* $name:ident: $entry:expr;)*) => {
        /// The architectures there are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Arch {
            $($(#[doc = $doc])* $name,)*
        }

        impl Arch {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn architecture(self) -> $crate::zoo::registry::Architecture {
                match self {
                    $(Self::$name => $entry,)*
                }
            }
        }
    };
}

pub(super) use architectures;
