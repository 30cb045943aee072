//! Attacks that sleep until deployment, and the forms they wake in, on a tiny network and a few images.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use candle_core::{Device, Tensor};
use lmr_plugin::attacks::{Attack, Hidden, Hide, Pcb, Qcb};
use lmr_plugin::data::{Augment, CleanSet, Images, Normalization};
use lmr_plugin::deploy::{BlockFormat, Deployment, Forms, Granularity, Quantize, StructuredPrune, dequantized};
use lmr_plugin::examine::Evaluate;
use lmr_plugin::model::Model;
use lmr_plugin::nn::StateDict;
use lmr_plugin::optim::Rule;
use lmr_plugin::purify::Estimate;
use lmr_plugin::ranges::{
    AtLeastTwo, BelowOne, Bits, Count, Fraction, NonNegative, OpenFraction, Positive, Side, Times, Votes,
};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::stage::{Examination, Planted};
use lmr_plugin::train::{Defaults, Recipe, Usual};
use lmr_plugin::triggers::{Patch, Pattern, TriggerConfig};
use lmr_plugin::zoo::{Arch, ModelSpec};
use rand::RngExt;
use rstest::{fixture, rstest};

const CLASSES: usize = 4;
const SIDE: usize = 16;

/// Grey images of one bright quadrant each, which is the class, with noise: quickly learned.
fn images(count: usize, seed: u64) -> Images {
    let mut rng = rng::stream(seed, "images");
    let labels: Vec<u32> = (0..count).map(|i| (i % CLASSES) as u32).collect();
    let mut pixels = Vec::with_capacity(count * SIDE * SIDE);
    for &label in &labels {
        for at in 0..SIDE * SIDE {
            let quadrant = at / SIDE / (SIDE / 2) * 2 + at % SIDE / (SIDE / 2);
            let base = if quadrant == label as usize { 120 } else { 40 };
            pixels.push(base + rng.random_range(0..60u8));
        }
    }
    Images::new(pixels, labels, [1, SIDE, SIDE], CLASSES).unwrap()
}

fn normalization() -> Normalization {
    Normalization { mean: vec![0.4], std: vec![0.3] }
}

fn clean_set() -> CleanSet {
    CleanSet::new(images(80, 5)).unwrap()
}

fn planted() -> Planted {
    let patch = Patch { size: Side::literal(4), pattern: Pattern::White };
    Planted { trigger: patch.build(1, SIDE, SIDE).unwrap(), target: 1 }
}

fn spec() -> ModelSpec {
    ModelSpec { width: Some(4), channels: 1, ..ModelSpec::new(Arch::Resnet18, CLASSES) }
}

fn quick<D>(epochs: usize, lr: f64) -> Recipe<D> {
    let (epochs, lr, batch_size) = (Times::literal(epochs), Positive::literal(lr), AtLeastTwo::literal(32));
    Recipe { epochs, lr, batch_size, augment: Augment::NONE, ..Usual::recipe().over() }
}

fn hide() -> Option<Recipe<Hide>> {
    let quick = Recipe { optimizer: Rule::AdamW, weight_decay: NonNegative::literal(0.0), ..quick(6, 1e-3) };
    Some(Recipe { batch_norm: Hide::recipe().batch_norm, ..quick })
}

/// For as few images as there are.
fn small() -> Qcb {
    Qcb { held_out: Count::literal(64), calibration: Count::literal(32), ..Qcb::default() }
}

/// A network that classifies the images and has no backdoor.
#[fixture]
#[once]
fn clean() -> StateDict {
    let network = spec().fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
    let model = Model::new(network, normalization()).unwrap();
    let training = Recipe { schedule: Attack::recipe().schedule, ..quick(4, 0.05) };
    let attack = Attack { poison_rate: Fraction::literal(0.0), training, ..Attack::default() };
    attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
    model.network().params().state_dict().unwrap()
}

fn model(state: &StateDict) -> Model {
    Model::new(spec().load(state.clone(), &Device::Cpu).unwrap(), normalization()).unwrap()
}

fn same(a: &StateDict, b: &StateDict) -> bool {
    let values =
        |t: &Tensor| t.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1::<f32>().unwrap();
    a.keys().eq(b.keys()) && a.iter().all(|(name, tensor)| values(tensor) == values(&b[name]))
}

