//! Images as tokens (Dosovitskiy et al., 2021).

use candle_core::Var;

use super::Conv2d;
use crate::error::Result;
use crate::params::{Builder, Init};

/// A linear map of every patch, a class token in front of them, and a learned embedding of each position.
#[derive(Clone, Debug)]
pub struct PatchEmbedding {
    conv: Conv2d,
    class: Var,
    position: Var,
}

impl PatchEmbedding {
    /// For `patches` patches. `conv` maps a patch: its kernel and its stride are the patch. The class token is read
    /// from `class`, the positions from `position`: `f32[1,1,D]` and `f32[1,1+patches,D]`.
    pub fn new(
        conv: Conv2d,
        patches: usize,
        (class, class_name): (&Builder, &str),
        (position, position_name): (&Builder, &str),
    ) -> Result<Self> {
        let features = conv.out_channels();
        let class = class.parameter(class_name, (1, 1, features), Init::Zeros)?;
        let position = position.parameter(position_name, (1, 1 + patches, features), Init::Normal { std: 0.02 })?;
        Ok(Self { conv, class, position })
    }

    /// The map of a patch.
    pub fn conv(&self) -> &Conv2d {
        &self.conv
    }

    /// `f32[1,1,D]`.
    pub fn class(&self) -> &Var {
        &self.class
    }

    /// `f32[1,T,D]`.
    pub fn position(&self) -> &Var {
        &self.position
    }
}
