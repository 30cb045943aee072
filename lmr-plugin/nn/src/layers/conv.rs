//! Two-dimensional convolution.

use candle_core::{Tensor, Var};

use crate::error::{GeometryError, Result};
use crate::padding::Padding;
use crate::params::{Builder, Init};

/// How a kernel moves over an image; the same for both dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvConfig {
    /// Positions between two outputs, at least 1.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// Positions between two taps of the kernel, at least 1.
    pub dilation: usize,
    /// Independent parts that the channels are split into; divides both channel counts.
    pub groups: usize,
}

impl Default for ConvConfig {
    fn default() -> Self {
        Self { stride: 1, padding: Padding::Symmetric(0), dilation: 1, groups: 1 }
    }
}

impl ConvConfig {
    /// The output's `[B,O,H,W]` for an input of `[B,C,H,W]` and a weight `f32[O,C/groups,kh,kw]`, if they fit.
    pub fn output_dims(&self, [b, c, h, w]: [usize; 4], weight: &Tensor) -> Result<[usize; 4]> {
        let (o, c_group, kh, kw) = weight.dims4()?;
        if self.stride == 0 || self.dilation == 0 || self.groups == 0 || kh == 0 || kw == 0 {
            return Err(GeometryError::Zero {
                stride: self.stride,
                dilation: self.dilation,
                groups: self.groups,
                kernel: (kh, kw),
            }
            .into());
        }
        if c != c_group * self.groups || o % self.groups != 0 {
            let weight = weight.dims().to_vec();
            return Err(GeometryError::Weight { channels: c, weight, groups: self.groups }.into());
        }
        let output = |size: usize, taps: usize| self.padding.outputs(size, self.dilation * (taps - 1) + 1, self.stride);
        match (output(h, kh), output(w, kw)) {
            (Some(oh), Some(ow)) => Ok([b, o, oh, ow]),
            _ => Err(GeometryError::Image { image: (h, w), kernel: (kh, kw) }.into()),
        }
    }
}

/// What has to be known to build a [`Conv2d`].
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// C.
    pub in_channels: usize,
    /// O.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Whether a bias per output channel is added.
    pub bias: bool,
    /// Stride, padding, dilation, groups.
    pub config: ConvConfig,
}

/// A trainable convolution.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Var,
    bias: Option<Var>,
    config: ConvConfig,
    name: String,
}

impl Conv2d {
    /// The convolution at the builder's path. Fresh weights are Kaiming normal by fan-out (He et al., 2015), as in
    /// torchvision's residual networks; a fresh bias is uniform in `±1/√fan_in`.
    pub fn new(spec: &ConvSpec, b: &Builder) -> Result<Self> {
        let ConvSpec { in_channels, out_channels, kernel: (kh, kw), bias, config } = *spec;
        if config.groups == 0 || in_channels % config.groups != 0 || out_channels % config.groups != 0 {
            return Err(GeometryError::Groups {
                layer: b.path().into(),
                inputs: in_channels,
                outputs: out_channels,
                groups: config.groups,
            }
            .into());
        }
        let c_group = in_channels / config.groups;
        let std = (2.0 / (out_channels * kh * kw) as f64).sqrt() as f32;
        let bound = 1.0 / ((c_group * kh * kw) as f64).sqrt();
        let weight = b.parameter("weight", (out_channels, c_group, kh, kw), Init::Normal { std })?;
        let bias = match bias {
            true => Some(b.parameter("bias", out_channels, Init::Uniform { bound: bound as f32 })?),
            false => None,
        };
        Ok(Self { weight, bias, config, name: b.path().to_string() })
    }

    /// The full name, such as `layer1.0.conv1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `f32[O, C/groups, kh, kw]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// `f32[O]`.
    pub fn bias(&self) -> Option<&Var> {
        self.bias.as_ref()
    }

    /// Stride, padding, dilation, groups.
    pub fn config(&self) -> &ConvConfig {
        &self.config
    }

    /// O.
    pub fn out_channels(&self) -> usize {
        self.weight.dims()[0]
    }
}
