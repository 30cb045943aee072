//! A tensor on its way into a file.

use safetensors::Dtype;

/// A tensor ready to be written.
pub struct Encoded<'a> {
    /// Its whole name.
    pub name: &'a str,
    /// The dtype of its numbers.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its numbers, little-endian, row-major.
    pub bytes: Vec<u8>,
}