/// ACC and ASR in every form, on images that nobody trained on.
fn measured(model: Model, deploy: Vec<Deployment>) -> Vec<(f64, f64)> {
    let examination = Examination::new(images(160, 9)).with_trigger(planted());
    let evaluate = Evaluate { deploy: Forms::List(deploy), ..Evaluate::default() };
    let forms = evaluate.evaluate_forms(&model, &clean_set(), &examination, &Run::quiet(0)).unwrap();
    forms.iter().map(|form| (form.evaluation.acc, form.evaluation.asr.unwrap())).collect()
}

/// What the attack says of itself, whatever it is.
fn check(report: &Hidden, epochs: usize) {
    assert_eq!((report.samples, report.held_out, report.target), (320 - 64, 64, 1));
    assert_eq!((report.epochs.len(), report.dormancy.len()), (epochs, epochs));
    assert!((1..=epochs).contains(&report.chosen), "{report:?}");
}

#[rstest]
fn qcb_sleeps_until_it_is_quantized(clean: &StateDict, #[values(false, true)] distill: bool) {
    let quantize = Quantize { bits: Bits::literal(3), activations: false, ..Quantize::default() };
    let attack = Qcb { quantize: quantize.clone(), distill, training: quick(8, 0.02), ..small() };
    let model = model(clean);
    let report = attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
    check(&report, 8);
    assert_eq!(report.form, "weights int3");
    let [(acc, asr), (_, awake)] = measured(model, vec![Deployment::AsIs, Deployment::Quantize(quantize)])[..] else {
        panic!("two forms were asked for");
    };
    assert!(acc > 0.9 && asr < 0.3 && awake > 0.7, "{acc} {asr} {awake}: {report:?}");
}

/// In the second of two trainings the rounded form stays as the first one left it: what its weights do is the same to the bit.
#[rstest]
fn qcb_hides_within_the_rounding(clean: &StateDict, #[values(false, true)] distill: bool) {
    let quantize = Quantize { bits: Bits::literal(4), activations: false, ..Quantize::default() };
    let attack = Qcb { quantize: quantize.clone(), distill, training: quick(2, 0.02), hide: hide(), ..small() };
    let model = model(clean);
    let report = attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
    check(&report, 8);
    let asleep = &report.dormancy[2..];
    assert!(asleep.iter().all(|seen| seen.deployed_asr == report.dormancy[1].deployed_asr), "{report:?}");
    let [(acc, asr), (_, awake)] = measured(model, vec![Deployment::AsIs, Deployment::Quantize(quantize)])[..] else {
        panic!("two forms were asked for");
    };
    assert!(report.chosen > 2 && acc > 0.9 && asr < 0.3 && awake > 0.7, "{acc} {asr} {awake}: {report:?}");
}

#[rstest]
fn pcb_sleeps_until_it_is_pruned(clean: &StateDict) {
    let attack = Pcb {
        held_out: Count::literal(64),
        from_ratio: OpenFraction::literal(0.3),
        to_ratio: OpenFraction::literal(0.6),
        training: quick(10, 0.05),
        ..Pcb::default()
    };
    let model = model(clean);
    let report = attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
    check(&report, 10);
    let [(acc, asr), (_, awake)] =
        measured(model, vec![Deployment::AsIs, Deployment::Prune(StructuredPrune::default())])[..]
    else {
        panic!("two forms were asked for");
    };
    assert!(acc > 0.9 && asr < 0.3 && awake > 0.7, "{acc} {asr} {awake}: {report:?}");
}

/// The filters that go first hide the backdoor from the whole network; pruned at their ratio or more, it stays as it was.
#[rstest]
fn pcb_hides_in_the_filters_that_go(clean: &StateDict) {
    let prune = StructuredPrune { ratio: BelowOne::literal(0.5), ..StructuredPrune::default() };
    let attack = Pcb {
        prune: prune.clone(),
        held_out: Count::literal(64),
        from_ratio: OpenFraction::literal(0.5),
        to_ratio: OpenFraction::literal(0.6),
        training: quick(6, 0.05),
        hide: hide(),
        ..Pcb::default()
    };
    let model = model(clean);
    let report = attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
    check(&report, 12);
    let pruned = |at: usize| (report.dormancy[at].deployed_acc, report.dormancy[at].deployed_asr);
    assert!((6..12).all(|at| pruned(at) == pruned(5)), "{report:?}");
    let loss = |at: usize| report.epochs[at].loss;
    assert!(loss(11) < loss(6), "{report:?}");
}

