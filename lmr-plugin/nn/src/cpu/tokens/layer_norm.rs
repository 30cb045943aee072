//! Layer norm over blocked tokens: rows are features, so every vector normalizes 16 tokens at once.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::layout::TokenDims;
use crate::cpu::access::{slice, tensor, with_slice};
use crate::cpu::simd::{get, put};
use crate::cpu::stash::{Stash, keep, kept};

struct LayerNorm {
    dims: TokenDims,
    eps: f64,
    stash: Stash<Moments>,
}

/// Mean and `1/√(var + ε)` of every token, block after block.
struct Moments {
    mean: Vec<f32>,
    inv_std: Vec<f32>,
}

/// One block forward: `y` and the block's part of the moments.
struct Forward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
    mean: &'a mut [f32],
    inv_std: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, gamma, beta, eps, y, mean, inv_std } = self;
        let (n, share) = (mean.len(), simd.splat_f32s(1.0 / gamma.len() as f32));
        let ones = simd.splat_f32s(1.0);
        for at in (0..n).step_by(S::F32_LANES) {
            let mut sum = simd.splat_f32s(0.0);
            for row in x.chunks_exact(n) {
                sum = simd.add_f32s(sum, get(simd, row, at));
            }
            let centre = simd.mul_f32s(sum, share);
            let mut squares = simd.splat_f32s(0.0);
            for row in x.chunks_exact(n) {
                let difference = simd.sub_f32s(get(simd, row, at), centre);
                squares = simd.mul_add_e_f32s(difference, difference, squares);
            }
            let var = simd.mul_add_e_f32s(squares, share, simd.splat_f32s(eps));
            let inverse = simd.div_f32s(ones, simd.sqrt_f32s(var));
            put(simd, mean, at, centre);
            put(simd, inv_std, at, inverse);
            for ((row, out), (&gamma, &beta)) in
                x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(gamma.iter().zip(beta))
            {
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, row, at), centre), inverse);
                let scaled = simd.mul_add_e_f32s(normal, simd.splat_f32s(gamma), simd.splat_f32s(beta));
                put(simd, out, at, scaled);
            }
        }
    }
}

/// One block backward: fills `dx` and returns the gradients of gamma and beta.
struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    gamma: &'a [f32],
    mean: &'a [f32],
    inv_std: &'a [f32],
    dx: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { x, dy, gamma, mean, inv_std, dx } = self;
        let (d, n) = (gamma.len(), mean.len());
        let (zero, share) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0 / d as f32));
        // Of gamma, then of beta.
        let mut sums = vec![zero; 2 * d];
        let (of_gamma, of_beta) = sums.split_at_mut(d);
        for at in (0..n).step_by(S::F32_LANES) {
            // Lanes beyond the tokens are 0 in `dy` and add nothing.
            let (centre, inverse) = (get(simd, mean, at), get(simd, inv_std, at));
            let (mut sum, mut product) = (zero, zero);
            for (feature, (x, dy)) in x.chunks_exact(n).zip(dy.chunks_exact(n)).enumerate() {
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, x, at), centre), inverse);
                let dy = get(simd, dy, at);
                of_gamma[feature] = simd.mul_add_e_f32s(dy, normal, of_gamma[feature]);
                of_beta[feature] = simd.add_f32s(of_beta[feature], dy);
                let scaled = simd.mul_f32s(dy, simd.splat_f32s(gamma[feature]));
                sum = simd.add_f32s(sum, scaled);
                product = simd.mul_add_e_f32s(scaled, normal, product);
            }
            let (sum, product) = (simd.mul_f32s(sum, share), simd.mul_f32s(product, share));
            let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(gamma);
            for (((x, dy), dx), &gamma) in rows {
                let normal = simd.mul_f32s(simd.sub_f32s(get(simd, x, at), centre), inverse);
                let scaled = simd.mul_f32s(get(simd, dy, at), simd.splat_f32s(gamma));
                let rest = simd.sub_f32s(simd.sub_f32s(scaled, sum), simd.mul_f32s(normal, product));
                put(simd, dx, at, simd.mul_f32s(rest, inverse));
            }
        }
        sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).collect()
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        gamma: &CpuStorage,
        l_gamma: &Layout,
        beta: &CpuStorage,
        l_beta: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gamma, beta) = (slice(x, lx)?, slice(gamma, l_gamma)?, slice(beta, l_beta)?);
        let (n, len) = (self.dims.n(), self.dims.d * self.dims.n());
        let (mut y, mut mean, mut inv_std) =
            (vec![0.0; x.len()], vec![0.0; self.dims.g * n], vec![0.0; self.dims.g * n]);
        let (arch, eps) = (Arch::new(), self.eps as f32);
        let moments = mean.par_chunks_mut(n).zip(inv_std.par_chunks_mut(n));
        y.par_chunks_mut(len).zip(x.par_chunks(len)).zip(moments).for_each(|((y, x), (mean, inv_std))| {
            arch.dispatch(Forward { x, gamma, beta, eps, y, mean, inv_std });
        });
        keep(&self.stash, Moments { mean, inv_std })?;
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Moments { mean, inv_std } = kept(&self.stash)?;
        let (d, n) = (self.dims.d, self.dims.n());
        let mut dx = vec![0.0; x.elem_count()];
        let arch = Arch::new();
        let parts: Vec<Vec<f32>> = with_slice(x, |x| {
            with_slice(dy, |dy| {
                with_slice(gamma, |gamma| {
                    let blocks = x
                        .par_chunks(d * n)
                        .zip(dy.par_chunks(d * n))
                        .zip(mean.par_chunks(n).zip(inv_std.par_chunks(n)));
                    let backward =
                        |(dx, ((x, dy), (mean, inv_std)))| arch.dispatch(Backward { x, dy, gamma, mean, inv_std, dx });
                    Ok(dx.par_chunks_mut(d * n).zip(blocks).map(backward).collect())
                })
            })
        })?;
        let mut sums = vec![0.0f64; 2 * d];
        for part in &parts {
            sums.iter_mut().zip(part).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let gradient = |sums: &[f64], of: &Tensor| tensor(sums.iter().map(|&s| s as f32).collect(), of.dims());
        let (dgamma, dbeta) = (gradient(&sums[..d], gamma)?, gradient(&sums[d..], beta)?);
        Ok((Some(tensor(dx, x.dims())?), Some(dgamma), Some(dbeta)))
    }
}

/// Layer norm of blocked tokens; differentiable.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let dims = TokenDims::of(x)?;
    if gamma.dims() != [dims.d] || beta.dims() != [dims.d] {
        bail!("layer norm: {:?} values do not fit tokens of {} features", gamma.dims(), dims.d);
    }
    let op = LayerNorm { dims, eps, stash: Stash::default() };
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)
}
