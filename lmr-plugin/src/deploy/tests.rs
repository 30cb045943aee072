//! Forms against what is stored of them.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;

use super::places::Places;
use super::points::Points;
use super::{BlockFormat, Blocks, Description, Engine, Granularity, Integers, Ranges, Scheme};
use crate::model::{Classifier, Form, Stored};
use crate::nn::{Slot, StateDict};
use crate::ranges::Bits;
use crate::rng;
use crate::zoo::{Arch, ModelSpec};

fn spec(arch: Arch) -> ModelSpec {
    let spec = ModelSpec { channels: 1, ..ModelSpec::new(arch, 5) };
    match arch {
        Arch::VitTiny => ModelSpec { image_size: Some(16), patch_size: Some(4), depth: Some(2), ..spec },
        Arch::MobilenetV2 => ModelSpec { width_multiplier: Some(0.25), ..spec },
        _ => ModelSpec { width: Some(8), ..spec },
    }
}

/// A network in which nothing is as it was drawn, batch norm's statistics least of all.
fn network(arch: Arch) -> Box<dyn Classifier> {
    let network = spec(arch).fresh(rng::stream(4, "weights"), &Device::Cpu).unwrap();
    for (name, slot) in network.params().iter() {
        if let Slot::Parameter(var) | Slot::Buffer(var) = slot {
            let noise = var.rand_like(0.5, 1.5).unwrap();
            let moved = match name.rsplit('.').next() {
                Some("running_mean" | "bias") => noise.affine(0.4, -0.4),
                // Below 1, so that what goes through many layers does not die away.
                Some("running_var") => noise * 0.3,
                _ => var.as_tensor() * noise,
            };
            let moved = moved.unwrap();
            var.set(&moved).unwrap();
        }
    }
    network
}

fn images(network: &dyn Classifier) -> Tensor {
    let [_, side, _] = network.input_shape();
    Tensor::rand(-1f32, 1.0, (3, 1, side, side), &Device::Cpu).unwrap()
}

/// Ranges as a calibration might measure them.
fn ranges(network: &dyn Classifier, places: Places) -> Ranges {
    let range = |(at, point): (usize, String)| (point, (-1.0 - at as f32 / 8.0, 2.0 + at as f32 / 4.0));
    Ranges(Points::of(network, places).unwrap().into_iter().enumerate().map(range).collect())
}

/// The integer form of a network, and what is stored of it.
fn stored_integers(network: &dyn Classifier, scheme: Scheme) -> (Integers, StateDict) {
    let ranges = if scheme.activations { ranges(network, scheme.places) } else { Ranges::default() };
    let form = Integers::new(network, scheme, ranges).unwrap();
    let Stored::Described { tensors, description } = form.stored(network).unwrap() else { panic!("described") };
    let described: Description = serde_json::from_value(description).unwrap();
    assert_eq!(described.scheme(), scheme);
    (form, tensors)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let floats = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
    a.dims() == b.dims() && a.dtype() == b.dtype() && floats(a) == floats(b)
}

#[rstest]
fn integers_come_back_bit_for_bit(
    #[values(Arch::Resnet18, Arch::PreactResnet18, Arch::Vgg16Bn, Arch::MobilenetV2, Arch::VitTiny)] arch: Arch,
    #[values(Granularity::PerTensor, Granularity::PerChannel)] granularity: Granularity,
    #[values(true, false)] activations: bool,
) {
    let scheme = Scheme { bits: Bits::literal(5), granularity, activations, ..Scheme::default() };
    let made = network(arch);
    let (form, state) = stored_integers(made.as_ref(), scheme);
    let x = images(made.as_ref());
    let expected = values(&form.logits(made.as_ref(), &x).unwrap());
    let fresh = spec(arch).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
    let restored = Integers::read(fresh.as_ref(), &state, scheme).unwrap();
    assert_eq!(values(&restored.logits(fresh.as_ref(), &x).unwrap()), expected);
    assert_eq!(restored.ranges(), form.ranges());
    // What was read is stored as it was.
    let Stored::Described { tensors, .. } = restored.stored(fresh.as_ref()).unwrap() else { panic!("described") };
    assert!(tensors.keys().eq(state.keys()) && state.iter().all(|(name, tensor)| same(tensor, &tensors[name])));
    assert!(expected.iter().all(|v| v.is_finite()) && expected != values(&made.logits(&x).unwrap()));
}

