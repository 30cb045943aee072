//! Times training or inference steps of ResNet-18 on random images and prints one line of JSON.
//!
//! Arguments: width batch size classes mode(train|eval) steps threads.

use std::time::Instant;

use candle_core::{D, DType, Device, Tensor};
use lmr_plugin::models::{Arch, Classifier, ModelSpec, Stem};
use lmr_plugin::nn::Train;
use lmr_plugin::{Result, rng};
use rand::RngExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn step(model: &dyn Classifier, images: &Tensor, labels: &Tensor) -> Result<f32> {
    let logits = model.forward(&mut Train::default(), images)?;
    let picked = logits.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    let loss = (logits.log_sum_exp(D::Minus1)? - picked)?.mean_all()?;
    let grads = loss.backward()?;
    for (_, var) in model.params().trainable() {
        if let Some(grad) = grads.get(var) {
            var.set(&(var.as_detached_tensor() - (grad * 1e-3)?)?)?;
        }
    }
    Ok(loss.to_scalar::<f32>()?)
}

fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kb = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|v| v.parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) / 1024.0
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (width, batch, size, classes) = (number(1, 16), number(2, 128), number(3, 32), number(4, 10));
    let training = args.get(5).is_none_or(|mode| mode == "train");
    let (steps, threads) = (number(6, 5), number(7, 2));
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| lmr_plugin::Error::invalid(e.to_string()))?;

    let spec = ModelSpec { arch: Arch::Resnet18, stem: Stem::Cifar, width, classes, channels: 3 };
    let model = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
    let mut random = rng::stream(0, "images");
    let pixels = (0..batch * 3 * size * size).map(|_| random.random::<f32>() - 0.5).collect();
    let images = Tensor::from_vec(pixels, (batch, 3, size, size), &Device::Cpu)?;
    let labels = (Tensor::arange(0u32, batch as u32, &Device::Cpu)?.to_dtype(DType::F32)? / classes as f64)?;
    let labels = ((&labels - labels.floor()?)? * classes as f64)?.round()?.to_dtype(DType::U32)?;

    let mut seconds = Vec::new();
    for i in 0..=steps {
        let start = Instant::now();
        if training {
            step(&*model, &images, &labels)?;
        } else {
            model.logits(&images)?;
        }
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let mean = seconds.iter().sum::<f64>() / steps as f64;
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let (batch, peak) = (batch as f64, peak_rss_mb());
    println!("{{\"img_per_s\":{:.1},\"best\":{:.1},\"peak_rss_mb\":{peak:.0}}}", batch / mean, batch / best);
    Ok(())
}
