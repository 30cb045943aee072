//! The data sets that ship with the project.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::path::{Path, PathBuf};

use lmr_pipeline::datasets::{Dataset, Descriptor, ParquetFile, Source, Split, digest};
use tempfile::TempDir;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets")
}

fn open(file: &Path) -> Dataset {
    Dataset::open(file.to_str().unwrap()).unwrap()
}

#[test]
fn shipped_descriptors_hold() {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    assert!(files.iter().any(|file| file.ends_with("cifar10.toml")));
    for file in files {
        let dataset = open(&file);
        let text = toml::to_string(dataset.descriptor()).unwrap();
        assert_eq!(&Descriptor::parse(&text, Path::new("again.toml")).unwrap(), dataset.descriptor());
    }
}

#[test]
fn bundled_sample_is_whole() {
    let images = open(&folder().join("fashion_mnist.toml")).load(Split::Test).unwrap().images;
    assert_eq!((images.shape(), images.class_counts()), ([1, 28, 28], vec![1000; 10]));
    // The first image is an ankle boot, its toe to the left: upright, the sole is wider than the shaft.
    assert_eq!(images.labels()[0], 9);
    let covered = |row: usize| images.image(0).unwrap()[row * 28..][..28].iter().filter(|&&v| v > 0).count();
    assert!(covered(18) > covered(9));
}

#[test]
#[ignore = "needs Fashion-MNIST's test Parquet file in the Hugging Face cache"]
fn bundled_sample_equals_the_hub() {
    let dataset = open(&folder().join("fashion_mnist.toml"));
    let bundled = dataset.load(Split::Test).unwrap().images;
    let mut descriptor = dataset.descriptor().clone();
    let Some(Source::Parquet(mut source)) = descriptor.train.clone() else { panic!("train is no Parquet") };
    source.files = vec![ParquetFile {
        path: "fashion_mnist/test-00000-of-00001.parquet".to_owned(),
        rows: Some(10_000),
        sha256: None,
    }];
    descriptor.test = Some(Source::Parquet(source));
    let elsewhere = TempDir::new().unwrap();
    let file = elsewhere.path().join("fashion_mnist.toml");
    std::fs::write(&file, toml::to_string(&descriptor).unwrap()).unwrap();
    let hub = open(&file).load(Split::Test).unwrap().images;
    assert_eq!(bundled.labels(), hub.labels());
    assert!(bundled.pixels().unwrap() == hub.pixels().unwrap());
    assert_eq!(digest(&bundled).unwrap(), digest(&hub).unwrap());
}
