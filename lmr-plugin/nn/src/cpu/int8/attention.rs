//! Attention between codes: scores and softmax are floats, as nothing rounds them.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::{Affine, encode};
use crate::cpu::scratch::Scratch;
use crate::cpu::tokens::attention::softmax;
use crate::cpu::tokens::matmul::{Matrix, product};

/// The codes of `softmax(q · kᵀ / √d) · v` per head, `[B,T,D]`, for codes `[B,T,3·D]`: q, k and v, each head after head.
pub fn attend(
    (codes, from): (&[u8], Affine),
    [b, t, features]: [usize; 3],
    heads: usize,
    to: Affine,
) -> Result<Vec<u8>> {
    let fits = heads > 0 && t > 0 && features > 0 && features.is_multiple_of(3 * heads);
    if !fits || codes.len() != b * t * features {
        bail!("integer attention: {} codes are not {b}x{t}x{features} of {heads} heads", codes.len());
    }
    let (width, depth) = (features / 3, features / 3 / heads);
    let head_len = t * depth;
    let scale = (1.0 / (depth as f64).sqrt()) as f32;
    let mut mixed = vec![0.0; b * t * width];
    mixed.par_chunks_mut(head_len).enumerate().for_each(|(task, mixed)| {
        let (image, head) = (task / heads, task % heads);
        let mut parts = Scratch::take(3 * head_len);
        for (part, values) in parts.chunks_exact_mut(head_len).enumerate() {
            for (token, values) in values.chunks_exact_mut(depth).enumerate() {
                let at = (image * t + token) * features + part * width + head * depth;
                for (value, &code) in values.iter_mut().zip(&codes[at..at + depth]) {
                    *value = from.value(code);
                }
            }
        }
        let matrix = |part: usize| Matrix::new(&parts[part * head_len..][..head_len], t, depth, depth);
        // A row per key, so that softmax runs along vectors of queries.
        let mut shares = Scratch::take(t * t);
        product(scale, matrix(1), matrix(0).t(), &mut shares, t);
        softmax(&mut shares, t);
        product(1.0, Matrix::new(&shares, t, t, t).t(), matrix(2), mixed, depth);
    });
    let mixed = encode(&mixed, to);
    // Head after head in every token.
    let mut out = vec![0; mixed.len()];
    out.par_chunks_mut(t * width).zip(mixed.par_chunks(t * width)).for_each(|(out, mixed)| {
        for (head, mixed) in mixed.chunks_exact(head_len).enumerate() {
            for (token, mixed) in mixed.chunks_exact(depth).enumerate() {
                out[token * width + head * depth..][..depth].copy_from_slice(mixed);
            }
        }
    });
    Ok(out)
}
