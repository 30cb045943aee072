//! Networks that make images of images: the triggers of attacks that learn them.

mod autoencoder;
mod hourglass;

pub use autoencoder::Autoencoder;
pub use hourglass::Hourglass;

use crate::{Error, Result};

/// Refuses images whose sides a network cannot halve as often as it must.
fn check_sides([height, width]: [usize; 2], multiple: usize) -> Result<()> {
    let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
    if fits(height) && fits(width) {
        return Ok(());
    }
    Err(Error::Sides { multiple, found: [height, width] })
}