/// What every engine makes comes back, too: grids, places, and factors of batch norm that stays behind.
#[rstest]
fn what_engines_make_comes_back(
    #[values(Arch::Resnet18, Arch::MobilenetV2)] arch: Arch,
    #[values(Engine::PytorchX86, Engine::Litert, Engine::Openvino, Engine::Tensorrt, Engine::Weights127)]
    engine: Engine,
) {
    let (made, scheme) = (network(arch), engine.scheme());
    let (form, state) = stored_integers(made.as_ref(), scheme);
    let x = images(made.as_ref());
    let fresh = spec(arch).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
    let restored = Integers::read(fresh.as_ref(), &state, scheme).unwrap();
    let logits = |form: &Integers, network: &dyn Classifier| values(&form.logits(network, &x).unwrap());
    assert_eq!(logits(&restored, fresh.as_ref()), logits(&form, made.as_ref()));
    let others = Integers::new(made.as_ref(), Scheme { activations: false, ..Scheme::default() }, Ranges::default());
    assert_ne!(logits(&others.unwrap(), made.as_ref()), logits(&form, made.as_ref()));
}

#[rstest]
fn blocks_come_back_bit_for_bit(
    #[values(Arch::Resnet18, Arch::PreactResnet18, Arch::MobilenetV2, Arch::VitTiny)] arch: Arch,
    #[values(BlockFormat::Q4_0, BlockFormat::Q3K)] format: BlockFormat,
) {
    let made = network(arch);
    let form = Blocks::new(made.as_ref(), format).unwrap();
    let stored = |form: &Blocks, network: &dyn Classifier| match form.stored(network).unwrap() {
        Stored::Blocks { tensors, format: name } if name == format.name() => tensors,
        _ => panic!("blocks"),
    };
    let tensors = stored(&form, made.as_ref());
    let x = images(made.as_ref());
    let expected = values(&form.logits(made.as_ref(), &x).unwrap());
    let fresh = spec(arch).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
    let restored = Blocks::read(fresh.as_ref(), &tensors, format).unwrap();
    assert_eq!(values(&restored.logits(fresh.as_ref(), &x).unwrap()), expected);
    // The network itself has those weights now, and batch norm multiplies them by 1.
    assert_eq!(values(&fresh.logits(&x).unwrap()), expected);
    assert_eq!(restored.report().unwrap(), form.report().unwrap());
    let again = stored(&restored, fresh.as_ref());
    assert!(again.keys().eq(tensors.keys()));
    assert!(tensors.iter().all(|(name, tensor)| tensor.data().unwrap() == again[name].data().unwrap()));
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[rstest]
#[case::missing("fc.bias", None, "1 missing: fc.bias")]
#[case::misspelt("fc.biss", Some(tensor(&[0.0; 5], &[5])), "unexpected: fc.biss")]
#[case::shape("fc.bias", Some(tensor(&[0.0; 4], &[4])), "fc.bias: expected [5], found [4]")]
#[case::dtype("fc.weight", Some(tensor(&[0.0; 320], &[5, 64])), "fc.weight: expected i8, found f32")]
#[case::integer("fc.weight", Some((tensor(&[0.0; 320], &[5, 64]) - 17.0).unwrap().to_dtype(DType::I16).unwrap()), "`fc.weight`: expected integers from -16 to 15, found -17 to -17")]
#[case::large("fc.weight", Some((tensor(&[0.0; 320], &[5, 64]) + 16.0).unwrap().to_dtype(DType::I16).unwrap()), "found 16 to 16")]
#[case::scale_shape("fc.weight_scale", Some(tensor(&[1.0; 5], &[5, 1])), "fc.weight_scale: expected [1, 1], found [5, 1]")]
#[case::zero_scale("fc.weight_scale", Some(tensor(&[0.0], &[1, 1])), "`fc.weight_scale`: expected positive numbers, found 0")]
#[case::endless_scale("fc.weight_scale", Some(tensor(&[f32::INFINITY], &[1, 1])), "`fc.weight_scale`: NaN or infinite")]
#[case::bias("fc.bias", Some(tensor(&[f32::NAN; 5], &[5])), "`fc.bias`: NaN or infinite")]
#[case::range("layer1.0.conv2/sum.activation_range", None, "1 missing: layer1.0.conv2/sum.activation_range")]
#[case::other_place("layer5.0.conv2/sum.activation_range", Some(tensor(&[0.0, 1.0], &[2])), "1 unexpected: layer5.0.conv2/sum.activation_range")]
#[case::long_range("fc.activation_range", Some(tensor(&[0.0; 3], &[3])), "fc.activation_range: expected [2], found [3]")]
#[case::upside_down("input.activation_range", Some(tensor(&[1.0, -1.0], &[2])), "`input.activation_range`: ranges from 1 down to -1")]
#[case::endless("conv1.activation_range", Some(tensor(&[0.0, f32::INFINITY], &[2])), "`conv1.activation_range`: NaN or infinite")]
#[case::unnamed("activation_ranges", Some(tensor(&[0.0, 1.0].repeat(30), &[30, 2])), "ranges without the names of their places")]
fn what_does_not_fit_is_refused(#[case] name: &str, #[case] tensor: Option<Tensor>, #[case] expected: &str) {
    let scheme = Scheme { bits: Bits::literal(5), ..Scheme::default() };
    let (_, mut state) = stored_integers(network(Arch::Resnet18).as_ref(), scheme);
    state.remove(name);
    state.extend(tensor.map(|tensor| (name.to_string(), tensor)));
    let fresh = spec(Arch::Resnet18).fresh(rng::stream(9, "other"), &Device::Cpu).unwrap();
    let before = values(&fresh.params().state_dict().unwrap()["fc.weight"]);
    let message = Integers::read(fresh.as_ref(), &state, scheme).err().unwrap().to_string();
    assert!(message.contains(expected), "{message}");
    assert_eq!(values(&fresh.params().state_dict().unwrap()["fc.weight"]), before, "nothing is taken over");
}

/// Ranges are for the places of one network.
#[test]
fn ranges_of_another_network_are_refused() {
    let scheme = Scheme::default();
    let (made, other) = (network(Arch::Resnet18), network(Arch::Vgg16Bn));
    let message =
        Integers::new(made.as_ref(), scheme, ranges(other.as_ref(), scheme.places)).err().unwrap().to_string();
    assert!(
        message.contains("none for conv1, fc,") && message.contains("one for classifier, features.0,"),
        "{message}"
    );
}

#[rstest]
#[case(Arch::Resnet18, &["input", "conv1", "layer2.0.conv2", "layer2.0.conv2/sum", "layer2.0.downsample.0", "fc"])]
#[case(Arch::PreactResnet18, &["conv1", "layer1.0.bn1", "layer2.0.shortcut.0", "layer2.0.conv2/sum", "linear"])]
#[case(Arch::MobilenetV2, &["features.0.0", "features.3.conv.2/sum", "classifier.1"])]
#[case(Arch::VitTiny, &[
    "input", "conv_proj", "encoder.layers.encoder_layer_1.ln_1", "encoder.layers.encoder_layer_1.self_attention.in_proj",
    "encoder.layers.encoder_layer_1.self_attention.in_proj/attend",
    "encoder.layers.encoder_layer_1.self_attention.out_proj/sum", "encoder.layers.encoder_layer_1.mlp.3/sum", "encoder.ln",
    "heads.head",
])]
fn activation_points_are_called_after_layers(#[case] arch: Arch, #[case] expected: &[&str]) {
    let points = Points::of(network(arch).as_ref(), Places::default()).unwrap();
    assert!(expected.iter().all(|point| points.contains(*point)), "{points:?}");
}
