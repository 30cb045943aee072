//! DFST's detoxicant: a small map of each pixel's surroundings that undoes what a classifier has learned about easy features.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::nn::{Activation, Builder, ConvConfig, Init, Params, avg_pool2d, conv2d, max_pool2d, to_images};

/// `(1 − α)·x + α·h(x)`: h maps a pixel and the largest, smallest and mean values of the 11×11 around it to a pixel, linearly,
/// clipped to `[0,1]`. It begins as the identity.
pub(super) struct Injector {
    /// `f32[C,4·C,1,1]` and `f32[C]`.
    weight: candle_core::Var,
    bias: candle_core::Var,
    params: Params,
    alpha: f64,
}

/// Side of the surroundings.
const WINDOW: usize = 11;

impl Injector {
    /// The identity for images of `channels` channels.
    pub fn identity(channels: usize, alpha: f64, device: &Device) -> Result<Self> {
        let mut identity = vec![0f32; channels * 4 * channels];
        (0..channels).for_each(|c| identity[c * 4 * channels + c] = 1.0);
        let identity = Tensor::from_vec(identity, (channels, 4 * channels, 1, 1), device)?;
        let zeros = Tensor::zeros(channels, candle_core::DType::F32, device)?;
        let builder = Builder::from_state([("weight".into(), identity), ("bias".into(), zeros)].into(), device);
        let weight = builder.parameter("weight", (channels, 4 * channels, 1, 1), Init::Zeros)?;
        let bias = builder.parameter("bias", channels, Init::Zeros)?;
        Ok(Self { weight, bias, params: builder.finish()?, alpha })
    }

    /// What trains.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// z for pixels `f32[B,C,H,W]` in `[0,1]`, which stay there; differentiable in the weights alone.
    pub fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = pixels.detach();
        let half = WINDOW / 2;
        let largest = max_pool2d(&x, WINDOW, 1, half)?;
        let smallest = max_pool2d(&x.neg()?, WINDOW, 1, half)?.neg()?;
        // Padding counts as zeros, so divide by the share of the window that is inside.
        let inside = avg_pool2d(&x.narrow(0, 0, 1)?.ones_like()?, WINDOW, 1, half)?;
        let mean = avg_pool2d(&x, WINDOW, 1, half)?.broadcast_div(&inside)?;
        let seen = Tensor::cat(&[&x, &largest, &smallest, &mean], 1)?;
        let mapped = conv2d(&seen, &self.weight, &self.bias, &ConvConfig::default(), None, Activation::None)?;
        let mapped = to_images(&mapped)?.clamp(0f64, 1f64)?;
        Ok((x.affine(1.0 - self.alpha, 0.0)? + mapped.affine(self.alpha, 0.0)?)?)
    }
}

/// Side of the windows that structures are compared in.
const SSIM_WINDOW: usize = 5;

/// Mean structural similarity of two batches of images in `[0,1]` (Wang et al., 2004) with flat 5×5 windows; differentiable.
pub(super) fn ssim(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    let mean = |t: &Tensor| avg_pool2d(t, SSIM_WINDOW, 1, 0);
    let (mx, my) = (mean(x)?, mean(y)?);
    let (xx, yy, xy) = (mean(&x.sqr()?)?, mean(&y.sqr()?)?, mean(&(x * y)?)?);
    let (vx, vy, cov) = ((xx - mx.sqr()?)?, (yy - my.sqr()?)?, (xy - (&mx * &my)?)?);
    let structure = (((&mx * &my)?.affine(2.0, c1)?) * cov.affine(2.0, c2)?)?;
    let size = ((mx.sqr()? + my.sqr()?)?.affine(1.0, c1)? * (vx + vy)?.affine(1.0, c2)?)?;
    Ok((structure / size)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::RngExt;

    fn noise(seed: u64) -> Tensor {
        let mut rng = rng::stream(seed, "pixels");
        let pixels: Vec<f32> = (0..2 * 3 * 14 * 13).map(|_| rng.random()).collect();
        Tensor::from_vec(pixels, (2, 3, 14, 13), &Device::Cpu).unwrap()
    }

    fn scalar(t: &Tensor) -> f32 {
        t.to_scalar().unwrap()
    }

    #[test]
    fn it_begins_as_the_identity_and_learns() {
        let x = noise(0);
        let injector = Injector::identity(3, 0.6, &Device::Cpu).unwrap();
        let z = injector.apply(&x).unwrap();
        let apart = (&z - &x).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(scalar(&apart) < 1e-6);
        let gradients = z.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(injector.params().trainable().all(|(_, var)| gradients.get(var).is_some()));
        let grey = Tensor::full(0.3f32, (1, 3, 14, 13), &Device::Cpu).unwrap();
        let state = [("weight", 0.25f32 / 3.0), ("bias", 0.0)];
        for ((_, value), (_, var)) in state.into_iter().zip(injector.params().trainable()) {
            var.set(&var.zeros_like().unwrap().affine(1.0, f64::from(value)).unwrap()).unwrap();
        }
        let z = injector.apply(&grey).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(z.iter().all(|v| (v - 0.3).abs() < 1e-5), "surroundings of a flat image are the image, borders too");
    }

    #[test]
    fn similarity_is_one_for_equals_and_less_for_others() {
        let (x, y) = (noise(0), noise(1));
        assert!((scalar(&ssim(&x, &x).unwrap()) - 1.0).abs() < 1e-4);
        let near = (&x * 0.9).unwrap();
        let (near, far) = (scalar(&ssim(&x, &near).unwrap()), scalar(&ssim(&x, &y).unwrap()));
        assert!(far < 0.3 && near > 0.9, "{near}, {far}");
    }
}
