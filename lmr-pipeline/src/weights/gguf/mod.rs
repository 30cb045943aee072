//! GGUF files: any that hold tensors are read, and models in blocks are written.

mod read;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::quantized::QTensor;

pub use read::read;
pub use write::write;

/// The first bytes of every file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The key of the architecture's name.
pub const ARCHITECTURE: &str = "general.architecture";
/// The key of the block format.
pub const FORMAT: &str = "lmr.format";
/// The key of what `config.json` has under `lmr`, as JSON.
pub const CONFIG: &str = "lmr.config";

/// What a file has beside its tensors in f32.
#[derive(Clone, Default)]
pub struct Gguf {
    /// The format that LMR wrote it in; `None` if another program wrote it.
    pub format: Option<String>,
    /// The model it is for, as JSON.
    pub config: Option<String>,
    /// Every tensor as it is stored.
    pub tensors: BTreeMap<String, Arc<QTensor>>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dtypes: BTreeMap<_, _> = self.tensors.iter().map(|(name, tensor)| (name, tensor.dtype())).collect();
        let Self { format, config, .. } = self;
        f.debug_struct("Gguf").field("format", format).field("config", config).field("tensors", &dtypes).finish()
    }
}
