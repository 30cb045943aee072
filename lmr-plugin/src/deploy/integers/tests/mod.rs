//! The integer forward against the simulation: layer by layer on the same integers, and whole networks.

mod checked;

use candle_core::{Device, Tensor};
use rand::RngExt;
use rstest::rstest;

use super::{Calibration, Integers, Interpreter, Scheme, Simulation};
use crate::data::{CleanSet, Images, Normalization};
use crate::deploy::{Engine, Granularity};
use crate::model::{Form, Model};
use crate::nn::int8::Kernel;
use crate::ranges::Bits;
use crate::run::Run;
use crate::zoo::{Arch, ModelSpec, Stem};
use crate::{Error, rng};
use checked::Checked;

const CLASSES: usize = 10;

/// A small network whose batch norms have statistics of their own, as trained ones do, and random images.
fn fixture(spec: ModelSpec, images: usize, side: usize) -> (Model, CleanSet, Tensor) {
    let mut random = rng::stream(7, "fixture");
    let model = spec.fresh(rng::stream(3, "weights"), &Device::Cpu).unwrap();
    let state = model.params().state_dict().unwrap();
    let moved = state.into_iter().map(|(name, value)| {
        let (offset, share) = match name.rsplit('.').next().unwrap() {
            "running_var" => (0.5, 1.0),
            "running_mean" | "bias" => (-0.3, 0.6),
            "weight" if value.rank() == 1 => (0.5, 1.0),
            _ => return (name, value),
        };
        let values: Vec<f32> = (0..value.elem_count()).map(|_| offset + share * random.random::<f32>()).collect();
        let moved = Tensor::from_vec(values, value.shape(), &Device::Cpu).unwrap();
        (name, moved)
    });
    let network = spec.load(moved.collect(), &Device::Cpu).unwrap();
    let model = Model::new(network, Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] }).unwrap();
    let pixels: Vec<u8> = (0..images * 3 * side * side).map(|_| random.random()).collect();
    let labels = (0..images).map(|i| (i % CLASSES) as u32).collect();
    let pixels = Images::new(pixels, labels, [3, side, side], CLASSES).unwrap();
    let clean = CleanSet::new(pixels).unwrap();
    let all: Vec<usize> = (0..images).collect();
    let x = model.normalization().apply(&clean.images.batch(&all, &Device::Cpu).unwrap().0).unwrap();
    (model, clean, x)
}

fn spec(arch: Arch, stem: Stem, width: Option<usize>) -> ModelSpec {
    let known = ModelSpec::new(arch, CLASSES).resolved();
    ModelSpec { stem: known.stem.map(|_| stem), width: known.width.and(width), ..known }
}

fn mobilenet() -> ModelSpec {
    ModelSpec { width_multiplier: Some(0.25), ..spec(Arch::MobilenetV2, Stem::Cifar, None) }
}

fn vit() -> ModelSpec {
    let known = ModelSpec::new(Arch::VitTiny, CLASSES).resolved();
    ModelSpec { image_size: Some(32), patch_size: Some(8), depth: Some(3), ..known }
}

fn scheme(bits: u32, granularity: Granularity) -> Scheme {
    Scheme { bits: Bits::new(bits).unwrap(), granularity, ..Scheme::default() }
}

fn calibrated(model: &Model, clean: &CleanSet, scheme: Scheme) -> Integers {
    Integers::calibrate(model, scheme, Calibration::MinMax, clean, &Run::quiet(0)).unwrap()
}

