//! Pruning: which channels go, and the forms without them.

mod pruned;
mod ranking;
mod removed;

pub use pruned::Pruned;
pub use ranking::{Norm, mask, slack, smallest, smallest_of_all};
pub use removed::Removed;
