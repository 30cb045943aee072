//! Quantizing and pruning a network that is nobody's but its user's: plain Candle operations, and nothing told but names.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use candle_core::{Device, Tensor, Var};
use lmr_plugin::Result;
use lmr_plugin::data::{CleanSet, Images, Normalization};
use lmr_plugin::deploy::{
    BlockFormat, Blocks, Calibration, Deployment, Granularity, Integers, PruneForm, Quantize, Scheme, StructuredPrune,
    integers, round_weight,
};
use lmr_plugin::model::{Classifier, Form, Model, Stored};
use lmr_plugin::nn::{Builder, Init, Linear, Mode, Params, StateDict};
use lmr_plugin::ranges::{BelowOne, Bits};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use rand::RngExt;
use rstest::rstest;

const CHANNELS: usize = 8;

/// A convolution, a learned scale for each of its channels, ReLU, the mean over space, and a linear layer.
struct Foreign {
    filters: Var,
    scale: Var,
    offset: Var,
    head: Linear,
    params: Params,
}

impl Foreign {
    fn new(b: &Builder) -> Result<Self> {
        let filters = b.pp("stem").parameter("weight", (CHANNELS, 1, 3, 3), Init::Normal { std: 0.5 })?;
        let scale = b.pp("scale").parameter("weight", CHANNELS, Init::Uniform { bound: 1.0 })?;
        let offset = b.pp("scale").buffer("offset", CHANNELS, Init::Uniform { bound: 1.0 })?;
        let head = Linear::new(CHANNELS, 3, &b.pp("out"))?;
        Ok(Self { filters, scale, offset, head, params: b.finish()? })
    }
}

impl Classifier for Foreign {
    fn params(&self) -> &Params {
        &self.params
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn input_shape(&self) -> [usize; 3] {
        [1, 8, 8]
    }

    fn features(&self, images: &Tensor, _: Mode) -> Result<Tensor> {
        let x = images.conv2d(&self.filters, 1, 1, 1, 1)?;
        let channels = |var: &Var| var.reshape((1, CHANNELS, 1, 1));
        let x = x.broadcast_mul(&channels(&self.scale)?)?.broadcast_add(&channels(&self.offset)?)?;
        Ok(x.relu()?.mean((2, 3))?)
    }

    fn rebuild(&self, state: StateDict, device: &Device) -> Result<Box<dyn Classifier>> {
        Ok(Box::new(Self::new(&Builder::from_state(state, device))?))
    }
}

fn network(seed: u64) -> Foreign {
    Foreign::new(&Builder::fresh(rng::stream(seed, "foreign"), &Device::Cpu)).unwrap()
}

fn model() -> Model {
    Model::new(Box::new(network(0)), Normalization { mean: vec![0.5], std: vec![0.25] }).unwrap()
}

fn clean() -> CleanSet {
    let mut draws = rng::stream(1, "images");
    let pixels = (0..12 * 64).map(|_| draws.random()).collect();
    CleanSet::new(Images::new(pixels, (0..12).map(|i| i % 3).collect(), [1, 8, 8], 3).unwrap()).unwrap()
}

fn pixels() -> Tensor {
    clean().images.batch(&(0..12).collect::<Vec<_>>(), &Device::Cpu).unwrap().0
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn weights_alone(bits: u32) -> Quantize {
    Quantize { bits: Bits::literal(bits), activations: false, ..Quantize::default() }
}

/// The model with the two weights of two and four dimensions replaced by what `round` makes of them.
fn by_hand(round: impl Fn(&Tensor) -> Tensor) -> Model {
    let model = model();
    for (name, var) in model.network().params().trainable() {
        if matches!(name, "stem.weight" | "out.weight") {
            var.set(&round(&var.as_detached_tensor())).unwrap();
        }
    }
    model
}

/// A form computes with the rounded weights and leaves the network alone; training sees the same weights.
#[rstest]
#[case::int8(weights_alone(8))]
#[case::int3(weights_alone(3))]
#[case::per_channel(Quantize { weights: Granularity::PerChannel, ..weights_alone(4) })]
#[case::blocks(Quantize::blocks(BlockFormat::Q4_0))]
fn named_weights_are_rounded_as_they_are(#[case] stage: Quantize) {
    let (mut deployed, clean, run) = (model(), clean(), Run::quiet(0));
    let exact = values(&deployed.logits(&pixels()).unwrap());
    let expected = values(&by_hand(|weight| stage.rounding().round(weight).unwrap()).logits(&pixels()).unwrap());
    assert_ne!(expected, exact);
    let form = stage.quantize(&deployed, &clean, &run).unwrap();
    deployed.deploy(form);
    assert_eq!(values(&deployed.logits(&pixels()).unwrap()), expected);
    assert!(deployed.full_precision().is_err());
    assert_eq!(values(&deployed.network().logits(&pixels()).unwrap()), values(&network(0).logits(&pixels()).unwrap()));
    let rounded = Deployment::Quantize(stage).rounded(&model()).unwrap();
    let found = values(&rounded.logits(&pixels()).unwrap());
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-5), "{found:?}");
}

