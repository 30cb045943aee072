//! What `torch.save` writes: a pickle that describes tensors, and their numbers beside it. Nothing in the file is run; see
//! [`pickle`](super::pickle).
//!
//! Source: PyTorch's `torch/serialization.py`.

mod objects;
mod write;
mod zip;

use super::pickle::{MAX_PICKLE, Pickle, Value};
pub use objects::Found;
use objects::{Storages, find};
pub use write::write;

/// The number every file of the old format begins with, as a pickled integer of 10 bytes.
pub const MAGIC: &[u8; 12] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// The only version of the old format that there is.
const VERSION: i64 = 1001;

/// Reads the zip format, PyTorch 1.6 and later.
pub fn read_zip(file: &[u8], key: Option<&str>) -> Result<Found, String> {
    let entries = zip::entries(file)?;
    let is_folder = |root: &&str| root.is_empty() || root.ends_with('/');
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("data.pkl").filter(is_folder));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("is a zip file, but none that torch.save wrote: expected one entry data.pkl".into());
    };
    let entry = |name: &str| entries.get(format!("{root}{name}").as_str()).copied();
    if entry("constants.pkl").is_some() {
        return Err("is TorchScript, a program; expected a state dict: torch.save(torch.jit.load(path).state_dict(), \"model.pth\")"
            .into());
    }
    if entry("byteorder").is_some_and(|order| order != b"little") {
        return Err("was written on a big-endian machine; load and save it on another one".into());
    }
    let data = format!("{root}data/");
    let storages: Storages =
        entries.iter().filter_map(|(name, bytes)| Some((name.strip_prefix(data.as_str())?, *bytes))).collect();
    let pickle = entry("data.pkl").unwrap_or_default();
    if pickle.len() > MAX_PICKLE {
        return Err(format!("its pickle has {} bytes; expected at most {MAX_PICKLE}", pickle.len()));
    }
    find(&Pickle::read(pickle)?, &storages, key, file.len())
}

/// Reads the format of PyTorch before 1.6: five pickles, then the storages one after another.
pub fn read_legacy(file: &[u8], key: Option<&str>) -> Result<Found, String> {
    let mut rest = file;
    let mut next = || -> Result<Pickle<'_>, String> {
        let pickle = Pickle::read(rest)?;
        rest = &rest[pickle.byte_len()..];
        Ok(pickle)
    };
    let _magic = next()?;
    let version = next()?.root();
    if version != Value::Int(VERSION) {
        return Err(format!("has an unknown version of PyTorch's old format; expected {VERSION}"));
    }
    let system = next()?;
    if system.get(system.root(), "little_endian") != Some(Value::Bool(true)) {
        return Err("was written on a big-endian machine; load and save it on another one".into());
    }
    let (object, keys) = (next()?, next()?);
    let sizes = objects::storage_sizes(&object);
    let mut storages = Storages::new();
    for key in keys.sequence(keys.root()).ok_or("its list of storages is damaged")? {
        let key = keys.text(*key).ok_or("its list of storages is damaged")?;
        let cut_off = || format!("is cut off or damaged at storage {key:?}");
        let (length, after) = rest.split_first_chunk::<8>().ok_or_else(cut_off)?;
        // A storage says how many elements it has, and only the pickle how large they are.
        let size = sizes.get(key).ok_or_else(cut_off)?;
        let bytes = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|length| length.checked_mul(*size));
        let (storage, after) = bytes.and_then(|bytes| after.split_at_checked(bytes)).ok_or_else(cut_off)?;
        if storages.insert(key, storage).is_some() {
            return Err(format!("has the storage {key:?} twice"));
        }
        rest = after;
    }
    find(&object, &storages, key, file.len())
}
