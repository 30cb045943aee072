//! Multi-head self-attention over blocked tokens.
//!
//! A head's q, k and v are runs of rows. Scores are kept transposed, a row per key, so that softmax runs along vectors
//! of queries.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;

use super::layout::TokenDims;
use super::matmul::{Matrix, product};
use crate::cpu::access::{slice, tensor, with_slice};
use crate::cpu::activation::exp;
use crate::cpu::scratch::Scratch;
use crate::cpu::stash::{Stash, keep, kept};

/// `softmax(q · kᵀ / √d) · v` per image and head.
struct Attention {
    /// Of the result.
    dims: TokenDims,
    heads: usize,
    /// The shares of the keys for every image and head, `[key][query]`, where backward needs them.
    shares: Option<Stash<Scratch>>,
}

impl Attention {
    /// Features of a head.
    fn depth(&self) -> usize {
        self.dims.d / self.heads
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.depth() as f64).sqrt()) as f32
    }

    /// Floats in the shares of a head's images.
    fn shares_len(&self) -> usize {
        self.dims.images * self.dims.tokens * self.dims.tokens
    }

    /// Rows of q, k and v of a head of a block.
    fn slabs<'a>(&self, qkv: &'a [f32], block: usize, head: usize) -> [&'a [f32]; 3] {
        let slab = self.depth() * self.dims.n();
        let of = |part: usize| &qkv[((block * 3 + part) * self.heads + head) * slab..][..slab];
        [of(0), of(1), of(2)]
    }

    /// The matrix `[feature][token]` of an image.
    fn image<'a>(&self, slab: &'a [f32], image: usize) -> Matrix<'a> {
        Matrix::new(&slab[image * self.dims.tokens..], self.depth(), self.dims.tokens, self.dims.n())
    }

    /// One head of one block: fills its shares and its rows of the result.
    fn forward(&self, [q, k, v]: [&[f32]; 3], shares: &mut [f32], out: &mut [f32]) {
        let (t, n) = (self.dims.tokens, self.dims.n());
        for (image, shares) in shares.chunks_exact_mut(t * t).enumerate() {
            product(self.scale(), self.image(k, image).t(), self.image(q, image), shares, t);
            softmax(shares, t);
            product(1.0, self.image(v, image), Matrix::new(shares, t, t, t), &mut out[image * t..], n);
        }
    }

    /// One head of one block: fills the gradients of its q, k and v.
    fn backward(&self, [q, k, v]: [&[f32]; 3], shares: &[f32], dy: &[f32], [dq, dk, dv]: [&mut [f32]; 3]) {
        let (t, n) = (self.dims.tokens, self.dims.n());
        let mut grad = Scratch::take(t * t);
        for (image, shares) in shares.chunks_exact(t * t).enumerate() {
            let dy = self.image(dy, image);
            let at = image * t;
            product(1.0, dy, Matrix::new(shares, t, t, t).t(), &mut dv[at..], n);
            product(1.0, self.image(v, image).t(), dy, &mut grad, t);
            softmax_backward(shares, &mut grad, t);
            let grad = Matrix::new(&grad, t, t, t);
            product(self.scale(), self.image(k, image), grad, &mut dq[at..], n);
            product(self.scale(), self.image(q, image), grad.t(), &mut dk[at..], n);
        }
    }
}

/// Softmax over the rows, in place, column by column.
pub(crate) fn softmax(scores: &mut [f32], t: usize) {
    Arch::new().dispatch(|| {
        let mut largest = vec![f32::NEG_INFINITY; t];
        for row in scores.chunks_exact(t) {
            largest
                .iter_mut()
                .zip(row)
                .for_each(|(largest, &score)| *largest = if score > *largest { score } else { *largest });
        }
        let mut sums = vec![0.0f32; t];
        for row in scores.chunks_exact_mut(t) {
            for ((score, sum), largest) in row.iter_mut().zip(&mut sums).zip(&largest) {
                *score = exp(*score - largest);
                *sum += *score;
            }
        }
        sums.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
        for row in scores.chunks_exact_mut(t) {
            row.iter_mut().zip(&sums).for_each(|(score, inverse)| *score *= inverse);
        }
    });
}

/// Turns the gradient of the shares into that of the scores, in place.
fn softmax_backward(shares: &[f32], grad: &mut [f32], t: usize) {
    Arch::new().dispatch(|| {
        let mut sums = vec![0.0f32; t];
        for (share, grad) in shares.chunks_exact(t).zip(grad.chunks_exact(t)) {
            share.iter().zip(grad).zip(&mut sums).for_each(|((share, grad), sum)| *sum += share * grad);
        }
        for (share, grad) in shares.chunks_exact(t).zip(grad.chunks_exact_mut(t)) {
            share.iter().zip(grad).zip(&sums).for_each(|((share, grad), sum)| *grad = share * (*grad - sum));
        }
    });
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = slice(qkv, l)?;
        let (heads, slab, len) = (self.heads, self.depth() * self.dims.n(), self.shares_len());
        let mut out = vec![0.0; self.dims.dims().len()];
        let tasks = out.par_chunks_mut(slab).enumerate();
        let slabs = |task: usize| self.slabs(qkv, task / heads, task % heads);
        match &self.shares {
            Some(stash) => {
                let mut shares = Scratch::take(self.dims.g * heads * len);
                tasks.zip(shares.par_chunks_mut(len)).for_each(|((task, out), shares)| {
                    self.forward(slabs(task), shares, out);
                });
                keep(stash, shares)?;
            }
            None => tasks.for_each(|(task, out)| self.forward(slabs(task), &mut Scratch::take(len), out)),
        }
        Ok((CpuStorage::F32(out), Shape::from(self.dims.shape().to_vec())))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(stash) = &self.shares else { bail!("attention that was not recorded ran backward") };
        let shares = kept(stash)?;
        let (heads, slab, len) = (self.heads, self.depth() * self.dims.n(), self.shares_len());
        let mut dqkv = vec![0.0; qkv.elem_count()];
        // The gradients of q, k and v of a head lie apart in its block.
        let blocks = dqkv.chunks_exact_mut(3 * heads * slab);
        let tasks: Vec<[&mut [f32]; 3]> = blocks
            .flat_map(|block| {
                let (q, rest) = block.split_at_mut(heads * slab);
                let (k, v) = rest.split_at_mut(heads * slab);
                let parts = q.chunks_exact_mut(slab).zip(k.chunks_exact_mut(slab)).zip(v.chunks_exact_mut(slab));
                parts.map(|((q, k), v)| [q, k, v])
            })
            .collect();
        with_slice(qkv, |qkv| {
            with_slice(dy, |dy| {
                tasks.into_par_iter().enumerate().for_each(|(task, grads)| {
                    let (shares, dy) = (&shares[task * len..][..len], &dy[task * slab..][..slab]);
                    self.backward(self.slabs(qkv, task / heads, task % heads), shares, dy, grads);
                });
                Ok(())
            })
        })?;
        Ok(Some(tensor(dqkv, qkv.dims())?))
    }
}

/// Attention of blocked tokens of `3·D` features; differentiable.
pub(crate) fn attend(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let dims = TokenDims::of(qkv)?;
    let dims = TokenDims { d: dims.d / 3, ..dims };
    let op = Attention { dims, heads, shares: qkv.track_op().then(Stash::default) };
    qkv.contiguous()?.apply_op1(op)
}