#[test]
fn activations_ask_for_layers() {
    let message = Quantize::default().quantize(&model(), &clean(), &Run::quiet(0)).err().unwrap().to_string();
    assert!(message.contains("`Layered`") && message.contains("`activations = false`"), "{message}");
}

/// What is stored makes another network of the same kind compute the same, and is stored from it again.
#[test]
fn forms_are_stored_and_read() {
    let scheme = Scheme {
        bits: Bits::literal(4),
        granularity: Granularity::PerChannel,
        activations: false,
        ..Scheme::default()
    };
    let form = Integers::calibrate(&model(), scheme, Calibration::MinMax, &clean(), &Run::quiet(0)).unwrap();
    let (made, other) = (network(0), network(7));
    let Stored::Described { tensors, .. } = form.stored(&made).unwrap() else { panic!("described") };
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let expected = [
        "out.bias",
        "out.weight",
        "out.weight_scale",
        "scale.offset",
        "scale.weight",
        "stem.weight",
        "stem.weight_scale",
    ];
    assert_eq!(names, expected);
    assert_eq!(values(&tensors["scale.offset"]), values(&made.offset));
    let read = Integers::read(&other, &tensors, scheme).unwrap();
    let expected = values(&form.logits(&made, &pixels()).unwrap());
    assert_eq!(values(&read.logits(&other, &pixels()).unwrap()), expected);
    assert_eq!(values(&other.logits(&pixels()).unwrap()), expected, "the network has the values");

    let (form, other) = (Blocks::new(&made, BlockFormat::Q5_1).unwrap(), network(8));
    let Stored::Blocks { tensors, format } = form.stored(&made).unwrap() else { panic!("blocks") };
    assert_eq!(format, "q5_1");
    let read = Blocks::read(&other, &tensors, BlockFormat::Q5_1).unwrap();
    let expected = values(&form.logits(&made, &pixels()).unwrap());
    assert_eq!(values(&read.logits(&other, &pixels()).unwrap()), expected);
}

/// No batch norm is folded into what the integers stand for.
#[test]
fn integers_are_of_the_weight_itself() {
    let (made, scheme) = (network(0), Scheme { activations: false, ..Scheme::default() });
    let layers = integers(&made, scheme).unwrap();
    assert_eq!(layers.keys().collect::<Vec<_>>(), ["out", "stem"]);
    let stem = &layers["stem"];
    let stands_for = stem.weight.broadcast_mul(&stem.scale).unwrap();
    assert_eq!(values(&stands_for), values(&round_weight(&made.filters, scheme).unwrap()));
}

#[test]
fn filters_are_masked_and_silencing_says_what_it_needs() {
    let mut deployed = model();
    let stage = StructuredPrune { ratio: BelowOne::literal(0.5), ..StructuredPrune::default() };
    let ranked = stage.deploy(&mut deployed).unwrap();
    assert_eq!((ranked.len(), ranked[0].layer.as_str(), ranked[0].pruned.len()), (1, "stem", CHANNELS / 2));
    let state = deployed.network().params().state_dict().unwrap();
    let zeros = (0..CHANNELS).filter(|&i| values(&state["stem.weight"].get(i).unwrap()).iter().all(|v| *v == 0.0));
    assert_eq!(zeros.collect::<Vec<_>>(), ranked[0].pruned);
    assert_eq!(values(&state["out.weight"]), values(network(0).head.weight()), "the head stays");
    let Stored::Weights(stored) = deployed.form().unwrap().stored(deployed.network()).unwrap() else {
        panic!("weights")
    };
    assert_eq!(values(&stored["stem.weight"]), values(&state["stem.weight"]));
    for form in [PruneForm::Zero, PruneForm::Remove] {
        let stage = StructuredPrune { form, ..stage.clone() };
        let message = stage.deploy(&mut model()).err().unwrap().to_string();
        assert!(message.contains("`Classifier::channel_groups`"), "{message}");
    }
}
