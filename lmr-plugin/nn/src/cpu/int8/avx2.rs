//! Tiles of pixels and output channels with AVX2, which sums pairs of products of 16-bit integers.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi32, _mm256_broadcastq_epi64,
    _mm256_cvtepi8_epi16, _mm256_hadd_epi32, _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_setzero_si256,
    _mm256_storeu_si256,
};

use super::LANES;
use super::finish::Finish;
use super::work::Job;

/// Pixels at a time: with them four vectors of sums, and what they are made of, fill the registers.
const P: usize = 3;

/// Whether this machine has what [`sweep`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Computes a panel of `V` vectors of output channels for all pixels of a job.
///
/// # Safety
/// The machine must have what [`available`] asks for, and every byte that [`Job::check`] looks at must be there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sweep<F: Finish, const V: usize>(job: &Job<'_>, finish: &F, out: &mut [F::Out]) {
    let mut sums = [[[0i32; LANES]; V]; P];
    let tiles = job.pixels.chunks(P).zip(out.chunks_mut(P * job.outputs)).enumerate();
    for (tile, (pixels, out)) in tiles {
        // Where pixels end, the last one stands in for those that are missing.
        let last = pixels[pixels.len() - 1];
        let at: [usize; P] = std::array::from_fn(|i| pixels.get(i).copied().unwrap_or(last));
        for v in 0..V {
            // SAFETY: the caller's promise.
            unsafe { multiply::<V>(job, at, v, &mut sums) };
        }
        job.write(&sums, tile * P, out, |sums, vector, at, out| finish.finish(sums, vector, at, out));
    }
}

/// Fills `sums` for vector `v` of the panel and the pixels whose windows begin at `at`.
///
/// # Safety
/// As for [`sweep`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply<const V: usize>(job: &Job<'_>, at: [usize; P], v: usize, sums: &mut [[[i32; LANES]; V]; P]) {
    // SAFETY: weights follow each other as the loops ask for them, and inputs were checked.
    unsafe {
        // For every output channel two sums side by side: of the first two products of each group, and of the last two.
        let mut tile = [[_mm256_setzero_si256(); 4]; P];
        let mut weights = job.weights.as_ptr().add(v);
        for &(offset, groups) in job.runs {
            // A loop rather than `map`, which may be left a call that spills the tile.
            let mut pixels = [job.input.as_ptr().add(offset).cast::<i32>(); P];
            for (pixel, at) in pixels.iter_mut().zip(at) {
                *pixel = pixel.byte_add(at);
            }
            for group in 0..groups {
                let mut bytes = [_mm256_setzero_si256(); P];
                for (bytes, pixel) in bytes.iter_mut().zip(pixels) {
                    let four = _mm_cvtsi32_si128(pixel.add(group).read_unaligned());
                    *bytes = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(four));
                }
                for part in 0..4 {
                    let factor = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.cast::<__m128i>().add(part)));
                    for (row, &bytes) in tile.iter_mut().zip(&bytes) {
                        row[part] = _mm256_add_epi32(row[part], _mm256_madd_epi16(bytes, factor));
                    }
                }
                weights = weights.wrapping_add(V);
            }
        }
        for (sums, [a, b, c, d]) in sums.iter_mut().zip(tile) {
            // Adding neighbours leaves pairs of channels in the order 0, 2, 1, 3.
            let to = sums[v].as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(to, _mm256_permute4x64_epi64::<0xD8>(_mm256_hadd_epi32(a, b)));
            _mm256_storeu_si256(to.add(1), _mm256_permute4x64_epi64::<0xD8>(_mm256_hadd_epi32(c, d)));
            for (sum, start) in sums[v].iter_mut().zip(&job.starts[v]) {
                *sum = sum.wrapping_add(*start);
            }
        }
    }
}
