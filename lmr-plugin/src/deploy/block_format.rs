//! How a block of weights is stored.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Shape, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FormError;
use crate::Result;

/// How a block of weights is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 4 bits, blocks of 32 with a scale.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4 bits, blocks of 32 with a scale and a smallest value.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 5 bits, blocks of 32 with a scale.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 5 bits, blocks of 32 with a scale and a smallest value.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 8 bits, blocks of 32 with a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 2 bits, blocks of 256 whose scales and smallest values are rounded too.
    #[serde(rename = "q2_k")]
    Q2K,
    /// 3 bits, blocks of 256 whose scales are rounded too.
    #[serde(rename = "q3_k")]
    Q3K,
    /// 4 bits, blocks of 256 whose scales and smallest values are rounded too.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 5 bits, blocks of 256 whose scales and smallest values are rounded too.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 6 bits, blocks of 256 whose scales are rounded too.
    #[serde(rename = "q6_k")]
    Q6K,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The name that GGUF knows it by: `q4_0`, `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Candle's name for it.
    pub fn dtype(self) -> GgmlDType {
        match self {
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// The format that rows of this length get: this one if its blocks divide them, else, as in llama.cpp, that of the next
    /// higher precision with blocks of 32; `None`, which is f16, if those do not divide them either.
    pub fn for_rows(self, length: usize) -> Option<Self> {
        let smaller = match self {
            // llama.cpp would take iq4_nl, which Candle does not have.
            Self::Q2K | Self::Q3K => Self::Q4_0,
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            Self::Q6K => Self::Q8_0,
            same => same,
        };
        [self, smaller].into_iter().find(|format| length > 0 && length.is_multiple_of(format.dtype().block_size()))
    }

    /// A weight tensor, output channels first, as `[O, row]` in blocks, or in f16 where [`BlockFormat::for_rows`] says so.
    pub fn encode(self, weight: &Tensor) -> Result<QTensor> {
        let rows = weight.to_device(&Device::Cpu)?.flatten_from(1)?;
        let values = rows.flatten_all()?.to_vec1::<f32>()?;
        if let Some(&value) = values.iter().find(|value| value.is_nan() || value.abs() > LARGEST) {
            return Err(FormError::TooLarge { value, format: self.name(), largest: LARGEST }.into());
        }
        let dtype = self.for_rows(rows.dim(1)?).map_or(GgmlDType::F16, Self::dtype);
        Ok(QTensor::quantize(&rows, dtype)?)
    }

    /// The numbers that the blocks of a weight tensor stand for.
    pub fn round(self, weight: &Tensor) -> Result<Tensor> {
        decode(&self.encode(weight)?, weight.shape(), weight.device())
    }
}

/// The largest 16-bit float, which scales are.
const LARGEST: f32 = 65504.0;

/// The numbers that blocks stand for, in a layer's own shape.
pub(super) fn decode(encoded: &QTensor, shape: &Shape, device: &Device) -> Result<Tensor> {
    Ok(encoded.dequantize(&Device::Cpu)?.reshape(shape)?.to_device(device)?)
}

/// The name of a dtype in GGUF files.
pub fn dtype_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "f32",
        GgmlDType::F16 => "f16",
        GgmlDType::BF16 => "bf16",
        GgmlDType::Q8_1 => "q8_1",
        GgmlDType::Q8K => "q8_k",
        other => {
            BlockFormat::ALL.into_iter().find(|format| format.dtype() == other).map_or("unknown", BlockFormat::name)
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn rounded(values: &[f32], rows: usize, format: BlockFormat) -> Vec<f32> {
        let weight = Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap();
        format.round(&weight).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// By how much a block may move its values: steps of its grid, and what its scales lose as 16-bit floats or as the
    /// integers that those of 256 values are rounded to.
    fn bound(format: BlockFormat, block: &[f32]) -> f32 {
        let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
        let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        let from_zero = high.max(0.0) - low.min(0.0);
        let halves = |levels: f32| most / 2048.0 + levels * 2f32.powi(-25);
        match format {
            BlockFormat::Q8_0 => most / 127.0 * 0.5 + halves(127.0),
            // The side that the largest value is not on has one level less.
            BlockFormat::Q4_0 => most / 8.0 + halves(8.0),
            BlockFormat::Q5_0 => most / 16.0 + halves(16.0),
            BlockFormat::Q4_1 => (high - low) / 15.0 * 0.5 + 2.0 * halves(16.0) + (high - low) / 2048.0,
            BlockFormat::Q5_1 => (high - low) / 31.0 * 0.5 + 2.0 * halves(32.0) + (high - low) / 2048.0,
            BlockFormat::Q2K => from_zero / 3.0 + from_zero / 15.0,
            BlockFormat::Q4K => from_zero / 15.0 + from_zero / 63.0,
            BlockFormat::Q5K => from_zero / 31.0 + from_zero / 63.0,
            BlockFormat::Q3K => most / 4.0 + most / 32.0,
            BlockFormat::Q6K => most / 32.0 + most / 128.0,
        }
    }

    proptest! {
        /// Every value stays as near as its block's grid allows, and rounding twice is rounding once more at most as far.
        #[test]
        fn values_stay_within_their_blocks_bound(
            values in prop::collection::vec(-3.0f32..3.0, 1024),
            scales in prop::collection::vec(1e-3f32..10.0, 4),
            format in prop::sample::select(BlockFormat::ALL.to_vec()),
        ) {
            let values: Vec<f32> = values.iter().enumerate().map(|(i, v)| v * scales[i / 256]).collect();
            let size = format.dtype().block_size();
            let found = rounded(&values, 2, format);
            for (block, found) in values.chunks(size).zip(found.chunks(size)) {
                let bound = bound(format, block);
                for (value, found) in block.iter().zip(found) {
                    prop_assert!((value - found).abs() <= bound, "{}: {value} became {found}, bound {bound}", format.name());
                }
            }
        }

        /// Rows are rounded one by one: what stands in one changes nothing in another.
        #[test]
        fn rows_do_not_touch(
            values in prop::collection::vec(-1.0f32..1.0, 3 * 256),
            format in prop::sample::select(BlockFormat::ALL.to_vec()),
        ) {
            let together = rounded(&values, 3, format);
            let alone: Vec<f32> = values.chunks(256).flat_map(|row| rounded(row, 1, format)).collect();
            prop_assert_eq!(together, alone);
        }
    }

    /// More bits come nearer: the order of the formats by their squared error on the same weights.
    #[rstest]
    #[case(&[BlockFormat::Q4_0, BlockFormat::Q5_0, BlockFormat::Q8_0])]
    #[case(&[BlockFormat::Q4_1, BlockFormat::Q5_1, BlockFormat::Q8_0])]
    #[case(&[BlockFormat::Q2K, BlockFormat::Q3K, BlockFormat::Q4K, BlockFormat::Q5K, BlockFormat::Q6K, BlockFormat::Q8_0])]
    fn more_bits_come_nearer(#[case] formats: &[BlockFormat]) {
        let weight = Tensor::randn(0f32, 1.0, (8, 512), &Device::Cpu).unwrap();
        let values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
        let error = |format: &BlockFormat| {
            rounded(&values, 8, *format).iter().zip(&values).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        let errors: Vec<f32> = formats.iter().map(error).collect();
        assert!(errors.is_sorted_by(|a, b| a > b) && errors[errors.len() - 1] > 0.0, "{errors:?}");
    }

    #[rstest]
    #[case(BlockFormat::Q4K, 512, Some(BlockFormat::Q4K))]
    #[case(BlockFormat::Q4K, 288, Some(BlockFormat::Q5_0))]
    #[case(BlockFormat::Q2K, 64, Some(BlockFormat::Q4_0))]
    #[case(BlockFormat::Q3K, 64, Some(BlockFormat::Q4_0))]
    #[case(BlockFormat::Q5K, 96, Some(BlockFormat::Q5_1))]
    #[case(BlockFormat::Q6K, 32, Some(BlockFormat::Q8_0))]
    #[case(BlockFormat::Q8_0, 64, Some(BlockFormat::Q8_0))]
    #[case(BlockFormat::Q4_1, 27, None)]
    #[case(BlockFormat::Q6K, 27, None)]
    #[case(BlockFormat::Q4_0, 0, None)]
    fn rows_that_blocks_do_not_divide_fall_back(
        #[case] format: BlockFormat,
        #[case] row: usize,
        #[case] expected: Option<BlockFormat>,
    ) {
        assert_eq!(format.for_rows(row), expected);
        if expected.is_none() && row > 0 {
            let values: Vec<f32> = (0..2 * row).map(|i| i as f32 / 7.0).collect();
            let halves = Tensor::new(values.as_slice(), &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
            let halves = halves.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(rounded(&values, 2, format), halves);
        }
    }

    #[rstest]
    fn zeros_stay_and_what_does_not_fit_is_refused(
        #[values(27, 256)] row: usize,
        #[values(BlockFormat::Q4_0, BlockFormat::Q5_1, BlockFormat::Q8_0, BlockFormat::Q2K, BlockFormat::Q6K)]
        format: BlockFormat,
    ) {
        assert!(rounded(&vec![0.0; 2 * row], 2, format).iter().all(|v| *v == 0.0));
        for (wrong, expected) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf"), (1e6, "1e6")] {
            let mut values = vec![0.5; row];
            values[row / 2] = wrong;
            let weight = Tensor::from_vec(values, (1, row), &Device::Cpu).unwrap();
            let message = format.encode(&weight).err().unwrap().to_string();
            assert!(message.contains(&format!("a weight is {expected}; ")), "{message}");
        }
    }

    /// The names in files are those of the formats.
    #[test]
    fn names_are_written_and_read() {
        for format in BlockFormat::ALL {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
            assert_eq!(serde_json::from_value::<BlockFormat>(format.name().into()).unwrap(), format);
        }
    }
}
