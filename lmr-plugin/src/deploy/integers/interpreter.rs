//! What an interpreter on integers knows, and how it runs a layer.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, TensorId};

use super::super::FormError;
use super::super::calibration::Ranges;
use super::super::points::{Point, Points};
use super::super::rounding::Scheme;
use super::{PackedLayer, Simulation};
use crate::Error;
use crate::model::Classifier;
use crate::nn::int8::{self, Affine, Images, Kernel};
use crate::nn::{self, Activation, Forward, Linear, Result};

/// An interpreter whose activations are codes.
pub(super) struct Interpreter<'a> {
    /// What runs the layers that have no kernel.
    pub(super) simulation: Simulation<'a>,
    pub(super) layers: &'a BTreeMap<String, PackedLayer>,
    pub(super) ranges: &'a Ranges,
    pub(super) kernel: Kernel,
    pub(super) scheme: Scheme,
    /// The layer that computes the logits.
    head: &'a str,
    /// The activation points that were reached.
    pub(super) points: Points,
    /// What the codes of a tensor stand for.
    grids: HashMap<TensorId, Affine>,
}

impl<'a> Interpreter<'a> {
    pub fn new(
        simulation: Simulation<'a>,
        (network, scheme): (&'a dyn Classifier, Scheme),
        layers: &'a BTreeMap<String, PackedLayer>,
        ranges: &'a Ranges,
        kernel: Kernel,
    ) -> Self {
        let head = network.head().name();
        Self { simulation, layers, ranges, kernel, scheme, head, points: Points::default(), grids: HashMap::new() }
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
        let affine = Affine::of(&self.scheme.activation_grid.of(low, high));
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
        let to = self.reach(point)?;
        self.encoded_on(x, to)
    }

    /// Values on a grid.
    pub(super) fn encoded_on(&mut self, x: &Tensor, to: Affine) -> Result<Tensor> {
        let x = x.detach().contiguous()?;
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
        if residual.is_none() && !self.scheme.places.joins(activation) {
            let y = self.layer(name, x, None, Activation::None, otherwise)?;
            let to = self.grid(&y)?.ok_or(Error::from(FormError::UnknownCodes))?;
            let y = activation.apply(&self.decoded(&y)?)?;
            return self.encoded_on(&y, to);
        }
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

    /// Logits that are not rounded; `None` if the layer computes others, or logits are rounded.
    pub(super) fn logits(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Option<Tensor>> {
        if layer.name() != self.head || self.scheme.places.logits {
            return Ok(None);
        }
        let packed = self.layers.get(layer.name()).zip(self.grid(x)?);
        let (Some((packed, from)), [rows, width], Activation::None) = (packed, x.dims(), activation) else {
            return self.unrounded(x, |how, x| how.linear(layer, x, activation)).map(Some);
        };
        let codes = int8::codes(x)?;
        let logits = packed.values(self.kernel, (Images::new(&codes, [*rows, 1, 1, *width])?, from))?;
        Ok(Some(Tensor::from_vec(logits, (*rows, packed.outputs()), &Device::Cpu)?))
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
