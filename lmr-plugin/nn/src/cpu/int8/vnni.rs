//! Tiles of pixels and output channels with AVX-512's instruction for sums of four products of bytes.

use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm512_cvtepu8_epi32, _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_storeu_si512,
};

use super::LANES;
use super::finish::Finish;
use super::work::{Filter, Job};

/// Whether this machine has what [`sweep`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Computes a panel of `V` vectors of output channels for all pixels of a job, `P` at a time.
///
/// # Safety
/// The machine must have what [`available`] asks for, and every byte that [`Job::check`] looks at must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn sweep<F: Finish, const V: usize, const P: usize>(job: &Job<'_>, finish: &F, out: &mut [F::Out]) {
    let mut sums = [[[0i32; LANES]; V]; P];
    let tiles = job.pixels.chunks(P).zip(out.chunks_mut(P * job.outputs)).enumerate();
    for (tile, (pixels, out)) in tiles {
        // Where pixels end, the last one stands in for those that are missing.
        let last = pixels[pixels.len() - 1];
        let at: [usize; P] = std::array::from_fn(|i| pixels.get(i).copied().unwrap_or(last));
        (0..pixels.len()).for_each(|pixel| finish.expect(job.element(tile * P + pixel)));
        // SAFETY: the caller's promise.
        unsafe { multiply::<V, P>(job, at, &mut sums) };
        // SAFETY: the caller's promise.
        job.write(&sums, tile * P, out, |sums, vector, at, out| unsafe { finish.finish_vnni(sums, vector, at, out) });
    }
}

/// Fills `sums` for the pixels whose windows begin at `at`.
///
/// # Safety
/// As for [`sweep`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply<const V: usize, const P: usize>(job: &Job<'_>, at: [usize; P], sums: &mut [[[i32; LANES]; V]; P]) {
    // SAFETY: the starts of a panel are `V` vectors; weights follow each other as the loops ask for them, in vectors that
    // are aligned; inputs were checked.
    unsafe {
        let mut tile = [[_mm512_set1_epi32(0); V]; P];
        for (v, start) in job.starts.iter().enumerate().take(V) {
            let start = _mm512_loadu_si512(start.as_ptr().cast());
            tile.iter_mut().for_each(|row| row[v] = start);
        }
        let mut weights = job.weights.as_ptr().cast::<__m512i>();
        for &(offset, groups) in job.runs {
            // A loop rather than `map`, which may be left a call that spills the tile.
            let mut pixels = [job.input.as_ptr().add(offset).cast::<i32>(); P];
            for (pixel, at) in pixels.iter_mut().zip(at) {
                *pixel = pixel.byte_add(at);
            }
            for group in 0..groups {
                let mut factors = [_mm512_set1_epi32(0); V];
                for (v, factor) in factors.iter_mut().enumerate() {
                    *factor = _mm512_load_si512(weights.add(v));
                }
                weights = weights.add(V);
                for (row, pixel) in tile.iter_mut().zip(pixels) {
                    let bytes = _mm512_set1_epi32(pixel.add(group).read_unaligned());
                    for (sum, &factor) in row.iter_mut().zip(&factors) {
                        *sum = _mm512_dpbusd_epi32(*sum, bytes, factor);
                    }
                }
            }
        }
        for (sums, row) in sums.iter_mut().zip(tile) {
            for (sums, vector) in sums.iter_mut().zip(row) {
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), vector);
            }
        }
    }
}

/// Filters a vector of channels of all pixels, each channel on its own.
///
/// # Safety
/// The machine must have what [`available`] asks for, and every byte that [`Filter::check`] looks at must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn filter<F: Finish>(filter: &Filter<'_>, vector: usize, finish: &F, out: &mut [F::Out]) {
    /// Pixels at a time.
    const P: usize = 8;
    let mut sums = [[0i32; LANES]; P];
    for (tile, pixels) in filter.pixels.chunks(P).enumerate() {
        let last = pixels[pixels.len() - 1];
        let at: [usize; P] = std::array::from_fn(|i| pixels.get(i).copied().unwrap_or(last));
        // SAFETY: the caller's promise; there are as many weights as taps.
        unsafe {
            let mut vectors = [_mm512_loadu_si512(filter.start.as_ptr().cast()); P];
            let input = filter.bytes.as_ptr();
            for (&tap, weights) in filter.taps.iter().zip(filter.weights) {
                // A byte in each lane, the others 0: one product is left of the four.
                let weights = _mm512_loadu_si512(weights.as_ptr().cast());
                for (sum, at) in vectors.iter_mut().zip(at) {
                    let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(input.add(at + tap).cast()));
                    *sum = _mm512_dpbusd_epi32(*sum, bytes, weights);
                }
            }
            for (sums, vector) in sums.iter_mut().zip(vectors) {
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), vector);
            }
        }
        // SAFETY: the caller's promise.
        let finish = |sums: &_, at, out: &mut _| unsafe { finish.finish_vnni(sums, vector, at, out) };
        filter.write(vector, &sums[..pixels.len()], tile * P, out, finish);
    }
}
