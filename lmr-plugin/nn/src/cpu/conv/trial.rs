//! One pass of one convolution, for benchmarks.

use candle_core::{Result, bail};

use super::finish::Finish;
use super::geometry::Geometry;
use super::kernels::{convolve, input_gradient, weight_gradient};
use crate::cpu::layout::Dims;
use crate::layers::ConvConfig;

/// What a convolution has to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient with respect to the input.
    Input,
    /// The gradient with respect to the weights.
    Weights,
}

/// Runs the passes of a convolution by the CPU kernels, on buffers that are there already: what benchmarks time.
pub struct Trial {
    geometry: Geometry,
    x: Vec<f32>,
    weight: Vec<f32>,
    dx: Vec<f32>,
    y: Vec<f32>,
}

impl Trial {
    /// For images `[B,C,H,W]` and a weight `[O,C/groups,kh,kw]`.
    pub fn new(images: [usize; 4], weight: [usize; 4], config: ConvConfig) -> Result<Self> {
        let [b, c, h, w] = images;
        let positive = images.iter().chain(&weight).chain(&[config.stride, config.dilation]).all(|&v| v > 0);
        if !positive {
            bail!("a convolution of {images:?} by {weight:?} with {config:?} is empty");
        }
        let geometry = Geometry::new(Dims::of_batch(b, c, h, w), weight, config)?;
        // Any values will do, as long as they are not denormal.
        let values = |len: usize| (0..len).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect::<Vec<f32>>();
        let (x, y) = (values(geometry.x.len()), values(geometry.y.len()));
        Ok(Self { weight: values(geometry.weight_len()), dx: x.clone(), x, y, geometry })
    }

    /// Runs one pass.
    pub fn run(&mut self, pass: Pass) {
        let Self { geometry, x, weight, dx, y } = self;
        match pass {
            Pass::Forward => drop(convolve(x, weight, geometry, Finish::Store, y)),
            Pass::Input => input_gradient(y, weight, geometry, None, dx),
            Pass::Weights => drop(weight_gradient(x, y, geometry)),
        }
    }

    /// Multiplications and additions of a direct sum, products with padding included; the same for all passes.
    pub fn flops(&self) -> f64 {
        2.0 * self.geometry.y.count() as f64 * self.geometry.weight_len() as f64
    }
}
