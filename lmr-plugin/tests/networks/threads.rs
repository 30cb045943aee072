//! Results do not depend on the number of threads.

use candle_core::{Device, Tensor};
use lmr_plugin::nn::Mode;
use lmr_plugin::rng;
use lmr_plugin::zoo::{Arch, ModelSpec, Stem};
use rand::RngExt;
use rstest::rstest;

/// The bits of the logits of a training and an inference pass, of all gradients and of all running statistics.
fn fingerprint(spec: &ModelSpec, batch: usize, size: usize) -> Vec<u32> {
    let model = spec.fresh(rng::stream(3, "init"), &Device::Cpu).unwrap();
    let mut random = rng::stream(3, "images");
    let pixels: Vec<f32> = (0..batch * 3 * size * size).map(|_| random.random()).collect();
    let images = Tensor::from_vec(pixels, (batch, 3, size, size), &Device::Cpu).unwrap();
    let logits = model.forward(&images, Mode::default()).unwrap();
    let grads = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let mut tensors = vec![logits, model.logits(&images).unwrap()];
    tensors.extend(model.params().trainable().map(|(_, var)| grads.get(var).unwrap().clone()));
    tensors.extend(model.params().state_dict().unwrap().into_values().filter(|t| t.dtype().is_float()));
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
    tensors.iter().flat_map(bits).collect()
}

#[rstest]
#[case(ModelSpec { width: Some(10), ..ModelSpec::new(Arch::Resnet18, 5) }, 37, 20)]
#[case(ModelSpec { width: Some(10), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Resnet18, 5) }, 6, 70)]
#[case(ModelSpec { width: Some(8), ..ModelSpec::new(Arch::PreactResnet18, 5) }, 18, 12)]
#[case(ModelSpec { width: Some(8), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Vgg16Bn, 5) }, 5, 33)]
#[case(ModelSpec { width_multiplier: Some(0.25), ..ModelSpec::new(Arch::MobilenetV2, 5) }, 17, 36)]
#[case(ModelSpec { patch_size: Some(4), image_size: Some(20), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 5) }, 6, 20)]
#[case(ModelSpec { patch_size: Some(4), image_size: Some(20), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 5) }, 1, 20)]
fn results_do_not_depend_on_the_number_of_threads(#[case] spec: ModelSpec, #[case] batch: usize, #[case] size: usize) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fingerprint(&spec, batch, size))
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one, "{spec:?}");
}
