//! The same sums without special instructions, in loops that the compiler turns into vectors.

use pulp::{Arch, WithSimd};

use super::finish::Finish;
use super::work::{Filter, Job};
use super::{GROUP, LANES};

/// A panel of `V` vectors of output channels for all pixels of a job.
struct Sweep<'a, F: Finish, const V: usize> {
    job: &'a Job<'a>,
    finish: &'a F,
    out: &'a mut [F::Out],
}

impl<F: Finish, const V: usize> WithSimd for Sweep<'_, F, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { job, finish, out } = self;
        for (i, (&at, out)) in job.pixels.iter().zip(out.chunks_exact_mut(job.outputs)).enumerate() {
            let mut sums: [[i32; LANES]; V] = std::array::from_fn(|v| job.starts[v]);
            let mut weights = job.weights.chunks_exact(V);
            for &(offset, groups) in job.runs {
                let bytes = &job.input[at + offset..][..groups * GROUP];
                for (bytes, weights) in bytes.chunks_exact(GROUP).zip(&mut weights) {
                    for (sums, weights) in sums.iter_mut().zip(weights) {
                        for (sum, weights) in sums.iter_mut().zip(weights.0.chunks_exact(GROUP)) {
                            let products = weights.iter().zip(bytes).map(|(&w, &x)| i32::from(w) * i32::from(x));
                            *sum = products.fold(*sum, i32::wrapping_add);
                        }
                    }
                }
            }
            job.write(&[sums], i, out, |sums, vector, at, out| finish.finish(sums, vector, at, out));
        }
    }
}

/// Computes a panel of `V` vectors of output channels for all pixels of a job.
pub(super) fn sweep<F: Finish, const V: usize>(job: &Job<'_>, finish: &F, out: &mut [F::Out]) {
    Arch::new().dispatch(Sweep::<F, V> { job, finish, out });
}

/// A vector of channels, each filtered on its own.
struct Filtered<'a, F: Finish> {
    filter: &'a Filter<'a>,
    vector: usize,
    finish: &'a F,
    out: &'a mut [F::Out],
}

impl<F: Finish> WithSimd for Filtered<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { filter, vector, finish, out } = self;
        for (i, &at) in filter.pixels.iter().enumerate() {
            let mut sums = *filter.start;
            for (&tap, weights) in filter.taps.iter().zip(filter.weights) {
                let bytes = &filter.bytes[at + tap..][..LANES];
                for ((sum, &byte), &weight) in sums.iter_mut().zip(bytes).zip(weights) {
                    *sum = sum.wrapping_add(i32::from(byte).wrapping_mul(weight));
                }
            }
            filter.write(vector, &[sums], i, out, |sums, at, out| finish.finish(sums, vector, at, out));
        }
    }
}

/// Filters a vector of channels of all pixels.
pub(super) fn filter<F: Finish>(filter: &Filter<'_>, vector: usize, finish: &F, out: &mut [F::Out]) {
    Arch::new().dispatch(Filtered { filter, vector, finish, out });
}
