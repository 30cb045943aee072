//! Reads safetensors files: one, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Entry, File, MAX_FILE, check_name};
use crate::Result;
use crate::tensors::from_view;

/// Room for names, shapes and metadata. A ResNet's header takes 15 KB.
pub(crate) const MAX_HEADER: u64 = 16 << 20;

/// Names, dtypes and tensors in the order of the file.
pub type Entries = Vec<Entry>;

/// Reads the header, and the rest only if the file is as long as the header says.
pub fn read(file: &mut File) -> Result<(Entries, Vec<u8>)> {
    let mut bytes = file.take(8)?;
    let header = header_length(&bytes, file.length).map_err(|message| file.error(message))?;
    file.append(header, &mut bytes)?;
    check_length(&bytes, file.length).map_err(|message| file.error(message))?;
    file.append(file.length - 8 - header, &mut bytes)?;
    let entries = parse(&bytes).map_err(|message| file.error(message))?;
    Ok((entries, bytes))
}

/// How long the JSON is that follows the first 8 bytes.
fn header_length(bytes: &[u8], file: u64) -> Result<u64, String> {
    let Some(header) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return Err(format!("has {file} bytes; a safetensors file has at least 8"));
    };
    if header > file - 8 {
        return Err(format!(
            "is cut off or no safetensors file: the header should have {header} bytes, the whole file has {file}"
        ));
    }
    if header > MAX_HEADER {
        return Err(format!("the header has {header} bytes; expected at most {MAX_HEADER}"));
    }
    Ok(header)
}

/// Compares where the last tensor ends, according to the header, with the end of the file.
fn check_length(bytes: &[u8], file: u64) -> Result<(), String> {
    let header = header_length(bytes, file)?;
    let damaged = |what: &str| format!("is no safetensors file, or its header is damaged: {what}");
    let json = bytes.get(8..8 + header as usize).ok_or_else(|| damaged("it ends early"))?;
    let json: Map<String, Value> = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
    let declared = json.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0);
    match file - 8 - header {
        found if found == declared => Ok(()),
        found => Err(format!("is cut off or damaged: {found} bytes of tensors, the header says {declared}")),
    }
}

/// Every tensor of a safetensors file.
pub fn parse(bytes: &[u8]) -> Result<Entries, String> {
    check_length(bytes, bytes.len() as u64)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| explain(&error))?;
    let entry = |(name, view): (&str, _)| {
        check_name(name)?;
        let tensor = from_view(&view).map_err(|message| format!("tensor `{name}` {message}"))?;
        Ok(Entry { name: name.to_string(), dtype: view.dtype(), tensor })
    };
    let mut entries = file.iter().map(entry).collect::<Result<Entries, String>>()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What the library means.
fn explain(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::TensorInvalidInfo => "the header gives a tensor a shape that does not fit its bytes".into(),
        SafeTensorError::InvalidOffset(name) => format!("tensor {name:?}: its bytes overlap another's or leave a gap"),
        // It may quote a name.
        other => format!("is no usable safetensors file: {}", other.to_string().escape_debug()),
    }
}

/// `model.safetensors.index.json`. Its `metadata` says how large the shards are together, which they say themselves.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Refuses names of tensors that cannot be printed, and shards that are not in the folder of the index.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let parsed: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("is no index of safetensors files: {error}"))?;
        parsed.weight_map.keys().try_for_each(|name| check_name(name))?;
        if let Some(shard) = parsed.weight_map.values().find(|shard| !is_file_name(shard)) {
            let shown: String = shard.chars().take(100).collect();
            return Err(format!("names the shard {shown:?}; expected a file in the same folder"));
        }
        Ok(parsed)
    }

    fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// The files that an index names, all of them in its own folder.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    Ok(Index::parse(index)?.shards().into_iter().map(str::to_owned).collect())
}

/// Reads the shards beside an index. The digest is that of the index and the shards, by name, one after another.
pub fn read_sharded(index: &mut File) -> Result<(Entries, String, u64)> {
    if index.length > MAX_HEADER {
        return Err(index.error(format!("has {} bytes; an index has at most {MAX_HEADER}", index.length)));
    }
    let bytes = index.take(index.length)?;
    let mut digest = Sha256::new_with_prefix(&bytes);
    let mut total = index.length;
    let parsed = Index::parse(&bytes).map_err(|message| index.error(message))?;
    let mut entries = Entries::new();
    let mut names = BTreeSet::new();
    for shard in parsed.shards() {
        let path = index.path.parent().unwrap_or(Path::new("")).join(shard);
        if !path.exists() {
            return Err(index.error(format!("names the shard {shard}, which is not there")));
        }
        let mut file = File::open(&path)?;
        total += file.length;
        if total > MAX_FILE {
            return Err(index.error(format!("has shards of more than {MAX_FILE} bytes together")));
        }
        let (found, bytes) = read(&mut file)?;
        digest.update(&bytes);
        for entry in &found {
            match parsed.weight_map.get(&entry.name) {
                _ if !names.insert(entry.name.clone()) => {
                    return Err(file.error(format!("has the tensor `{}`, which another shard has too", entry.name)));
                }
                Some(expected) if expected == shard => {}
                Some(other) => {
                    return Err(
                        file.error(format!("has the tensor `{}`, which the index puts into {other}", entry.name))
                    );
                }
                None => {
                    return Err(file.error(format!("has the tensor `{}`, which the index does not name", entry.name)));
                }
            }
        }
        entries.extend(found);
    }
    let missing: Vec<_> = parsed.weight_map.iter().filter(|(name, _)| !names.contains(*name)).collect();
    if let Some((name, shard)) = missing.first() {
        let more =
            if missing.len() > 1 { format!(", and {} more are missing", missing.len() - 1) } else { String::new() };
        return Err(index.error(format!("puts the tensor `{name}` into {shard}, which does not have it{more}")));
    }
    Ok((entries, crate::tensors::hex(digest), total))
}

/// Whether it names a file in the folder, on every system.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && name.len() <= 255
        && !name.contains(['/', '\\', ':'])
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use rstest::rstest;

    use super::*;
    use crate::tensors::to_safetensors;

    fn file(tensor: Tensor) -> Vec<u8> {
        to_safetensors(&[("fc.weight".to_string(), tensor)].into(), &BTreeMap::new()).unwrap()
    }

    fn floats() -> Vec<u8> {
        file(Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap())
    }

    #[rstest]
    #[case::empty(vec![], "has 0 bytes")]
    #[case::text(b"not a checkpoint, but a text".to_vec(), "is cut off or no safetensors file")]
    #[case::short(floats()[..floats().len() - 5].to_vec(), "is cut off or damaged: 43 bytes of tensors, the header says 48")]
    #[case::no_json([&4u64.to_le_bytes()[..], b"oops"].concat(), "header is damaged")]
    #[case::huge_header([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "the header should have")]
    fn damaged_files_are_explained(#[case] bytes: Vec<u8>, #[case] expected: &str) {
        let message = parse(&bytes).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }

    #[rstest]
    #[case("model-00001-of-00002.safetensors", true)]
    #[case("../model.safetensors", false)]
    #[case("/etc/passwd", false)]
    #[case("a/b", false)]
    #[case("a\\b", false)]
    #[case("c:b", false)]
    #[case("..", false)]
    #[case(".", false)]
    #[case("", false)]
    fn shards_stay_in_the_folder(#[case] name: &str, #[case] expected: bool) {
        assert_eq!(is_file_name(name), expected);
    }
}
