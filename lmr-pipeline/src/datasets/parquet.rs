//! Parquet as the Hugging Face Hub stores image data sets: one row an image, encoded as PNG or JPEG.
//!
//! Candle's own loader swaps rows and columns and skips what it cannot read; this one does neither.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::basic::Compression;
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{RowGroupReader, SerializedFileReader};
use ::parquet::schema::types::SchemaDescriptor;
use candle_datasets::hub::FileReader;
use lmr_plugin::run::Observer;
use rayon::prelude::*;

use super::pixels::{self, Decoding};
use super::{
    DataError, Dataset, FileProvenance, ParquetFile, ParquetSource, Parts, remote_files, sha256_file, spool, wanted,
};
use crate::hub::HubFile;

/// Rows read at a time: enough to keep all threads busy, few enough that encoded photographs take little memory.
const CHUNK: usize = 256;

const DAMAGED: &str = "; the file is cut off or damaged";

impl Dataset {
    /// The images of Parquet files, which are downloaded if they are not here yet.
    pub(super) fn load_parquet(&self, source: &ParquetSource, observer: &dyn Observer) -> Result<Parts, DataError> {
        let located = match &self.root {
            Some(root) => in_folder(root, source)?,
            None => self.on_hub(source, observer)?,
        };
        let decoding = self.decoding();
        let mut spool = decoding.preprocessing.as_ref().map(|_| spool::Writer::new()).transpose()?;
        let (mut pixels, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for (file, (path, provenance)) in source.files.iter().zip(located) {
            if let Some(spool) = &mut spool {
                spool.begin(&path);
            }
            let mut take = |row: usize, images: &[ByteArray]| {
                let bad = |(offset, (found, expected)): (usize, pixels::Fault)| {
                    let place = format!("row {}, column `{}`", row + offset, source.image_column);
                    DataError::content(&path, found, expected).at(place)
                };
                match &mut spool {
                    Some(spool) => images.iter().enumerate().try_for_each(|(offset, image)| {
                        decoding.check(image.data()).map_err(|fault| bad((offset, fault)))?;
                        spool.push(image.data())
                    }),
                    None => decode_all(&decoding, images, &mut pixels).map_err(bad),
                }
            };
            let expected = Expected { rows: file.rows, classes: self.stored_classes() };
            read(&path, source, expected, &mut take, &mut labels)?;
            files.push(provenance);
        }
        let images = match spool {
            Some(spool) => self.decoded_later(spool.finish(decoding)?, labels)?,
            None => self.in_memory(pixels, labels)?,
        };
        Ok((images, files))
    }

    /// The Parquet files in the cache or from the Hub, all from one commit.
    fn on_hub(&self, source: &ParquetSource, observer: &dyn Observer) -> Result<Vec<Located>, DataError> {
        let found = self.hub.files(&wanted(source, &remote_files(source)), observer)?;
        let repo = format!("{}@{}", source.repo, found.commit);
        let locate = |(file, found): (&ParquetFile, HubFile)| {
            let (path, repo) = (file.path.clone(), Some(repo.clone()));
            (found.path, FileProvenance { path, repo, bytes: found.bytes, ignored: 0, sha256: found.sha256 })
        };
        Ok(source.files.iter().zip(found.files).map(locate).collect())
    }
}

/// A file on this machine and what is known of it.
type Located = (PathBuf, FileProvenance);

/// The Parquet files in a folder the user named, their digests checked where they are known.
fn in_folder(root: &Path, source: &ParquetSource) -> Result<Vec<Located>, DataError> {
    let locate = |file: &ParquetFile| {
        let path = root.join(&file.path);
        let (sha256, bytes) = sha256_file(&path).map_err(|source| DataError::Io {
            file: path.clone(),
            source,
            hint: "; `path` must name the folder that holds the files under their paths in the repository".to_owned(),
        })?;
        if let Some(expected) = &file.sha256
            && *expected != sha256
        {
            return Err(DataError::content(&path, format!("SHA-256 {sha256}"), expected)
                .advise("; the file differs from the one the descriptor describes"));
        }
        Ok((path, FileProvenance { path: file.path.clone(), repo: None, bytes, ignored: 0, sha256 }))
    };
    source.files.iter().map(locate).collect()
}

/// Appends the pixels of encoded images; an error comes with the number of the image.
fn decode_all(decoding: &Decoding, images: &[ByteArray], pixels: &mut Vec<u8>) -> Result<(), (usize, pixels::Fault)> {
    let (start, len) = (pixels.len(), decoding.shape.iter().product::<usize>());
    pixels.resize(start + images.len() * len, 0);
    let outs = pixels[start..].par_chunks_exact_mut(len).zip(images).enumerate();
    let fault = outs
        .filter_map(|(offset, (out, image))| Some((offset, decoding.decode(image.data(), out).err()?)))
        .find_first(|_| true);
    fault.map_or(Ok(()), Err)
}

/// What the rows of a file must look like.
#[derive(Clone, Copy)]
struct Expected {
    /// How many there are, if known.
    rows: Option<usize>,
    /// Labels are below this.
    classes: usize,
}

/// Takes the encoded images of a run of rows, the first of which has this number.
type Take<'a> = dyn FnMut(usize, &[ByteArray]) -> Result<(), DataError> + 'a;

/// Hands the images of one file to `take` and appends their classes to `labels`.
fn read(
    file: &Path,
    source: &ParquetSource,
    expected: Expected,
    take: &mut Take<'_>,
    labels: &mut Vec<u32>,
) -> Result<(), DataError> {
    // The Parquet reader asserts some properties of a page where it should report them, so one flipped byte can make it
    // panic. What was appended by then is dropped with the error.
    let rows = AssertUnwindSafe(|| read_rows(file, source, expected, take, labels));
    catch_unwind(rows).unwrap_or_else(|_| {
        Err(DataError::content(file, "no readable Parquet (the reader gave up)", "a Parquet file").advise(DAMAGED))
    })
}

fn read_rows(
    file: &Path,
    source: &ParquetSource,
    Expected { rows, classes }: Expected,
    take: &mut Take<'_>,
    labels: &mut Vec<u32>,
) -> Result<(), DataError> {
    let damaged = |error: ParquetError| {
        DataError::content(file, format!("no readable Parquet ({error})"), "a Parquet file").advise(DAMAGED)
    };
    let handle = File::open(file).map_err(|source| DataError::io(file, source))?;
    let reader = SerializedFileReader::new(handle).map_err(damaged)?;
    let declared = reader.metadata().file_metadata().num_rows();
    if let Some(rows) = rows
        && i64::try_from(rows) != Ok(declared)
    {
        return Err(DataError::content(file, format!("{declared} rows"), rows).advise("; is this the right file?"));
    }
    let columns = Columns::find(file, reader.metadata().file_metadata().schema_descr(), source)?;

    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        columns.check_compression(file, &*group)?;
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut images = columns.image.open(&*group).map_err(damaged)?;
        let mut classes_of = columns.label.open(&*group).map_err(damaged)?;
        while left > 0 {
            let count = left.min(CHUNK);
            let null = |column: &str, at: Stop| match at {
                Stop::Null(offset) => DataError::content(file, "nothing", format!("a value in column `{column}`"))
                    .at(format_args!("row {}", row + offset)),
                Stop::Error(error) => damaged(error),
            };
            let encoded = images.bytes(count).map_err(|at| null(&source.image_column, at))?;
            let classes_found = classes_of.integers(count).map_err(|at| null(&source.label_column, at))?;

            for (offset, class) in classes_found.into_iter().enumerate() {
                match u32::try_from(class) {
                    Ok(label) if (label as usize) < classes => labels.push(label),
                    _ => {
                        return Err(DataError::content(
                            file,
                            format!("class {class}"),
                            format!("0 to {}", classes - 1),
                        )
                        .at(format_args!(
                            "row {}, column `{}`",
                            row + offset,
                            source.label_column
                        )));
                    }
                }
            }
            take(row, &encoded)?;
            row += count;
            left -= count;
        }
    }
    Ok(())
}

