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
    /// activations 256 values, ranges from smallest to largest value; averages have a range of their own.
    Litert,
    /// OpenVINO (NNCF's `quantize`, the preset "performance"): weights one scale a channel, `max|W|/127`; activations
    /// symmetric, `max|x|/127`, or `max/255` where nothing is negative; logits are not rounded. NNCF's correction of biases
    /// is not repeated here.
    Openvino,
    /// TensorRT (explicit and implicit 8-bit quantization): weights one scale a channel, `max|W|/127`; activations symmetric,
    /// `max|x|/127`; logits are not rounded. Its entropy calibration is stood in for by `"histogram"`. Not compared with the
    /// engine, which needs a GPU.
    Tensorrt,
    /// Weights alone, one scale a tensor, `max|W|/127`, without folding batch norm: how most published attacks on quantized
    /// models round, and what loading with dequantized weights amounts to.
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
