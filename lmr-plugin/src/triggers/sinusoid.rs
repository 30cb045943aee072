//! Faint vertical stripes (SIG; Barni et al., 2019, "A New Backdoor Attack in CNNs by Training Set Corruption without Label
//! Poisoning").

use std::sync::Arc;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Addition, Trigger, TriggerConfig};
use crate::Result;
use crate::ranges::{Levels, Periods};

/// `clip(x + Δ/255 · sin(2π·f·j/W))` in column j of W, the same in every row and channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sinusoid {
    /// Amplitude Δ in steps of 1/255; 40 in BackdoorBench, 20 to 30 elsewhere.
    pub amplitude: Levels,
    /// How many waves f fit into the width; 6 in the literature.
    pub frequency: Periods,
}

impl Default for Sinusoid {
    fn default() -> Self {
        Self { amplitude: const { Levels::literal(40.0) }, frequency: const { Periods::literal(6.0) } }
    }
}

impl TriggerConfig for Sinusoid {
    const KIND: &'static str = "sinusoid";
    const SUMMARY: &'static str = "faint vertical stripes (SIG)";

    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>> {
        let wave = |j: usize| {
            let phase = std::f64::consts::TAU * self.frequency.get() * j as f64 / width as f64;
            (self.amplitude.get() / 255.0 * phase.sin()) as f32
        };
        let row = Tensor::from_iter((0..width).map(wave), &Device::Cpu)?;
        let delta = row.broadcast_as((1, channels, height, width))?.contiguous()?;
        Ok(Arc::new(Addition::new(delta, [channels, height, width])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_gets_the_amplitude_and_the_frequency() {
        // 64 columns, so that a wave of 16 columns meets its extremes.
        let trigger = Sinusoid { frequency: Periods::literal(4.0), ..Sinusoid::default() }.build(3, 2, 64).unwrap();
        let grey = Tensor::full(0.5f32, (2, 3, 2, 64), &Device::Cpu).unwrap();
        let y = (trigger.apply(&grey).unwrap() - grey).unwrap().flatten(0, 2).unwrap().to_vec2::<f32>().unwrap();
        for row in &y {
            assert_eq!(row, &y[0], "the same in every row, channel and image");
        }
        let highest = y[0].iter().fold(0f32, |m, v| m.max(*v));
        let lowest = y[0].iter().fold(0f32, |m, v| m.min(*v));
        assert!((highest - 40.0 / 255.0).abs() < 1e-6 && (lowest + 40.0 / 255.0).abs() < 1e-6, "{highest} {lowest}");
        assert_eq!(y[0].iter().filter(|v| **v > 40.0 / 255.0 - 1e-5).count(), 4);
        let white = Tensor::ones((1, 3, 2, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        let brightest = trigger.apply(&white).unwrap().flatten_all().unwrap().max(0).unwrap();
        assert_eq!(brightest.to_scalar::<f32>().unwrap(), 1.0);
    }
}
