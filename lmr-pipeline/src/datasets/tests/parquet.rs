//! Parquet files, made here. Only the ignored test needs real ones, in the cache.

use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use rstest::rstest;
use tempfile::TempDir;

use super::{REVISION, open, parquet_descriptor, png};
use crate::datasets::{DataError, Loaded, Split, digest};
use crate::hub::Hub;

const NESTED: &str = "message m { optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label; }";
const FLAT: &str = "message m { required binary image; required int64 label; }";

/// A row: the encoded image and its class; `None` is a null.
type Row = (Option<Vec<u8>>, Option<i64>);

/// A Parquet file with two rows a group.
fn parquet(schema: &str, rows: &[Row]) -> Vec<u8> {
    compressed(schema, rows, Compression::UNCOMPRESSED)
}

fn compressed(schema: &str, rows: &[Row], compression: Compression) -> Vec<u8> {
    let nested = schema == NESTED;
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    for rows in rows.chunks(2) {
        let images: Vec<ByteArray> = rows.iter().filter_map(|row| row.0.clone().map(ByteArray::from)).collect();
        let there: Vec<i16> = rows.iter().map(|row| if row.0.is_some() { 2 } else { 0 }).collect();
        let labels: Vec<i64> = rows.iter().filter_map(|row| row.1).collect();
        let labelled: Vec<i16> = rows.iter().map(|row| i16::from(row.1.is_some())).collect();
        let mut group = writer.next_row_group().unwrap();
        let levels = |levels| if nested { Some(levels) } else { None };
        bytes_column(&mut group, &images, levels(&there[..]));
        if nested {
            bytes_column(&mut group, &[], Some(&vec![0; rows.len()]));
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, levels(&labelled[..]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn bytes_column(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: &[ByteArray], levels: Option<&[i16]>) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(values, levels, None).unwrap();
    column.close().unwrap();
}

fn rows(count: usize) -> Vec<Row> {
    (0..count).map(|i| (Some(png(3, 2)), Some(i as i64 % 3))).collect()
}

/// Loads a data set of one Parquet file from a folder the user named.
fn load_parquet(file: &[u8], extra: &str) -> Result<Loaded, DataError> {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/t.parquet"), file).unwrap();
    open(folder.path(), &parquet_descriptor(extra))?.with_root(folder.path()).load(Split::Train)
}

#[rstest]
#[case::nested(NESTED)]
#[case::flat(FLAT)]
fn parquet_is_read_across_row_groups(#[case] schema: &str) {
    let loaded = load_parquet(&parquet(schema, &rows(5)), ", rows = 5").unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2, 0, 1]);
    for image in 0..5 {
        let pixels = loaded.images.image(image).unwrap();
        assert_eq!(pixels, [0, 1, 2, 0, 1, 2, 0, 0, 0, 10, 10, 10, 9, 9, 9, 9, 9, 9]);
    }
    assert_eq!(loaded.provenance.files[0].repo, None);
}

#[rstest]
#[case::snappy(Compression::SNAPPY)]
#[case::gzip(Compression::GZIP(Default::default()))]
#[case::zstd(Compression::ZSTD(Default::default()))]
#[case::lz4(Compression::LZ4_RAW)]
#[case::brotli(Compression::BROTLI(Default::default()))]
fn compressed_parquet_is_read(#[case] compression: Compression) {
    let (file, plain) = (compressed(NESTED, &rows(5), compression), parquet(NESTED, &rows(5)));
    assert_ne!(file, plain);
    let pixels = |file: &[u8]| load_parquet(file, "").unwrap().images.pixels().unwrap();
    assert_eq!(pixels(&file), pixels(&plain));
}

#[test]
fn compression_without_a_reader_is_named() {
    let mut file = parquet(FLAT, &rows(2));
    // In the footer, the compression of a column (0 is none) comes after its path; LZO is 3, which is written as 6.
    let path = b"\x05image\x15\0";
    let at = file.windows(path.len()).position(|bytes| bytes == path).unwrap();
    file[at + path.len() - 1] = 6;
    let error = load_parquet(&file, "").unwrap_err().to_string();
    assert!(error.contains("found columns compressed with LZO, expected Snappy, Zstandard"), "{error}");
}

#[rstest]
#[case::too_few_rows(rows(3), ", rows = 4", "t.parquet: found 3 rows, expected 4; is this the right file?")]
#[case::range({ let mut r = rows(4); r[3].1 = Some(3); r }, "", "row 3, column `label`: found class 3, expected 0 to 2")]
#[case::negative({ let mut r = rows(4); r[1].1 = Some(-1); r }, "", "row 1, column `label`: found class -1")]
#[case::null_image({ let mut r = rows(4); r[2].0 = None; r }, "", "row 2: found nothing, expected a value in column `image`")]
#[case::null_label({ let mut r = rows(4); r[3].1 = None; r }, "", "row 3: found nothing, expected a value in column `label`")]
#[case::size({ let mut r = rows(4); r[3].0 = Some(png(2, 3)); r }, "", "row 3, column `image`: found an image of 3x2")]
#[case::bytes({ let mut r = rows(4); r[1].0 = Some(b"no image".to_vec()); r }, "", "row 1, column `image`: found 8 bytes")]
#[case::first({ let mut r = rows(2); r[0].0 = Some(vec![1]); r[1].0 = Some(vec![]); r }, "", "row 0, column `image`")]
#[case::empty(vec![], "", "found no images in the train split")]
#[case::digest(
    rows(1),
    ", sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"",
    "expected 0000"
)]
fn bad_rows_are_refused(#[case] rows: Vec<Row>, #[case] extra: &str, #[case] message: &str) {
    let error = load_parquet(&parquet(NESTED, &rows), extra).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[rstest]
#[case::image(
    "message m { required binary picture; required int64 label; }",
    "the columns `picture`, `label`, expected one named `image`"
)]
#[case::label(
    "message m { required binary image; required int64 class; }",
    "expected one named `label`; correct `image-column`"
)]
fn missing_columns_are_named(#[case] schema: &str, #[case] message: &str) {
    let error = load_parquet(&parquet(schema, &rows(2)), "").unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn what_is_no_parquet_is_refused() {
    let whole = parquet(FLAT, &rows(2));
    for bytes in [&b"<html>"[..], &[], &whole[..whole.len() / 2], &whole[40..]] {
        let error = load_parquet(bytes, "").unwrap_err().to_string();
        assert!(error.contains("no readable Parquet") && error.contains("data/t.parquet"), "{error}");
    }
    // A damaged page in an otherwise sound file is an error as well, wherever it is.
    for at in (4..whole.len() - 8).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        let _ = load_parquet(&damaged, "");
    }
}

