//! `lmr bench`.

mod int8;
mod ops;

use std::io::Write;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::{Subcommand, ValueEnum};
use lmr_plugin::deploy::{PruneForm, StructuredPrune};
use lmr_plugin::losses;
use lmr_plugin::model::Classifier;
use lmr_plugin::nn;
use lmr_plugin::optim::Optimizer;
use lmr_plugin::ranges::BelowOne;
use lmr_plugin::rng;
use lmr_plugin::train::{Recipe, Usual};
use lmr_plugin::zoo::{Arch, ModelSpec, Stem};
use rand::RngExt;

use crate::threads;

/// What to time.
#[derive(Subcommand)]
pub enum Arguments {
    /// Times training or inference steps on random colour images and prints one line of JSON.
    Step(Step),
    /// Times every convolution of a ResNet-18, pass by pass, on the CPU.
    Ops(ops::Ops),
    /// Times inference of whole networks in f32 and with integers, on the CPU.
    Int8(int8::Int8),
}

/// The step to time.
#[derive(clap::Args)]
pub struct Step {
    /// The architecture.
    #[arg(long, default_value = "resnet18", value_parser = arch)]
    arch: Arch,
    /// Channels of the first stage, or features of a token; the architecture's own if absent.
    #[arg(long)]
    width: Option<usize>,
    /// Height and width of a vision transformer's patch.
    #[arg(long)]
    patch_size: Option<usize>,
    /// Images a step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=65536))]
    batch: u32,
    /// Height and width of an image; up to 64 a convolutional network begins with the CIFAR stem.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(8..=1024))]
    image_size: u32,
    /// Number of classes.
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// A training step (forward, backward, SGD) or inference.
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,
    /// Removes this share of every layer's channels first, as `structured-prune` with `form = "remove"` does.
    #[arg(long, value_parser = ratio)]
    prune: Option<BelowOne>,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Threads to compute with; all cores if absent.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

fn ratio(text: &str) -> anyhow::Result<BelowOne> {
    Ok(BelowOne::new(text.parse()?)?)
}

/// An architecture by the name it has in a pipeline file.
fn arch(name: &str) -> Result<Arch, String> {
    let text = |arch: &Arch| serde_json::to_value(arch).ok()?.as_str().map(str::to_string);
    let known: Vec<String> = Arch::ALL.iter().filter_map(text).collect();
    let found = Arch::ALL.iter().find(|arch| text(arch).as_deref() == Some(name));
    found.copied().ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Train,
    Eval,
}

impl Arguments {
    /// Times it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Step(step) => step.run(),
            Self::Ops(ops) => ops.run(),
            Self::Int8(int8) => int8.run(),
        }
    }
}

impl Step {
    fn run(&self) -> anyhow::Result<()> {
        threads::start(self.threads)?;
        let size = (self.width, self.patch_size);
        let spec = spec(self.arch, self.classes, self.image_size as usize, size);
        let mut model = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
        if let Some(ratio) = self.prune {
            let prune = StructuredPrune { ratio, form: PruneForm::Remove, ..StructuredPrune::default() };
            model = prune.remove(model.as_ref())?.0;
        }
        let mut random = rng::stream(0, "bench");
        let (batch, size) = (self.batch as usize, self.image_size as usize);
        let pixels: Vec<f32> = (0..batch * 3 * size * size).map(|_| random.random::<f32>() - 0.5).collect();
        let images = Tensor::from_vec(pixels, (batch, 3, size, size), &Device::Cpu)?;
        let labels: Vec<u32> = (0..batch).map(|_| random.random_range(0..self.classes as u32)).collect();
        let labels = Tensor::new(labels, &Device::Cpu)?;
        let mut sgd = Recipe::<Usual>::default().optimizer(model.params())?;

        let mut rates = Vec::new();
        for i in 0..=self.steps {
            let clock = Instant::now();
            match self.mode {
                Mode::Train => train(model.as_ref(), &mut sgd, &images, &labels)?,
                Mode::Eval => drop(model.logits(&images)?),
            }
            if i > 0 {
                rates.push(batch as f64 / clock.elapsed().as_secs_f64());
            }
        }
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
        let line = serde_json::json!({
            "img_per_s": (median * 100.0).round() / 100.0,
            "best": (best * 100.0).round() / 100.0,
            "parameters": model.params().count(),
            "peak_rss_mb": peak_rss_mb(),
        });
        Ok(writeln!(std::io::stdout(), "{line}")?)
    }
}

/// A model of a width and a patch, if they are given, for images of `side` by `side` pixels; an option that its architecture
/// does not know is left out unless it was given.
fn spec(arch: Arch, classes: usize, side: usize, (width, patch): (Option<usize>, Option<usize>)) -> ModelSpec {
    let known = ModelSpec::new(arch, classes).resolved();
    let stem = if side <= 64 { Stem::Cifar } else { Stem::Imagenet };
    ModelSpec {
        stem: known.stem.map(|_| stem),
        image_size: known.image_size.map(|_| side),
        width: width.or(known.width),
        patch_size: patch.or(known.patch_size),
        ..known
    }
}

fn train(model: &dyn Classifier, sgd: &mut Optimizer, images: &Tensor, labels: &Tensor) -> anyhow::Result<()> {
    let logits = model.forward(images, nn::Mode::default())?;
    let loss = losses::cross_entropy(&logits, labels)?.mean_all()?;
    sgd.step(&loss.backward()?, 0.01, None)?;
    Ok(())
}

/// The most memory this process has held; null where the system does not say.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}
