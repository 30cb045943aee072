//! From sums of integers to what a layer gives: the one formula that all kernels share, so that they agree to the bit.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castps_si512, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_sub_epi32, _mm512_sub_ps,
};

use super::{Affine, LANES};
use crate::cpu::activation::{Bounds, gelu};
#[cfg(target_arch = "x86_64")]
use crate::grid::MAGIC;
use crate::layers::Activation;

/// What becomes of the sums of a vector of output channels.
pub trait Finish: Sync {
    /// An element of the output.
    type Out: Copy + Default + Send + Sync;

    /// The results for the first `len` of vector `vector` of the output channels, which begin at element `at` of the whole
    /// output; the other lanes are anything.
    fn lanes(&self, sums: &[i32; LANES], vector: usize, at: usize, len: usize) -> [Self::Out; LANES];

    /// Says that the results that begin at element `at` of the whole output are wanted soon.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn expect(&self, _at: usize) {}

    /// Puts the same results into `out`, as many as it has room for.
    #[inline(always)]
    fn finish(&self, sums: &[i32; LANES], vector: usize, at: usize, out: &mut [Self::Out]) {
        put(&self.lanes(sums, vector, at, out.len()), out);
    }

    /// The same in instructions of AVX-512 where that is faster than what the compiler makes of it.
    ///
    /// # Safety
    /// The machine must have what [`vnni::available`](super::vnni::available) asks for.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn finish_vnni(&self, sums: &[i32; LANES], vector: usize, at: usize, out: &mut [Self::Out]) {
        self.finish(sums, vector, at, out);
    }
}

/// Puts lanes where they belong, as many as there is room for.
#[inline(always)]
pub(super) fn put<T: Copy>(lanes: &[T; LANES], out: &mut [T]) {
    match out.first_chunk_mut() {
        Some(out) => *out = *lanes,
        None => out.copy_from_slice(&lanes[..out.len()]),
    }
}

/// The codes from `at` on; 0 beyond the end.
#[inline(always)]
pub(super) fn get(codes: &[u8], at: usize) -> [u8; LANES] {
    let rest = &codes[at..];
    match rest.first_chunk() {
        Some(codes) => *codes,
        None => {
            let mut lanes = [0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            lanes
        }
    }
}

/// What a sum is multiplied by, and what is added then, per output channel.
pub struct Channels {
    pub(super) scale: Vec<[f32; LANES]>,
    pub(super) bias: Vec<[f32; LANES]>,
}

impl Channels {
    /// From one scale, or one a channel, times `factor`, and the bias of every channel.
    pub fn new(scale: &[f32], factor: f32, bias: &[f32]) -> Self {
        let product = |channel: usize| {
            let scale = if scale.len() == 1 { scale[0] } else { scale[channel] };
            (f64::from(scale) * f64::from(factor)) as f32
        };
        let vectors = |of: &dyn Fn(usize) -> f32| {
            let vector =
                |v: usize| std::array::from_fn(|i| if v * LANES + i < bias.len() { of(v * LANES + i) } else { 0.0 });
            (0..bias.len().div_ceil(LANES)).map(vector).collect()
        };
        Self { scale: vectors(&product), bias: vectors(&|channel| bias[channel]) }
    }

    #[inline(always)]
    fn apply(&self, sums: &[i32; LANES], vector: usize) -> [f32; LANES] {
        let (scale, bias, mut values) = (&self.scale[vector], &self.bias[vector], [0.0; LANES]);
        for i in 0..LANES {
            values[i] = sums[i] as f32 * scale[i] + bias[i];
        }
        values
    }
}

/// Real numbers: nothing is rounded.
pub struct Real(pub Channels);

impl Finish for Real {
    type Out = f32;

    #[inline(always)]
    fn lanes(&self, sums: &[i32; LANES], vector: usize, _: usize, _: usize) -> [f32; LANES] {
        self.0.apply(sums, vector)
    }
}

/// Codes, with what comes before rounding.
pub struct Rounded<'a> {
    /// What makes values of sums.
    pub channels: Channels,
    /// Comes after the residual, if there is one.
    pub activation: Activation,
    /// Where the layer's own values are.
    pub to: Affine,
    /// What is added then, if anything.
    pub residual: Option<Residual<'a>>,
}

/// What is added to a layer's rounded values.
pub struct Residual<'a> {
    /// Of the output's shape.
    pub codes: &'a [u8],
    /// Where they are.
    pub from: Affine,
    /// Where the sum's values are.
    pub to: Affine,
}

