//! An interpreter that checks another one.

use candle_core::{DType, Tensor};

use super::super::super::rounding::ActivationGrid;
use super::super::{Interpreter, weights};
use crate::nn::{
    Activation, BatchNorm2d, ConvConfig, Convolution, Forward, Grid, LayerNorm, Linear, Padding, PatchEmbedding,
    Result, attend, with_portable_path,
};

/// An engine beside which everything is computed once more in f64, from the same integers.
pub(super) struct Checked<'a> {
    pub engine: Interpreter<'a>,
    /// Points, values, those whose integer differs, and the furthest that f64 was from the middle between two integers then.
    pub seen: (usize, usize, usize, f64),
}

impl Checked<'_> {
    /// The grid of an activation point.
    fn grid(&self, point: &str) -> Grid {
        let (low, high) = self.engine.ranges.at(point).unwrap();
        ActivationGrid::Affine.of(low, high)
    }

    /// The codes, channels-last as the engine's, that f64 values should have at the point that was just reached; compares.
    fn compare(&mut self, found: &Tensor, expected: &[f64]) {
        let point = self.engine.points.last().to_string();
        let Grid { scale, low, high } = self.grid(&point);
        // In f32, as the simulation's grids are.
        let inverse = f64::from((1.0 / scale) as f32);
        let codes = found.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert_eq!(codes.len(), expected.len());
        self.seen.0 += 1;
        for (code, value) in codes.into_iter().zip(expected) {
            let q = (value * inverse).clamp(low, high);
            let difference = (f64::from(code) + low - q.round_ties_even()).abs();
            assert!(difference <= 1.0, "point {point}: code {code} for {q}");
            self.seen.1 += 1;
            if difference > 0.0 {
                self.seen.2 += 1;
                self.seen.3 = self.seen.3.max((q - q.floor() - 0.5).abs());
            }
        }
    }

    fn values(&self, x: &Tensor) -> Vec<f64> {
        let Some(grid) = self.engine.grid(x).unwrap() else {
            return x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        };
        let codes = x.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        codes.into_iter().map(|code| f64::from(grid.value(code))).collect()
    }

    /// `layer(x)` in f64 for channels-last `x`, and its dimensions.
    fn layer(&self, name: &str, x: &Tensor, config: ConvConfig) -> Vec<f64> {
        let (weight, bias) = weights(self.engine.simulation.layers, name).unwrap();
        let dims = match *weight.dims() {
            [o, d] => [o, d, 1, 1],
            _ => weight.dims4().unwrap().into(),
        };
        let [o, per_group, kh, kw]: [usize; 4] = dims;
        let weight = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bias = bias.as_ref().map(|bias| bias.to_vec1::<f32>().unwrap());
        let (b, h, w, c) = match *x.dims() {
            [b, h, w, c] => (b, h, w, c),
            _ => (x.elem_count() / x.dims().last().unwrap(), 1, 1, *x.dims().last().unwrap()),
        };
        let values = self.values(x);
        let extent = |k: usize| config.dilation * (k - 1) + 1;
        let size = |size: usize, k: usize| config.padding.outputs(size, extent(k), config.stride).unwrap();
        let (oh, ow) = (size(h, kh), size(w, kw));
        let mut out = Vec::with_capacity(b * oh * ow * o);
        for at in 0..b * oh * ow * o {
            let (channel, ox, oy, image) = (at % o, at / o % ow, at / o / ow % oh, at / o / ow / oh);
            let first = channel / (o / config.groups) * per_group;
            let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                let from = |o: usize, k: usize, size: usize, taps: usize| {
                    let (before, _) = config.padding.around(size, extent(taps), config.stride);
                    (o * config.stride + k * config.dilation).checked_sub(before).filter(|&i| i < size)
                };
                let (Some(y), Some(x)) = (from(oy, ky, h, kh), from(ox, kx, w, kw)) else { continue };
                for k in 0..per_group {
                    let weight = weight[((channel * per_group + k) * kh + ky) * kw + kx];
                    sum += f64::from(weight) * values[((image * h + y) * w + x) * c + first + k];
                }
            }
            out.push(sum);
        }
        out
    }

    fn check_layer(
        &mut self,
        (name, config): (&str, ConvConfig),
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
        run: impl FnOnce(&mut Interpreter<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let y = run(&mut self.engine)?;
        if y.dtype() != DType::U8 || self.engine.grid(x)?.is_none() {
            return Ok(y);
        }
        let mut expected = self.layer(name, x, config);
        if let Some(residual) = residual {
            let Grid { scale, low, high } = self.grid(name);
            let (scale, inverse) = (f64::from(scale as f32), f64::from((1.0 / scale) as f32));
            for (value, residual) in expected.iter_mut().zip(self.values(residual)) {
                *value = (*value * inverse).clamp(low, high).round_ties_even() * scale + residual;
            }
        }
        expected.iter_mut().for_each(|value| *value = activate(*value, activation));
        self.compare(&y, &expected);
        Ok(y)
    }
}

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Gelu => {
            // Φ by Simpson's rule from 0: enough digits, and not the approximation that is tested.
            let (end, steps) = (x.clamp(-9.0, 9.0), 200);
            let density = |i: usize| (-0.5 * (end * i as f64 / steps as f64).powi(2)).exp();
            let share = |i: usize| if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
            let sum: f64 = (0..=steps).map(|i| share(i) * density(i)).sum();
            x * (0.5 + sum * end / (3 * steps) as f64 / (2.0 * std::f64::consts::PI).sqrt())
        }
    }
}

