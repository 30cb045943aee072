//! The networks against PyTorch's, on both paths: logits, loss, gradients and running statistics.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use candle_core::{D, Device, Tensor, Var};
use lmr_plugin::nn::{Mode, Slot, StateDict, with_portable_path};
use lmr_plugin::rng;
use lmr_plugin::zoo::naming::{Scheme, from_torchvision};
use lmr_plugin::zoo::{Arch, HiddenActivation, ModelSpec, PaddingRule, Pooling, Stem};
use rstest::rstest;

#[derive(serde::Deserialize)]
struct Expected {
    name: String,
    batch: usize,
    image_size: usize,
    classes: usize,
    tensors: usize,
    parameters: usize,
    eval_logits: Vec<Vec<f64>>,
    eval_logits_norm: f64,
    train_loss: f64,
    train_grad_norm_and_sum: BTreeMap<String, [f64; 2]>,
    train_running_mean_and_first: BTreeMap<String, [f64; 2]>,
}

/// Element `i` of the tensor `name`, in [0, 1); see `fixtures/README.md`.
fn uniform(name: &str) -> impl Fn(u64) -> f64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    move |i| {
        let z = hash.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    }
}

fn formula(name: &str, dims: &[usize]) -> Tensor {
    let u = uniform(name);
    let n: usize = dims.iter().product();
    let fan_in = (n / dims[0]) as f64;
    let of = |u: f64| {
        let s = 2.0 * u - 1.0;
        match (name.rsplit('.').next().unwrap(), dims.len()) {
            ("running_var", _) => 1.0 + 0.5 * u,
            ("running_mean", _) => 0.1 * s,
            (_, 4) => s * (6.0 / fan_in).sqrt(),
            (_, 2 | 3) => s * (3.0 / fan_in).sqrt(),
            ("weight", _) => 1.0 + 0.1 * s,
            _ => 0.1 * s,
        }
    };
    let values: Vec<f32> = (0..n as u64).map(|i| of(u(i)) as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn close(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected} within {tolerance:e}");
}

fn norm(t: &Tensor) -> f64 {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// How far a gradient's norm may be off. For MobileNetV2, PyTorch's own values in f32 are up to 1.2e-3 away from those in
/// f64: batch norm over 16 values of a last stage amplifies rounding.
fn gradient_tolerance(arch: Arch) -> f64 {
    if arch == Arch::MobilenetV2 { 4e-3 } else { 1e-3 }
}

fn check(expected: &Expected, spec: &ModelSpec, scheme: Scheme) {
    let fresh = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap();
    let mut state = fresh.params().state_dict().unwrap();
    state.retain(|_, tensor| tensor.dtype().is_float());
    // The formula goes by the names of the implementation that the numbers are from.
    let mut state = from_torchvision(&state, scheme).unwrap();
    state.iter_mut().for_each(|(name, tensor)| *tensor = formula(name, tensor.dims()));
    assert_eq!(state.len(), expected.tensors);
    assert_eq!(state.values().map(Tensor::elem_count).sum::<usize>(), expected.parameters);
    let model = spec.load(state, &Device::Cpu).unwrap();

    let (batch, size) = (expected.batch, expected.image_size);
    let u = uniform("input");
    let input = (0..(batch * 3 * size * size) as u64).map(|i| (2.0 * (2.0 * u(i) - 1.0)) as f32).collect();
    let input = Tensor::from_vec(input, (batch, 3, size, size), &Device::Cpu).unwrap();

    let logits = model.logits(&input).unwrap();
    assert!(!logits.track_op());
    let scale = expected.eval_logits_norm / (logits.elem_count() as f64).sqrt();
    close("norm of logits", norm(&logits), expected.eval_logits_norm, 1e-4 * expected.eval_logits_norm);
    for (found, expected) in logits.to_vec2::<f32>().unwrap().iter().zip(&expected.eval_logits) {
        for (&found, &expected) in found.iter().zip(expected) {
            close("logit", f64::from(found), expected, 1e-4 * scale.max(expected.abs()));
        }
    }

    let logits = model.forward(&input, Mode::default()).unwrap();
    let labels: Vec<u32> = (0..batch).map(|i| (i % expected.classes) as u32).collect();
    let labels = Tensor::new(labels, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let log_sum = logits.log_sum_exp(D::Minus1).unwrap();
    let picked = logits.gather(&labels, 1).unwrap().squeeze(1).unwrap();
    let loss = (log_sum - picked).unwrap().mean_all().unwrap();
    close("loss", f64::from(loss.to_scalar::<f32>().unwrap()), expected.train_loss, 1e-5 * expected.train_loss);

    let grads = loss.backward().unwrap();
    let grad = |(name, var): (&str, &Var)| {
        (name.to_string(), grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")).clone())
    };
    let grads: StateDict = model.params().trainable().map(grad).collect();
    let grads = from_torchvision(&grads, scheme).unwrap();
    // What a normalization behind a bias cancels is rounding error in PyTorch.
    let largest = expected.train_grad_norm_and_sum.values().fold(0.0, |m, [norm, _]| norm.max(m));
    for (name, [expected, _]) in &expected.train_grad_norm_and_sum {
        close(name, norm(&grads[name]), *expected, gradient_tolerance(spec.arch) * expected + 1e-6 * largest);
    }
    let mut seen = 0;
    for (name, slot) in model.params().iter() {
        match slot {
            Slot::Buffer(var) => {
                if let Some([mean, first]) = expected.train_running_mean_and_first.get(name) {
                    let values = var.to_vec1::<f32>().unwrap();
                    let found = values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64;
                    close(name, found, *mean, 1e-5 * (1.0 + mean.abs()));
                    close(name, f64::from(values[0]), *first, 1e-5 * (1.0 + first.abs()));
                    seen += 1;
                }
            }
            Slot::Counter(count) => assert_eq!(count.load(Ordering::Relaxed), 1),
            Slot::Parameter(_) => {}
        }
    }
    assert_eq!(seen, expected.train_running_mean_and_first.len());
}

fn resnet(arch: Arch, stem: Stem, width: usize) -> ModelSpec {
    ModelSpec { stem: Some(stem), width: Some(width), ..ModelSpec::new(arch, 2) }
}

fn vit(arch: Arch, norm_eps: f64) -> ModelSpec {
    ModelSpec { norm_eps: Some(norm_eps), ..ModelSpec::new(arch, 2) }
}

#[rstest]
#[case::narrow("resnet18-w16-cifar", resnet(Arch::Resnet18, Stem::Cifar, 16), Scheme::Torchvision)]
#[case::cifar("resnet18-cifar", resnet(Arch::Resnet18, Stem::Cifar, 64), Scheme::Torchvision)]
#[case::imagenet("resnet34", resnet(Arch::Resnet34, Stem::Imagenet, 64), Scheme::Torchvision)]
#[case::preact("preact_resnet18-cifar", ModelSpec::new(Arch::PreactResnet18, 2), Scheme::Torchvision)]
#[case::vgg("vgg16_bn-cifar", ModelSpec::new(Arch::Vgg16Bn, 2), Scheme::Torchvision)]
#[case::mobilenet("mobilenet_v2-cifar", ModelSpec::new(Arch::MobilenetV2, 2), Scheme::Torchvision)]
#[case::vit_base("vit_b_16", vit(Arch::VitBase, 1e-6), Scheme::Torchvision)]
#[case::vit_timm("vit_tiny_patch16_224", vit(Arch::VitTiny, 1e-6), Scheme::Timm)]
#[case::vit_transformers("vit-tiny-transformers", vit(Arch::VitTiny, 1e-12), Scheme::Transformers5)]
fn agrees_with_pytorch(
    #[case] name: &str,
    #[case] spec: ModelSpec,
    #[case] scheme: Scheme,
    #[values(false, true)] portable: bool,
) {
    let all: Vec<Expected> = serde_json::from_str(include_str!("fixtures/models.json")).unwrap();
    let expected = all.iter().find(|e| e.name == name).unwrap();
    let spec = ModelSpec { classes: expected.classes, ..spec };
    match portable {
        true => with_portable_path(|| check(expected, &spec, scheme)),
        false => check(expected, &spec, scheme),
    }
}

#[derive(serde::Deserialize)]
struct Variant {
    name: String,
    image_size: usize,
    classes: usize,
    logits: Vec<Vec<f64>>,
}

fn small() -> ModelSpec {
    ModelSpec { image_size: Some(32), patch_size: Some(4), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 2) }
}

fn tensorflow(arch: Arch) -> ModelSpec {
    ModelSpec { stem: Some(Stem::Imagenet), padding: Some(PaddingRule::TfSame), ..ModelSpec::new(arch, 2) }
}

/// What a configuration or a checkpoint says of a model beside its tensors' shapes; none of it shows in them.
#[rstest]
#[case("heads", ModelSpec { heads: Some(12), ..small() }, Scheme::Timm)]
#[case("relu", ModelSpec { activation: Some(HiddenActivation::Relu), ..small() }, Scheme::Timm)]
#[case("mean", ModelSpec { pooling: Some(Pooling::Mean), ..small() }, Scheme::TimmMean)]
#[case("layer-scale", small(), Scheme::Timm)]
#[case("positions-16", small(), Scheme::Timm)]
#[case("positions-48", small(), Scheme::Timm)]
#[case("mobilenet-tf", tensorflow(Arch::MobilenetV2), Scheme::Torchvision)]
#[case("resnet-cifar-pool", resnet(Arch::Resnet18, Stem::CifarPool, 64), Scheme::Torchvision)]
#[case("resnet-tf", tensorflow(Arch::Resnet18), Scheme::Torchvision)]
fn variants_agree_with_pytorch(
    #[case] name: &str,
    #[case] spec: ModelSpec,
    #[case] scheme: Scheme,
    #[values(false, true)] portable: bool,
) {
    let all: Vec<Variant> = serde_json::from_str(include_str!("fixtures/variants.json")).unwrap();
    let expected = all.iter().find(|e| e.name == name).unwrap();
    let spec = ModelSpec { classes: expected.classes, ..spec };
    let fresh = spec.fresh(rng::stream(0, "init"), &Device::Cpu).unwrap();
    let mut state = from_torchvision(&fresh.params().state_dict().unwrap(), scheme).unwrap();
    state.retain(|_, tensor| tensor.dtype().is_float());
    if name == "layer-scale" {
        for scale in ["blocks.0.ls1", "blocks.0.ls2", "blocks.1.ls1", "blocks.1.ls2"] {
            let gamma = Tensor::zeros(192, candle_core::DType::F32, &Device::Cpu).unwrap();
            state.insert(format!("{scale}.gamma"), gamma);
        }
    }
    state.iter_mut().for_each(|(name, tensor)| *tensor = formula(name, tensor.dims()));
    let size = expected.image_size;
    let spec = ModelSpec { image_size: spec.image_size.map(|_| size), ..spec };
    let model = spec.load(state, &Device::Cpu).unwrap();
    // As a stage does, whose model has the names that models here have.
    let model = model.rebuild(model.params().state_dict().unwrap(), &Device::Cpu).unwrap();
    let u = uniform("input");
    let input = (0..(2 * 3 * size * size) as u64).map(|i| (2.0 * (2.0 * u(i) - 1.0)) as f32).collect();
    let input = Tensor::from_vec(input, (2, 3, size, size), &Device::Cpu).unwrap();
    let run = || model.logits(&input).unwrap().to_vec2::<f32>().unwrap();
    let logits = if portable { with_portable_path(run) } else { run() };
    let largest = expected.logits.iter().flatten().fold(0f64, |most, v| most.max(v.abs()));
    for (found, expected) in logits.iter().flatten().zip(expected.logits.iter().flatten()) {
        close(name, f64::from(*found), *expected, 1e-4 * largest);
    }
}
