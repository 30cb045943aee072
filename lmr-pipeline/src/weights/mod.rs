//! Checkpoints as people have them: safetensors, safetensors in shards, GGUF, and what `torch.save` writes (`.pth`, `.pt`,
//! `.bin`). A file is recognized by its first bytes, whatever it is called.
//!
//! Nobody vouches for these files. Reading one runs nothing that is in it, also not a pickle's calls, so a local pickle
//! needs no switch (one from the Hub has one, since people ask for it); memory is bounded, by three times the file for the
//! numbers, and for GGUF by the file and what its blocks hold in f32; whatever is wrong becomes an error that names the file. What is read is a flat map from names to tensors and a
//! [`Layout`], with which the same names are written back.

pub(crate) mod described;
mod encoded;
mod foreign;
pub(crate) mod gguf;
mod layout;
mod names;
mod pickle;
mod safetensors;
pub(crate) mod stored;
mod torch;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use lmr_plugin::nn::StateDict;

use self::safetensors as st;
pub(crate) use self::safetensors::{MAX_HEADER as MAX_INDEX, shards};
use crate::tensors::{not_finite, sha256};
use crate::{Error, Result};
pub use gguf::Gguf;
pub use layout::{Container, Export, Layout, StoredTensor};
pub use names::Wrapping;

/// No image classifier here comes near; a ViT-Large takes 1.2 GB.
pub(crate) const MAX_FILE: u64 = 4 << 30;
/// What libraries call a checkpoint in a folder, first choice first.
const USUAL: &[&str] = &["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
/// How other checkpoints end.
const ENDINGS: &[&str] = &["safetensors", "pth", "pt", "bin", "gguf"];
/// How pickles end.
const PICKLES: &[&str] = &["pth", "pt", "bin"];
/// Bytes that tell what a file is.
const HEAD: u64 = 32;
/// Bytes of a tensor's name.
const MAX_NAME: usize = 512;

/// A checkpoint as it came.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The tensors under the names of the file, without what a wrapper put before all of them.
    pub state: StateDict,
    /// How to write tensors back as they came.
    pub layout: Layout,
    /// SHA-256 of the file in hexadecimal digits; of the index followed by the shards, if there are shards.
    pub sha256: String,
    /// Length of the file, or of all of them.
    pub bytes: u64,
    /// Plain values that the file keeps beside the weights, such as `epoch` or `arch`.
    pub notes: Vec<(String, String)>,
    /// What a GGUF file says of itself; its tensors are decoded to f32.
    pub gguf: Option<Gguf>,
}

/// A tensor in a file.
pub struct Entry {
    name: String,
    dtype: ::safetensors::Dtype,
    tensor: Tensor,
}

/// Reads a checkpoint that can be computed with: its numbers are finite. `key` chooses a state dict where there are
/// several.
pub fn load(path: &Path, key: Option<&str>) -> Result<Checkpoint> {
    let mut checkpoint = read(path, key)?;
    // A counter that a conversion to 16 bits made infinite says nothing about the model.
    let lost = |name: &str, tensor: &Tensor| name.ends_with("num_batches_tracked") && tensor.dtype().is_float();
    checkpoint.state.retain(|name, tensor| !lost(name, tensor) || not_finite(tensor).is_ok_and(|count| count == 0));
    check_finite(&checkpoint.state).map_err(|message| Error::input(path, message))?;
    let Wrapping { prefix, .. } = &checkpoint.layout.wrapping;
    if !prefix.is_empty() {
        tracing::info!("{}: left out `{prefix}` before all names", path.display());
    }
    if let [first, ..] = checkpoint.layout.skipped.as_slice() {
        let count = checkpoint.layout.skipped.len();
        tracing::warn!("{}: left out what is no tensor of the model: `{first}` ({count} in all)", path.display());
    }
    Ok(checkpoint)
}

