//! The loader end to end, on files made here.

#[cfg(feature = "parquet")]
mod parquet;

use std::io::{Cursor, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use rstest::rstest;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::model_config::Convention;

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// Images of two rows and three columns, three classes.
fn descriptor(channels: usize, source: &str) -> String {
    let ones = vec!["1.0"; channels].join(", ");
    format!(
        r#"
name = "tiny"
title = "Tiny"
license = "unknown"
homepage = "none"
classes = ["a", "b", "c"]
image = {{ channels = {channels}, height = 2, width = 3 }}
normalization = {{ mean = [{ones}], std = [{ones}] }}
{source}
"#
    )
}

fn open(folder: &Path, text: &str) -> Result<Dataset, DataError> {
    std::fs::create_dir_all(folder.join("datasets")).unwrap();
    std::fs::write(folder.join("datasets/tiny.toml"), text).unwrap();
    Dataset::open_from("tiny", folder)
}

fn idx(kind: u8, dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dimensions.len() as u8];
    bytes.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Loads a data set of one pair of IDX files.
fn load_idx(images: &[u8], labels: &[u8]) -> Result<Loaded, DataError> {
    let folder = TempDir::new().unwrap();
    let text = descriptor(1, "test = { kind = \"idx\", images = \"tiny/i\", labels = \"tiny/l\" }");
    let dataset = open(folder.path(), &text)?;
    std::fs::create_dir(folder.path().join("datasets/tiny")).unwrap();
    std::fs::write(folder.path().join("datasets/tiny/i"), images).unwrap();
    std::fs::write(folder.path().join("datasets/tiny/l"), labels).unwrap();
    dataset.load(Split::Test)
}

const PIXELS: [u8; 12] = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15];

#[rstest]
#[case::plain(false)]
#[case::gzipped(true)]
fn idx_is_read(#[case] gzipped: bool) {
    let pack = |bytes: Vec<u8>| if gzipped { gz(&bytes) } else { bytes };
    let loaded = load_idx(&pack(idx(8, &[2, 2, 3], &PIXELS)), &pack(idx(8, &[2], &[2, 0]))).unwrap();
    assert_eq!((loaded.images.pixels().unwrap(), loaded.images.labels()), (PIXELS.to_vec(), &[2, 0][..]));
    assert_eq!(loaded.images.shape(), [1, 2, 3]);
    let files: Vec<&str> = loaded.provenance.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!((files, loaded.provenance.count), (vec!["tiny/i", "tiny/l"], 2));
    assert_eq!(loaded.provenance.files[0].sha256.len(), 64);
}

#[rstest]
#[case::cut_off(idx(8, &[2, 2, 3], &PIXELS[..11]), "a header that declares [2, 2, 3] values, expected at most 11")]
#[case::too_long(idx(8, &[1, 2, 3], &PIXELS), "more bytes of values than its header declares, expected 6")]
#[case::no_header(vec![0, 0, 8], "expected a header; the file is cut off")]
#[case::nothing(vec![], "expected a header")]
#[case::magic(idx(9, &[2, 2, 3], &PIXELS), "found magic number [00, 00, 09, 03], expected [00, 00, 08, 03]")]
#[case::labels_file(idx(8, &[12], &PIXELS), "expected [00, 00, 08, 03], unsigned bytes of 3 dimensions")]
#[case::transposed(idx(8, &[2, 3, 2], &PIXELS), "found images of 3x2 (height, width), expected 2x3")]
#[case::huge(idx(8, &[u32::MAX, 2, 3], &PIXELS), "declares [4294967295, 2, 3] values, expected at most 12")]
#[case::huge_gz(gz(&idx(8, &[u32::MAX, 2, 3], &PIXELS)), "declares [4294967295, 2, 3] values, expected at most")]
#[case::bomb(gz(&idx(8, &[1, 2, 3], &[0; 1 << 20])), "more bytes of values than its header declares, expected 6")]
#[case::short_gz(gz(&idx(8, &[3, 2, 3], &PIXELS)), "found 12 bytes of values, expected 18; the file is cut off")]
#[case::cut_gz(gz(&idx(8, &[2, 2, 3], &PIXELS))[..20].to_vec(), "the file is cut off or damaged")]
#[case::broken_gz({ let mut b = gz(&idx(8, &[2, 2, 3], &PIXELS)); let n = b.len(); b[n - 6] ^= 1; b }, "cut off or damaged")]
fn bad_image_files_are_refused(#[case] images: Vec<u8>, #[case] message: &str) {
    let error = load_idx(&images, &idx(8, &[2], &[2, 0])).unwrap_err().to_string();
    assert!(error.contains(message) && error.contains("tiny/i"), "{error}");
}

