//! The fully connected layer.

use candle_core::Var;

use crate::error::{GeometryError, Result};
use crate::params::{Builder, Init, Params};

/// `x · Wᵀ + b` over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Var,
    bias: Option<Var>,
    name: String,
}

impl Linear {
    /// A layer with a bias from `inputs` to `outputs` values at the builder's path. Fresh weights and bias are uniform
    /// in `±1/√inputs`, PyTorch's default.
    pub fn new(inputs: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let init = Init::Uniform { bound: (1.0 / (inputs as f64).sqrt()) as f32 };
        let weight = b.parameter("weight", (outputs, inputs), init)?;
        let bias = Some(b.parameter("bias", outputs, init)?);
        Ok(Self { weight, bias, name: b.path().to_string() })
    }

    /// A layer whose fresh weights are normal with standard deviation 0.02 and whose fresh bias is 0, as in transformers.
    pub fn narrow_normal(inputs: usize, outputs: usize, b: &Builder) -> Result<Self> {
        let weight = b.parameter("weight", (outputs, inputs), Init::Normal { std: 0.02 })?;
        Ok(Self::of(weight, Some(b.parameter("bias", outputs, Init::Zeros)?), b.path()))
    }

    /// The layer called `name` among parameters of any origin: `<name>.weight`, `f32[K,D]`, and where there is one
    /// `<name>.bias`, `f32[K]`. It shares them.
    ///
    /// ```
    /// use candle_core::{DType, Device, Var};
    /// use lmr_nn::{Linear, Params};
    ///
    /// let weight = Var::zeros((10, 64), DType::F32, &Device::Cpu)?;
    /// let params = Params::from_vars([("head.weight".to_string(), weight)])?;
    /// assert!(Linear::from_params(&params, "head")?.bias().is_none());
    /// let error = Linear::from_params(&params, "heads").unwrap_err();
    /// assert_eq!(error.to_string(), "there is no parameter `heads.weight`; perhaps one of `head.weight`");
    /// # Ok::<(), lmr_nn::Error>(())
    /// ```
    pub fn from_params(params: &Params, name: &str) -> Result<Self> {
        let weight = params.require(&format!("{name}.weight"))?;
        let bias = params.get(&format!("{name}.bias"));
        match (weight.dims(), bias.map(|bias| bias.dims())) {
            ([_, _], None) => {}
            ([outputs, _], Some([found])) if outputs == found => {}
            (weight, bias) => {
                let dims = [Some(weight), bias].into_iter().flatten().map(<[usize]>::to_vec).collect();
                return Err(GeometryError::Linear { layer: name.to_string(), dims }.into());
            }
        }
        Ok(Self::of(weight.clone(), bias.cloned(), name))
    }

    /// A layer of parameters that have names of their own.
    pub fn of(weight: Var, bias: Option<Var>, name: &str) -> Self {
        Self { weight, bias, name: name.to_string() }
    }

    /// The full name, such as `fc`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `f32[K,D]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// `f32[K]`.
    pub fn bias(&self) -> Option<&Var> {
        self.bias.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::both(&[3, 5], Some(&[3][..]), true)]
    #[case::no_bias(&[3, 5], None, true)]
    #[case::bias_of_inputs(&[3, 5], Some(&[5][..]), false)]
    #[case::convolution(&[3, 5, 1, 1], None, false)]
    #[case::bias_of_rank_two(&[3, 5], Some(&[3, 1][..]), false)]
    fn parameters_must_make_a_layer(#[case] weight: &[usize], #[case] bias: Option<&[usize]>, #[case] fits: bool) {
        let var = |dims: &[usize]| Var::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let bias = bias.map(|dims| ("fc.bias".to_string(), var(dims)));
        let params = Params::from_vars([("fc.weight".to_string(), var(weight))].into_iter().chain(bias)).unwrap();
        match Linear::from_params(&params, "fc") {
            Ok(layer) => {
                assert!(fits);
                assert_eq!(layer.weight().id(), params.get("fc.weight").unwrap().id());
            }
            Err(error) => assert!(!fits && error.to_string().starts_with("fc: expected a weight [K,D]"), "{error}"),
        }
    }
}
