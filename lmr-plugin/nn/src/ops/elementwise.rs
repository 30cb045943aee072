//! What is done to every element on its own.

use candle_core::Tensor;

use crate::error::Result;
use crate::grid::{Grid, MAGIC};
use crate::layers::Activation;
use crate::path::Path;
use crate::{cpu, portable};

impl Activation {
    /// Applies it to a tensor of any shape; differentiable.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match (self, Path::of(x)) {
            (Self::None, _) => Ok(x.clone()),
            (_, Path::Cpu) => Ok(cpu::activate(x, self)?),
            (_, Path::Portable) => portable::activate(x, self),
        }
    }
}

impl Grid {
    /// The nearest grid value of every element, of two equally near ones that of the even integer. Not recorded for
    /// backward.
    pub fn round(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach();
        Ok(match Path::of(&x) {
            Path::Cpu => x.contiguous()?.apply_op1_no_bwd(self)?,
            Path::Portable => {
                let q = x.affine(1.0 / self.scale, 0.0)?.clamp(self.low, self.high)?;
                q.affine(1.0, MAGIC)?.affine(1.0, -MAGIC)?.affine(self.scale, 0.0)?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::with_portable_path;
    use candle_core::Device;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_even_integer_and_ends_hold() {
        let grid = Grid { scale: 1.0, low: -3.0, high: 4.0 };
        let x = Tensor::new(&[0.5f32, 1.5, 2.5, -0.5, -1.5, 2.4, -2.6, 9.0, -9.0], &Device::Cpu).unwrap();
        let expected = [0.0, 2.0, 2.0, 0.0, -2.0, 2.0, -3.0, 4.0, -3.0];
        assert_eq!(grid.round(&x).unwrap().to_vec1::<f32>().unwrap(), expected);
        assert_eq!(with_portable_path(|| grid.round(&x)).unwrap().to_vec1::<f32>().unwrap(), expected);
    }

    proptest! {
        #[test]
        fn both_paths_agree_with_the_definition(
            values in prop::collection::vec(-8.0f32..8.0, 1..70),
            scale in 0.01f64..0.5,
            transposed: bool,
        ) {
            let grid = Grid { scale, low: -20.0, high: 17.0 };
            let n = values.len();
            let x = Tensor::from_vec([values.clone(), values].concat(), (n, 2), &Device::Cpu).unwrap();
            let x = if transposed { x.t().unwrap() } else { x };
            let all = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let fast = grid.round(&x).unwrap();
            prop_assert_eq!(fast.dims(), x.dims());
            let portable = with_portable_path(|| grid.round(&x)).unwrap();
            prop_assert_eq!(all(&fast), all(&portable));
            for (found, x) in all(&fast).into_iter().zip(all(&x)) {
                let q = (x * (1.0 / scale) as f32).round_ties_even().clamp(-20.0, 17.0);
                prop_assert_eq!(found, q * scale as f32);
            }
        }
    }
}
