//! The same model in other libraries, for their `config.json`.

use serde_json::{Map, Value};

use super::ModelSpec;
use super::naming::Scheme;

/// A model of timm.
pub struct Timm {
    /// Its name.
    pub name: &'static str,
    /// Arguments of the function that builds it, beside the number of channels.
    pub arguments: Map<String, Value>,
    /// Width of the head's input.
    pub features: usize,
    /// timm's names of the first convolution and of the head.
    pub ends: [&'static str; 2],
    /// Whose names it can load, of those that are translated.
    pub scheme: Option<Scheme>,
    /// Height and width of the only images for which it computes the same.
    pub image: Option<[usize; 2]>,
}

/// A model of transformers.
pub struct Transformers {
    /// Its class.
    pub class: &'static str,
    /// What `model_type` says.
    pub model_type: &'static str,
    /// The keys of its configuration that say how the network is built.
    pub config: Map<String, Value>,
}

impl ModelSpec {
    /// timm's model that computes the same, if there is one.
    pub fn timm(&self) -> Option<Timm> {
        (self.arch.architecture().timm)(&self.resolved())
    }

    /// transformers' model that computes the same.
    pub fn transformers(&self) -> Option<Transformers> {
        (self.arch.architecture().transformers)(&self.resolved())
    }
}
