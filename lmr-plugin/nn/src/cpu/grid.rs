//! Rounding onto a grid of integers times a scale, in one pass.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use super::access::slice;
use crate::grid::{Grid, MAGIC};

/// Values that one task rounds.
const CHUNK: usize = 1 << 14;

impl CustomOp1 for Grid {
    fn name(&self) -> &'static str {
        "round-to-grid"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let mut out = vec![0f32; x.len()];
        let (inverse, scale) = ((1.0 / self.scale) as f32, self.scale as f32);
        let (low, high, magic) = (self.low as f32, self.high as f32, MAGIC as f32);
        let arch = pulp::Arch::new();
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
            arch.dispatch(|| {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = ((x * inverse).clamp(low, high) + magic - magic) * scale;
                }
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
