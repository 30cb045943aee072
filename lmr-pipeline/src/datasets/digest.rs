//! SHA-256 of files and of images.

use std::io::Read;
use std::path::Path;

use lmr_plugin::data::Images;
use sha2::{Digest, Sha256};

/// The SHA-256 of a file's bytes in hexadecimal digits, and how many bytes there are.
pub(crate) fn sha256_file(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hasher.finalize()), bytes)),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// A digest of shape, number of classes, labels and pixels: equal for equal images wherever they were in memory from.
///
/// Where images are decoded when they are wanted, the bytes they are decoded from and how they are resized take the place
/// of the pixels: equal for equal files.
///
/// ```
/// use lmr_pipeline::datasets::digest;
/// use lmr_plugin::data::Images;
/// let wide = Images::new(vec![0, 255], vec![1], [1, 1, 2], 2)?;
/// let tall = Images::new(vec![0, 255], vec![1], [1, 2, 1], 2)?;
/// assert_eq!(digest(&wide)?, digest(&wide.clone())?);
/// assert_ne!(digest(&wide)?, digest(&tall)?);
/// # Ok::<(), lmr_plugin::Error>(())
/// ```
pub fn digest(images: &Images) -> lmr_plugin::Result<String> {
    let mut hasher = Sha256::new();
    for number in images.shape().into_iter().chain([images.len(), images.classes()]) {
        hasher.update((number as u64).to_le_bytes());
    }
    for label in images.labels() {
        hasher.update(label.to_le_bytes());
    }
    for index in 0..images.len() {
        hasher.update(images.identity(index)?);
    }
    Ok(hex(&hasher.finalize()))
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