/// The two columns of a file that matter.
struct Columns {
    image: Column,
    label: Column,
}

/// A leaf column: its place, and the definition level of a value that is there.
struct Column {
    index: usize,
    present: i16,
}

impl Columns {
    fn find(file: &Path, schema: &SchemaDescriptor, source: &ParquetSource) -> Result<Self, DataError> {
        use ::parquet::basic::Type;

        let column = |paths: &[&str], types: &[Type], expected: &str| {
            let leaves = || schema.columns().iter().map(|column| column.path().string());
            let Some(index) = leaves().position(|path| paths.contains(&path.as_str())) else {
                let found: Vec<String> = leaves().map(|path| format!("`{path}`")).collect();
                return Err(DataError::content(
                    file,
                    format!("the columns {}", found.join(", ")),
                    format!("one named `{}`", paths[0]),
                )
                .advise("; correct `image-column` or `label-column` in the descriptor"));
            };
            let leaf = schema.column(index);
            if leaf.max_rep_level() > 0 || !types.contains(&leaf.physical_type()) {
                let kind = if leaf.max_rep_level() > 0 { "a list of " } else { "" };
                let found = format!("column `{}` of {kind}{}", leaf.path().string(), leaf.physical_type());
                return Err(DataError::content(file, found, expected));
            }
            Ok(Column { index, present: leaf.max_def_level() })
        };
        let nested = format!("{}.bytes", source.image_column);
        Ok(Self {
            image: column(&[&source.image_column, &nested], &[Type::BYTE_ARRAY], "encoded images (BYTE_ARRAY)")?,
            label: column(&[&source.label_column], &[Type::INT32, Type::INT64], "integers (INT32 or INT64)")?,
        })
    }

