//! Reads GGUF files: names, shapes and values before a block of weights is decoded.
//!
//! Every count, length and offset in the header is compared with the bytes that are there before anything is allocated for
//! it; blocks are decoded by Candle. Versions 2 and 3, little-endian.

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use lmr_plugin::deploy::BlockFormat;
use safetensors::Dtype;

use super::super::torch::Found;
use super::super::{Entry, MAX_FILE, MAX_NAME, check_name};
use super::{CONFIG, FORMAT, Gguf, MAGIC};
use crate::tensors::decode;

const ALIGNMENT: &str = "general.alignment";

/// Of arrays in arrays.
const MAX_DEPTH: usize = 8;
/// A longer value is not shown, nor is one more than so many.
const MAX_NOTE: usize = 200;
const MAX_NOTES: usize = 32;
/// Bytes of the shortest key with its value, and of the shortest description of a tensor.
const MIN_ENTRY: (u64, u64) = (8 + 4 + 1, 8 + 4 + 4 + 8);

/// A whole file: its tensors in their order, with short values to show, and what describes them.
pub fn read(file: &[u8]) -> Result<(Found, Gguf), String> {
    let mut bytes = Bytes { file, at: 0 };
    bytes.take(MAGIC.len() as u64)?;
    let version = bytes.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is a GGUF file of version {version}; expected 2 or 3, little-endian"));
    }
    let (tensors, values) = (bytes.u64()?, bytes.u64()?);
    let least = values.saturating_mul(MIN_ENTRY.0).saturating_add(tensors.saturating_mul(MIN_ENTRY.1));
    if least > bytes.left() {
        return Err(format!(
            "is cut off or damaged: {tensors} tensors and {values} values take at least {least} bytes, {} are left",
            bytes.left()
        ));
    }
    let mut gguf = Gguf::default();
    let (mut alignment, mut notes, mut keys) = (32, Vec::new(), HashSet::new());
    for _ in 0..values {
        let key = bytes.name()?;
        if !keys.insert(key) {
            return Err(format!("has the key {key:?} twice"));
        }
        let kind = bytes.u32()?;
        let value = bytes.value(kind, MAX_DEPTH)?;
        match (key, value) {
            (FORMAT, Some(text)) => gguf.format = Some(text),
            (CONFIG, Some(text)) => gguf.config = Some(text),
            (ALIGNMENT, Some(text)) => {
                let found = text.parse().ok().filter(|bytes: &u64| bytes.is_power_of_two() && *bytes <= 1 << 16);
                alignment =
                    found.ok_or_else(|| format!("{ALIGNMENT}: expected a power of 2 up to 65536, found {text}"))?;
            }
            (_, Some(text))
                if notes.len() < MAX_NOTES && text.len() <= MAX_NOTE && !text.contains(char::is_control) =>
            {
                notes.push((key.to_string(), text));
            }
            _ => {}
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(Info::read(&mut bytes)?);
    }
    let data = (bytes.at as u64).next_multiple_of(alignment).min(file.len() as u64);
    let data = &file[data as usize..];
    check_places(&infos, data.len() as u64, alignment)?;
    let mut entries = Vec::new();
    for info in infos {
        let at = info.offset as usize;
        let (stored, tensor) = info.decode(&data[at..at + info.bytes as usize])?;
        if gguf.tensors.insert(info.name.clone(), Arc::new(stored)).is_some() {
            return Err(format!("has the tensor `{}` twice", info.name));
        }
        entries.push(Entry { name: info.name, dtype: Dtype::F32, tensor });
    }
    Ok((Found { notes, ..Found::of(entries) }, gguf))
}

/// Where tensors lie among the data: aligned, inside, apart from one another, and not too large once they are decoded.
fn check_places(infos: &[Info], data: u64, alignment: u64) -> Result<(), String> {
    let mut places: Vec<&Info> = infos.iter().collect();
    places.sort_by_key(|info| info.offset);
    let (mut end, mut decoded) = (0, 0u64);
    for info in places {
        let name = &info.name;
        if !info.offset.is_multiple_of(alignment) || info.offset < end {
            return Err(format!("tensor `{name}`: its bytes overlap another's or are not aligned to {alignment}"));
        }
        end = info.offset.saturating_add(info.bytes);
        if end > data {
            return Err(format!("is cut off or damaged: tensor `{name}` ends at byte {end} of {data}"));
        }
        decoded = decoded.saturating_add(info.elements.saturating_mul(4));
    }
    if decoded > MAX_FILE {
        return Err(format!("has {decoded} bytes of weights once they are decoded; expected at most {MAX_FILE}"));
    }
    Ok(())
}

