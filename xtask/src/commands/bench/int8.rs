//! `lmr bench int8`.

use std::io::Write;
use std::time::Instant;

use candle_core::{Device, Tensor};
use lmr_plugin::data::{CleanSet, Images, Normalization};
use lmr_plugin::deploy::{Calibration, Integers, Scheme};
use lmr_plugin::model::{Form, Model};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::zoo::Arch;
use rand::RngExt;

use super::super::table;
use super::{arch, spec};
use crate::threads;

/// Which networks to time.
#[derive(clap::Args)]
pub struct Int8 {
    /// Only this architecture; all of the table if absent.
    #[arg(long, value_parser = arch)]
    arch: Option<Arch>,
    /// Runs of each after a first one; the best of all counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Threads to compute with; all cores if absent.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Architecture, width, patch, image side, images at a time.
type Network = (Arch, Option<usize>, Option<usize>, usize, usize);

const NETWORKS: [Network; 9] = [
    (Arch::Resnet18, Some(16), None, 32, 128),
    (Arch::Resnet18, Some(64), None, 32, 128),
    (Arch::Resnet34, Some(64), None, 224, 4),
    (Arch::PreactResnet18, Some(64), None, 32, 128),
    (Arch::Vgg16Bn, Some(64), None, 32, 128),
    (Arch::MobilenetV2, None, None, 32, 128),
    (Arch::MobilenetV2, None, None, 224, 8),
    (Arch::VitTiny, None, Some(4), 32, 32),
    (Arch::VitBase, None, Some(16), 224, 8),
];

impl Int8 {
    /// Times f32 and integers in turn and prints a table.
    pub fn run(&self) -> anyhow::Result<()> {
        threads::start(self.threads)?;
        let mut table = table(["network", "images", "f32", "int8", "times", "same class"]);
        for network in NETWORKS.into_iter().filter(|network| self.arch.is_none_or(|arch| arch == network.0)) {
            let (arch, width, patch, side, batch) = network;
            let spec = spec(arch, 10, side, (width, patch));
            let network = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
            let model = Model::new(network, Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] })?;
            let (quantized, x) = quantize(&model, side, batch)?;
            let model = model.network();
            let (mut floats, mut integers) = (Vec::new(), Vec::new());
            for _ in 0..=self.runs {
                floats.push(seconds(|| model.logits(&x))?);
                integers.push(seconds(|| quantized.logits(model, &x))?);
            }
            let rate = |seconds: &[f64]| batch as f64 / seconds.iter().copied().fold(f64::INFINITY, f64::min);
            let (f32_rate, int8_rate) = (rate(&floats), rate(&integers));
            let classes = |logits: Tensor| lmr_plugin::predict::classes(&logits);
            let simulated = classes(quantized.simulated_logits(model, &x)?)?;
            let found = classes(quantized.logits(model, &x)?)?;
            let same = found.iter().zip(&simulated).filter(|(a, b)| a == b).count();
            let width = spec.width.map_or_else(String::new, |width| format!(" {width}"));
            table.add_row([
                format!("{arch:?}{width}"),
                format!("{batch} of {side}x{side}"),
                format!("{f32_rate:.1}"),
                format!("{int8_rate:.1}"),
                format!("{:.2}", int8_rate / f32_rate),
                format!("{same} of {batch}"),
            ]);
        }
        let mut out = std::io::stdout();
        writeln!(out, "{table}")?;
        writeln!(
            out,
            "Images per second of processor time, the best of {} runs on {} threads; weights of 8 bits, one scale a tensor.\n\
             Images and weights are random. The last column compares integers with their simulation in f32.",
            self.runs + 1,
            rayon::current_num_threads()
        )?;
        Ok(())
    }
}

/// The model on integers, calibrated on random images, and these, normalized.
fn quantize(model: &Model, side: usize, batch: usize) -> anyhow::Result<(Integers, Tensor)> {
    let mut random = rng::stream(0, "bench");
    let pixels = (0..batch * 3 * side * side).map(|_| random.random()).collect();
    let images = Images::new(pixels, vec![0; batch], [3, side, side], model.network().classes())?;
    let clean = CleanSet::new(images)?;
    let scheme = Scheme::default();
    let quantized = Integers::calibrate(model, scheme, Calibration::MinMax, &clean, &Run::quiet(0))?;
    let all: Vec<usize> = (0..batch).collect();
    let (pixels, _) = clean.images.batch(&all, &Device::Cpu)?;
    Ok((quantized, model.normalization().apply(&pixels)?))
}

/// The time that `run` takes a processor: of all threads together, so that other work on the machine does not count. Where the
/// system does not tell, the time that passes.
fn seconds(run: impl FnOnce() -> lmr_plugin::Result<Tensor>) -> anyhow::Result<f64> {
    let (clock, before) = (Instant::now(), processor_seconds());
    run()?;
    let passed = clock.elapsed().as_secs_f64();
    Ok(before.and_then(|before| Some(processor_seconds()? - before)).unwrap_or(passed))
}

/// What this process has computed so far.
fn processor_seconds() -> Option<f64> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let times = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += times.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 * 1e-9)
}