    /// Refuses what cannot be unpacked, which the reader would take for damage.
    fn check_compression(&self, file: &Path, group: &dyn RowGroupReader) -> Result<(), DataError> {
        for column in [&self.image, &self.label] {
            if let lzo @ Compression::LZO = group.metadata().column(column.index).compression() {
                return Err(DataError::content(
                    file,
                    format!("columns compressed with {lzo}"),
                    "Snappy, Zstandard, gzip, LZ4, Brotli or no compression",
                ));
            }
        }
        Ok(())
    }
}

impl Column {
    fn open(&self, group: &dyn RowGroupReader) -> Result<OpenColumn, ParquetError> {
        Ok(OpenColumn { reader: group.get_column_reader(self.index)?, present: self.present })
    }
}

/// A column of one row group while it is read from front to back.
struct OpenColumn {
    reader: ColumnReader,
    present: i16,
}

/// Why the next rows cannot be had.
enum Stop {
    /// The row at this offset has no value.
    Null(usize),
    /// The file is damaged.
    Error(ParquetError),
}

impl OpenColumn {
    fn bytes(&mut self, count: usize) -> Result<Vec<ByteArray>, Stop> {
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => values(reader, self.present, count),
            _ => Err(Stop::Error(ParquetError::General("not a column of byte arrays".to_owned()))),
        }
    }

    fn integers(&mut self, count: usize) -> Result<Vec<i64>, Stop> {
        match &mut self.reader {
            ColumnReader::Int64ColumnReader(reader) => values(reader, self.present, count),
            ColumnReader::Int32ColumnReader(reader) => {
                Ok(values(reader, self.present, count)?.into_iter().map(i64::from).collect())
            }
            _ => Err(Stop::Error(ParquetError::General("not a column of integers".to_owned()))),
        }
    }
}

/// Exactly `count` values, none of them missing.
fn values<T: DataType>(reader: &mut ColumnReaderImpl<T>, present: i16, count: usize) -> Result<Vec<T::T>, Stop> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let (mut rows, mut wanted) = (0, count);
    // A call may stop at the end of a page.
    while wanted > 0 {
        let (read, _, _) = reader.read_records(wanted, Some(&mut levels), None, &mut values).map_err(Stop::Error)?;
        if read == 0 {
            return Err(Stop::Error(ParquetError::General(format!("{rows} rows where {count} were declared"))));
        }
        rows += read;
        wanted -= read;
    }
    match levels.iter().position(|&level| level < present) {
        Some(offset) => Err(Stop::Null(offset)),
        None => Ok(values),
    }
}
