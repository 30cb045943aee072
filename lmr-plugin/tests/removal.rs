//! Networks without their pruned channels against the same networks with zeros in their place.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use candle_core::{DType, Device, Tensor};
use lmr_plugin::data::Normalization;
use lmr_plugin::deploy::{PruneForm, Ranked, Scope, StructuredPrune};
use lmr_plugin::model::{Classifier, Model};
use lmr_plugin::ranges::BelowOne;
use lmr_plugin::rng::{self, Rng};
use lmr_plugin::zoo::{Arch, ModelSpec, Network, Stem};
use rand::RngExt;
use rstest::rstest;

/// A network with every parameter and statistic drawn, so that no two channels do the same.
fn network(spec: &ModelSpec) -> Box<dyn Classifier> {
    let network = spec.fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
    let mut state = network.params().state_dict().unwrap();
    let mut draws = rng::stream(1, "values");
    for (name, tensor) in state.iter_mut().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
        let around = if name.ends_with("running_var") { 1.0 } else { 0.0 };
        let fan_in = tensor.dims().iter().skip(1).product::<usize>().max(4) as f32;
        *tensor = uniform(tensor.dims(), around, 2.0 / fan_in.sqrt(), &mut draws);
    }
    spec.load(state, &Device::Cpu).unwrap()
}

fn uniform(dims: &[usize], around: f32, range: f32, draws: &mut Rng) -> Tensor {
    let count = dims.iter().product();
    let range = if around == 0.0 { range } else { 0.5 };
    let values = (0..count).map(|_| around + range * (2.0 * draws.random::<f32>() - 1.0)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn images(spec: &ModelSpec) -> Tensor {
    let side = spec.example_side();
    uniform(&[3, spec.channels, side, side], 0.0, 1.0, &mut rng::stream(2, "images"))
}

fn farthest(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn stage(ratio: f64, scope: Scope, form: PruneForm) -> StructuredPrune {
    StructuredPrune { ratio: BelowOne::literal(ratio), scope, form, ..StructuredPrune::default() }
}

fn pruned(ranked: &[Ranked]) -> usize {
    ranked.iter().map(|ranked| ranked.pruned.len()).sum()
}

#[rstest]
fn removal_computes_what_silent_channels_do(
    #[values(
        ModelSpec { width: Some(6), ..ModelSpec::new(Arch::Resnet18, 5) },
        ModelSpec { width: Some(4), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Resnet34, 5) },
        ModelSpec { width: Some(6), ..ModelSpec::new(Arch::PreactResnet18, 5) },
        ModelSpec { width: Some(6), ..ModelSpec::new(Arch::Vgg16, 5) },
        ModelSpec { width: Some(6), ..ModelSpec::new(Arch::Vgg16Bn, 5) },
        ModelSpec { width: Some(2), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Vgg16Bn, 5) },
        ModelSpec { width_multiplier: Some(0.25), ..ModelSpec::new(Arch::MobilenetV2, 5) },
        ModelSpec {
            width: Some(12), depth: Some(2), image_size: Some(32), patch_size: Some(8), ..ModelSpec::new(Arch::VitTiny, 5)
        },
    )]
    spec: ModelSpec,
    #[values(0.0, 0.4, 0.7)] ratio: f64,
    #[values(Scope::Layer, Scope::Network)] scope: Scope,
) {
    let (whole, silent, x) = (network(&spec), network(&spec), images(&spec));
    let ranked = stage(ratio, scope, PruneForm::Zero).prune(silent.as_ref()).unwrap();
    let (smaller, removed) = stage(ratio, scope, PruneForm::Remove).remove(whole.as_ref()).unwrap();
    assert_eq!(ranked, removed);
    assert_eq!(pruned(&ranked) > 0, ratio > 0.0, "{ranked:?}");
    let (expected, found) = (silent.logits(&x).unwrap(), smaller.logits(&x).unwrap());
    let size = farthest(&expected, &expected.zeros_like().unwrap());
    assert!(farthest(&expected, &found) <= 1e-5 * size.max(1.0), "{} of {size}", farthest(&expected, &found));
    let (before, after) = (whole.params().count(), smaller.params().count());
    assert!(if ratio > 0.0 { after < before } else { after == before }, "{before} {after}");
    // The specification says what the weights are for.
    let small = Network::of(smaller.as_ref()).unwrap().spec();
    let again = small.load(smaller.params().state_dict().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(farthest(&again.logits(&x).unwrap(), &found), 0.0);
    // So do the weights' own names and shapes, but where the width multiplier cannot be told any more, and of a transformer
    // that is too narrow to be one of those with a name.
    let state = smaller.params().state_dict().unwrap();
    if !matches!(spec.arch, Arch::MobilenetV2 | Arch::VitTiny) {
        let recognized = ModelSpec::recognize(&state).unwrap().unwrap();
        assert_eq!(small.differing(&recognized), Vec::<String>::new(), "the table agrees with config.json");
        let recognized = recognized.load(state, &Device::Cpu).unwrap();
        assert_eq!(farthest(&recognized.logits(&x).unwrap(), &found), 0.0);
    }
    // A model of the whole network takes the smaller weights over.
    let normalization = Normalization { mean: vec![0.0; spec.channels], std: vec![1.0; spec.channels] };
    let mut model = Model::new(whole, normalization).unwrap();
    model.load_state(smaller.params().state_dict().unwrap()).unwrap();
    assert_eq!(farthest(&model.network().logits(&x).unwrap(), &found), 0.0);
}

/// Layers whose outputs are added lose the same channels.
#[test]
fn what_is_added_is_removed_together() {
    let spec = ModelSpec { width: Some(6), ..ModelSpec::new(Arch::Resnet18, 5) };
    let ranked = stage(0.5, Scope::Layer, PruneForm::Zero).prune(network(&spec).as_ref()).unwrap();
    // Four stages, and the inner convolution of each of eight blocks.
    assert_eq!(ranked.len(), 12);
    assert_eq!(ranked[0].layer, "conv1");
    assert_eq!(ranked[0].tied, ["layer1.0.conv2", "layer1.1.conv2"]);
    let second = ranked.iter().find(|ranked| ranked.tied.iter().any(|name| name == "layer2.1.conv2")).unwrap();
    assert_eq!((second.layer.as_str(), second.tied.len()), ("layer2.0.downsample.0", 2));
}

#[rstest]
#[case(vec![4; 20], None)]
#[case(vec![4; 19], Some("widths: expected more numbers, one for each prunable layer, found 19"))]
#[case(vec![4; 21], Some("widths: expected 20 numbers, one for each prunable layer, found 21"))]
#[case([vec![4; 19], vec![0]].concat(), Some("widths: expected 1 to 32768 each, found 0"))]
fn widths_are_checked(#[case] widths: Vec<usize>, #[case] expected: Option<&str>) {
    let spec = ModelSpec { width: Some(4), widths: Some(widths), ..ModelSpec::new(Arch::Resnet18, 5) };
    let message = spec.fresh(rng::stream(0, "weights"), &Device::Cpu).err().map(|error| error.to_string());
    match expected {
        Some(expected) => assert!(message.clone().unwrap().contains(expected), "{message:?}"),
        None => assert_eq!(message, None),
    }
}
