//! Convolutions of ResNet-18 at widths 16 and 64 on 32x32 images, batch 128: forward, and with both gradients.
//!
//! `cargo bench -p lmr-plugin`; throughput is in nominal multiply-adds.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use candle_core::{DType, Device, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmr_plugin::nn::{Activation, ConvConfig, conv2d, conv2d_inference, to_internal};

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
        let random = |dims: &[usize], std: f32| Tensor::randn(0.0, std, dims, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&to_internal(&random(&[BATCH, c, side, side], 1.0)).unwrap()).unwrap();
        let weight = Var::from_tensor(&random(&[o, c, kernel, kernel], 0.1)).unwrap();
        let bias = Var::zeros(o, DType::F32, &Device::Cpu).unwrap();
        let config = ConvConfig { stride, padding: kernel / 2, ..ConvConfig::default() };

        let mut group = criterion.benchmark_group("conv");
        let positions = side.div_ceil(stride).pow(2);
        group.sample_size(10).throughput(Throughput::Elements((BATCH * positions * c * o * kernel * kernel) as u64));
        let name = format!("{c}-{o}-{side}x{side}-k{kernel}-s{stride}");
        group.bench_function(BenchmarkId::new("forward", &name), |b| {
            b.iter(|| conv2d_inference(black_box(&x), &weight, None, &config, None, Activation::None).unwrap());
        });
        group.bench_function(BenchmarkId::new("forward-backward", &name), |b| {
            b.iter(|| {
                let y = conv2d(black_box(&x), &weight, &bias, &config, None, Activation::None).unwrap();
                y.backward().unwrap()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
