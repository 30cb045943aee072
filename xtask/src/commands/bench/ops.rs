//! `lmr bench ops`.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use lmr_plugin::nn::{ConvConfig, Pass, Trial};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::table;
use crate::threads;

/// Whose convolutions to time.
#[derive(clap::Args)]
pub struct Ops {
    /// Channels of the first stage.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    width: u32,
    /// Images a step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Height and width of an image; the network begins with the CIFAR stem.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(8..=256))]
    image_size: u32,
    /// Timed runs of every pass, after one that is not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Threads to compute with; all cores if absent.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Input and output channels, image side, kernel, stride.
type Shape = (usize, usize, usize, usize, usize);

impl Ops {
    /// Times all and prints a table.
    pub fn run(&self) -> anyhow::Result<()> {
        threads::start(self.threads)?;
        let peak = peak();
        let mut table = table(["layer", "pass", "ms", "GFLOP/s", "of peak"]);
        for layer in self.layers() {
            let (c, o, side, kernel, stride) = layer;
            let config = ConvConfig { stride, padding: (kernel / 2).into(), ..ConvConfig::default() };
            let mut trial = Trial::new([self.batch as usize, c, side, side], [o, c, kernel, kernel], config)?;
            for (pass, name) in [(Pass::Forward, "forward"), (Pass::Input, "input"), (Pass::Weights, "weights")] {
                let seconds = median((0..=self.runs).map(|_| {
                    let clock = Instant::now();
                    trial.run(pass);
                    clock.elapsed().as_secs_f64()
                }));
                let rate = trial.flops() / seconds;
                table.add_row([
                    format!("{c}-{o} {kernel}x{kernel}/{stride} {side}x{side}"),
                    name.to_string(),
                    format!("{:.2}", 1e3 * seconds),
                    format!("{:.0}", rate / 1e9),
                    format!("{:.0}%", 100.0 * rate / peak),
                ]);
            }
        }
        let mut out = std::io::stdout();
        writeln!(out, "{table}")?;
        writeln!(
            out,
            "Medians. GFLOP/s count a direct sum, products with padding included; a kernel that needs fewer products can\n\
             exceed the peak, which is {:.0} GFLOP/s of multiply-adds on {} threads.",
            peak / 1e9,
            rayon::current_num_threads()
        )?;
        Ok(())
    }

    /// The different convolutions of the network.
    fn layers(&self) -> Vec<Shape> {
        let (width, mut side) = (self.width as usize, self.image_size as usize);
        let mut layers = vec![(3, width, side, 3, 1)];
        for stage in 0..4 {
            let to = width << stage;
            if stage > 0 {
                layers.extend([(to / 2, to, side, 3, 2), (to / 2, to, side, 1, 2)]);
                side = side.div_ceil(2);
            }
            layers.push((to, to, side, 3, 1));
        }
        layers
    }
}

/// The median of all values but the first.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.skip(1).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Multiply-adds that fit in registers: the most that a thread can do, in floating point operations per second, times the
/// number of threads.
fn peak() -> f64 {
    let run = || {
        let clock = Instant::now();
        let flops: f64 = (0..rayon::current_num_threads()).into_par_iter().map(|_| Arch::new().dispatch(Peak)).sum();
        flops / clock.elapsed().as_secs_f64()
    };
    (0..10).map(|_| run()).fold(0.0, f64::max)
}

struct Peak;

impl WithSimd for Peak {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        const ROUNDS: usize = 1 << 20;
        const CHAINS: usize = 12;
        let factor = black_box(simd.splat_f32s(0.999));
        let mut sums = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, factor);
            }
        }
        black_box(sums);
        (2 * ROUNDS * CHAINS * S::F32_LANES) as f64
    }
}
