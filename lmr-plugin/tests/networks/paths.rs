//! Both paths compute the same for whole networks: logits and all gradients, that of the images included.

use candle_core::{DType, Device, Tensor, Var};
use lmr_plugin::model::Classifier;
use lmr_plugin::nn::{BatchNormMode, Mode, with_compute_dtype, with_portable_path};
use lmr_plugin::rng;
use lmr_plugin::zoo::{Arch, ModelSpec, Stem};
use rand::RngExt;
use rstest::rstest;

struct Pass {
    logits: Tensor,
    /// Of the images, then of every parameter.
    grads: Vec<Tensor>,
    /// Of an inference pass after the training pass.
    inference: Tensor,
}

fn pass(model: &dyn Classifier, images: &Var, batch_norm: BatchNormMode) -> Pass {
    let logits = model.forward(images, Mode::Train(batch_norm)).unwrap();
    // A loss without symmetry, so that no gradient vanishes behind batch norm.
    let weights = Tensor::arange(0f32, logits.elem_count() as f32, &Device::Cpu).unwrap().cos().unwrap();
    let loss = (logits.sqr().unwrap() * weights.reshape(logits.shape()).unwrap()).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    let vars = std::iter::once(images).chain(model.params().trainable().map(|(_, var)| var));
    let grads = vars.map(|var| store.get(var).unwrap().clone()).collect();
    Pass { logits, grads, inference: model.logits(images).unwrap() }
}

fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f32) {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let (distance, size) = (norm(&(a - b).unwrap()), norm(b));
    // What a later normalization cancels has no gradient but rounding errors.
    assert!(distance <= tolerance * size.max(0.02), "{what}: {distance} apart, of {size}");
}

fn resnet(stem: Stem) -> ModelSpec {
    ModelSpec { stem: Some(stem), width: Some(6), ..ModelSpec::new(Arch::Resnet18, 4) }
}

fn vit() -> ModelSpec {
    let (patch_size, image_size) = (Some(5), Some(15));
    ModelSpec { width: Some(12), depth: Some(2), patch_size, image_size, ..ModelSpec::new(Arch::VitTiny, 4) }
}

fn images(batch: usize, size: usize) -> Var {
    let mut random = rng::stream(7, "images");
    let pixels: Vec<f32> = (0..batch * 2 * size * size).map(|_| random.random::<f32>() - 0.5).collect();
    Var::from_tensor(&Tensor::from_vec(pixels, (batch, 2, size, size), &Device::Cpu).unwrap()).unwrap()
}

#[rstest]
#[case(resnet(Stem::Cifar), 5, 13)]
#[case(resnet(Stem::Cifar), 33, 8)]
#[case(resnet(Stem::Imagenet), 3, 65)]
#[case::preact(ModelSpec { width: Some(6), ..ModelSpec::new(Arch::PreactResnet18, 4) }, 5, 13)]
#[case::vgg(ModelSpec { width: Some(4), ..ModelSpec::new(Arch::Vgg16, 4) }, 3, 35)]
#[case::vgg_imagenet(ModelSpec { width: Some(3), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Vgg16Bn, 4) }, 4, 40)]
#[case::mobilenet(ModelSpec { width_multiplier: Some(0.25), ..ModelSpec::new(Arch::MobilenetV2, 4) }, 6, 33)]
#[case::vit(vit(), 6, 15)]
#[case::vit(vit(), 1, 15)]
fn both_paths_train_the_same(
    #[case] spec: ModelSpec,
    #[case] batch: usize,
    #[case] size: usize,
    #[values(BatchNormMode::Batch, BatchNormMode::Running)] batch_norm: BatchNormMode,
) {
    let spec = ModelSpec { channels: 2, ..spec };
    let images = images(batch, size);
    let fresh = || spec.fresh(rng::stream(7, "init"), &Device::Cpu).unwrap();
    let (fast, portable) = (fresh(), fresh());
    let a = pass(&*fast, &images, batch_norm);
    let b = with_portable_path(|| pass(&*portable, &images, batch_norm));
    assert_close("logits", &a.logits, &b.logits, 1e-4);
    assert_close("inference", &a.inference, &b.inference, 1e-4);
    // 52 layers with batch norm over few values amplify rounding; the exact comparison is that of single trunks.
    let tolerance = if spec.arch == Arch::MobilenetV2 { 2e-2 } else { 1e-4 };
    let names = std::iter::once("images").chain(fast.params().trainable().map(|(name, _)| name));
    for ((name, a), b) in names.zip(&a.grads).zip(&b.grads) {
        assert_close(name, a, b, tolerance);
    }
    for ((name, a), b) in
        fast.params().state_dict().unwrap().iter().zip(portable.params().state_dict().unwrap().values())
    {
        if a.dtype().is_float() {
            assert_close(name, a, b, 1e-4);
        }
    }
}

#[rstest]
#[case(resnet(Stem::Cifar), 8)]
#[case::vit(vit(), 15)]
fn half_precision_is_close_and_leaves_weights_in_f32(#[case] spec: ModelSpec, #[case] size: usize) {
    let spec = ModelSpec { channels: 2, ..spec };
    let images = images(6, size);
    let model = spec.fresh(rng::stream(7, "init"), &Device::Cpu).unwrap();
    let run = |dtype| with_compute_dtype(dtype, || pass(&*model, &images, BatchNormMode::Running));
    // The kernels of the CPU path know f32 alone.
    let (fast, exact) = (run(DType::F16), run(DType::F32));
    assert_eq!(fast.logits.to_vec2::<f32>().unwrap(), exact.logits.to_vec2::<f32>().unwrap());
    let half = with_portable_path(|| run(DType::F16));
    assert_close("logits", &half.logits, &exact.logits, 1e-2);
    let portable = with_portable_path(|| run(DType::F32));
    assert_ne!(half.logits.to_vec2::<f32>().unwrap(), portable.logits.to_vec2::<f32>().unwrap());
    let names = std::iter::once("images").chain(model.params().trainable().map(|(name, _)| name));
    for ((name, half), exact) in names.zip(&half.grads).zip(&exact.grads) {
        assert_eq!(half.dtype(), DType::F32, "{name}");
        // Where a ReLU is near 0, rounding switches it on or off.
        assert_close(name, half, exact, 8e-2);
    }
}