impl Finish for Rounded<'_> {
    type Out = u8;

    #[inline(always)]
    fn lanes(&self, sums: &[i32; LANES], vector: usize, at: usize, len: usize) -> [u8; LANES] {
        // Loops rather than `map`, which the compiler leaves a call.
        let (mut values, mut codes, mut to) = (self.channels.apply(sums, vector), [0; LANES], self.to);
        if let Some(residual) = &self.residual {
            let added = get(residual.codes, at);
            for (value, added) in values.iter_mut().zip(added) {
                *value = self.to.round(*value) + residual.from.value(added);
            }
            to = residual.to;
        }
        let values = activate(values, self.activation, len);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = to.code(value);
        }
        codes
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn expect(&self, at: usize) {
        if let Some(code) = self.residual.as_ref().and_then(|residual| residual.codes.get(at)) {
            // SAFETY: nothing is read.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(code).cast()) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn finish_vnni(&self, sums: &[i32; LANES], vector: usize, at: usize, out: &mut [u8]) {
        match Bounds::of(self.activation) {
            // SAFETY: the caller's promise.
            Some(bounds) => unsafe { round(self, bounds, (sums, vector, at), out) },
            None => self.finish(sums, vector, at, out),
        }
    }
}

/// The first `len` of the lanes through an activation.
#[inline(always)]
pub(super) fn activate(values: [f32; LANES], activation: Activation, len: usize) -> [f32; LANES] {
    // Without branches where it only cuts off.
    let (Bounds { low, high }, mut out) = (Bounds::of(activation).unwrap_or(Bounds::NONE), [0.0; LANES]);
    for (out, value) in out.iter_mut().zip(values) {
        let value = if value > low { value } else { low };
        *out = if value < high { value } else { high };
    }
    if activation == Activation::Gelu {
        // Of a length that the compiler does not know: it makes vectors of the loop instead of copies of its long body.
        for value in out.iter_mut().take(len) {
            *value = gelu(*value);
        }
    }
    out
}

/// [`Rounded`]'s results for a vector's sums, in the order of its one formula.
///
/// # Safety
/// The machine must have what [`vnni::available`](super::vnni::available) asks for.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn round(
    rounded: &Rounded<'_>,
    bounds: Bounds,
    (sums, vector, at): (&[i32; LANES], usize, usize),
    out: &mut [u8],
) {
    /// A number with the nearest integer of the grid in its lowest bits.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn magic(to: &Affine, values: __m512) -> __m512 {
        let q = _mm512_mul_ps(values, _mm512_set1_ps(to.inverse));
        // Of two operands, these give the second if one is NaN.
        let q = _mm512_min_ps(_mm512_max_ps(q, _mm512_set1_ps(to.low)), _mm512_set1_ps(to.high));
        _mm512_add_ps(q, _mm512_set1_ps(MAGIC as f32))
    }
    let mask = if out.len() < LANES { (1 << out.len()) - 1 } else { u16::MAX };
    let (scale, bias) = (&rounded.channels.scale[vector], &rounded.channels.bias[vector]);
    // SAFETY: arrays of a vector's length are read, and through the mask bytes that are there.
    unsafe {
        let sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.as_ptr().cast()));
        let scaled = _mm512_mul_ps(sums, _mm512_loadu_ps(scale.as_ptr()));
        let mut values = _mm512_add_ps(scaled, _mm512_loadu_ps(bias.as_ptr()));
        let mut to = &rounded.to;
        if let Some(residual) = &rounded.residual {
            let codes = &residual.codes[at..at + out.len().min(LANES)];
            let codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, codes.as_ptr().cast()));
            let integers = _mm512_sub_epi32(codes, _mm512_set1_epi32(i32::from(residual.from.zero)));
            let added = _mm512_mul_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(residual.from.scale));
            let integers = _mm512_sub_ps(magic(to, values), _mm512_set1_ps(MAGIC as f32));
            values = _mm512_add_ps(_mm512_mul_ps(integers, _mm512_set1_ps(to.scale)), added);
            to = &residual.to;
        }
        values = _mm512_max_ps(values, _mm512_set1_ps(bounds.low));
        values = _mm512_min_ps(values, _mm512_set1_ps(bounds.high));
        let codes = _mm512_add_epi32(_mm512_castps_si512(magic(to, values)), _mm512_set1_epi32(i32::from(to.zero)));
        _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), mask, _mm512_cvtepi32_epi8(codes));
    }
}
