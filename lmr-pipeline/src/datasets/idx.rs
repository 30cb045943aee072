//! IDX, the format of MNIST: a short big-endian header, then the values; usually gzipped.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::DataError;

/// Deflate cannot pack more than this many bytes into one, so a larger claim is a lie.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// What an open IDX file claims to hold.
struct Idx {
    values: Box<dyn Read>,
    dimensions: Vec<usize>,
    /// How many bytes of values the file can hold at most.
    capacity: u64,
}

/// The pixels of all images in `file`, in the order of the file, and how many images there are.
pub(super) fn read_images(file: &Path, [height, width]: [usize; 2]) -> Result<(Vec<u8>, usize), DataError> {
    let idx = open(file, 3)?;
    let (count, found) = (idx.dimensions[0], &idx.dimensions[1..]);
    if found != [height, width] {
        return Err(DataError::content(
            file,
            format!("images of {}x{} (height, width)", found[0], found[1]),
            format!("{height}x{width}"),
        )
        .advise("; correct `image` in the descriptor, or the file"));
    }
    Ok((read_values(file, idx)?, count))
}

/// The labels in `file`.
pub(super) fn read_labels(file: &Path) -> Result<Vec<u8>, DataError> {
    read_values(file, open(file, 1)?)
}

/// Opens a file and reads its header.
fn open(file: &Path, dimensions: usize) -> Result<Idx, DataError> {
    let io = |source| DataError::io(file, source);
    let mut raw = BufReader::new(File::open(file).map_err(io)?);
    let size = raw.get_ref().metadata().map_err(io)?.len();
    let mut magic = Vec::new();
    raw.by_ref().take(2).read_to_end(&mut magic).map_err(io)?;
    raw.rewind().map_err(io)?;
    // The content decides, not the name: downloads lose or keep `.gz` as they please.
    let gzipped = magic == [0x1f, 0x8b];
    let mut values: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };

    let mut header = vec![0; 4 + 4 * dimensions];
    values.read_exact(&mut header).map_err(|source| short(file, source, "its end", "a header"))?;
    let expected = [0, 0, 8, dimensions as u8];
    if header[..4] != expected {
        return Err(DataError::content(
            file,
            format!("magic number {:02x?}", &header[..4]),
            format!(
                "{expected:02x?}, unsigned bytes of {dimensions} dimension{}",
                if dimensions == 1 { "" } else { "s" }
            ),
        ));
    }
    let dimensions = header[4..].chunks_exact(4).map(|n| n.iter().fold(0, |n, &byte| n << 8 | usize::from(byte)));
    let capacity = if gzipped { size.saturating_mul(MAX_DEFLATE_RATIO) } else { size - header.len() as u64 };
    Ok(Idx { values, dimensions: dimensions.collect(), capacity })
}

/// Reads exactly what the header declares; memory is taken only once the file could really hold that much.
fn read_values(file: &Path, mut idx: Idx) -> Result<Vec<u8>, DataError> {
    let declared = idx.dimensions.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let Some(declared) = declared.filter(|&n| n <= idx.capacity) else {
        return Err(DataError::content(
            file,
            format!("a header that declares {:?} values", idx.dimensions),
            format!("at most {}, which is what a file of its size can hold", idx.capacity),
        )
        .advise("; the file is cut off or damaged"));
    };
    let mut values = Vec::new();
    // One more than declared, so that surplus shows, yet never all of a surplus that is endless.
    idx.values
        .by_ref()
        .take(declared + 1)
        .read_to_end(&mut values)
        .map_err(|source| short(file, source, &format!("{} bytes of values", values.len()), &declared.to_string()))?;
    let found = values.len() as u64;
    if found < declared {
        return Err(DataError::content(file, format!("{found} bytes of values"), declared)
            .advise("; the file is cut off or damaged"));
    }
    if found > declared {
        return Err(DataError::content(file, "more bytes of values than its header declares", declared));
    }
    Ok(values)
}

/// A stream that ends early or is no valid gzip is a fault of the content, the rest one of the system.
fn short(file: &Path, source: std::io::Error, found: &str, expected: &str) -> DataError {
    match source.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            DataError::content(file, format!("{found} ({source})"), expected).advise("; the file is cut off or damaged")
        }
        _ => DataError::io(file, source),
    }
}
