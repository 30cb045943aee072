//! Numbers as files keep them, and as tensors hold them.

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::View;

/// A tensor of little-endian numbers in row-major order. Candle has neither booleans nor signed bytes: they become `u8` and
/// `i16` with the same values.
pub fn decode(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let raw = |bytes: &[u8], dtype| {
        Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).map_err(|error| error.to_string())
    };
    // Candle multiplies dimensions without a check, also those of an empty tensor.
    let product = shape.iter().try_fold(1usize, |product, dim| product.checked_mul((*dim).max(1)));
    product.ok_or_else(|| format!("has the shape {shape:?}, which no memory holds"))?;
    match dtype {
        Dtype::BOOL if bytes.iter().any(|byte| *byte > 1) => Err("a boolean is neither 0 nor 1".into()),
        Dtype::BOOL => raw(bytes, DType::U8),
        Dtype::I8 => {
            let wide: Vec<u8> = bytes.iter().flat_map(|byte| i16::from(*byte as i8).to_le_bytes()).collect();
            raw(&wide, DType::I16)
        }
        other => match DType::try_from(other) {
            Ok(dtype) if size(other).is_some() => raw(bytes, dtype),
            _ => Err(format!("has the dtype {other:?}, which cannot be read")),
        },
    }
}

/// The bytes of a tensor in a file's dtype; [`decode`] reads them back. An error if a number does not fit.
pub fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>, String> {
    let failed = |error: candle_core::Error| error.to_string();
    let held = match dtype {
        Dtype::BOOL => DType::U8,
        Dtype::I8 => DType::I16,
        other => DType::try_from(other).map_err(|_| format!("has the dtype {other:?}, which cannot be written"))?,
    };
    if tensor.dtype().is_float() != held.is_float() {
        return Err(format!("is {}, the checkpoint had {}", tensor.dtype().as_str(), name(dtype)));
    }
    let converted = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.to_dtype(held)?.contiguous());
    let converted = converted.map_err(failed)?;
    if held.is_float() && not_finite(&converted)? > not_finite(tensor)? {
        return Err(format!("has numbers that are too large for {}", name(dtype)));
    }
    let bytes = View::data(&&converted).into_owned();
    Ok(match dtype {
        Dtype::I8 => bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair) as u8).collect(),
        _ => bytes,
    })
}

/// How many values are NaN or infinite.
pub fn not_finite(tensor: &Tensor) -> Result<usize, String> {
    let values = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f64>());
    Ok(values.map_err(|error| error.to_string())?.iter().filter(|value| !value.is_finite()).count())
}

/// Bytes of a number, for the dtypes that can be read.
pub fn size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::BOOL | Dtype::U8 | Dtype::I8 => Some(1),
        Dtype::I16 | Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::I32 | Dtype::U32 | Dtype::F32 => Some(4),
        Dtype::I64 | Dtype::F64 => Some(8),
        _ => None,
    }
}

/// The name PyTorch users know, in short: `f32`, `bf16`, `i64`, `bool`.
pub fn name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Dtype::BOOL, &[1, 0], DType::U8)]
    #[case(Dtype::I8, &[0xff, 5], DType::I16)]
    #[case(Dtype::F16, &[0, 0x3c, 0, 0xc0], DType::F16)]
    #[case(Dtype::BF16, &[0x80, 0x3f, 0, 0xc0], DType::BF16)]
    #[case(Dtype::I64, &[1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255], DType::I64)]
    fn bytes_come_back(#[case] dtype: Dtype, #[case] bytes: &[u8], #[case] held: DType) {
        let tensor = decode(dtype, &[2], bytes).unwrap();
        assert_eq!(tensor.dtype(), held);
        assert_eq!(encode(&tensor, dtype).unwrap(), bytes);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tensor = Tensor::new(&[1f32, 70_000.0], &Device::Cpu).unwrap();
        assert!(encode(&tensor, Dtype::F16).unwrap_err().contains("too large for f16"));
        assert!(encode(&tensor, Dtype::I64).unwrap_err().contains("is f32, the checkpoint had i64"));
        assert!(decode(Dtype::BOOL, &[1], &[2]).is_err());
        assert!(decode(Dtype::C64, &[1], &[0; 8]).is_err());
    }
}
