//! Between real numbers and codes, and what has no sums of products.

use pulp::Arch;
use rayon::prelude::*;

use super::Affine;
use crate::cpu::activation::{gelu, relu6};
use crate::layers::Activation;

/// Elements that one task maps.
const CHUNK: usize = 1 << 14;

/// The codes of values.
pub fn encode(values: &[f32], to: Affine) -> Vec<u8> {
    let mut codes = vec![0; values.len()];
    let arch = Arch::new();
    codes.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(codes, values)| {
        arch.dispatch(|| codes.iter_mut().zip(values).for_each(|(code, &value)| *code = to.code(value)));
    });
    codes
}

/// What codes stand for.
pub fn decode(codes: &[u8], from: Affine) -> Vec<f32> {
    let mut values = vec![0.0; codes.len()];
    let arch = Arch::new();
    values.par_chunks_mut(CHUNK).zip(codes.par_chunks(CHUNK)).for_each(|(values, codes)| {
        arch.dispatch(|| values.iter_mut().zip(codes).for_each(|(value, &code)| *value = from.value(code)));
    });
    values
}

/// The codes of images `f32[B,C,H,W]` with `pixels` pixels: channels-last.
pub fn encode_images(values: &[f32], (channels, pixels): (usize, usize), to: Affine) -> Vec<u8> {
    let mut codes = vec![0; values.len()];
    let (len, arch) = ((channels * pixels).max(1), Arch::new());
    codes.par_chunks_mut(len).zip(values.par_chunks(len)).for_each(|(codes, values)| {
        arch.dispatch(|| {
            for (channel, plane) in values.chunks_exact(pixels).enumerate() {
                for (pixel, &value) in codes.chunks_exact_mut(channels).zip(plane) {
                    pixel[channel] = to.code(value);
                }
            }
        });
    });
    codes
}

/// What channels-last codes stand for: images `f32[B,C,H,W]`.
pub fn decode_images(codes: &[u8], (channels, pixels): (usize, usize), from: Affine) -> Vec<f32> {
    let mut values = vec![0.0; codes.len()];
    let (len, arch) = ((channels * pixels).max(1), Arch::new());
    values.par_chunks_mut(len).zip(codes.par_chunks(len)).for_each(|(values, codes)| {
        arch.dispatch(|| {
            for (channel, plane) in values.chunks_exact_mut(pixels).enumerate() {
                for (pixel, value) in codes.chunks_exact(channels).zip(plane) {
                    *value = from.value(pixel[channel]);
                }
            }
        });
    });
    values
}

/// The codes of sums of two activations.
pub fn add((x, from_x): (&[u8], Affine), (y, from_y): (&[u8], Affine), to: Affine) -> Vec<u8> {
    let mut codes = vec![0; x.len()];
    let arch = Arch::new();
    let pairs = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
    codes.par_chunks_mut(CHUNK).zip(pairs).for_each(|(codes, (x, y))| {
        arch.dispatch(|| {
            for (code, (&x, &y)) in codes.iter_mut().zip(x.iter().zip(y)) {
                *code = to.code(from_x.value(x) + from_y.value(y));
            }
        });
    });
    codes
}

/// The codes of `activation(x · scale + shift)` with a scale and a shift per channel.
pub fn batch_norm(
    (x, from): (&[u8], Affine),
    (scale, shift): (&[f32], &[f32]),
    activation: Activation,
    to: Affine,
) -> Vec<u8> {
    let channels = scale.len().max(1);
    let mut codes = vec![0; x.len()];
    let len = (CHUNK / channels).max(1) * channels;
    codes.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(codes, x)| match activation {
        Activation::None => scaled(codes, (x, from), (scale, shift), to, |v| v),
        Activation::Relu => scaled(codes, (x, from), (scale, shift), to, |v| if v < 0.0 { 0.0 } else { v }),
        Activation::Relu6 => scaled(codes, (x, from), (scale, shift), to, relu6),
        Activation::Gelu => scaled(codes, (x, from), (scale, shift), to, gelu),
    });
    codes
}

fn scaled(
    codes: &mut [u8],
    (x, from): (&[u8], Affine),
    (scale, shift): (&[f32], &[f32]),
    to: Affine,
    activation: impl Fn(f32) -> f32,
) {
    Arch::new().dispatch(|| {
        for (codes, x) in codes.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for ((code, &x), (scale, shift)) in codes.iter_mut().zip(x).zip(scale.iter().zip(shift)) {
                *code = to.code(activation(from.value(x) * scale + shift));
            }
        }
    });
}
