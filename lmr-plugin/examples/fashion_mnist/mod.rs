//! What both examples share: the bundled images, fresh parameters that a seed decides, and the measurements.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;
use flate2::read::GzDecoder;
use lmr_plugin::data::Images;
use lmr_plugin::examine::{Evaluate, Evaluation};
use lmr_plugin::model::Model;
use lmr_plugin::nn::Params;
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::stage::Examination;
use rand::RngExt;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The 10,000 test images of Fashion-MNIST, from gzipped IDX files.
pub fn load() -> Result<Images> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion_mnist");
    let read = |name: &str, header: usize| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        GzDecoder::new(File::open(folder.join(name))?).read_to_end(&mut bytes)?;
        Ok(bytes.split_off(header))
    };
    let labels = read("t10k-labels-idx1-ubyte.gz", 8)?.into_iter().map(u32::from).collect();
    Ok(Images::new(read("t10k-images-idx3-ubyte.gz", 16)?, labels, [1, 28, 28], 10)?)
}

/// Draws every matrix and filter anew, uniform in `±√(6/fan_in)` times `gain`, and begins with biases of 0: Candle's own draws on the
/// CPU cannot be seeded.
pub fn draw(params: &Params, gain: f64) -> Result<()> {
    let mut random = rng::stream(0, "init");
    for (name, var) in params.trainable() {
        if var.rank() == 1 {
            if name.ends_with(".bias") {
                var.set(&var.zeros_like()?)?;
            }
            continue;
        }
        let fan_in: usize = var.dims()[1..].iter().product();
        let bound = (gain * (6.0 / fan_in as f64).sqrt()) as f32;
        let values: Vec<f32> = (0..var.elem_count()).map(|_| random.random_range(-bound..bound)).collect();
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
    }
    Ok(())
}

/// Measures a model and prints a line about it.
pub fn report(when: &str, model: &Model, examination: &Examination, run: &Run<'_>) -> Result<Evaluation> {
    let e = Evaluate::default().evaluate(model, examination, run)?;
    let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.1}", 100.0 * s));
    println!("{when:24} ACC {}  ASR {}  TA {}", percent(Some(e.acc)), percent(e.asr), percent(e.ta));
    Ok(e)
}

/// Fails where a figure is not what the example promises.
pub fn expect(what: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("{what}: expected {} to {}, found {value}", range.start(), range.end()).into()),
    }
}
