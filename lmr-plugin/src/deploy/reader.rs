//! The way back from a file: its tensors next to the network they are for.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use super::StoredError;
use super::layers::{WeightLayer, unrounded};
use crate::Result;
use crate::model::Classifier;
use crate::nn::{StateDict, WeightsError};

/// Name, shape and dtype of a tensor that there should be.
pub(super) type Expected = (String, Vec<usize>, DType);

/// The tensors of a file next to the network they are for.
pub(super) struct Reader<'a> {
    pub network: &'a dyn Classifier,
    pub layers: &'a [WeightLayer],
    pub state: &'a StateDict,
}

impl Reader<'_> {
    /// Compares names, shapes and dtypes with those of the network, and reports all faults at once. Of every layer there should
    /// be what `of_layer` says and the bias.
    pub fn check(&self, of_layer: impl Fn(&WeightLayer) -> Vec<Expected>, more: Vec<Expected>) -> Result<()> {
        let bias = |layer: &WeightLayer| {
            let bias = (format!("{}.bias", layer.name), vec![layer.weight.dims()[0]], DType::F32);
            layer.has_bias().then_some(bias)
        };
        let of_layers = self.layers.iter().flat_map(|layer| of_layer(layer).into_iter().chain(bias(layer)));
        let others = unrounded(self.network, self.layers);
        let others = others.map(|(name, var)| (name.to_string(), var.dims().to_vec(), DType::F32));
        let expected = of_layers.chain(others).chain(more).map(|(name, dims, dtype)| (name, (dims, dtype)));
        let expected: BTreeMap<String, (Vec<usize>, DType)> = expected.collect();
        let mut faults = WeightsError::default();
        for (name, (dims, dtype)) in &expected {
            match self.state.get(name) {
                None => faults.missing.push(name.clone()),
                Some(tensor) if tensor.dims() != dims => {
                    faults.mismatched.push(format!("{name}: expected {dims:?}, found {:?}", tensor.dims()));
                }
                Some(tensor) if tensor.dtype() != *dtype => {
                    let called = |dtype: DType| if dtype == DType::I16 { "i8" } else { dtype.as_str() };
                    let (expected, found) = (called(*dtype), called(tensor.dtype()));
                    faults.mismatched.push(format!("{name}: expected {expected}, found {found}"));
                }
                Some(_) => {}
            }
        }
        faults.unexpected = self.state.keys().filter(|name| !expected.contains_key(*name)).cloned().collect();
        if faults == WeightsError::default() { Ok(()) } else { Err(faults.into()) }
    }

    /// The bias of a layer, on the network's device.
    pub fn bias(&self, layer: &WeightLayer) -> Result<Option<Tensor>> {
        let bias = || Ok(self.finite(&format!("{}.bias", layer.name))?.to_device(self.network.device())?);
        layer.has_bias().then(bias).transpose()
    }

    /// What is in no layer, and the values that the file has for it.
    pub fn others(&self) -> Result<Vec<(Var, Tensor)>> {
        let read = |(name, var): (&str, &Var)| Ok((var.clone(), self.finite(name)?.to_device(self.network.device())?));
        unrounded(self.network, self.layers).map(read).collect()
    }

    /// A tensor of finite numbers, on the CPU.
    pub fn finite(&self, name: &str) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        let finite = tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite());
        if finite { Ok(tensor) } else { Err(StoredError::NotFinite { name: name.into() }.into()) }
    }

    /// A tensor, on the CPU.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found =
            self.state.get(name).ok_or_else(|| WeightsError { missing: vec![name.into()], ..Default::default() });
        Ok(found?.to_device(&Device::Cpu)?)
    }
}
