//! Results do not depend on the number of threads.

use candle_core::{Device, Tensor};
use lmr_plugin::models::{Arch, ModelSpec, Stem};
use lmr_plugin::nn::Train;
use lmr_plugin::rng;
use rand::RngExt;

/// The bits of the logits of a training and an inference pass, of all gradients and of all running statistics.
fn fingerprint(stem: Stem, batch: usize, size: usize) -> Vec<u32> {
    let spec = ModelSpec { arch: Arch::Resnet18, stem, width: 10, classes: 5, channels: 3 };
    let model = spec.fresh(rng::stream(3, "init"), &Device::Cpu).unwrap();
    let mut random = rng::stream(3, "images");
    let pixels: Vec<f32> = (0..batch * 3 * size * size).map(|_| random.random()).collect();
    let images = Tensor::from_vec(pixels, (batch, 3, size, size), &Device::Cpu).unwrap();
    let logits = model.forward(&mut Train::default(), &images).unwrap();
    let grads = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let mut tensors = vec![logits, model.logits(&images).unwrap()];
    tensors.extend(model.params().trainable().map(|(_, var)| grads.get(var).unwrap().clone()));
    tensors.extend(model.params().state_dict().unwrap().into_values().filter(|t| t.dtype().is_float()));
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
    tensors.iter().flat_map(bits).collect()
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (stem, batch, size) in [(Stem::Cifar, 37, 20), (Stem::Imagenet, 6, 70)] {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| fingerprint(stem, batch, size))
        };
        let one = run(1);
        assert!(run(2) == one && run(3) == one, "{stem:?}");
    }
}
