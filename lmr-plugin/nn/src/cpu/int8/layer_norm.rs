//! Layer norm of codes. Their sum and the sum of their squares are integers, so mean and variance are exact.

use pulp::Arch;
use rayon::prelude::*;

use super::Affine;

/// Bytes that one task normalizes, if rows are short.
const CHUNK: usize = 1 << 14;

/// Codes whose squares 32 bits hold the sum of.
const BLOCK: usize = 1 << 15;

/// The codes of `γ (x - mean) / √(var + ε) + β` for rows of as many features as γ and β have.
pub fn layer_norm((x, from): (&[u8], Affine), (gamma, beta): (&[f32], &[f32]), eps: f64, to: Affine) -> Vec<u8> {
    let features = gamma.len().max(1);
    let mut codes = vec![0; x.len()];
    let len = (CHUNK / features).max(1) * features;
    let arch = Arch::new();
    codes.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(codes, x)| {
        arch.dispatch(|| {
            for (codes, x) in codes.chunks_exact_mut(features).zip(x.chunks_exact(features)) {
                row(codes, (x, from), (gamma, beta), eps, to);
            }
        });
    });
    codes
}

#[inline(always)]
fn row(codes: &mut [u8], (x, from): (&[u8], Affine), (gamma, beta): (&[f32], &[f32]), eps: f64, to: Affine) {
    let (mut sum, mut squares) = (0u64, 0u64);
    for x in x.chunks(BLOCK) {
        let (mut s, mut q) = (0u32, 0u32);
        for &code in x {
            let code = u32::from(code);
            s = s.wrapping_add(code);
            q = q.wrapping_add(code.wrapping_mul(code));
        }
        sum += u64::from(s);
        squares += u64::from(q);
    }
    let (n, scale) = (x.len() as f64, f64::from(from.scale()));
    let mean = sum as f64 / n;
    let var = (squares as f64 - sum as f64 * mean) / n * scale * scale;
    let inverse = (scale / (var + eps).sqrt()) as f32;
    let mean = mean as f32;
    for ((code, &x), (gamma, beta)) in codes.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
        *code = to.code((f32::from(x) - mean) * inverse * gamma + beta);
    }
}