#[rstest]
#[case::range(idx(8, &[2], &[2, 3]), "tiny/l, label 1: found class 3, expected 0 to 2")]
#[case::too_few(idx(8, &[1], &[2]), "tiny/l: found 1 labels, expected 2, one for each image")]
fn bad_label_files_are_refused(#[case] labels: Vec<u8>, #[case] message: &str) {
    let error = load_idx(&idx(8, &[2, 2, 3], &PIXELS), &labels).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn empty_split_is_refused() {
    let error = load_idx(&idx(8, &[0, 2, 3], &[]), &idx(8, &[0], &[])).unwrap_err().to_string();
    assert!(error.contains("found no images in the test split, expected at least one"), "{error}");
}

/// An image whose red counts columns and whose green counts rows.
fn png(width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, 10 * y as u8, 9]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn parquet_descriptor(extra: &str) -> String {
    let source = format!(
        r#"
[train]
kind = "parquet"
repo = "some/tiny"
revision = "{REVISION}"
image-column = "image"
label-column = "label"
files = [{{ path = "data/t.parquet"{extra} }}]
"#
    );
    descriptor(3, &source)
}

/// A folder data set: `files` are paths below `val` and what is in them.
fn folder(files: &[(&str, Vec<u8>)], extra: &str, prepare: impl Fn(&Path)) -> Result<Loaded, DataError> {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("pictures");
    std::fs::create_dir_all(root.join("val")).unwrap();
    for (path, bytes) in files {
        let path = root.join("val").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    prepare(&root);
    let text = descriptor(3, &format!("[test]\nkind = \"folder\"\npath = \"val\"\n{extra}"));
    let text = text.replace("width = 3", "width = 3, resize = { shortest-edge = 2 }, interpolation = \"bicubic\"");
    let text = text.replace("image =", "class-ids = [\"n1\", \"n2\", \"n3\"]\nimage =");
    let loaded = open(folder.path(), &text)?.with_root(&root).load(Split::Test)?;
    // Decoded while the files are still there.
    Ok(Loaded { images: loaded.images.in_memory().unwrap_or(loaded.images), ..loaded })
}

/// Two images of class a, one of b (by its id), one of c; of differing sizes.
fn pictures() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a/1.png", png(3, 2)),
        ("a/2.PNG", png(6, 4)),
        ("n2/1.jpeg", png(30, 20)),
        ("c/x.jpg", png(3, 2)),
        ("c/notes.txt", b"no image".to_vec()),
        ("c/.hidden.jpg", b"no image".to_vec()),
        ("README.md", b"no image".to_vec()),
        ("doc/README.md", b"no image".to_vec()),
    ]
}

#[test]
fn folders_are_read_class_by_class() {
    let loaded = folder(&pictures(), "", |_| ()).unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2, 0], "the first of every class, then the second ones");
    assert_eq!(loaded.images.shape(), [3, 2, 3]);
    assert_eq!(loaded.images.image(0).unwrap(), [0, 1, 2, 0, 1, 2, 0, 0, 0, 10, 10, 10, 9, 9, 9, 9, 9, 9]);
    assert_eq!(loaded.images.image(2).unwrap(), loaded.images.image(0).unwrap());
    let Provenance { count, files, .. } = loaded.provenance;
    assert_eq!((count, files.len(), files[0].path.as_str()), (4, 1, "val"));
    // What `cd val; sha256sum a/1.png a/2.PNG c/x.jpg n2/1.jpeg | sha256sum` prints.
    let line = |path: &str, bytes: &[u8]| format!("{}  {path}\n", super::digest::hex(&Sha256::digest(bytes)));
    let listing: String = [
        line("a/1.png", &png(3, 2)),
        line("a/2.PNG", &png(6, 4)),
        line("c/x.jpg", &png(3, 2)),
        line("n2/1.jpeg", &png(30, 20)),
    ]
    .concat();
    assert_eq!(files[0].sha256, super::digest::hex(&Sha256::digest(listing)));
}

