//! The windows of average pooling, and of its opposite, bilinear enlargement.

use candle_core::{DType, Device, Tensor};

use crate::error::{GeometryError, Result};
use crate::padding::Padding;

/// For every output coordinate of one dimension: the input coordinates it averages, and the share of each.
pub(crate) struct Windows(Vec<Vec<(usize, f32)>>);

impl Windows {
    /// Windows of `kernel` coordinates that leave `outputs`; padding counts as zeros.
    pub fn sliding(size: usize, outputs: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let share = 1.0 / kernel as f32;
        let window = |o: usize| {
            let inputs = (o * stride..o * stride + kernel).filter_map(|i| i.checked_sub(padding));
            inputs.filter(|&i| i < size).map(|i| (i, share)).collect()
        };
        Self((0..outputs).map(window).collect())
    }

    /// Windows `⌊o·size/outputs⌋..⌈(o+1)·size/outputs⌉`, as in PyTorch.
    pub fn adaptive(size: usize, outputs: usize) -> Result<Self> {
        if size == 0 || outputs == 0 {
            return Err(GeometryError::AdaptivePooling { from: size, to: outputs }.into());
        }
        let window = |o: usize| {
            let (begin, end) = (o * size / outputs, ((o + 1) * size).div_ceil(outputs));
            (begin..end).map(|i| (i, 1.0 / (end - begin) as f32)).collect()
        };
        Ok(Self((0..outputs).map(window).collect()))
    }

    /// Twice as many outputs, each between its two nearest inputs: bilinear enlargement as in PyTorch without aligned
    /// corners.
    pub fn doubled(size: usize) -> Self {
        let window = |o: usize| {
            let (near, far) =
                (o / 2, if o.is_multiple_of(2) { (o / 2).saturating_sub(1) } else { (o / 2 + 1).min(size - 1) });
            if near == far { vec![(near, 1.0)] } else { vec![(near, 0.75), (far, 0.25)] }
        };
        Self((0..2 * size).map(window).collect())
    }

    /// For every one of `size` input coordinates the outputs that read it.
    pub fn transposed(&self, size: usize) -> Self {
        let mut readers = vec![Vec::new(); size];
        for (o, window) in self.0.iter().enumerate() {
            window.iter().for_each(|&(i, share)| readers[i].push((o, share)));
        }
        Self(readers)
    }

    /// Number of output coordinates.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The window of output coordinate `o`.
    pub fn of(&self, o: usize) -> &[(usize, f32)] {
        &self.0[o]
    }

    /// The shares as a matrix `[outputs, size]`.
    pub fn matrix(&self, size: usize, (dtype, device): (DType, &Device)) -> Result<Tensor> {
        let mut shares = vec![0f32; self.len() * size];
        for (row, window) in shares.chunks_exact_mut(size).zip(&self.0) {
            window.iter().for_each(|&(i, share)| row[i] = share);
        }
        Ok(Tensor::from_vec(shares, (self.len(), size), device)?.to_dtype(dtype)?)
    }
}

/// Height and width that pooling leaves, if the window fits.
pub fn pooled_size(
    (h, w): (usize, usize),
    kernel: usize,
    stride: usize,
    padding: impl Into<Padding>,
) -> Result<(usize, usize)> {
    let padding = padding.into();
    // Every window reaches into the image.
    let inside = !matches!(padding, Padding::Symmetric(each) if 2 * each > kernel);
    let positive = kernel > 0 && stride > 0 && h.min(w) > 0;
    let output = |size: usize| padding.outputs(size, kernel, stride).filter(|_| inside && kernel <= 15);
    match positive.then(|| output(h).zip(output(w))).flatten() {
        Some(size) => Ok(size),
        None => Err(GeometryError::Pooling { image: (h, w), kernel, stride, padding }.into()),
    }
}
