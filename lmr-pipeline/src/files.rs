//! What files are called and how JSON is written, wherever they lie.

use serde::Serialize;

use crate::{Error, Result};

/// The weights of a model: in a stage's folder, and wherever they are published.
pub const MODEL_FILE: &str = "model.safetensors";

/// Pretty JSON with a final newline.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}