#[test]
fn a_missing_file_says_where_it_belongs() {
    let folder = TempDir::new().unwrap();
    let dataset = open(folder.path(), &parquet_descriptor("")).unwrap();
    let error = dataset.clone().with_root(folder.path()).load(Split::Train).unwrap_err().to_string();
    assert!(error.contains("data/t.parquet") && error.contains("`path` must name the folder"), "{error}");
    let error = dataset.load(Split::Test).unwrap_err().to_string();
    assert!(error.contains("tiny.toml: there is no `test` split; add a [test] table"), "{error}");
}

#[rstest]
#[case::default(&format!("revision = \"{REVISION}\""), "")]
#[case::tag(REVISION, "v1.0")]
#[case::commit(REVISION, REVISION)]
fn provenance_names_the_commit(#[case] from: &str, #[case] to: &str) {
    let folder = TempDir::new().unwrap();
    let dataset = open(folder.path(), &parquet_descriptor("").replacen(from, to, 1)).unwrap();
    let repository = folder.path().join("datasets--some--tiny");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    for name in ["main", "v1.0"] {
        std::fs::write(repository.join("refs").join(name), format!("{REVISION}\n")).unwrap();
    }
    let data = repository.join("snapshots").join(REVISION).join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("t.parquet"), parquet(FLAT, &rows(2))).unwrap();
    let variable = |name: &str| match name {
        "HF_HUB_CACHE" => Some(folder.path().to_string_lossy().into_owned()),
        "HF_HUB_OFFLINE" => Some("1".to_owned()),
        _ => None,
    };
    let loaded = dataset.with_hub(Hub::from_variables(variable, None)).load(Split::Train).unwrap();
    assert_eq!(loaded.provenance.files[0].repo, Some(format!("some/tiny@{REVISION}")));
}

#[test]
fn parquet_rows_are_resized_like_files() {
    let rows: Vec<Row> = [(3, 2), (6, 4), (30, 20), (3, 2)]
        .into_iter()
        .zip([0, 1, 2, 0])
        .map(|((width, height), class)| (Some(png(width, height)), Some(class)))
        .collect();
    let load = |rows: &[Row]| {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data/t.parquet"), parquet(NESTED, rows)).unwrap();
        let text = parquet_descriptor("").replace("width = 3", "width = 3, resize = { shortest-edge = 2 }");
        open(folder.path(), &text).unwrap().with_root(folder.path()).load(Split::Train)
    };
    let images = load(&rows).unwrap().images;
    assert_eq!(images.labels(), [0, 1, 2, 0]);
    assert_eq!(images.image(3).unwrap(), [0, 1, 2, 0, 1, 2, 0, 0, 0, 10, 10, 10, 9, 9, 9, 9, 9, 9]);
    assert_eq!(images.image(2).unwrap().len(), 18);
    // Equal files have equal digests, whatever holds them; another way of resizing does not.
    assert_eq!(images.identity(0).unwrap(), images.identity(3).unwrap());
    assert_ne!(digest(&images.select(&[0]).unwrap()).unwrap(), digest(&images.select(&[1]).unwrap()).unwrap());
    let mut bad = rows.clone();
    bad[2].0 = Some(b"no image".to_vec());
    let error = load(&bad).unwrap_err().to_string();
    assert!(error.contains("row 2, column `image`: found 8 bytes"), "{error}");
    // What only decoding shows is an error when the image is looked at.
    let mut late = rows;
    let whole = png(30, 20);
    late[2].0 = Some(whole[..whole.len() - 30].to_vec());
    let error = load(&late).unwrap().images.pixels().unwrap_err().to_string();
    assert!(error.contains("t.parquet, row 2: found an unreadable image"), "{error}");
}

#[test]
fn decoding_does_not_depend_on_threads() {
    let rows: Vec<Row> = (0..20).map(|i| (Some(png(3 + i, 22 - i)), Some(i64::from(i) % 3))).collect();
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/t.parquet"), parquet(FLAT, &rows)).unwrap();
    let text = parquet_descriptor("").replace("width = 3", "width = 3, resize = { exact = [5, 7] }");
    let dataset = open(folder.path(), &text).unwrap().with_root(folder.path());
    let load = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let images = dataset.load(Split::Train).unwrap().images;
            (images.pixels().unwrap(), digest(&images).unwrap())
        })
    };
    assert_eq!(load(1), load(4));
}
