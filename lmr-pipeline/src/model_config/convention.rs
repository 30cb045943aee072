//! The preprocessing that a model expects, by name or as the file beside its weights says.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ModelConfig;
use crate::preprocess::{Interpolation, Preprocessing, Resize};
use crate::{Error, Result};

/// Whose preprocessing a model expects. The named ones are for inputs of 224×224 and what most published weights were
/// evaluated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Convention {
    /// What the `config.json` or `preprocessor_config.json` beside the checkpoint says.
    Checkpoint,
    /// torchvision's for ImageNet: shorter side to 256, bilinear, ImageNet's mean and standard deviation.
    ResnetImagenet,
    /// timm's for ViT weights of the AugReg kind: shorter side to 248, bicubic, pixels in [-1, 1].
    VitAugreg,
    /// transformers' for ViT: stretched to 224×224, bilinear, pixels in [-1, 1].
    VitTransformers,
}

impl Convention {
    /// What the name stands for, for a model that is read from `checkpoint`.
    pub fn preprocessing(self, checkpoint: Option<&Path>) -> Result<Preprocessing> {
        let (resize, interpolation, mean, std) = match self {
            Self::Checkpoint => return beside(checkpoint),
            Self::ResnetImagenet => {
                (Resize::ShortestEdge(256), Interpolation::Bilinear, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            }
            Self::VitAugreg => (Resize::ShortestEdge(248), Interpolation::Bicubic, [0.5; 3], [0.5; 3]),
            Self::VitTransformers => (Resize::Exact([224, 224]), Interpolation::Bilinear, [0.5; 3], [0.5; 3]),
        };
        Ok(Preprocessing { size: [224, 224], resize, interpolation, mean: mean.to_vec(), std: std.to_vec() })
    }
}

fn beside(checkpoint: Option<&Path>) -> Result<Preprocessing> {
    let Some(checkpoint) = checkpoint else {
        return Err(Error::input(Path::new("config.json"), "there is no checkpoint that it could lie beside"));
    };
    let found = ModelConfig::beside(checkpoint)?.and_then(|config| config.preprocessing);
    found.ok_or_else(|| {
        let message = "no config.json or preprocessor_config.json beside it says how images are preprocessed";
        Error::input(checkpoint, message)
    })
}
