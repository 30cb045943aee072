//! The convolutions of ResNet-18 at widths 16 and 64 on 32x32 images, batch 128, pass by pass.
//!
//! `cargo bench -p lmr-nn --profile dev` (that profile is optimized, and compiled already); throughput is in
//! multiply-adds of a direct sum.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmr_nn::{ConvConfig, Pass, Trial};

const BATCH: usize = 128;

/// `(input channels, output channels, image side, kernel, stride)`.
const SHAPES: [(usize, usize, usize, usize, usize); 10] = [
    (3, 16, 32, 3, 1),
    (16, 16, 32, 3, 1),
    (16, 32, 32, 3, 2),
    (16, 32, 32, 1, 2),
    (32, 32, 16, 3, 1),
    (128, 128, 4, 3, 1),
    (64, 64, 32, 3, 1),
    (128, 128, 16, 3, 1),
    (256, 256, 8, 3, 1),
    (512, 512, 4, 3, 1),
];

fn convolutions(criterion: &mut Criterion) {
    for (c, o, side, kernel, stride) in SHAPES {
        let config = ConvConfig { stride, padding: (kernel / 2).into(), ..ConvConfig::default() };
        let mut trial = Trial::new([BATCH, c, side, side], [o, c, kernel, kernel], config).unwrap();
        let mut group = criterion.benchmark_group("conv");
        group.sample_size(10).throughput(Throughput::Elements((trial.flops() / 2.0) as u64));
        let name = format!("{c}-{o}-{side}x{side}-k{kernel}-s{stride}");
        for (pass, id) in [(Pass::Forward, "forward"), (Pass::Input, "input"), (Pass::Weights, "weights")] {
            group.bench_function(BenchmarkId::new(id, &name), |b| b.iter(|| trial.run(pass)));
        }
        group.finish();
    }
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
