//! A network on integers: what the simulation computes with floats on grids, computed with the grids' integers.
//!
//! Activations are tensors of bytes, channels-last ([`crate::nn::int8`]). Sums of products are exact; the simulation's are
//! rounded like all sums of floats, so a value next to the middle between two integers can become the other one.
//!
//! What the simulation does not round is a float here, too: averages over positions, and with them the input of a
//! classifier's head. Layers without an integer kernel run as in the simulation.

mod engine;
mod forward;
mod layer;
#[cfg(test)]
mod tests;

pub(super) use engine::Engine;
pub(super) use layer::Layer;
