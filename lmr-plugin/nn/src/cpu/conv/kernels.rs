//! A convolution and its gradients over plain slices, by the kernels that suit it.

use super::finish::Finish;
use super::gather::Gather;
use super::geometry::Geometry;
use super::weights::Packed;
use super::{correlate, depthwise, winograd};
use crate::cpu::activation::Bounds;

/// Which kernels compute a convolution.
enum Kernels {
    Depthwise,
    Winograd,
    Direct,
}

impl Kernels {
    fn of(geometry: &Geometry) -> Self {
        if depthwise::applies(geometry) {
            Self::Depthwise
        } else if winograd::suits(geometry) {
            Self::Winograd
        } else {
            Self::Direct
        }
    }
}

/// Fills `out` with a convolution. With [`Finish::Statistics`], returns sums per channel, which [`Norm::new`](crate::cpu::norm::Norm::new) adds up.
pub(crate) fn convolve(
    x: &[f32],
    weight: &[f32],
    geometry: &Geometry,
    finish: Finish<'_>,
    out: &mut [f32],
) -> Vec<Vec<f64>> {
    match Kernels::of(geometry) {
        Kernels::Depthwise => depthwise::convolve(x, weight, geometry, finish, out),
        Kernels::Winograd => winograd::convolve(x, weight, geometry, finish, out),
        Kernels::Direct => {
            let weights = &Packed::forward(weight, geometry);
            let axes = geometry.forward_axes();
            Gather { input: x, from: geometry.x, to: geometry.y, axes, weights, kw: geometry.kw, finish }.run(out)
        }
    }
}

/// Fills `dx` with the gradient with respect to a convolution's input, plus `more`.
pub(crate) fn input_gradient(dz: &[f32], weight: &[f32], geometry: &Geometry, more: Option<&[f32]>, dx: &mut [f32]) {
    let finish = match more {
        Some(_) => Finish::Activate { bias: None, residual: more, bounds: Bounds::NONE },
        None => Finish::Store,
    };
    match Kernels::of(geometry) {
        Kernels::Depthwise => depthwise::input_gradient(dz, weight, geometry, finish, dx),
        Kernels::Winograd => winograd::input_gradient(dz, weight, geometry, finish, dx),
        Kernels::Direct => {
            let weights = &Packed::backward(weight, geometry);
            let axes = geometry.backward_axes();
            Gather { input: dz, from: geometry.y, to: geometry.x, axes, weights, kw: geometry.kw, finish }.run(dx);
        }
    }
}

/// `dW [O,C/groups,kh,kw]` from the gradient `dz` with respect to a convolution's output.
pub(crate) fn weight_gradient(x: &[f32], dz: &[f32], geometry: &Geometry) -> Vec<f32> {
    match Kernels::of(geometry) {
        Kernels::Depthwise => depthwise::weight_gradient(x, dz, geometry),
        Kernels::Winograd => winograd::weight_gradient(x, dz, geometry),
        Kernels::Direct => correlate::weight_gradient(x, dz, geometry),
    }
}