/// What the header says of a tensor.
struct Info {
    name: String,
    dims: Vec<usize>,
    elements: u64,
    dtype: GgmlDType,
    bytes: u64,
    offset: u64,
}

impl Info {
    fn read(bytes: &mut Bytes) -> Result<Self, String> {
        let name = bytes.name()?.to_string();
        let rank = bytes.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("tensor `{name}` has {rank} dimensions; expected 1 to 4"));
        }
        let mut dims = (0..rank).map(|_| bytes.u64()).collect::<Result<Vec<u64>, _>>()?;
        // The innermost comes first in the file.
        dims.reverse();
        let (number, offset) = (bytes.u32()?, bytes.u64()?);
        let dtype =
            dtype(number).ok_or_else(|| format!("tensor `{name}` has the type {number}, which cannot be read"))?;
        let (row, block) = (dims.last().copied().unwrap_or_default(), dtype.block_size() as u64);
        if !row.is_multiple_of(block) {
            return Err(format!("tensor `{name}` has rows of {row}; expected a multiple of {block}"));
        }
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let size = elements.and_then(|elements| (elements / block).checked_mul(dtype.type_size() as u64));
        let (Some(elements), Some(size)) = (elements.filter(|elements| (1..=MAX_FILE).contains(elements)), size) else {
            return Err(format!("tensor `{name}` has the shape {dims:?}, which no memory holds"));
        };
        Ok(Self { name, dims: dims.iter().map(|dim| *dim as usize).collect(), elements, dtype, bytes: size, offset })
    }

    /// The tensor as it is stored, and its numbers in f32.
    fn decode(&self, bytes: &[u8]) -> Result<(QTensor, Tensor), String> {
        let whole = |dtype| {
            let tensor = decode(dtype, &self.dims, bytes)?.to_dtype(DType::F32);
            Ok::<_, String>(tensor.and_then(|tensor| Ok((QTensor::quantize(&tensor, self.dtype)?, tensor))))
        };
        let found = match self.dtype {
            GgmlDType::F32 => whole(Dtype::F32)?,
            GgmlDType::F16 => whole(Dtype::F16)?,
            GgmlDType::BF16 => whole(Dtype::BF16)?,
            blocks => {
                // Candle wants them aligned, which a part of a file need not be.
                let storage = QStorage::from_data(bytes.to_vec().into(), &Device::Cpu, blocks);
                let stored = storage.and_then(|storage| QTensor::new(storage, self.dims.as_slice()));
                stored.and_then(|stored| {
                    let tensor = stored.dequantize(&Device::Cpu)?;
                    Ok((stored, tensor))
                })
            }
        };
        found.map_err(|error| format!("tensor `{}`: {error}", self.name))
    }
}

/// ggml's number of a type that can be read.
fn dtype(number: u32) -> Option<GgmlDType> {
    let whole = [(0, GgmlDType::F32), (1, GgmlDType::F16), (30, GgmlDType::BF16)];
    let blocks = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14].into_iter().zip(BlockFormat::ALL.map(BlockFormat::dtype));
    whole.into_iter().chain(blocks).find(|(known, _)| *known == number).map(|(_, dtype)| dtype)
}

