//! What an interpreter on integers knows, and how it runs a layer.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, TensorId};

use super::super::FormError;
use super::super::calibration::Ranges;
use super::super::points::{Point, Points};
use super::super::rounding::grid;
use super::{PackedLayer, Simulation};
use crate::Error;
use crate::nn::int8::{self, Affine, Images, Kernel};
use crate::nn::{self, Activation, Result};

/// An interpreter whose activations are codes.
pub(super) struct Engine<'a> {
    /// What runs the layers that have no kernel.
    pub(super) simulation: Simulation<'a>,
    pub(super) layers: &'a BTreeMap<String, PackedLayer>,
    pub(super) ranges: &'a Ranges,
    pub(super) kernel: Kernel,
    /// The activation points that were reached.
    pub(super) points: Points,
    /// What the codes of a tensor stand for.
    grids: HashMap<TensorId, Affine>,
}

impl<'a> Engine<'a> {
    pub fn new(
        simulation: Simulation<'a>,
        layers: &'a BTreeMap<String, PackedLayer>,
        ranges: &'a Ranges,
        kernel: Kernel,
    ) -> Self {
        Self { simulation, layers, ranges, kernel, points: Points::default(), grids: HashMap::new() }
    }

    /// What a tensor stands for: codes are decoded, to images where there are pixels; anything else stays as it is.
    pub fn decoded(&self, x: &Tensor) -> Result<Tensor> {
        let Some(from) = self.grid(x)? else { return Ok(x.clone()) };
        let codes = int8::codes(x)?;
        Ok(match *x.dims() {
            [b, h, w, c] => {
                Tensor::from_vec(int8::decode_images(&codes, (c, h * w), from), (b, c, h, w), &Device::Cpu)?
            }
            _ => Tensor::from_vec(int8::decode(&codes, from), x.dims(), &Device::Cpu)?,
        })
    }

    /// The grid of a tensor of codes; `None` for any other.
    pub(super) fn grid(&self, x: &Tensor) -> Result<Option<Affine>> {
        match (x.dtype(), self.grids.get(&x.id())) {
            (DType::U8, Some(grid)) => Ok(Some(*grid)),
            (DType::U8, None) => Err(Error::from(FormError::UnknownCodes).into()),
            _ => Ok(None),
        }
    }

    /// The grid of the activation point that is reached now.
    pub(super) fn reach(&mut self, point: Point<'_>) -> Result<Affine> {
        let (low, high) = self.ranges.at(self.points.reach(point)?)?;
        let affine = Affine::of(&grid(low, high));
        Ok(affine.ok_or(Error::Form(FormError::WideGrid))?)
    }

    /// A tensor of codes.
    pub(super) fn keep(&mut self, codes: Vec<u8>, dims: &[usize], grid: Affine) -> Result<Tensor> {
        Ok(self.known(Tensor::from_vec(codes, dims, &Device::Cpu)?, grid))
    }

    /// Remembers what codes stand for.
    pub(super) fn known(&mut self, codes: Tensor, grid: Affine) -> Tensor {
        self.grids.insert(codes.id(), grid);
        codes
    }

    /// Values at an activation point; images become channels-last.
    pub(super) fn encoded(&mut self, x: &Tensor, point: Point<'_>) -> Result<Tensor> {
        let (x, to) = (x.detach().contiguous()?, self.reach(point)?);
        let values = int8::values(&x)?;
        if let Some(value) = values.iter().find(|v| v.is_nan()) {
            let (step, value) = (self.points.count() - 1, f64::from(*value));
            return Err(Error::NotFinite { what: "activation", step, value }.into());
        }
        match *x.dims() {
            [b, c, h, w] => self.keep(int8::encode_images(&values, (c, h * w), to), &[b, h, w, c], to),
            ref dims => self.keep(int8::encode(&values, to), dims, to),
        }
    }

    /// Runs a layer; where there is no kernel for it, `otherwise` runs it as in the simulation.
    pub(super) fn layer(
        &mut self,
        name: &str,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
        otherwise: impl FnOnce(&mut Simulation<'a>, &Tensor, Activation) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let packed = self.layers.get(name).zip(self.grid(x)?);
        let added = residual.map(|residual| Ok::<_, nn::Error>((residual, self.grid(residual)?))).transpose()?;
        match (packed, added) {
            (Some(packed), None) => self.packed(name, packed, x, None, activation),
            (Some(packed), Some((residual, Some(grid)))) => {
                self.packed(name, packed, x, Some((residual, grid)), activation)
            }
            (_, None) => {
                let x = self.decoded(x)?;
                let y = otherwise(&mut self.simulation, &x, activation)?;
                self.encoded(&y, Point::Layer(name))
            }
            (_, Some((residual, _))) => {
                let x = self.decoded(x)?;
                let y = otherwise(&mut self.simulation, &x, Activation::None)?;
                let y = self.encoded(&y, Point::Layer(name))?;
                let sum = (self.decoded(&y)? + self.decoded(residual)?)?;
                self.encoded(&activation.apply(&sum)?, Point::Sum)
            }
        }
    }

    /// Runs a layer's kernel.
    fn packed(
        &mut self,
        name: &str,
        (layer, from): (&PackedLayer, Affine),
        x: &Tensor,
        residual: Option<(&Tensor, Affine)>,
        activation: Activation,
    ) -> Result<Tensor> {
        let (codes, mut dims) = (int8::codes(x)?, x.dims().to_vec());
        let images = match *x.dims() {
            [b, h, w, c] => Images::new(&codes, [b, h, w, c])?,
            [ref rows @ .., d] => Images::new(&codes, [rows.iter().product(), 1, 1, d])?,
            [] => return Err(Error::from(FormError::SingleNumber).into()),
        };
        let (h, w) = layer.output(images)?;
        if let [_, height, width, _] = dims.as_mut_slice() {
            (*height, *width) = (h, w);
        }
        if let Some(channels) = dims.last_mut() {
            *channels = layer.outputs();
        }
        let to = self.reach(Point::Layer(name))?;
        match residual {
            None => self.keep(layer.codes(self.kernel, (images, from), to, None, activation)?, &dims, to),
            Some((residual, grid)) => {
                let (residual, sum) = (int8::codes(residual)?, self.reach(Point::Sum)?);
                let added = Some((&*residual, grid, sum));
                self.keep(layer.codes(self.kernel, (images, from), to, added, activation)?, &dims, sum)
            }
        }
    }

    /// Floats through an operation that is not rounded.
    pub(super) fn unrounded(
        &mut self,
        x: &Tensor,
        op: impl FnOnce(&mut Simulation<'a>, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.decoded(x)?;
        op(&mut self.simulation, &x)
    }
}