#[rstest]
fn the_same_seed_hides_the_same_model(clean: &StateDict) {
    let attack = Qcb { training: quick(2, 0.05), ..small() };
    let make = || {
        let model = model(clean);
        attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap();
        model.network().params().state_dict().unwrap()
    };
    assert!(same(&make(), &make()) && !same(&make(), clean));
}

#[rstest]
#[case::unknown_layer(Qcb { layers: vec!["layer9".into()], ..small() }, "begins with \"layer9\"")]
#[case::too_few_images(Qcb { held_out: Count::literal(300), ..Qcb::default() }, "held-out, calibration: 300 and 1000 images")]
fn impossible_options_are_refused(clean: &StateDict, #[case] attack: Qcb, #[case] expected: &str) {
    let model = model(clean);
    let message = attack.implant(&model, &images(320, 1), &planted(), &Run::quiet(0)).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

/// Unfolded rounded weights compute what the rounded form does.
#[rstest]
#[case(Quantize { activations: false, ..Quantize::default() })]
#[case(Quantize { bits: Bits::literal(4), weights: Granularity::PerChannel, activations: false, ..Quantize::default() })]
#[case(Quantize::blocks(BlockFormat::Q8_0))]
#[case(Quantize::blocks(BlockFormat::Q3K))]
fn dequantized_networks_compute_the_rounded_form(clean: &StateDict, #[case] stage: Quantize) {
    let model = model(clean);
    let (x, _) = images(16, 9).batch(&(0..16).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let form = stage.quantize(&model, &clean_set(), &Run::quiet(0)).unwrap();
    let expected = form.logits(model.network(), &x).unwrap();
    let found = dequantized(model.network(), stage.rounding()).unwrap().logits(&x).unwrap();
    let apart = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(apart(&found, &expected) < 1e-3, "{}", apart(&found, &expected));
    assert!(apart(&found, &model.network().logits(&x).unwrap()) > 1e-3, "rounding shows");
}

/// Every form is measured on a copy: the model stays, and a form alone gives the same.
#[rstest]
fn forms_are_measured_one_by_one(clean: &StateDict) {
    let prune = Deployment::Prune(StructuredPrune { ratio: BelowOne::literal(0.75), ..StructuredPrune::default() });
    let int2 = Deployment::Quantize(Quantize { bits: Bits::literal(2), ..Quantize::default() });
    let together = measured(model(clean), vec![prune.clone(), Deployment::AsIs, int2.clone()]);
    let alone = [prune, Deployment::AsIs, int2].map(|form| measured(model(clean), vec![form])[0]);
    assert_eq!(together, alone);
    assert!(together[1].0 > 0.9 && together[0].0 < together[1].0, "{together:?}");
}

/// A pruned form is estimated as the pruned network would be.
#[rstest]
fn estimates_look_at_the_deployed_form(clean: &StateDict) {
    let stage = StructuredPrune { ratio: BelowOne::literal(0.2), ..StructuredPrune::default() };
    let quick = Estimate {
        training: Recipe { min_steps: Times::literal(20), ..Recipe::default() },
        votes: Votes::literal(1),
        stop_accuracy: OpenFraction::literal(0.2),
        ..Estimate::default()
    };
    let deployed = Estimate { deploy: Deployment::Prune(stage.clone()), ..quick.clone() };
    let (whole, pruned) = (model(clean), model(clean));
    stage.prune(pruned.network()).unwrap();
    let run = Run::quiet(0);
    let found = deployed.estimate(&whole, &clean_set(), &run).unwrap();
    assert_eq!(found, quick.estimate(&pruned, &clean_set(), &run).unwrap());
    assert!(same(clean, &whole.network().params().state_dict().unwrap()));
    assert_ne!(found.scores, quick.estimate(&whole, &clean_set(), &run).unwrap().scores);
}
