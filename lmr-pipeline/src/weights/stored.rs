//! Checkpoints of models in a deployed form.

use std::path::Path;

use lmr_plugin::deploy::{BlockFormat, Blocks, Integers, Rounding, StoredError};
use lmr_plugin::model::{Classifier, Form};

use super::{Checkpoint, described, gguf};
use crate::{Error, Result};

/// How the weights of a checkpoint at `path` are rounded; `None` if it is in full precision.
pub fn rounding(path: &Path, checkpoint: &Checkpoint) -> Result<Option<Rounding>> {
    let Some(gguf) = &checkpoint.gguf else {
        return Ok(described::read(path, &checkpoint.state)?.map(Rounding::Integers));
    };
    let name = gguf.format.as_deref().ok_or_else(|| {
        let of = checkpoint.notes.iter().find(|(key, _)| key == gguf::ARCHITECTURE);
        let message = format!(
            "is a GGUF file{} and has no key `{}`; a pipeline loads the GGUF files that `publish` writes, no others: take the \
             model's safetensors or `.pth`",
            of.map(|(_, name)| format!(" of the architecture `{}`", name.escape_debug())).unwrap_or_default(),
            gguf::FORMAT
        );
        Error::input(path, message)
    })?;
    let format = BlockFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let known: Vec<&str> = BlockFormat::ALL.iter().map(|format| format.name()).collect();
        Error::input(path, format!("{}: expected {}, found {name:?}", gguf::FORMAT, known.join(", ")))
    })?;
    Ok(Some(Rounding::Blocks(format)))
}

/// The form that a checkpoint with this rounding makes of `network`, which takes over its values.
pub fn form(
    network: &dyn Classifier,
    checkpoint: &Checkpoint,
    rounding: Rounding,
) -> lmr_plugin::Result<Box<dyn Form>> {
    Ok(match (rounding, &checkpoint.gguf) {
        (Rounding::Integers(scheme), _) => Box::new(Integers::read(network, &checkpoint.state, scheme)?),
        (Rounding::Blocks(format), Some(gguf)) => Box::new(Blocks::read(network, &gguf.tensors, format)?),
        (Rounding::Blocks(_), None) => return Err(StoredError::NoBlocks.into()),
    })
}
