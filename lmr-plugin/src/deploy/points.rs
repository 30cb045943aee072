//! Where activations are rounded, and what these places are called.

use std::collections::BTreeSet;

use candle_core::Tensor;

use super::FormError;
use super::layers::run_once;
use super::places::{Average, Places};
use crate::model::{Classifier, Layered};
use crate::nn::{self, Activation, BatchNorm2d, Convolution, Eval, Forward, LayerNorm, Linear, PatchEmbedding};
use crate::{Error, Result};

/// A place where activations are rounded.
#[derive(Clone, Copy)]
pub(super) enum Point<'a> {
    /// The network's input: `input`.
    Input,
    /// Behind a layer with what follows it, under the layer's name: `layer1.0.conv1`.
    Layer(&'a str),
    /// Behind a sum, under the name of the point before it: `layer1.0.conv2/sum`.
    Sum,
    /// Behind attention, likewise: `encoder.layers.encoder_layer_0.self_attention.in_proj/attend`.
    Attention,
    /// Behind the average over positions, likewise: `layer4.1.conv2/sum/average`.
    Average,
}

/// Names the activation points in the order in which a network reaches them.
#[derive(Default)]
pub(super) struct Points {
    reached: BTreeSet<String>,
    last: String,
}

impl Points {
    /// The name of the point that is reached now. Errors if it was reached before: a range belongs to one point.
    pub fn reach(&mut self, point: Point<'_>) -> Result<&str> {
        self.last = match point {
            Point::Input => "input".into(),
            Point::Layer(name) => name.into(),
            Point::Sum => format!("{}/sum", self.last),
            Point::Attention => format!("{}/attend", self.last),
            Point::Average => format!("{}/average", self.last),
        };
        match self.reached.insert(self.last.clone()) {
            true => Ok(&self.last),
            false => Err(FormError::TwoPlaces { point: self.last.clone() }.into()),
        }
    }

    /// The point that was reached last.
    pub fn last(&self) -> &str {
        &self.last
    }

    /// How many were reached.
    pub fn count(&self) -> usize {
        self.reached.len()
    }

    /// Those of a network.
    pub fn of(network: &dyn Classifier, places: Places) -> Result<BTreeSet<String>> {
        let mut at_points = AtPoints::new(Eval, (network, places), |x: &Tensor, _: &str| Ok(x.clone()));
        run_once(network, layers_of(network)?, &mut at_points)?;
        Ok(at_points.points.reached)
    }
}

/// The layers of a network, between which activations are rounded.
pub(super) fn layers_of(network: &dyn Classifier) -> Result<&dyn Layered> {
    network.layered().ok_or(Error::Unsupported {
        what: "rounding activations",
        needs: "a network that implements `Layered`; with `activations = false` weights alone are rounded",
    })
}

/// Passes what an inner interpreter computes through a function at every activation point.
pub(super) struct AtPoints<'a, I, F> {
    inner: I,
    act: F,
    points: Points,
    places: Places,
    /// The layer that computes the logits.
    head: &'a str,
}

impl<'a, I: Forward, F: FnMut(&Tensor, &str) -> Result<Tensor>> AtPoints<'a, I, F> {
    pub fn new(inner: I, (network, places): (&'a dyn Classifier, Places), act: F) -> Self {
        Self { inner, act, points: Points::default(), places, head: network.head().name() }
    }

    fn point(&mut self, x: Tensor, point: Point<'_>) -> nn::Result<Tensor> {
        Ok((self.act)(&x, self.points.reach(point)?)?)
    }
}

impl<I: Forward, F: FnMut(&Tensor, &str) -> Result<Tensor>> Forward for AtPoints<'_, I, F> {
    fn input(&mut self, x: &Tensor) -> nn::Result<Tensor> {
        let x = self.inner.input(x)?;
        self.point(x, Point::Input)
    }

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> nn::Result<Tensor> {
        let joined = residual.is_none() && self.places.joins(activation);
        let y = self.inner.convolution(layer, x, None, if joined { activation } else { Activation::None })?;
        let y = self.point(y, Point::Layer(layer.conv().name()))?;
        match residual {
            None if joined => Ok(y),
            None => {
                let y = activation.apply(&y)?;
                // 6 need not be one of the values.
                Ok((self.act)(&y, self.points.last())?)
            }
            Some(residual) => {
                let y = activation.apply(&(y + residual)?)?;
                self.point(y, Point::Sum)
            }
        }
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> nn::Result<Tensor> {
        let y = self.inner.batch_norm(layer, x, activation)?;
        self.point(y, Point::Layer(layer.name()))
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> nn::Result<Tensor> {
        let y = self.inner.linear(layer, x, activation)?;
        match layer.name() == self.head && !self.places.logits {
            true => Ok(y),
            false => self.point(y, Point::Layer(layer.name())),
        }
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> nn::Result<Tensor> {
        let y = self.inner.global_avg_pool(x)?;
        match self.places.average {
            Average::Float => Ok(y),
            Average::Same => Ok((self.act)(&y, self.points.last())?),
            Average::Own => self.point(y, Point::Average),
        }
    }

    fn embed(&mut self, layer: &PatchEmbedding, images: &Tensor) -> nn::Result<Tensor> {
        let images = self.point(images.clone(), Point::Input)?;
        let y = self.inner.embed(layer, &images)?;
        self.point(y, Point::Layer(layer.conv().name()))
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor) -> nn::Result<Tensor> {
        let y = self.inner.layer_norm(layer, x)?;
        self.point(y, Point::Layer(layer.name()))
    }

    fn attend(&mut self, qkv: &Tensor, heads: usize) -> nn::Result<Tensor> {
        let y = self.inner.attend(qkv, heads)?;
        self.point(y, Point::Attention)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> nn::Result<Tensor> {
        let y = self.inner.add(x, y)?;
        self.point(y, Point::Sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_is_called_after_what_came_before() {
        let mut points = Points::default();
        let places = [Point::Input, Point::Layer("in"), Point::Attention, Point::Layer("out"), Point::Sum, Point::Sum];
        let names: Vec<String> = places.into_iter().map(|place| points.reach(place).unwrap().to_string()).collect();
        assert_eq!(names, ["input", "in", "in/attend", "out", "out/sum", "out/sum/sum"]);
        let message = points.reach(Point::Layer("out")).unwrap_err().to_string();
        assert!(message.contains("two places are called `out`"), "{message}");
    }
}
