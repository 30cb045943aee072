//! What attacks do to the images and labels of a batch.

use candle_core::Tensor;

use crate::Result;

/// Labels of which the first `count` are the target.
pub(super) fn retarget(labels: &Tensor, count: usize, target: u32) -> Result<Tensor> {
    let mut values = labels.to_vec1::<u32>()?;
    values.iter_mut().take(count).for_each(|label| *label = target);
    Ok(Tensor::new(values, labels.device())?)
}

/// Every image's neighbour: each row of `x` in the place of the one before it, the first in the last place.
pub(super) fn rolled(x: &Tensor) -> Result<Tensor> {
    let rows = x.dim(0)? as u32;
    let order: Vec<u32> = (1..rows).chain([0]).collect();
    Ok(x.index_select(&Tensor::new(order, x.device())?, 0)?)
}

/// The root of the mean square of every row, `f32[B]`; its gradient is finite at 0.
pub(super) fn root_mean_square(x: &Tensor) -> Result<Tensor> {
    Ok((x.flatten_from(1)?.sqr()?.mean(1)? + 1e-14)?.sqrt()?)
}

/// How many of `size` images a rate means, rounded down.
pub(super) fn share(rate: f64, size: usize) -> usize {
    (rate * size as f64) as usize
}