/// Reads a checkpoint whatever its numbers are.
pub fn read(path: &Path, key: Option<&str>) -> Result<Checkpoint> {
    let mut file = File::open(path)?;
    if let Some(message) = foreign::told(&file.head, path) {
        return Err(file.error(message));
    }
    let mut described = None;
    let (container, found, sha256, bytes) = match Format::of(&file.head, path) {
        Format::Torch(container) => {
            let bytes = file.take(file.length)?;
            let found = match container {
                Container::TorchZip => {
                    torch::read_zip(&bytes, key).map_err(|message| foreign::archive(&bytes).unwrap_or(message))
                }
                _ => torch::read_legacy(&bytes, key),
            };
            (container, found.map_err(|message| file.error(message))?, sha256(&bytes), file.length)
        }
        Format::Pickle => {
            let bytes = file.take(file.length)?;
            return Err(file.error(foreign::pickle(&bytes)));
        }
        format if key.is_some() => {
            let kind = if matches!(format, Format::Gguf) { "GGUF" } else { "safetensors" };
            return Err(file.error(format!("is a {kind} file, which has one state dict; leave `key` out")));
        }
        Format::Gguf => {
            let bytes = file.take(file.length)?;
            let (found, gguf) = gguf::read(&bytes).map_err(|message| file.error(message))?;
            described = Some(gguf);
            (Container::Gguf, found, sha256(&bytes), file.length)
        }
        Format::Index => {
            let (entries, sha256, bytes) = st::read_sharded(&mut file).map_err(|error| {
                let text = fs::read(path).ok().filter(|text| text.len() as u64 <= MAX_INDEX);
                text.and_then(|text| foreign::json(&text)).map_or(error, |message| Error::input(path, message))
            })?;
            (Container::ShardedSafetensors, torch::Found::of(entries), sha256, bytes)
        }
        Format::Safetensors => {
            let (entries, bytes) = st::read(&mut file)?;
            (Container::Safetensors, torch::Found::of(entries), sha256(&bytes), file.length)
        }
    };
    let torch::Found { key, tensors, skipped, notes } = found;
    let mut tensors = tensors;
    let mut skipped = skipped;
    if let Some(count) = names::averaged(tensors.iter().map(|entry| entry.name.as_str())) {
        tensors.retain(|entry| entry.name != count);
        skipped.push(count.to_owned());
    }
    let names: Vec<&str> = tensors.iter().map(|entry| entry.name.as_str()).collect();
    let wrapping = Wrapping::of(&names);
    let mut state = StateDict::new();
    let mut entries = Vec::new();
    for Entry { name, dtype, tensor } in tensors {
        if state.insert(wrapping.short(&name), tensor).is_some() {
            return Err(file.error(format!("has the tensor `{name}` twice")));
        }
        entries.push(StoredTensor { name, dtype });
    }
    let layout = Layout { container, key, wrapping, entries, skipped };
    Ok(Checkpoint { state, layout, sha256, bytes, notes, gguf: described })
}

/// The checkpoint in a folder: the one with the name that libraries give it, or else the only one. A file is itself.
pub fn in_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let entries = fs::read_dir(path).map_err(|error| Error::input(path, format!("cannot be read: {error}")))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let names: Vec<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    match choose(&names) {
        Ok(Some(name)) => Ok(path.join(name)),
        Ok(None) => {
            let mut files = names.iter().map(|name| path.join(name));
            let told = files.find_map(|file| Some((foreign::told(&head(&file).ok()?, &file)?, file)));
            Err(told.map_or_else(
                || Error::input(path, no_checkpoint()),
                |(message, file)| Error::input(&file, format!("{message}; the folder {}", no_checkpoint())),
            ))
        }
        Err(fault) => Err(Error::input(path, fault)),
    }
}

/// The checkpoint among the files of a folder: the one with the name that libraries give it, or else the only one.
pub(crate) fn choose(names: &[String]) -> Result<Option<&str>, String> {
    if let Some(name) = USUAL.iter().find(|usual| names.iter().any(|name| name == *usual)) {
        return Ok(Some(name));
    }
    let mut files: Vec<&str> = names.iter().map(String::as_str).filter(|name| ends(name, ENDINGS)).collect();
    files.sort_unstable();
    match files.as_slice() {
        [] => Ok(None),
        [file] => Ok(Some(file)),
        [first, second, ..] => Err(format!(
            "has {} checkpoints, {} and {} among them; name one",
            files.len(),
            first.escape_debug(),
            second.escape_debug()
        )),
    }
}

/// What is wrong with a folder in which [`choose`] finds nothing.
pub(crate) fn no_checkpoint() -> String {
    format!("has no checkpoint; expected {} or another .{}", USUAL[0], ENDINGS.join(", ."))
}

