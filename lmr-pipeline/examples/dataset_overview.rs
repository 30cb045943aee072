//! Shows what a data set holds: counts, mean and standard deviation, and a PNG with ten images of each class.
//!
//! `cargo run -p lmr-pipeline --example dataset_overview -- cifar10 test sheet.png`

use std::error::Error;

use image::{Rgb, RgbImage};
use lmr_pipeline::datasets::{Dataset, Split, digest};
use lmr_plugin::data::Images;

const COLUMNS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, split, sheet] = arguments.as_slice() else {
        return Err("expected: DATASET train|test SHEET.png".into());
    };
    let split = match split.as_str() {
        "train" => Split::Train,
        "test" => Split::Test,
        other => return Err(format!("found split {other}, expected train or test").into()),
    };
    let dataset = Dataset::open(name)?;
    let started = std::time::Instant::now();
    let loaded = dataset.load(split)?;
    println!("{} {split}: {} images in {:.2?}", dataset.descriptor().title, loaded.images.len(), started.elapsed());
    for file in &loaded.provenance.files {
        println!("  {} ({} bytes, sha256 {})", file.path, file.bytes, file.sha256);
    }
    for (class, count) in dataset.descriptor().classes.iter().zip(loaded.images.class_counts()) {
        println!("  {count:>6} {class}");
    }
    for (channel, (mean, std)) in statistics(&loaded.images)?.into_iter().enumerate() {
        println!("  channel {channel}: mean {mean:.4}, std {std:.4}");
    }
    println!("  digest {}", digest(&loaded.images)?);
    contact_sheet(&loaded.images)?.save(sheet)?;
    Ok(())
}

/// Mean and standard deviation of each channel, for pixels in [0, 1].
fn statistics(images: &Images) -> lmr_plugin::Result<Vec<(f64, f64)>> {
    let [channels, height, width] = images.shape();
    let mut sums = vec![(0u64, 0u64); channels];
    for index in 0..images.len() {
        for ((sum, squares), plane) in sums.iter_mut().zip(images.image(index)?.chunks_exact(height * width)) {
            for &byte in plane {
                *sum += u64::from(byte);
                *squares += u64::from(byte) * u64::from(byte);
            }
        }
    }
    let n = (images.len() * height * width) as f64;
    let moments = |(sum, squares): (u64, u64)| {
        let mean = sum as f64 / n / 255.0;
        (mean, (squares as f64 / n / (255.0 * 255.0) - mean * mean).sqrt())
    };
    Ok(sums.into_iter().map(moments).collect())
}

/// A row of images for each class.
fn contact_sheet(images: &Images) -> lmr_plugin::Result<RgbImage> {
    let [channels, height, width] = images.shape();
    let mut sheet = RgbImage::new((COLUMNS * width) as u32, (images.classes() * height) as u32);
    let mut used = vec![0; images.classes()];
    for (index, &label) in images.labels().iter().enumerate() {
        let class = label as usize;
        if used[class] == COLUMNS {
            continue;
        }
        let pixels = images.image(index)?;
        for row in 0..height {
            for column in 0..width {
                let at = |channel: usize| pixels[(channel % channels) * height * width + row * width + column];
                let (x, y) = (used[class] * width + column, class * height + row);
                sheet.put_pixel(x as u32, y as u32, Rgb([at(0), at(1), at(2)]));
            }
        }
        used[class] += 1;
    }
    Ok(sheet)
}