#[test]
fn sorted_folders_are_classes_in_their_order() {
    let files = [("y/1.png", png(3, 2)), ("x/1.png", png(4, 4)), ("z/1.png", png(9, 9)), ("x/2.png", png(3, 2))];
    let loaded = folder(&files, "sorted = true", |_| ()).unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2, 0]);
    let error = folder(&files[..2], "sorted = true", |_| ()).unwrap_err().to_string();
    assert!(error.contains("val: found 2 folders, expected 3, one for each class"), "{error}");
}

#[rstest]
#[case::text("a/1.png", b"<html>503</html>".to_vec(), "val/a/1.png: found 16 bytes that begin with [3c, 68, 74, 6d]")]
#[case::nothing("a/1.png", vec![], "val/a/1.png: found 0 bytes")]
#[case::cut_off("a/1.png", png(3, 2)[..20].to_vec(), "val/a/1.png: found an unreadable image")]
#[case::webp("a/3.webp", b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(), "val/a/3.webp: found an ")]
#[case::unknown_class("d/1.png", png(3, 2), "val/d: found images of no class, expected the name or the id of a class")]
#[case::twice("b/1.png", png(3, 2), "val/n2: found a second folder of class `b`")]
fn bad_files_in_folders_are_refused(#[case] path: &'static str, #[case] bytes: Vec<u8>, #[case] message: &str) {
    let mut files = pictures();
    files.retain(|file| file.0 != path);
    files.push((path, bytes));
    let error = folder(&files, "", |_| ()).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn classes_without_images_must_be_allowed() {
    let files = &pictures()[..3];
    let error = folder(files, "", |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("val: found no folder of this name, expected `n3`; where classes may be without"),
        "{error}"
    );
    assert_eq!(folder(files, "partial = true", |_| ()).unwrap().images.labels(), [0, 1, 0]);
    let empty = |root: &Path| std::fs::create_dir(root.join("val/c")).unwrap();
    let error = folder(files, "", empty).unwrap_err().to_string();
    assert!(error.contains("val/c: found no image, expected at least one"), "{error}");
    assert_eq!(folder(files, "partial = true", empty).unwrap().images.len(), 3);
    let error = folder(&[], "partial = true", |_| ()).unwrap_err().to_string();
    assert!(error.contains("found no images in the test split"), "{error}");
    let error = folder(&[], "", |root| std::fs::remove_dir(root.join("val")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("set `root` under [data] to the folder that holds `val`"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_lead_to_no_folder_in_itself() {
    use std::os::unix::fs::symlink;
    let outside = TempDir::new().unwrap();
    std::fs::create_dir(outside.path().join("b")).unwrap();
    std::fs::write(outside.path().join("b/1.png"), png(3, 2)).unwrap();
    let links = |root: &Path| {
        symlink("../a/1.png", root.join("val/c/link.png")).unwrap();
        symlink(outside.path().join("b/1.png"), root.join("val/c/other.png")).unwrap();
        std::fs::remove_dir_all(root.join("val/n2")).unwrap();
        symlink(outside.path().join("b"), root.join("val/b")).unwrap();
    };
    let loaded = folder(&pictures(), "", links).unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2, 0, 2, 2]);
    let around = |root: &Path| symlink("..", root.join("val/c/above")).unwrap();
    let error = folder(&pictures(), "", around).unwrap_err().to_string();
    assert!(error.contains("found a symbolic link to ") && error.contains("/val/c, in which it is"), "{error}");
    let gone = |root: &Path| symlink("nowhere", root.join("val/c/link.png")).unwrap();
    assert!(folder(&pictures(), "", gone).unwrap_err().to_string().contains("val/c/link.png: "));
}

/// The order is that of torchvision 0.25's `ImageFolder` for these files.
#[test]
fn folders_in_the_folder_of_a_class_are_read_too() {
    let one = |width: u32| png(3 * width, 2 * width);
    let files = [
        ("a/z.png", one(1)),
        ("a/images/y.png", one(2)),
        ("a/images-more/x.png", one(3)),
        ("a/images/deep/w.png", one(4)),
        ("a/boxes.txt", b"0 0 1 1".to_vec()),
        ("b/images/1.png", one(1)),
        ("c/images/1.png", one(1)),
        ("c/images/notes/.hidden.png", b"no image".to_vec()),
        ("stray.png", b"no image".to_vec()),
    ];
    let loaded = folder(&files, "", |_| ()).unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2, 0, 0, 0]);
    assert_eq!(loaded.provenance.files[0].ignored, 2, "boxes.txt and stray.png");
    // The last column is the further right, the larger an image was.
    let last = |index: usize| loaded.images.image(index).unwrap()[2];
    let found = [0, 3, 4, 5].map(last);
    assert!(found.is_sorted_by(|a, b| a < b), "z, images/y, images-more/x, images/deep/w: {found:?}");
}

#[test]
fn names_of_folders_may_be_in_another_normal_form() {
    let made = TempDir::new().unwrap();
    for class in ["e\u{301}t\u{e9}", "b", "c"] {
        std::fs::create_dir_all(made.path().join("val").join(class)).unwrap();
        std::fs::write(made.path().join("val").join(class).join("1.png"), png(3, 2)).unwrap();
    }
    let text = descriptor(3, "test = { kind = \"folder\", path = \"val\" }").replace("[\"a\"", "[\"\u{e9}te\u{301}\"");
    let loaded = open(made.path(), &text).unwrap().with_root(made.path()).load(Split::Test).unwrap();
    assert_eq!(loaded.images.labels(), [0, 1, 2]);
}

#[test]
fn some_classes_can_be_chosen_by_name_id_and_index() {
    let name = |name: &str| ClassChoice::Name(name.into());
    let made = TempDir::new().unwrap();
    for (path, bytes) in pictures() {
        let path = made.path().join("val").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let text = descriptor(3, "[test]\nkind = \"folder\"\npath = \"val\"")
        .replace("width = 3", "width = 3, resize = { shortest-edge = 2 }")
        .replace("image =", "class-ids = [\"n1\", \"n2\", \"n3\"]\nimage =");
    let all = open(made.path(), &text).unwrap().with_root(made.path());
    let load = |choices: &[ClassChoice]| {
        let dataset = all.clone().with_classes(choices).unwrap();
        let images = dataset.load(Split::Test).unwrap().images;
        (dataset.descriptor().classes.clone(), images.classes(), images.labels().to_vec())
    };
    assert_eq!(load(&[name("n3"), ClassChoice::Index(0)]), (vec!["c".into(), "a".into()], 2, vec![1, 0, 1]));
    assert_eq!(load(&[name("a"), name("b")]), (vec!["a".into(), "b".into()], 2, vec![0, 1, 0]));
    // A class that is left out may be missing, another may not.
    std::fs::remove_dir_all(made.path().join("val/c")).unwrap();
    assert_eq!(load(&[name("a"), name("b")]).2, [0, 1, 0]);
    let lacking = all.clone().with_classes(&[name("a"), name("c")]).unwrap();
    let error = lacking.load(Split::Test).unwrap_err().to_string();
    assert!(error.contains("expected `n3`; where classes may be without images, set `partial = true`"), "{error}");
    let mut partial = lacking;
    assert!(partial.allow_missing_classes());
    assert_eq!(partial.load(Split::Test).unwrap().images.labels(), [0, 0]);
    let faults = all.with_classes(&[name("n22"), ClassChoice::Index(3), name("a"), name("n1")]).unwrap_err();
    assert_eq!(
        faults,
        ["there is no class `n22`; did you mean `n2`?", "expected a class below 3, found 3", "`a` is named twice"]
    );
}

#[test]
fn classes_are_chosen_from_idx_files_too() {
    let made = TempDir::new().unwrap();
    let text = descriptor(1, "test = { kind = \"idx\", images = \"tiny/i\", labels = \"tiny/l\" }");
    let mut dataset = open(made.path(), &text).unwrap();
    std::fs::create_dir(made.path().join("datasets/tiny")).unwrap();
    std::fs::write(made.path().join("datasets/tiny/i"), idx(8, &[2, 2, 3], &PIXELS)).unwrap();
    std::fs::write(made.path().join("datasets/tiny/l"), idx(8, &[2], &[2, 0])).unwrap();
    assert!(!dataset.allow_missing_classes());
    let images =
        dataset.with_classes(&[ClassChoice::Index(1), ClassChoice::Index(2)]).unwrap().load(Split::Test).unwrap();
    assert_eq!((images.images.pixels().unwrap(), images.images.labels()), (PIXELS[..6].to_vec(), &[1][..]));
}

#[test]
fn a_file_of_another_size_and_one_that_changes_are_noticed() {
    let folder = TempDir::new().unwrap();
    for class in ["a", "b", "c"] {
        std::fs::create_dir_all(folder.path().join("val").join(class)).unwrap();
        std::fs::write(folder.path().join("val").join(class).join("1.png"), png(3, 2)).unwrap();
    }
    let text = descriptor(3, "test = { kind = \"folder\", path = \"val\" }");
    std::fs::write(folder.path().join("val/c/2.png"), png(2, 3)).unwrap();
    let error = open(folder.path(), &text).unwrap().with_root(folder.path()).load(Split::Test).unwrap_err().to_string();
    assert!(error.contains("val/c/2.png: found an image of 3x2 (height, width), expected 2x3"), "{error}");
    std::fs::remove_file(folder.path().join("val/c/2.png")).unwrap();
    let images = open(folder.path(), &text).unwrap().with_root(folder.path()).load(Split::Test).unwrap().images;
    assert!(images.image(1).is_ok());
    std::fs::write(folder.path().join("val/b/1.png"), png(2, 3)).unwrap();
    let error = images.image(1).unwrap_err();
    assert!(matches!(error, lmr_plugin::Error::Image(_)));
    assert!(error.to_string().contains("val/b/1.png: found other bytes than when the run began"), "{error}");
    std::fs::remove_file(folder.path().join("val/c/1.png")).unwrap();
    let error = images.in_memory().unwrap_err().to_string();
    assert!(error.contains("val/b/1.png"), "the first in order: {error}");
}

#[rstest]
#[case::size("resize", "resize = { shortest-edge = 0 }", "image.resize: expected 1 to 40960 pixels, found 0")]
#[case::kind("resize", "resize = { longest-edge = 2 }", "unknown variant `longest-edge`")]
#[case::alone("resize", "interpolation = \"bicubic\"", "image.interpolation: says how to resize, but there is no")]
#[case::path("path", "path = \"../val\"", "test.path: found \"../val\", expected a relative path")]
#[case::key("path", "path = \"val\", folder = \"x\"", "unknown field `folder`")]
#[case::both(
    "path",
    "path = \"val\", sorted = true, partial = true",
    "test.partial: folders that are classes by their"
)]
#[case::ids("ids", "class-ids = [\"x\", \"x\", \"y\"]", "class-ids: \"x\" occurs twice")]
#[case::few_ids("ids", "class-ids = [\"x\"]", "class-ids: found 1, expected 3, one for each class")]
#[case::idx("kind", "kind = \"idx\", images = \"i\", labels = \"l\"", "test.kind: IDX images are not resized")]
fn impossible_folder_descriptors_are_refused(#[case] key: &str, #[case] value: &str, #[case] message: &str) {
    let pick = |name: &str, default: &str| if key == name { value.to_owned() } else { default.to_owned() };
    let (path, kind) = (pick("path", "path = \"val\""), pick("kind", "kind = \"folder\""));
    let source = if key == "kind" { kind } else { format!("{kind}, {path}") };
    let resize = pick("resize", "resize = { shortest-edge = 2 }");
    let text = descriptor(3, &format!("test = {{ {source} }}")).replace("width = 3", &format!("width = 3, {resize}"));
    let text = text.replace("image =", &format!("{}\nimage =", pick("ids", "")));
    let folder = TempDir::new().unwrap();
    let error = open(folder.path(), &text).unwrap_err().to_string();
    assert!(error.contains(message) && error.contains("tiny.toml"), "{error}");
}

