//! The forms in which a model is shipped: what rounds it or prunes it, what computes in such a form, and what a file keeps of
//! it.
//!
//! [`Quantize`] and [`StructuredPrune`] are stages; [`Deployment`] is either of them, or neither, so that another stage can look at
//! a model in all forms. What they leave is a [`Form`](crate::model::Form):
//!
//! | form | what computes | what is stored |
//! |---|---|---|
//! | [`Integers`] | integers, or floats on their grids | integers, scales, ranges |
//! | [`Blocks`] | floats that blocks stand for | blocks |
//! | [`Pruned`] | the network, with zeros | the same names and shapes |
//! | [`Removed`] | a smaller network | smaller tensors |
//!
//! Rounding works layer by layer. A network that is [`Layered`](crate::model::Layered) tells its layers, and batch norm is
//! folded into the convolutions before them. Of another one the weights are found by their names and rounded as they are:
//! parameters of two or four dimensions called `<layer>.weight`. Its activations cannot be rounded.

mod block_format;
mod blocks;
mod bounds;
mod calibration;
mod cells;
mod deployment;
mod engine;
mod form_error;
mod forms;
mod integers;
mod layers;
mod places;
mod points;
mod prune;
mod quantize;
mod reader;
mod rounding;
mod ship;
mod stored_error;
mod structured_prune;
#[cfg(test)]
mod tests;

pub use block_format::{BlockFormat, dtype_name};
pub use blocks::Blocks;
pub use bounds::Bounds;
pub use calibration::{Calibration, Ranges};
pub use cells::cells;
pub use deployment::Deployment;
pub use engine::Engine;
pub use form_error::FormError;
pub use forms::Forms;
pub use integers::{Description, IntegerLayer, Integers, integers};
pub use layers::dequantized;
pub use places::{Average, Places};
pub use prune::{Norm, Pruned, Removed, mask, slack, smallest, smallest_of_all};
pub use quantize::Quantize;
pub use rounding::{ActivationGrid, Granularity, Rounding, Scheme, WeightGrid, round_weight, straight_through};
pub use ship::Ship;
pub use stored_error::StoredError;
pub use structured_prune::{PruneForm, Ranked, Scope, StructuredPrune};