/// The names that [`choose`] would rather have chosen; `None` if any other file could have changed its choice.
pub(crate) fn preferred_to(chosen: &str) -> Option<impl Iterator<Item = &'static str>> {
    let rank = USUAL.iter().position(|usual| *usual == chosen)?;
    Some(USUAL[..rank].iter().copied())
}

/// Whether its name says that it is a pickle.
pub(crate) fn is_called_a_pickle(name: &str) -> bool {
    ends(name, PICKLES)
}

/// Whether its first bytes say that it is a pickle.
pub(crate) fn is_pickle(path: &Path) -> std::io::Result<bool> {
    Ok(matches!(Format::of(&head(path)?, path), Format::Torch(_) | Format::Pickle))
}

/// The first bytes of a file.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    fs::File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

fn ends(name: &str, endings: &[&str]) -> bool {
    Path::new(name).extension().is_some_and(|ending| endings.iter().any(|known| ending == *known))
}

/// Every tensor of a safetensors file, finite.
pub fn parse(bytes: &[u8]) -> Result<StateDict, String> {
    let state = st::parse(bytes)?.into_iter().map(|entry| (entry.name, entry.tensor)).collect();
    check_finite(&state)?;
    Ok(state)
}

/// What a file is.
enum Format {
    Safetensors,
    Index,
    Gguf,
    Torch(Container),
    /// Another pickle.
    Pickle,
}

impl Format {
    /// Decides by the first bytes; a safetensors file begins with the length of its header, which is below 2^24.
    fn of(head: &[u8], path: &Path) -> Self {
        match head {
            _ if head.starts_with(gguf::MAGIC) => Self::Gguf,
            [b'P', b'K', 3, 4, ..] => Self::Torch(Container::TorchZip),
            _ if head.windows(torch::MAGIC.len()).any(|part| part == torch::MAGIC) => {
                Self::Torch(Container::TorchLegacy)
            }
            [0x80, 2..=5, _, rest @ ..] if !rest.starts_with(&[0; 5]) => Self::Pickle,
            [b'{', ..] if path.extension().is_some_and(|ending| ending == "json") => Self::Index,
            _ => Self::Safetensors,
        }
    }
}

/// A file that is open, not read yet, and of bounded length.
pub struct File<'a> {
    path: &'a Path,
    file: fs::File,
    length: u64,
    /// Its first bytes, as far as they were not taken yet.
    head: Vec<u8>,
}

impl<'a> File<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let unreadable = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
        let file = fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Error::input(path, "expected a safetensors file, found a folder or a device"));
        }
        let length = metadata.len();
        if length > MAX_FILE {
            return Err(Error::input(path, format!("has {length} bytes; expected at most {MAX_FILE}")));
        }
        let mut file = Self { path, file, length, head: Vec::new() };
        file.head = file.take(HEAD)?;
        Ok(file)
    }

    /// The next bytes: `count`, or as many as there are.
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.append(count, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the next bytes.
    fn append(&mut self, count: u64, bytes: &mut Vec<u8>) -> Result<()> {
        // A file may grow while it is read.
        let count = count.min(self.length) as usize;
        bytes.reserve_exact(count);
        let head = self.head.drain(..count.min(self.head.len()));
        let more = count - head.len();
        bytes.extend(head);
        let read = self.file.by_ref().take(more as u64).read_to_end(bytes);
        read.map(drop).map_err(|error| self.error(format!("cannot be read: {error}")))
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::input(self.path, message)
    }
}

/// A name that can be printed: a hostile one could rewrite the terminal.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        let shown: String = name.chars().take(40).collect();
        return Err(format!("has a tensor called {shown:?}; expected 1 to {MAX_NAME} printable bytes"));
    }
    Ok(())
}

/// Every tensor with numbers that are not finite.
fn check_finite(state: &StateDict) -> Result<(), String> {
    let mut faults = Vec::new();
    for (name, tensor) in state.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
        match not_finite(tensor)? {
            0 => {}
            count => {
                faults.push(format!("tensor `{name}`: {count} of {} values are NaN or infinite", tensor.elem_count()))
            }
        }
    }
    match faults.as_slice() {
        [] => Ok(()),
        [shown @ .., _] if faults.len() > 6 => {
            Err(format!("{}; and {} more tensors like that", shown[..5].join("; "), faults.len() - 5))
        }
        all => Err(all.join("; ")),
    }
}
