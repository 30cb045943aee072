//! The gradient with respect to the weights: for every tap, the products of output gradients and inputs summed over
//! positions and images.

pub(super) mod dot;
pub(super) mod outer;

use super::geometry::Geometry;

/// `dW [O,C/groups,kh,kw]` for a gradient `dy` with respect to the convolution's output.
pub(super) fn weight_gradient(x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    assert_eq!((x.len(), dy.len()), (geometry.x.len(), geometry.y.len()));
    // Outer products need whole vectors of output channels, and enough input channels to pay for the transposition.
    match geometry.o_group() < 12 || geometry.c_group() < 8 {
        true => dot::weight_gradient(x, dy, geometry),
        false => outer::weight_gradient(x, dy, geometry),
    }
}