/// On the same integers, no layer is off by more than one integer, and that only next to the middle between two.
#[rstest]
#[case::resnet(spec(Arch::Resnet18, Stem::Cifar, Some(8)), 16)]
#[case::resnet_for_photographs(spec(Arch::Resnet18, Stem::Imagenet, Some(4)), 64)]
#[case::preact(spec(Arch::PreactResnet18, Stem::Cifar, Some(5)), 16)]
#[case::vgg(spec(Arch::Vgg16Bn, Stem::Cifar, Some(4)), 32)]
#[case::vgg_for_photographs(spec(Arch::Vgg16, Stem::Imagenet, Some(2)), 224)]
#[case::mobilenet(mobilenet(), 32)]
#[case::vit(vit(), 32)]
fn layers_agree_with_f64(#[case] spec: ModelSpec, #[case] side: usize) {
    let (model, clean, x) = fixture(spec, 2, side);
    for (bits, granularity) in [(8, Granularity::PerTensor), (4, Granularity::PerChannel)] {
        let quantized = calibrated(&model, &clean, scheme(bits, granularity));
        let simulation = Simulation { layers: &quantized.layers };
        let engine = Interpreter::new(
            simulation,
            (model.network(), quantized.scheme),
            &quantized.packed,
            &quantized.ranges,
            Kernel::best(),
        );
        let mut checked = Checked { engine, seen: (0, 0, 0, 0.0) };
        model.network().layered().unwrap().interpret(&mut checked, &x).unwrap();
        let (points, values, differing, furthest) = checked.seen;
        println!("{points} points, {values} values, {differing} differ, {furthest:.1e} from the middle");
        assert!(points + 1 >= quantized.layers.len(), "every layer was compared but a head that reads floats");
        assert!(differing <= 1 + values / 100_000, "{differing} of {values} integers differ");
        assert!(furthest < 1e-4, "an integer differs {furthest} away from the middle");
        assert_eq!(checked.engine.points.count(), quantized.ranges.0.len());
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// How far the logits are apart on average, in steps of a grid over their range.
fn mean_difference(scheme: Scheme, a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (values(a), values(b));
    let total: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
    let ends = b.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    f64::from(total) / a.len() as f64 / scheme.activation_grid.of(ends.0, ends.1).scale
}

/// Whole networks: logits close to the simulation's, and the same on every kernel.
#[rstest]
#[case::resnet18(spec(Arch::Resnet18, Stem::Cifar, Some(8)), 16)]
#[case::resnet34(spec(Arch::Resnet34, Stem::Imagenet, Some(4)), 64)]
#[case::preact(spec(Arch::PreactResnet18, Stem::Cifar, Some(8)), 16)]
#[case::vgg(spec(Arch::Vgg16, Stem::Cifar, Some(8)), 32)]
#[case::vgg_bn_for_photographs(spec(Arch::Vgg16Bn, Stem::Imagenet, Some(2)), 64)]
#[case::mobilenet(mobilenet(), 32)]
#[case::vit(vit(), 32)]
fn networks_agree_with_the_simulation(
    #[case] spec: ModelSpec,
    #[case] side: usize,
    #[values(
        None,
        Some(Engine::PytorchX86),
        Some(Engine::Onnxruntime),
        Some(Engine::Openvino),
        Some(Engine::Tensorrt)
    )]
    engine: Option<Engine>,
) {
    let (model, clean, x) = fixture(spec, 24, side);
    let quantized = calibrated(&model, &clean, engine.map(Engine::scheme).unwrap_or_default());
    assert_eq!(quantized.packed.len(), quantized.layers.len(), "every layer has a kernel");
    let simulated = quantized.simulated_logits(model.network(), &x).unwrap();
    let logits = quantized.logits(model.network(), &x).unwrap();
    let off = mean_difference(quantized.scheme, &logits, &simulated);
    println!("logits are off by {off:.3} integers on average");
    assert!(off < 0.5, "{off} integers");
    let classes = |logits: &Tensor| crate::predict::classes(logits).unwrap();
    let same = classes(&logits).iter().zip(classes(&simulated)).filter(|(a, b)| **a == *b).count();
    assert!(same >= 22, "{same} of 24 images end in the same class");
    for kernel in Kernel::available() {
        let simulation = Simulation { layers: &quantized.layers };
        let mut engine = Interpreter::new(
            simulation,
            (model.network(), quantized.scheme),
            &quantized.packed,
            &quantized.ranges,
            kernel,
        );
        let codes = model.network().layered().unwrap().interpret(&mut engine, &x).unwrap();
        assert_eq!(values(&engine.decoded(&codes).unwrap()), values(&logits), "{kernel:?}");
    }
}

#[rstest]
#[case(spec(Arch::Resnet18, Stem::Imagenet, Some(5)), 70)]
#[case(mobilenet(), 33)]
#[case(vit(), 32)]
fn threads_do_not_matter(#[case] spec: ModelSpec, #[case] side: usize) {
    let (model, clean, x) = fixture(spec, 7, side);
    let quantized = calibrated(&model, &clean, scheme(8, Granularity::PerTensor));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| quantized.logits(model.network(), &x).unwrap().to_vec2::<f32>().unwrap())
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one);
}

/// Layers without a kernel run as in the simulation, between others that have one.
#[rstest]
#[case(spec(Arch::Resnet18, Stem::Cifar, Some(8)), 16, 0)]
#[case(spec(Arch::PreactResnet18, Stem::Cifar, Some(8)), 16, 1)]
#[case(mobilenet(), 32, 1)]
#[case(vit(), 32, 0)]
#[case(vit(), 32, 1)]
fn layers_without_a_kernel_are_simulated(#[case] spec: ModelSpec, #[case] side: usize, #[case] parity: usize) {
    let (model, clean, x) = fixture(spec, 6, side);
    let mut quantized = calibrated(&model, &clean, scheme(8, Granularity::PerTensor));
    let simulated = quantized.simulated_logits(model.network(), &x).unwrap();
    let names: Vec<String> = quantized.packed.keys().cloned().collect();
    for name in names.iter().skip(parity).step_by(2) {
        quantized.packed.remove(name);
    }
    let off = mean_difference(quantized.scheme, &quantized.logits(model.network(), &x).unwrap(), &simulated);
    assert!(off < 1.0, "{off} integers");
}

/// Images one by one give what they give together.
#[test]
fn batches_do_not_matter() {
    let (model, clean, x) = fixture(mobilenet(), 5, 32);
    let quantized = calibrated(&model, &clean, scheme(8, Granularity::PerChannel));
    let together = quantized.logits(model.network(), &x).unwrap().to_vec2::<f32>().unwrap();
    for (i, together) in together.iter().enumerate() {
        let alone = quantized.logits(model.network(), &x.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(alone.to_vec2::<f32>().unwrap()[0], *together);
    }
}

#[test]
fn pixels_that_are_not_numbers_are_refused() {
    let (model, clean, x) = fixture(spec(Arch::Resnet18, Stem::Cifar, Some(4)), 2, 8);
    let quantized = calibrated(&model, &clean, scheme(8, Granularity::PerTensor));
    let error = quantized.logits(model.network(), &(x * f64::NAN).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { what: "activation", step: 0, .. }), "{error}");
}
