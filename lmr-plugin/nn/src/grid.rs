//! Integers times a scale: where quantized values live.

/// Adding 1.5·2^23 leaves an f32 no bits for a fraction, so the addition itself rounds, ties to even.
pub(crate) const MAGIC: f64 = 12_582_912.0;

/// The values `scale · q` for the integers `q` in `low..=high`, all of magnitude below 2^22.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Distance between neighbours, above 0.
    pub scale: f64,
    /// Smallest integer.
    pub low: f64,
    /// Largest integer.
    pub high: f64,
}
