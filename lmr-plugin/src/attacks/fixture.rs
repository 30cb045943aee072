//! What the attacks' unit tests share: a tiny network and a few images of two classes.

use candle_core::{DType, Device, Tensor};
use rand::RngExt;

use crate::data::{Images, Normalization};
use crate::model::Model;
use crate::nn::StateDict;
use crate::rng;
use crate::zoo::{Arch, ModelSpec};

pub(super) fn images(count: usize) -> Images {
    let mut rng = rng::stream(0, "images");
    let pixels = (0..count * 256).map(|_| rng.random()).collect();
    Images::new(pixels, (0..count).map(|i| (i % 2) as u32).collect(), [1, 16, 16], 2).unwrap()
}

pub(super) fn model() -> Model {
    let spec = ModelSpec { width: Some(2), channels: 1, ..ModelSpec::new(Arch::Resnet18, 2) };
    let network = spec.fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
    Model::new(network, Normalization { mean: vec![0.5], std: vec![0.25] }).unwrap()
}

pub(super) fn same(a: &StateDict, b: &StateDict) -> bool {
    let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    a.keys().eq(b.keys()) && a.iter().all(|(name, tensor)| values(tensor) == values(&b[name]))
}