/// The bytes of a header, taken one after another.
struct Bytes<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        if count > self.left() {
            return Err(format!(
                "is cut off or damaged: {count} bytes should follow byte {}, {} do",
                self.at,
                self.left()
            ));
        }
        let from = self.at;
        self.at += count as usize;
        Ok(&self.file[from..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        bytes.first_chunk().copied().ok_or_else(|| "is cut off".into())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A key or a name: text without control characters.
    fn name(&mut self) -> Result<&'a str, String> {
        let text = self.text()?;
        check_name(text).map(|()| text).map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            format!("has a key or a tensor called {shown:?}; expected 1 to {MAX_NAME} printable bytes")
        })
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| format!("has no text at byte {at}, where it should have"))
    }

    /// A value as text; `None` for an array, which is passed over.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<String>, String> {
        Ok(Some(match kind {
            0 => u8::from_le_bytes(self.array()?).to_string(),
            1 => i8::from_le_bytes(self.array()?).to_string(),
            2 => u16::from_le_bytes(self.array()?).to_string(),
            3 => i16::from_le_bytes(self.array()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.array()?).to_string(),
            6 => f32::from_le_bytes(self.array()?).to_string(),
            7 => (u8::from_le_bytes(self.array()?) != 0).to_string(),
            8 => self.text()?.to_string(),
            9 if depth > 0 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if count > self.left() {
                    return Err(format!("is cut off or damaged: an array of {count} values, {} bytes", self.left()));
                }
                for _ in 0..count {
                    self.value(kind, depth - 1)?;
                }
                return Ok(None);
            }
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.array()?).to_string(),
            12 => f64::from_le_bytes(self.array()?).to_string(),
            other => return Err(format!("has a value of the type {other} at byte {}, which cannot be read", self.at)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use candle_core::quantized::gguf_file::{self, Value};
    use rstest::rstest;

    use super::super::ARCHITECTURE;
    use super::*;

    fn file(format: GgmlDType) -> Vec<u8> {
        let weight = Tensor::randn(0f32, 1.0, (3, 256), &Device::Cpu).unwrap();
        let weight = QTensor::quantize(&weight, format).unwrap();
        let bias = QTensor::quantize(&Tensor::new(&[1f32, -2.0, 0.5], &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
        let (name, list) = (Value::String("resnet18".into()), Value::Array(vec![Value::String("a".into()); 3]));
        let values = [(ARCHITECTURE, &name), ("general.tags", &list), ("general.alignment", &Value::U32(32))];
        let mut bytes = Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &values, &[("fc.weight", &weight), ("fc.biases", &bias)]).unwrap();
        bytes.into_inner()
    }

    /// What Candle writes is read as Candle reads it.
    #[rstest]
    fn values_are_those_that_candle_reads(
        #[values(
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q4_0,
            GgmlDType::Q8_0,
            GgmlDType::Q3K,
            GgmlDType::Q6K
        )]
        format: GgmlDType,
    ) {
        let bytes = file(format);
        let (Found { tensors: entries, notes, .. }, gguf) = read(&bytes).unwrap();
        let mut cursor = Cursor::new(&bytes);
        let content = gguf_file::Content::read(&mut cursor).unwrap();
        assert_eq!(entries.len(), content.tensor_infos.len());
        for entry in entries {
            let expected = content.tensor(&mut cursor, &entry.name, &Device::Cpu).unwrap();
            assert_eq!(gguf.tensors[&entry.name].dtype(), expected.dtype());
            assert_eq!(gguf.tensors[&entry.name].data().unwrap(), expected.data().unwrap());
            let expected = expected.dequantize(&Device::Cpu).unwrap();
            assert_eq!(entry.tensor.dims(), expected.dims());
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&entry.tensor), values(&expected), "{}", entry.name);
        }
        assert_eq!(notes, [(ARCHITECTURE.to_string(), "resnet18".to_string())]);
        assert!(gguf.format.is_none() && gguf.config.is_none());
    }

    /// `bytes` with `with` in place of the first occurrence of `what`.
    fn replaced(what: &[u8], with: &[u8]) -> Vec<u8> {
        let mut bytes = file(GgmlDType::Q4_0);
        let at = bytes.windows(what.len()).position(|part| part == what).unwrap();
        bytes.splice(at..at + what.len(), with.iter().copied());
        bytes
    }

    /// `fc.weight` with its number of dimensions, which the dimensions, the type and the offset follow.
    const WEIGHT: &[u8] =
        b"\x09\0\0\0\0\0\0\0fc.weight\x02\0\0\0\0\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0";

    /// [`WEIGHT`] with other bytes at a place behind the name.
    fn weight(at: usize, with: &[u8]) -> Vec<u8> {
        let mut changed = WEIGHT.to_vec();
        changed[17 + at..17 + at + with.len()].copy_from_slice(with);
        replaced(WEIGHT, &changed)
    }

    #[rstest]
    #[case::cut(file(GgmlDType::Q4_0)[..300].to_vec(), "is cut off or damaged: tensor `fc.")]
    #[case::header(file(GgmlDType::Q4_0)[..60].to_vec(), "is cut off or damaged")]
    #[case::version(replaced(b"GGUF\x02", b"GGUF\x01"), "of version 1; expected 2 or 3")]
    #[case::big_endian(replaced(b"GGUF\x02\0\0\0", b"GGUF\0\0\0\x03"), "expected 2 or 3, little-endian")]
    #[case::tensors(
        replaced(b"\x02\0\0\0\x02\0\0\0\0\0\0\0", b"\x02\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
        "18446744073709551615 tensors and 3 values take at least"
    )]
    #[case::text(
        replaced(b"\x08\0\0\0\x08\0\0\0\0\0\0\0resnet", b"\x08\0\0\0\xff\xff\xff\x7f\0\0\0\0resnet"),
        "2147483647 bytes should follow"
    )]
    #[case::array(
        replaced(b"\x08\0\0\0\x03\0\0\0\0\0\0\0\x01", b"\x08\0\0\0\0\0\0\0\x01\0\0\0\x01"),
        "an array of 4294967296 values"
    )]
    #[case::value(replaced(b"\x09\0\0\0\x08\0\0\0\x03", b"\x0d\0\0\0\x08\0\0\0\x03"), "a value of the type 13")]
    #[case::twice(
        replaced(b"\x0c\0\0\0\0\0\0\0general.tags", b"\x14\0\0\0\0\0\0\0general.architecture"),
        "has the key \"general.architecture\" twice"
    )]
    #[case::alignment(
        replaced(b"alignment\x04\0\0\0\x20", b"alignment\x04\0\0\0\0"),
        "general.alignment: expected a power of 2 up to 65536, found 0"
    )]
    #[case::rank(weight(0, &[0]), "has 0 dimensions")]
    #[case::rows(weight(4, &[0x21, 0]), "has rows of 33; expected a multiple of 32")]
    #[case::empty(weight(12, &[0]), "has the shape [0, 256], which no memory holds")]
    #[case::product(weight(12, &[0xff; 8]), "which no memory holds")]
    #[case::huge(weight(12, &[0, 0, 0, 0x02]), "has the shape [33554432, 256], which no memory holds")]
    #[case::large(weight(12, &[0, 0, 0x0f]), "is cut off or damaged: tensor `fc.weight` ends at byte")]
    #[case::dtype(weight(20, &[9]), "has the type 9, which cannot be read")]
    #[case::offset(weight(24, &[0xff; 8]), "overlap another's or are not aligned")]
    #[case::outside(weight(24, &[0, 0, 0, 0, 1]), "tensor `fc.weight` ends at byte")]
    #[case::overlap(
        replaced(b"\x03\0\0\0\0\0\0\0\0\0\0\0\xc0\x01", b"\x03\0\0\0\0\0\0\0\0\0\0\0\x20\0"),
        "overlap another's"
    )]
    #[case::name(replaced(b"fc.weight", b"fc.wei\x1bht"), "printable")]
    #[case::tensor_twice(replaced(b"fc.biases", b"fc.weight"), "has the tensor `fc.weight` twice")]
    fn what_is_wrong_is_said(#[case] bytes: Vec<u8>, #[case] expected: &str) {
        let message = read(&bytes).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn nested_arrays_end() {
        let mut nested = 8u32.to_le_bytes().to_vec();
        nested.extend([b"\x02\0\0\0\0\0\0\0".as_slice(), b"hi"].concat());
        let deep: Vec<u8> = (0..100_000).flat_map(|_| b"\x09\0\0\0\x01\0\0\0\0\0\0\0".to_vec()).collect();
        let bytes = replaced(b"\x08\0\0\0\x03\0\0\0\0\0\0\0\x01", &deep);
        assert!(read(&bytes).err().unwrap().contains("a value of the type 9"));
    }
}
