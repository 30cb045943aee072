//! Against Pillow on a synthetic image, and against torchvision on photographs where there are some.

use std::path::Path;

use rstest::rstest;

use super::*;
use crate::datasets::decode_raster;
use crate::model_config::Convention;

#[derive(Deserialize)]
struct Fixtures {
    resized: Vec<Resized>,
}

#[derive(Deserialize)]
struct Resized {
    height: usize,
    width: usize,
    size: [usize; 2],
    resize: Resize,
    interpolation: Interpolation,
    chw: String,
}

#[test]
fn bytes_are_pillows() {
    let fixtures: Fixtures = serde_json::from_str(include_str!("../../tests/fixtures/images.json")).unwrap();
    assert_eq!(fixtures.resized.len(), 8);
    for Resized { height, width, size, resize, interpolation, chw } in fixtures.resized {
        let value = |at: usize| {
            let (y, x, c) = (at / 3 / width, at / 3 % width, at % 3);
            ((7 * x + 13 * y + 50 * c + 3 * (x * y % 31)) % 256) as u8
        };
        let image = Raster { pixels: (0..height * width * 3).map(value).collect(), channels: 3, height, width };
        let preprocessing =
            Preprocessing { size, resize, interpolation, ..Convention::VitAugreg.preprocessing(None).unwrap() };
        let mut out = vec![1; 3 * size[0] * size[1]];
        preprocessing.resize_and_crop(&image, &mut out);
        let found: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(found == chw, "{height}x{width} {resize:?} {interpolation:?}");
    }
}

#[derive(Deserialize)]
struct Photograph {
    pipeline: Convention,
    file: String,
    mean: [f64; 3],
    std: [f64; 3],
    points_chw: Vec<[usize; 3]>,
    values: Vec<f64>,
}

/// `LMR_PHOTOGRAPHS` names a folder of ImageNet's validation images in folders by class, and beside them
/// `preprocess.json`: what torchvision and Pillow make of some of them.
#[test]
#[ignore = "needs photographs, which are not ours to hand on"]
fn photographs_are_torchvisions() {
    let folder = std::env::var_os("LMR_PHOTOGRAPHS").expect("LMR_PHOTOGRAPHS is not set");
    let expected = std::fs::read_to_string(Path::new(&folder).join("preprocess.json")).unwrap();
    let photographs: Vec<Photograph> = serde_json::from_str(&expected).unwrap();
    let (mut near, mut all, mut worst_mean, mut worst_std, mut worst) = (0, 0, 0f64, 0f64, 0f64);
    for photograph in photographs {
        let preprocessing = photograph.pipeline.preprocessing(None).unwrap();
        let [height, width] = preprocessing.size;
        let bytes = std::fs::read(Path::new(&folder).join(&photograph.file)).unwrap();
        let mut out = vec![0; 3 * height * width];
        preprocessing.resize_and_crop(&decode_raster(&bytes, 3).unwrap(), &mut out);
        let value = |c: usize, byte: u8| (f64::from(byte) / 255.0 - preprocessing.mean[c]) / preprocessing.std[c];
        for (c, plane) in out.chunks_exact(height * width).enumerate() {
            let n = plane.len() as f64;
            let mean = plane.iter().map(|&byte| value(c, byte)).sum::<f64>() / n;
            let variance = plane.iter().map(|&byte| (value(c, byte) - mean).powi(2)).sum::<f64>() / (n - 1.0);
            worst_mean = worst_mean.max((mean - photograph.mean[c]).abs());
            worst_std = worst_std.max((variance.sqrt() - photograph.std[c]).abs());
        }
        for (&[c, row, column], expected) in photograph.points_chw.iter().zip(photograph.values) {
            let error = (value(c, out[(c * height + row) * width + column]) - expected).abs();
            worst = worst.max(error);
            near += usize::from(error <= 0.05);
            all += 1;
        }
    }
    println!(
        "means differ by {worst_mean:.5}, deviations by {worst_std:.5}, values by {worst:.4}; {near} of {all} near"
    );
    assert!(worst_mean < 0.01 && worst_std < 0.01 && worst < 0.25 && near * 100 >= all * 95);
}

#[rstest]
#[case::even(20, 16, 2, 0)]
#[case::half_down(21, 16, 2, 0)]
#[case::half_up(19, 16, 2, 0)]
#[case::smaller(11, 16, 0, 2)]
fn the_centre_is_torchvisions(#[case] side: usize, #[case] crop: usize, #[case] start: usize, #[case] border: usize) {
    assert_eq!(Window::centre(side, crop), Window { start, len: side.min(crop), border });
}

#[test]
fn a_thin_image_takes_no_more_memory() {
    // Resized as a whole, it would have 256 × 16,776,960 pixels.
    let mut out = vec![0; 3 * 224 * 224];
    let image = Raster { pixels: vec![9; 3 * 65_535], channels: 3, height: 1, width: 65_535 };
    Convention::ResnetImagenet.preprocessing(None).unwrap().resize_and_crop(&image, &mut out);
    assert!(out.iter().all(|&byte| byte == 9));
}

#[rstest]
#[case::side(|p: &mut Preprocessing| p.size[0] = 0, "size: expected 1 to 4096 pixels, found 0")]
#[case::resize(|p: &mut Preprocessing| p.resize = Resize::ShortestEdge(50_000), "resize: expected 1 to 40960 pixels, found 50000")]
#[case::zero(|p: &mut Preprocessing| p.resize = Resize::Exact([1, 0]), "resize: expected 1 to 40960 pixels, found 0")]
#[case::std(|p: &mut Preprocessing| p.std[1] = 0.0, "normalization.std: found 0, expected a finite number above 0")]
#[case::mean(|p: &mut Preprocessing| p.mean[2] = f64::NAN, "normalization.mean: found NaN")]
#[case::channels(|p: &mut Preprocessing| p.mean.truncate(1), "has 1 means and 3 standard deviations")]
fn impossible_settings_are_refused(#[case] change: fn(&mut Preprocessing), #[case] expected: &str) {
    let mut preprocessing = Convention::VitAugreg.preprocessing(None).unwrap();
    preprocessing.validate().unwrap();
    change(&mut preprocessing);
    let message = preprocessing.validate().unwrap_err();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_checkpoint_brings_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("model.safetensors");
    let from = |checkpoint| Convention::Checkpoint.preprocessing(checkpoint);
    let error = from(None).unwrap_err().to_string();
    assert!(error.contains("there is no checkpoint"), "{error}");
    let error = from(Some(&checkpoint)).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: no config.json"), "{error}");
    let config = r#"{"architecture": "vit_base_patch16_224", "pretrained_cfg": {"input_size": [3, 224, 224],
        "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    assert_eq!(from(Some(&checkpoint)).unwrap(), Convention::VitAugreg.preprocessing(None).unwrap());
}
