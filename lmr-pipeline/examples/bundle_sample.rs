//! Makes the bundled Fashion-MNIST test split from the Parquet file on the Hub:
//! `cargo run -p lmr-pipeline --example bundle_sample [FOLDER]`, by default into `datasets/fashion_mnist`.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use flate2::{Compression, GzBuilder};
use lmr_pipeline::datasets::{Dataset, Split};

/// As the shipped descriptor, with the test split on the Hub as well.
const DESCRIPTOR: &str = r#"
name = "fashion_mnist"
title = "Fashion-MNIST"
license = "MIT"
homepage = "https://github.com/zalandoresearch/fashion-mnist"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
image = { channels = 1, height = 28, width = 28 }
normalization = { mean = [0.2860], std = [0.3530] }

[test]
kind = "parquet"
repo = "zalando-datasets/fashion_mnist"
revision = "main"
image-column = "image"
label-column = "label"
files = [{ path = "fashion_mnist/test-00000-of-00001.parquet", rows = 10000 }]
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("datasets/fashion_mnist"), PathBuf::from);
    let work = tempfile::tempdir()?;
    let descriptor = work.path().join("fashion_mnist.toml");
    std::fs::write(&descriptor, DESCRIPTOR)?;
    let images = Dataset::open(&descriptor.to_string_lossy())?.load(Split::Test)?.images;

    let [_, height, width] = images.shape();
    let labels: Vec<u8> = images.labels().iter().map(|&label| label as u8).collect();
    write(folder.join("t10k-images-idx3-ubyte.gz"), &[images.len(), height, width], &images.pixels()?)?;
    write(folder.join("t10k-labels-idx1-ubyte.gz"), &[images.len()], &labels)
}

/// A gzipped IDX file. No time and no name in the gzip header, so the same images give the same file.
fn write(path: PathBuf, dimensions: &[usize], values: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut file = GzBuilder::new().mtime(0).operating_system(255).write(File::create(&path)?, Compression::best());
    file.write_all(&[0, 0, 8, u8::try_from(dimensions.len())?])?;
    for &dimension in dimensions {
        file.write_all(&u32::try_from(dimension)?.to_be_bytes())?;
    }
    file.write_all(values)?;
    file.finish()?.sync_all()?;
    println!("{}", path.display());
    Ok(())
}
