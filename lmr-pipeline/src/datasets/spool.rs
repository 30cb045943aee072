//! Encoded images in a temporary file, decoded when they are read: rows of a Parquet file cannot be had one by one.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lmr_plugin::data::ImageSource;
use sha2::{Digest, Sha256};

use super::DataError;
use super::pixels::Decoding;

/// Images as they come.
pub(super) struct Writer {
    file: BufWriter<File>,
    end: u64,
    images: Vec<Encoded>,
    /// Where images came from, and the number of the first one from there.
    origins: Vec<(usize, PathBuf)>,
}

/// Where an image is in the temporary file.
struct Encoded {
    start: u64,
    len: usize,
    sha256: [u8; 32],
}

/// All of them. The file has no name: it is gone with the process, however that ends.
pub(super) struct Spool {
    file: Mutex<File>,
    images: Vec<Encoded>,
    origins: Vec<(usize, PathBuf)>,
    decoding: Decoding,
}

impl Writer {
    pub(super) fn new() -> Result<Self, DataError> {
        let file = tempfile::tempfile().map_err(refused)?;
        Ok(Self { file: BufWriter::new(file), end: 0, images: Vec::new(), origins: Vec::new() })
    }

    /// The images that follow come from this file.
    pub(super) fn begin(&mut self, origin: &Path) {
        self.origins.push((self.images.len(), origin.to_owned()));
    }

    pub(super) fn push(&mut self, image: &[u8]) -> Result<(), DataError> {
        self.file.write_all(image).map_err(refused)?;
        self.images.push(Encoded { start: self.end, len: image.len(), sha256: Sha256::digest(image).into() });
        self.end += image.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self, decoding: Decoding) -> Result<Spool, DataError> {
        let file = self.file.into_inner().map_err(|error| refused(error.into_error()))?;
        Ok(Spool { file: Mutex::new(file), images: self.images, origins: self.origins, decoding })
    }
}

impl Spool {
    fn decode(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        let bytes = self.encoded(&self.images[index]).map_err(refused)?;
        self.decoding.decode(&bytes, out).map_err(|(found, expected)| {
            let origin = self.origins.partition_point(|&(first, _)| first <= index).saturating_sub(1);
            let (first, path) = &self.origins[origin];
            DataError::content(path, found, expected).at(format_args!("row {}", index - first))
        })
    }

    fn encoded(&self, image: &Encoded) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; image.len];
        // A thread that panicked has left nothing half done: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(image.start))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn refused(source: std::io::Error) -> DataError {
    let hint = "; it takes the encoded images, `TMPDIR` says where".to_owned();
    DataError::Io { file: std::env::temp_dir(), source, hint }
}

impl ImageSource for Spool {
    fn count(&self) -> usize {
        self.images.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.decoding.shape
    }

    fn read(&self, index: usize, out: &mut [u8]) -> lmr_plugin::Result<()> {
        self.decode(index, out).map_err(|error| lmr_plugin::Error::Image(error.into()))
    }

    fn identity(&self, index: usize) -> lmr_plugin::Result<Cow<'_, [u8]>> {
        Ok(self.decoding.identity(&self.images[index].sha256).into())
    }
}