#[test]
fn a_models_preprocessing_replaces_the_descriptors() {
    let folder = TempDir::new().unwrap();
    let convention = Convention::VitAugreg.preprocessing(None).unwrap();
    let dataset = open(folder.path(), &parquet_descriptor("")).unwrap().with_preprocessing(&convention).unwrap();
    assert_eq!(dataset.descriptor().image.chw(), [3, 224, 224]);
    assert_eq!(dataset.descriptor().normalization.mean, [0.5; 3]);
    assert_eq!(dataset.descriptor().preprocessing(), Some(convention.clone()));
    let grey = descriptor(1, "test = { kind = \"folder\", path = \"val\" }");
    let error = open(folder.path(), &grey).unwrap().with_preprocessing(&convention).unwrap_err().to_string();
    assert!(error.contains("normalization.mean: found 3 values, expected 1"), "{error}");
}

#[rstest]
#[case::channels("channels = 3", "channels = 2", "image.channels: found 2, expected 1 or 3")]
#[case::unknown("title =", "titel =", "titel")]
#[case::class("\"b\"", "\"a\"", "classes: \"a\" occurs twice")]
#[case::side("height = 2", "height = 0", "image.height: expected 1 to 4096 pixels, found 0")]
#[case::path("data/t.parquet", "../t.parquet", "train.files[0].path: found \"../t.parquet\"")]
#[case::revision(REVISION, "../x", "train.revision: found \"../x\", expected a commit (40 lower-case hex digits), or")]
#[case::repo("some/tiny", "tiny", "train.repo: found \"tiny\", expected \"owner/name\"")]
#[case::kind("\"parquet\"", "\"csv\"", "train: kind: found \"csv\", expected \"folder\", \"idx\" or \"parquet\"")]
#[case::kind_missing("kind = ", "# ", "train: kind is missing")]
#[case::field("path = \"data", "rows = \"x\", path = \"data", "train: files[0].rows: invalid type: string \"x\"")]
#[case::name("name = \"tiny\"", "name = \"other\"", "name: found \"other\", expected the name of the file")]
#[case::idx_colour(
    "[train]",
    "test = { kind = \"idx\", images = \"a\", labels = \"b\" }\n[train]",
    "test.kind: IDX images are"
)]
#[case::deviation("std = [1.0, 1.0, 1.0]", "std = [1.0, 1.0]", "normalization.std: found 2 values, expected 3")]
fn impossible_descriptors_are_refused(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
    let folder = TempDir::new().unwrap();
    let text = parquet_descriptor("");
    assert!(text.contains(from), "the case changes nothing");
    let error = open(folder.path(), &text.replacen(from, to, 1)).unwrap_err().to_string();
    assert!(error.contains(message) && error.contains("tiny.toml"), "{error}");
}

