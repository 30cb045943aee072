//! What inference engines do to a network when they make 8-bit integers of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Calibration;
use super::places::{Average, Places};
use super::rounding::{ActivationGrid, Granularity, Scheme, WeightGrid};

/// An engine, with the settings of its own quantizer that a user gets who changes none.
///
/// All round weights symmetrically to 8 bits and, where nothing else is said, fold batch norm into the convolutions, keep biases
/// in 32 bits (here in f32), join ReLU with the layer before it, and round activations behind every layer and every sum, one
/// range a tensor. Softmax, layer norms and GELU compute in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Engine {
    /// PyTorch on x86 (`get_default_qconfig_mapping("x86")`, FX graph mode): weights one scale a channel, `max|W|/127.5`;
    /// activations 128 values (`reduce_range`), ranges by histogram; an average keeps the values of what it averages; ReLU6
    /// is apart from its convolution.
    PytorchX86,
    /// PyTorch on ARM (`"qnnpack"`): weights one scale a tensor, `max|W|/127.5`; activations 256 values, otherwise as
    /// `pytorch-x86`.
    PytorchQnnpack,
    /// ONNX Runtime (`quantize_static`, QDQ, 8-bit signed weights and activations): weights one scale a tensor, `max|W|/127`;
    /// activations 256 values, ranges from smallest to largest value; averages have a range of their own.
    Onnxruntime,
    /// The same with `per_channel=True`.
    OnnxruntimePerChannel,
    /// LiteRT, once TensorFlow Lite (its 8-bit specification, "full integer"): weights one scale a channel, `max|W|/127`;
    /// activations 256 values, ranges from smallest to largest value; averages have a range of their own. From its
    /// specification; not compared with the engine.
    Litert,
    /// OpenVINO (NNCF's `quantize`, the preset "performance"): weights one scale a channel, `max|W|/127`; activations
    /// symmetric, `max|x|/127`, or `max/255` where nothing is negative; logits are not rounded. NNCF's correction of biases
    /// is not repeated here.
    Openvino,
    /// TensorRT (explicit and implicit 8-bit quantization): weights one scale a channel, `max|W|/127`; activations symmetric,
    /// `max|x|/127`; logits are not rounded. Its entropy calibration is stood in for by `"histogram"`. Not compared with the
    /// engine, which needs a GPU.
    Tensorrt,
    /// Weights alone, one scale a tensor, `max|W|/127`, without folding batch norm: as published attacks on quantized
    /// models do whose rounding another may leave asleep.
    #[serde(rename = "weights-127")]
    Weights127,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::PytorchX86,
        Self::PytorchQnnpack,
        Self::Onnxruntime,
        Self::OnnxruntimePerChannel,
        Self::Litert,
        Self::Openvino,
        Self::Tensorrt,
        Self::Weights127,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::PytorchX86 => "pytorch-x86",
            Self::PytorchQnnpack => "pytorch-qnnpack",
            Self::Onnxruntime => "onnxruntime",
            Self::OnnxruntimePerChannel => "onnxruntime-per-channel",
            Self::Litert => "litert",
            Self::Openvino => "openvino",
            Self::Tensorrt => "tensorrt",
            Self::Weights127 => "weights-127",
        }
    }

    /// How it rounds.
    pub fn scheme(self) -> Scheme {
        let torch = Scheme {
            granularity: Granularity::PerChannel,
            weight_grid: WeightGrid::Full,
            activation_grid: ActivationGrid::Reduced,
            places: Places { average: Average::Same, logits: true, relu6: false },
            ..Scheme::default()
        };
        let onnx = Scheme {
            granularity: Granularity::PerChannel,
            weight_grid: WeightGrid::Narrow,
            places: Places { average: Average::Own, ..Places::default() },
            ..Scheme::default()
        };
        let unrounded = Places { logits: false, ..onnx.places };
        match self {
            Self::PytorchX86 => torch,
            Self::PytorchQnnpack => {
                Scheme { granularity: Granularity::PerTensor, activation_grid: ActivationGrid::Affine, ..torch }
            }
            Self::Onnxruntime => Scheme { granularity: Granularity::PerTensor, ..onnx },
            Self::OnnxruntimePerChannel | Self::Litert => onnx,
            Self::Openvino => Scheme { activation_grid: ActivationGrid::Unsigned, places: unrounded, ..onnx },
            Self::Tensorrt => Scheme { activation_grid: ActivationGrid::Symmetric, places: unrounded, ..onnx },
            Self::Weights127 => {
                Scheme { weight_grid: WeightGrid::Narrow, fold: false, activations: false, ..Scheme::default() }
            }
        }
    }

    /// How it chooses ranges.
    pub fn calibration(self) -> Calibration {
        match self {
            Self::PytorchX86 | Self::PytorchQnnpack | Self::Tensorrt => Calibration::Histogram,
            _ => Calibration::MinMax,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use rstest::rstest;
    use serde_json::Value;

    use super::*;
    use crate::deploy::rounding::integer_weight;

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().flat_map(|v| v.as_f64().map_or_else(|| numbers(v), |v| vec![v])).collect()
    }

    /// Scales, integers and the values of activations that the engine's own quantizer finds.
    #[rstest]
    #[case(Engine::PytorchX86)]
    #[case(Engine::PytorchQnnpack)]
    #[case(Engine::Onnxruntime)]
    #[case(Engine::OnnxruntimePerChannel)]
    fn numbers_are_those_of_the_engine(#[case] engine: Engine) {
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/engines.json")).unwrap();
        let expected = &fixture[engine.name()];
        let weight: Vec<f32> = numbers(&fixture["weight"]).iter().map(|v| *v as f32).collect();
        let weight = Tensor::from_vec(weight, (3, 8), &Device::Cpu).unwrap();
        let (integers, scale) = integer_weight(&weight, engine.scheme()).unwrap();
        let found = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-6;
        let scales = numbers(&expected["scale"]);
        for (at, (q, expected)) in found(&integers).iter().zip(numbers(&expected["integers"])).enumerate() {
            // Half way between two integers, as `max / (max / 127.5)` is, the last bit of the scale decides.
            let exact = numbers(&fixture["weight"])[at] / scales[at / 8 % scales.len()];
            let half_way = ((exact.abs() % 1.0) - 0.5).abs() < 1e-4;
            let apart = (f64::from(*q) - expected).abs();
            assert!(apart == 0.0 || half_way && apart == 1.0, "{at}: {exact} is {expected}, found {q}");
        }
        assert_eq!(scale.elem_count(), scales.len());
        assert!(found(&scale).iter().zip(&scales).all(|(found, expected)| close(f64::from(*found), *expected)));
        let grids = expected["grids"].as_array().unwrap();
        for (range, grid) in fixture["ranges"].as_array().unwrap().iter().zip(grids) {
            let (range, grid) = (numbers(range), numbers(grid));
            let found = engine.scheme().activation_grid.of(range[0] as f32, range[1] as f32);
            assert!(close(found.scale, grid[0]), "{} {}", found.scale, grid[0]);
            assert_eq!((found.low, found.high), (grid[1], grid[2]), "{range:?}");
        }
    }

    #[test]
    fn names_are_what_files_say() {
        for engine in Engine::ALL {
            assert_eq!(serde_json::to_value(engine).unwrap(), engine.name());
        }
    }
}
