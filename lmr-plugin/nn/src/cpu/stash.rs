//! What a Candle operation leaves in its forward pass for its backward pass.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, bail};

/// A place for it that both share.
pub(crate) type Stash<T> = Arc<OnceLock<T>>;

/// Leaves a value.
pub(crate) fn keep<T>(stash: &Stash<T>, value: T) -> Result<()> {
    stash.set(value).or_else(|_| bail!("an operation with a backward pass ran twice"))
}

/// The value that was left.
pub(crate) fn kept<T>(stash: &Stash<T>) -> Result<&T> {
    match stash.get() {
        Some(value) => Ok(value),
        None => bail!("an operation ran backward before it ran forward"),
    }
}
