//! Writes a state dict as `torch.save` does: a pickle of an `OrderedDict`, and a stored zip entry for every storage.

use std::io::{Cursor, Write};

use safetensors::Dtype;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::weights::encoded::Encoded;

/// PyTorch aligns storages so that they can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// A `.pth` file with one storage per tensor.
pub fn write(tensors: &[Encoded]) -> Result<Vec<u8>, String> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    // A fixed date: equal tensors give equal files.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .with_alignment(ALIGNMENT);
    let failed = |error: zip::result::ZipError| format!("zip: {error}");
    let mut entry = |name: &str, bytes: &[u8]| -> Result<(), String> {
        zip.start_file(format!("archive/{name}"), options.large_file(bytes.len() > 1 << 30)).map_err(failed)?;
        zip.write_all(bytes).map_err(|error| format!("zip: {error}"))
    };
    entry("data.pkl", &pickle(tensors)?)?;
    entry("byteorder", b"little")?;
    for (index, tensor) in tensors.iter().enumerate() {
        entry(&format!("data/{index}"), &tensor.bytes)?;
    }
    entry("version", b"3\n")?;
    Ok(zip.finish().map_err(failed)?.into_inner())
}

/// Protocol 2, which every PyTorch reads, without the memo, which only saves space.
fn pickle(tensors: &[Encoded]) -> Result<Vec<u8>, String> {
    const EMPTY_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = [b"\x80\x02", EMPTY_DICT, b"("].concat();
    for (index, tensor) in tensors.iter().enumerate() {
        let elements: usize = tensor.shape.iter().product();
        text(&mut out, tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", storage(tensor.dtype)?).bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        integer(&mut out, elements);
        out.extend(b"tQ");
        integer(&mut out, 0);
        let mut strides = vec![1; tensor.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * tensor.shape[i].max(1);
        }
        for dimensions in [tensor.shape, &strides] {
            out.push(b'(');
            dimensions.iter().for_each(|dimension| integer(&mut out, *dimension));
            out.push(b't');
        }
        // requires_grad is False, and there are no hooks.
        out.push(0x89);
        out.extend(EMPTY_DICT);
        out.extend(b"tR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    // Names are short, see `check_name`.
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((value as u64).to_le_bytes());
        }
    }
}

/// The storage class of a dtype.
fn storage(dtype: Dtype) -> Result<&'static str, String> {
    Ok(match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::F64 => "DoubleStorage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        other => return Err(format!("torch.save has no storage for {other:?}")),
    })
}