#[rstest]
#[case::typo("tyny", "data set `tyny`: no `datasets/tyny.toml` in", "did you mean `tiny`?")]
#[case::other("imagenet", "no `datasets/imagenet.toml`", "there is tiny")]
#[case::hostile("..", "data set `..`", "there is tiny")]
fn unknown_names_get_a_hint(#[case] name: &str, #[case] message: &str, #[case] hint: &str) {
    let folder = TempDir::new().unwrap();
    open(folder.path(), &parquet_descriptor("")).unwrap();
    let below = folder.path().join("a/b");
    let error = Dataset::open_from(name, &below).unwrap_err().to_string();
    assert!(error.contains(message) && error.contains(hint), "{error}");
    assert!(Dataset::open_from("tiny", &below).is_ok());
    assert!(Dataset::open_from("datasets/tiny.toml", folder.path()).is_ok());
}

#[test]
fn schema_knows_the_kinds() {
    // `Source` is deserialized by hand, so the derived schema has to be held against it.
    let schema = serde_json::to_value(schemars::schema_for!(Source)).unwrap();
    let kinds: Vec<&str> =
        schema["oneOf"].as_array().unwrap().iter().filter_map(|s| s["properties"]["kind"]["const"].as_str()).collect();
    assert_eq!(kinds, ["folder", "idx", "parquet"], "{schema:#}");
}

/// A split that this build cannot read is refused before anything is asked for.
#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    let folder = TempDir::new().unwrap();
    let dataset = open(folder.path(), &parquet_descriptor("")).unwrap();
    let planned = dataset.check_build(Split::Train).unwrap_err().to_string();
    assert!(planned.contains("tiny.toml: ") && planned.contains("build it with the feature `parquet`"), "{planned}");
    assert_eq!(dataset.load(Split::Train).unwrap_err().to_string(), planned);
}
