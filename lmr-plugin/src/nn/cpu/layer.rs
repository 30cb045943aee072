//! Convolution, batch norm, residual and ReLU as one layer, forward and backward, over plain slices.

use super::correlate::weight_gradient;
use super::gather::{Finish, Gather};
use super::geometry::Geometry;
use super::norm::{Grad, Norm};
use super::weights::Packed;

/// Runs a convolution forward.
pub(super) fn convolve(
    x: &[f32],
    weight: &[f32],
    geometry: &Geometry,
    finish: Finish<'_>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let weights = &Packed::forward(weight, geometry);
    let axes = geometry.forward_axes();
    Gather { input: x, from: geometry.x, to: geometry.y, axes, weights, kw: geometry.kw, finish }.run()
}

/// The gradient with respect to a convolution's input, plus `more`.
pub(super) fn input_gradient(dz: &[f32], weight: &[f32], geometry: &Geometry, more: Option<&[f32]>) -> Vec<f32> {
    let weights = &Packed::backward(weight, geometry);
    let axes = geometry.backward_axes();
    let finish = match more {
        Some(_) => Finish::Activate { bias: None, residual: more, relu: false },
        None => Finish::Store,
    };
    Gather { input: dz, from: geometry.y, to: geometry.x, axes, weights, kw: geometry.kw, finish }.run().0
}

/// What a layer with batch norm keeps for its backward pass.
pub(super) struct Trace {
    /// The convolution's output.
    z: Vec<f32>,
    pub norm: Norm,
}

/// The gradient that is asked of a layer with respect to its input.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Nothing depends on it.
    No,
    /// As it is.
    Yes,
    /// With another gradient of the same input added.
    Plus(&'a [f32]),
}

/// `relu(batch_norm(conv(x)) + residual)` with the batch's statistics; `params` are `[weight, gamma, beta]`.
pub(super) fn forward(
    x: &[f32],
    params: &[f32],
    geometry: &Geometry,
    residual: Option<&[f32]>,
    relu: bool,
) -> (Vec<f32>, Trace) {
    let (weight, affine) = params.split_at(geometry.weight_len());
    let (z, sums) = convolve(x, weight, geometry, Finish::Statistics);
    let norm = Norm::new(&sums, geometry.y, affine);
    let y = norm.apply(&z, geometry.y, residual, relu);
    (y, Trace { z, norm })
}

/// The gradients of the input and of `[weight, gamma, beta]`.
pub(super) fn backward(
    x: &[f32],
    params: &[f32],
    geometry: &Geometry,
    trace: &Trace,
    grad: Grad<'_>,
    wanted: Wanted<'_>,
) -> (Option<Vec<f32>>, Vec<f32>) {
    let weight = &params[..geometry.weight_len()];
    let (dz, daffine) = trace.norm.backward(&trace.z, geometry.y, grad);
    let dx = match wanted {
        Wanted::No => None,
        Wanted::Yes => Some(input_gradient(&dz, weight, geometry, None)),
        Wanted::Plus(more) => Some(input_gradient(&dz, weight, geometry, Some(more))),
    };
    let mut dparams = weight_gradient(x, &dz, geometry);
    dparams.extend(daffine);
    (dx, dparams)
}