impl Forward for Checked<'_> {
    fn input(&mut self, x: &Tensor) -> Result<Tensor> {
        let y = self.engine.input(x)?;
        let (low, high) = self.engine.ranges.at("input").unwrap();
        let simulated = ActivationGrid::Affine.round(x, low, high)?;
        // To the bit, although pixels lie between two integers as often as not.
        let off = self.engine.decoded(&y)?.sub(&simulated)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(off, 0.0);
        Ok(y)
    }

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        r: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let named = (layer.conv().name(), *layer.conv().config());
        self.check_layer(named, x, r, activation, |engine| engine.convolution(layer, x, r, activation))
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let named = (layer.name(), ConvConfig::default());
        self.check_layer(named, x, None, activation, |engine| engine.linear(layer, x, activation))
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let y = self.engine.batch_norm(layer, x, activation)?;
        let (scale, shift) = layer.scale_shift(true)?;
        let (scale, shift) = (self.values(&scale), self.values(&shift));
        let scaled =
            |(at, v): (usize, f64)| activate(v * scale[at % scale.len()] + shift[at % scale.len()], activation);
        let expected: Vec<f64> = self.values(x).into_iter().enumerate().map(scaled).collect();
        self.compare(&y, &expected);
        Ok(y)
    }

    fn max_pool(&mut self, x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
        let y = self.engine.max_pool(x, kernel, stride, padding)?;
        let simulated = self.engine.simulation.max_pool(&self.engine.decoded(x)?, kernel, stride, padding)?;
        let same = self.engine.decoded(&y)?.sub(&simulated)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(same, 0.0);
        Ok(y)
    }

    fn adaptive_avg_pool(&mut self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        self.engine.adaptive_avg_pool(x, size)
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let y = self.engine.global_avg_pool(x)?;
        let simulated = self.engine.simulation.global_avg_pool(&self.engine.decoded(x)?)?;
        let off = y.sub(&simulated)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off <= 1e-5 * simulated.abs()?.max_all()?.to_scalar::<f32>()?, "{off}");
        Ok(y)
    }

    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        self.engine.flatten(x)
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> Result<Tensor> {
        let y = self.engine.embed(layer, images)?;
        let (low, high) = self.engine.ranges.at("input").unwrap();
        let rounded = ActivationGrid::Affine.round(images, low, high)?.permute((0, 2, 3, 1))?.contiguous()?;
        let patches = self.layer(layer.conv().name(), &rounded, *layer.conv().config());
        let (class, position) = (self.values(layer.class()), self.values(layer.position()));
        let image = |patches: &[f64]| -> Vec<f64> {
            class.iter().chain(patches).zip(&position).map(|(token, position)| token + position).collect()
        };
        let expected: Vec<f64> = patches.chunks(position.len() - class.len()).flat_map(image).collect();
        self.compare(&y, &expected);
        Ok(y)
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let y = self.engine.layer_norm(layer, x)?;
        let (gamma, beta) = (self.values(layer.weight()), self.values(layer.bias()));
        let values = self.values(x);
        let row = |row: &[f64]| -> Vec<f64> {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let std = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + layer.eps()).sqrt();
            row.iter().enumerate().map(|(i, v)| (v - mean) / std * gamma[i] + beta[i]).collect()
        };
        let expected: Vec<f64> = values.chunks(gamma.len()).flat_map(row).collect();
        self.compare(&y, &expected);
        Ok(y)
    }

    fn attend(&mut self, qkv: &Tensor, heads: usize) -> Result<Tensor> {
        let y = self.engine.attend(qkv, heads)?;
        let simulated = with_portable_path(|| attend(&self.engine.decoded(qkv)?, heads))?;
        let expected = self.values(&simulated);
        self.compare(&y, &expected);
        Ok(y)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let sum = self.engine.add(x, y)?;
        let expected: Vec<f64> = self.values(x).into_iter().zip(self.values(y)).map(|(x, y)| x + y).collect();
        self.compare(&sum, &expected);
        Ok(sum)
    }

    fn class_token(&mut self, x: &Tensor) -> Result<Tensor> {
        self.engine.class_token(x)
    }
}
