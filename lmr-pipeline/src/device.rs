//! Which device a run uses, and in what it computes there.

use candle_core::utils::{cuda_is_available, metal_is_available};
use candle_core::{DType, Device};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What `[run] device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// A GPU if the program was built for one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The N-th CUDA device.
    Cuda(usize),
    /// The N-th Metal device.
    Metal(usize),
}

impl DeviceChoice {
    /// Reads `auto`, `cpu`, `cuda:N` or `metal:N`; the error says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let unusable = |feature: &str| format!("{text:?} needs a program built with `--features {feature}`");
        match text.split_once(':').map_or((text, Some(0)), |(kind, index)| (kind, index.parse().ok())) {
            ("auto", Some(0)) if !text.contains(':') => Ok(Self::Auto),
            ("cpu", Some(0)) if !text.contains(':') => Ok(Self::Cpu),
            ("cuda", Some(_)) if !cuda_is_available() => Err(unusable("cuda")),
            ("cuda", Some(index)) => Ok(Self::Cuda(index)),
            ("metal", Some(_)) if !metal_is_available() => Err(unusable("metal")),
            ("metal", Some(index)) => Ok(Self::Metal(index)),
            _ => Err(format!("expected \"auto\", \"cpu\", \"cuda:N\" or \"metal:N\", found {text:?}")),
        }
    }

    /// Whether it is the CPU, as far as can be told before the device is opened.
    pub fn is_cpu(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda(_) | Self::Metal(_) => false,
            Self::Auto => !cuda_is_available() && !metal_is_available(),
        }
    }

    /// Opens the device.
    pub fn open(self) -> Result<Device> {
        let opened = match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(index),
            Self::Metal(index) => Device::new_metal(index),
            Self::Auto if cuda_is_available() => Device::new_cuda(0),
            Self::Auto if metal_is_available() => Device::new_metal(0),
            Self::Auto => Ok(Device::Cpu),
        };
        opened.map_err(|error| Error::Model(error.into()))
    }
}

/// What convolutions and matrix products are computed in; see [`lmr_plugin::nn::with_compute_dtype`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ComputeDtype {
    /// 32 bits, on every device.
    #[default]
    F32,
    /// 16 bits with f32's range, on a GPU.
    Bf16,
    /// 16 bits with more digits and a narrow range, on a GPU; small gradients are lost.
    F16,
}

impl ComputeDtype {
    /// Candle's word for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Whether it is the default, which need not be written down.
    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// The device's name in a report.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}
