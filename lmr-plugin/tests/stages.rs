//! The stages on a tiny network and random images: what they change, what they leave alone, what they refuse.
//! Whether they purify is a matter of trained models and is measured elsewhere.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use candle_core::{Device, Tensor};
use lmr_plugin::attacks::Attack;
use lmr_plugin::data::{Augment, CleanSet, Images, Normalization};
use lmr_plugin::deploy::{Calibration, Quantize, StructuredPrune};
use lmr_plugin::examine::Evaluate;
use lmr_plugin::losses::log_softmax;
use lmr_plugin::model::Model;
use lmr_plugin::nn::StateDict;
use lmr_plugin::purify::{
    BackdoorClass, DeltaPrune, Estimate, HeadDelta, LogitRepel, PrunedColumns, Recover, Repelled, Teacher,
};
use lmr_plugin::ranges::{AtLeastTwo, BelowOne, Bits, NonNegative, Percentile, Positive, Times};
use lmr_plugin::run::Run;
use lmr_plugin::stage::{AnyStage, Context, Examination, FactStore, Planted, Shown};
use lmr_plugin::train::{Defaults, Recipe};
use lmr_plugin::triggers::{Patch, TriggerConfig};
use lmr_plugin::zoo::{Arch, ModelSpec, Stem};
use lmr_plugin::{Error, rng};
use rand::RngExt;
use rstest::{fixture, rstest};

const CLASSES: usize = 4;

/// Images of one bright quadrant each, which is the class, with noise: quickly learned.
fn images(count: usize, seed: u64) -> Images {
    let mut rng = rng::stream(seed, "images");
    let labels: Vec<u32> = (0..count).map(|i| (i % CLASSES) as u32).collect();
    let mut pixels = Vec::with_capacity(count * 64);
    for &label in &labels {
        for at in 0..64u32 {
            let quadrant = (at / 8 / 4) * 2 + (at % 8) / 4;
            let base = if quadrant == label { 180 } else { 40 };
            pixels.push(base + rng.random_range(0..60u8));
        }
    }
    Images::new(pixels, labels, [1, 8, 8], CLASSES).unwrap()
}

fn normalization() -> Normalization {
    Normalization { mean: vec![0.4], std: vec![0.3] }
}

fn spec() -> ModelSpec {
    ModelSpec { width: Some(4), channels: 1, ..ModelSpec::new(Arch::Resnet18, CLASSES) }
}

fn fresh(seed: u64) -> Model {
    Model::new(spec().fresh(rng::stream(seed, "weights"), &Device::Cpu).unwrap(), normalization()).unwrap()
}

fn planted() -> Planted {
    Planted { trigger: Patch::default().build(1, 8, 8).unwrap(), target: 1 }
}

/// The stage's training with few epochs of small batches.
fn quick<D: Defaults>(epochs: usize) -> Recipe<D> {
    let (epochs, batch_size) = (Times::literal(epochs), AtLeastTwo::literal(32));
    Recipe { epochs, min_steps: Times::literal(0), batch_size, ..Recipe::default() }
}

/// A network that classifies the images and has a BadNets backdoor.
#[fixture]
#[once]
fn attacked() -> StateDict {
    let model = fresh(0);
    let training = Recipe { lr: Positive::literal(0.05), augment: Augment::NONE, ..quick(6) };
    let attack = Attack { training, ..Attack::default() };
    let train = images(640, 1);
    let implanted = attack.implant(&model, &train, &planted(), &Run::quiet(0)).unwrap();
    assert_eq!(implanted.poisoned, 64);
    assert!(implanted.indices.iter().all(|&i| train.labels()[i] != 1));
    model.network().params().state_dict().unwrap()
}

fn model(state: &StateDict) -> Model {
    Model::new(spec().load(state.clone(), &Device::Cpu).unwrap(), normalization()).unwrap()
}

fn clean() -> CleanSet {
    CleanSet::new(images(64, 2)).unwrap()
}

fn examination() -> Examination {
    Examination::new(images(200, 3)).with_trigger(planted())
}

fn bits(t: &Tensor) -> Vec<u32> {
    let t = t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap();
    t.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

fn assert_same(a: &StateDict, b: &StateDict) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, x) in a {
        assert_eq!(bits(x), bits(&b[name]), "{name}");
    }
}

#[rstest]
fn the_attack_works_and_evaluate_sees_it(attacked: &StateDict) {
    let result = Evaluate::default().evaluate(&model(attacked), &examination(), &Run::quiet(0)).unwrap();
    assert!(result.acc > 0.95 && result.asr.unwrap() > 0.9, "{result:?}");
    assert_eq!((result.samples, result.triggered), (200, 150));
    assert!(result.asr.unwrap() + result.ta.unwrap() <= 1.0);
    let untriggered = Examination::new(images(200, 3));
    let result = Evaluate::default().evaluate(&model(attacked), &untriggered, &Run::quiet(0)).unwrap();
    assert_eq!((result.asr, result.ta, result.triggered), (None, None, 0));
}

#[rstest]
fn estimate_names_the_target_leaves_the_model_bit_identical_and_repeats_itself(attacked: &StateDict) {
    let model = model(attacked);
    let run = Run::quiet(5);
    let first = Estimate::default().estimate(&model, &clean(), &run).unwrap();
    assert_same(attacked, &model.network().params().state_dict().unwrap());
    assert_eq!(first, Estimate::default().estimate(&model, &clean(), &run).unwrap());
    assert_eq!(first.class, planted().target, "{first:?}");
    assert!(first.scores.iter().all(|s| *s <= 0.0), "{first:?}");
    assert_eq!(first.predicted.iter().sum::<usize>(), first.votes.len() * 64);
}

#[rstest]
fn estimate_says_when_a_class_is_missing(attacked: &StateDict) {
    let all = images(64, 2);
    let some: Vec<usize> = (0..64).filter(|i| i % CLASSES != 3).collect();
    let clean = CleanSet::new(all.select(&some).unwrap()).unwrap();
    let model = model(attacked);
    let found = Estimate::default().estimate(&model, &clean, &Run::quiet(0)).unwrap();
    assert!(found.low_confidence.iter().any(|r| r.contains("no clean image of classes [3]")), "{found:?}");
}

#[rstest]
fn estimate_refuses_a_model_that_knows_nothing() {
    let message = Estimate::default().estimate(&fresh(3), &clean(), &Run::quiet(0)).unwrap_err().to_string();
    assert!(message.contains("already at or below stop-accuracy"), "{message}");
}

#[rstest]
fn a_given_class_skips_the_estimate(attacked: &StateDict) {
    let model = model(attacked);
    let given = Estimate { class: Some(2), ..Estimate::default() };
    assert_eq!(given.estimate(&model, &clean(), &Run::quiet(0)).unwrap().class, 2);
    let outside = Estimate { class: Some(4), ..Estimate::default() };
    let message = outside.estimate(&model, &clean(), &Run::quiet(0)).unwrap_err().to_string();
    assert!(message.contains("class 4: expected one below 4"), "{message}");
}

#[rstest]
fn repel_pushes_the_class_down_moves_the_head_and_reports_every_epoch(attacked: &StateDict) {
    let model = model(attacked);
    let (x, labels) = images(64, 7).batch(&(0..64).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    // By how much class 1 leads over the label, on average over images of other classes that no stage saw.
    let lead = |model: &Model| {
        let rows = model.logits(&x).unwrap().to_vec2::<f32>().unwrap();
        let labels = labels.to_vec1::<u32>().unwrap();
        let others = rows.iter().zip(&labels).filter(|(_, label)| **label != 1);
        others.map(|(row, label)| row[1] - row[*label as usize]).sum::<f32>() / 48.0
    };
    let before = lead(&model);
    let training = Recipe { augment: Augment::NONE, ..quick(3) };
    let stage = LogitRepel { training, ..LogitRepel::default() };
    let repelled = stage.repel(&model, BackdoorClass { class: 1 }, &clean(), &Run::quiet(0)).unwrap();
    let Repelled { delta, report, .. } = repelled;
    assert!(lead(&model) < before - 1.0, "{} after {before}", lead(&model));
    assert_eq!(delta.scores.len(), 32);
    assert!(delta.scores.iter().sum::<f32>() > 0.0, "a saved head that shares storage with the model moves with it");
    assert_eq!(report.epochs.len(), 3);
    assert!(
        report.epochs[2].beyond_margin > report.epochs[0].beyond_margin || report.epochs[2].dsc < report.epochs[0].dsc,
        "{report:?}"
    );
}

#[rstest]
fn pruned_columns_stay_exactly_zero_through_recovery(attacked: &StateDict) {
    let model = model(attacked);
    let delta = HeadDelta { scores: (0..32).map(|j| (j * 7 % 32) as f32).collect() };
    let pruned = DeltaPrune { ratio: BelowOne::literal(0.25) }.prune(&model, &delta).unwrap();
    assert_eq!(pruned.columns.len(), 8);
    let (weight_decay, lr) = (NonNegative::literal(5e-4), Positive::literal(0.05));
    let stage = Recover { training: Recipe { weight_decay, lr, ..quick(3) }, ..Recover::default() };
    let teacher = Teacher::copy(&model, BackdoorClass { class: 1 }).unwrap();
    let head = || model.network().head().weight().to_vec2::<f32>().unwrap();
    let before = head();
    let report = stage.recover(&model, &teacher, &pruned, &clean(), &Run::quiet(0)).unwrap();
    assert!(report.epochs[2].loss < report.epochs[0].loss, "{report:?}");
    for (row, before) in head().iter().zip(&before) {
        for (column, (value, before)) in row.iter().zip(before).enumerate() {
            let pruned = pruned.columns.contains(&column);
            assert_eq!((*value == 0.0, value == before), (pruned, pruned), "column {column}: {value}, before {before}");
        }
    }
}

/// A teacher keeps the answers of all classes but its own: with it, the model stays nearer to what it was.
#[rstest]
fn distillation_keeps_the_model_near_its_teacher(attacked: &StateDict) {
    let clean = clean();
    let (x, _) = clean.images.batch(&(0..32).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let others = |model: &Model| {
        let logits = model.logits(&x).unwrap();
        log_softmax(&Tensor::cat(&[logits.narrow(1, 0, 1).unwrap(), logits.narrow(1, 2, 2).unwrap()], 1).unwrap())
            .unwrap()
    };
    let before = others(&model(attacked));
    let moved = |distill: f64| {
        let model = model(attacked);
        let min_steps = LogitRepel::recipe().min_steps;
        let training = Recipe { min_steps, augment: Augment::NONE, ..quick(4) };
        let stage = LogitRepel { distill: NonNegative::literal(distill), training, ..LogitRepel::default() };
        let report = stage.repel(&model, BackdoorClass { class: 1 }, &clean, &Run::quiet(0)).unwrap().report;
        assert_eq!(report.epochs[0].distillation.is_some(), distill > 0.0);
        (others(&model) - &before).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let (near, far) = (moved(2.0), moved(0.0));
    assert!(near < far, "{near}, without {far}");
    let message = Teacher::copy(&model(attacked), BackdoorClass { class: 4 }).err().unwrap().to_string();
    assert!(message.contains("backdoor class 4: expected one below 4"), "{message}");
}

#[rstest]
fn a_loss_that_is_not_finite_names_the_step(attacked: &StateDict) {
    let model = model(attacked);
    let training = Recipe { epochs: Times::literal(50), lr: Positive::literal(1e30), ..Recipe::default() };
    let stage = Recover { training, ..Recover::default() };
    let teacher = Teacher::copy(&model, BackdoorClass { class: 0 }).unwrap();
    let error = stage.recover(&model, &teacher, &PrunedColumns::default(), &clean(), &Run::quiet(0)).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    assert!(error.to_string().contains("at step"), "{error}");
}

#[rstest]
#[case(0.0, 0)]
#[case(0.3, 1)]
#[case(0.5, 2)]
#[case(0.99, 3)]
fn filters_are_pruned_exactly(attacked: &StateDict, #[case] ratio: f64, #[case] of_four: usize) {
    let model = model(attacked);
    let ratio = BelowOne::literal(ratio);
    let layers = StructuredPrune { ratio, ..StructuredPrune::default() }.prune(model.network()).unwrap();
    assert_eq!(layers.len(), 20, "17 convolutions and 3 shortcuts");
    assert_eq!(layers[0].pruned.len(), of_four);
    for (layer, conv) in layers.iter().zip(model.network().prunable()) {
        assert_eq!(layer.layer, conv.name);
        let norms = conv.weight.as_tensor().abs().unwrap().flatten_from(1).unwrap().sum(1).unwrap();
        for (filter, norm) in norms.to_vec1::<f32>().unwrap().iter().enumerate() {
            assert_eq!(layer.pruned.contains(&filter), *norm == 0.0);
        }
    }
}

/// One step of every stage that trains, and every deployed form, on 32x32 images.
#[rstest]
#[case::preact(ModelSpec { width: Some(4), ..ModelSpec::new(Arch::PreactResnet18, CLASSES) })]
#[case::vgg(ModelSpec { width: Some(4), ..ModelSpec::new(Arch::Vgg16, CLASSES) })]
#[case::vgg_imagenet(ModelSpec { width: Some(2), stem: Some(Stem::Imagenet), ..ModelSpec::new(Arch::Vgg16Bn, CLASSES) })]
#[case::mobilenet(ModelSpec { width_multiplier: Some(0.25), ..ModelSpec::new(Arch::MobilenetV2, CLASSES) })]
#[case::vit(ModelSpec {
    width: Some(12), depth: Some(2), image_size: Some(32), patch_size: Some(8), ..ModelSpec::new(Arch::VitTiny, CLASSES)
})]
fn every_architecture_goes_through_the_stages(#[case] spec: ModelSpec) {
    let spec = ModelSpec { channels: 1, ..spec };
    let mut rng = rng::stream(1, "pixels");
    let pixels = (0..16 * 32 * 32).map(|_| rng.random()).collect();
    let labels = (0..16).map(|i| i % CLASSES as u32).collect();
    let clean = CleanSet::new(Images::new(pixels, labels, [1, 32, 32], CLASSES).unwrap()).unwrap();
    let run = Run::quiet(0);
    let network = spec.fresh(rng::stream(3, "weights"), &Device::Cpu).unwrap();
    let mut model = Model::new(network, normalization()).unwrap();
    let (epochs, batch_size) = (Times::literal(1), AtLeastTwo::literal(8));
    let repel = LogitRepel { training: Recipe { epochs, batch_size, ..Recipe::default() }, ..LogitRepel::default() };
    let class = BackdoorClass { class: 1 };
    let weights = |model: &Model| -> Vec<Vec<u32>> {
        model.network().params().trainable().map(|(_, weight)| bits(weight)).collect()
    };
    let given = weights(&model);
    let repelled = repel.repel(&model, class, &clean, &run).unwrap();
    assert!(given != weights(&model), "repelled");
    let pruned = DeltaPrune { ratio: BelowOne::literal(0.3) }.prune(&model, &repelled.delta).unwrap();
    let left = weights(&model);
    let recover = Recover { training: Recipe { epochs, batch_size, ..Recipe::default() }, ..Recover::default() };
    recover.recover(&model, &repelled.received, &pruned, &clean, &run).unwrap();
    assert!(left != weights(&model), "recovered");
    let (x, _) = clean.images.batch(&[0, 1, 2], &Device::Cpu).unwrap();
    let exact = model.logits(&x).unwrap();
    let form = Quantize::default().quantize(&model, &clean, &run).unwrap();
    model.deploy(form);
    let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let (size, error) = (norm(exact.clone()), norm((model.logits(&x).unwrap() - exact).unwrap()));
    assert!(error > 0.0 && error < 0.5 * size, "{error} of {size}");
    let layers = StructuredPrune::default().prune(model.network()).unwrap();
    for (layer, prunable) in layers.iter().zip(model.network().prunable()) {
        assert!(2 * layer.pruned.len() >= layer.filters - 1, "{}", layer.layer);
        for &unit in &layer.pruned {
            let largest =
                |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(largest(prunable.weight.get(unit).unwrap()), 0.0);
            assert!(prunable.bias.is_none_or(|bias| largest(bias.narrow(0, unit, 1).unwrap()) == 0.0));
        }
    }
    assert!(
        model
            .network()
            .logits(&x)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .all(|v| v.is_finite())
    );
}

#[rstest]
fn eight_bits_are_close_and_two_are_not(attacked: &StateDict) {
    let exact_model = model(attacked);
    let (x, _) = images(40, 4).batch(&(0..40).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let exact = exact_model.logits(&x).unwrap();
    let quantized = |bits: u32| {
        let mut model = exact_model.try_clone().unwrap();
        let stage = Quantize { bits: Bits::literal(bits), ..Quantize::default() };
        let form = stage.quantize(&model, &clean(), &Run::quiet(0)).unwrap();
        let ranges = stage.ranges(&model, &clean(), &Run::quiet(0)).unwrap();
        assert_eq!(ranges.0.len(), 1 + 20 + 8 + 1, "input, convolutions, residual sums, head");
        model.deploy(form);
        model
    };
    let error = |model: &Model| {
        let difference = (model.logits(&x).unwrap() - &exact).unwrap().sqr().unwrap().mean_all().unwrap();
        difference.to_scalar::<f32>().unwrap().sqrt()
            / exact.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    };
    let model = quantized(8);
    let (eight, two) = (error(&model), error(&quantized(2)));
    assert!(eight < 0.1 && two > 2.0 * eight, "8 bits: {eight}, 2 bits: {two}");
    let message = model.full_precision().err().unwrap().to_string();
    assert!(message.contains("the model is quantized"), "{message}");
}

/// Calibrations that cut off what is rare give narrower ranges, and 8 bits stay close.
#[rstest]
#[case(Calibration::Percentile(Percentile::literal(99.0)))]
#[case(Calibration::Histogram)]
fn ranges_are_cut_where_little_is_lost(attacked: &StateDict, #[case] calibration: Calibration) {
    let model = model(attacked);
    let stage = |calibration| Quantize { calibration, ..Quantize::default() };
    let ranges = |calibration| stage(calibration).ranges(&model, &clean(), &Run::quiet(0)).unwrap().0;
    let (whole, cut) = (ranges(Calibration::MinMax), ranges(calibration));
    assert!(whole.keys().eq(cut.keys()));
    let pairs = || whole.values().zip(cut.values());
    assert!(pairs().all(|(whole, cut)| whole.0 <= cut.0 && cut.1 <= whole.1));
    assert!(pairs().any(|(whole, cut)| cut.1 < whole.1));
    let (x, _) = images(40, 4).batch(&(0..40).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let x = model.normalization().apply(&x).unwrap();
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let exact = model.network().logits(&x).unwrap();
    let form = stage(calibration).quantize(&model, &clean(), &Run::quiet(0)).unwrap();
    let error = norm(&(form.logits(model.network(), &x).unwrap() - &exact).unwrap());
    assert!(error < 0.2 * norm(&exact), "{error} of {}", norm(&exact));
}

/// The erased stages chained by their findings, as a pipeline does it, give what the typed calls give.
#[rstest]
fn erased_stages_give_what_typed_calls_give(attacked: &StateDict) {
    let repel = LogitRepel { training: quick(2), ..LogitRepel::default() };
    let recover = Recover { training: quick(2), ..Recover::default() };
    let clean = clean();
    let typed = model(attacked);
    let run = Run::quiet(3);
    let class = Estimate::default().estimate(&typed, &clean, &run).unwrap().backdoor_class();
    let repelled = repel.repel(&typed, class, &clean, &run).unwrap();
    let pruned = DeltaPrune::default().prune(&typed, &repelled.delta).unwrap();
    recover.recover(&typed, &repelled.received, &pruned, &clean, &run).unwrap();

    let mut erased = model(attacked);
    let received = model(attacked);
    let mut facts = FactStore::default();
    let stages: [Box<dyn AnyStage>; 4] =
        [Box::new(Estimate::default()), Box::new(repel), Box::new(DeltaPrune::default()), Box::new(recover)];
    for stage in stages {
        let mut ctx = Context { model: &mut erased, received: Some(&received), clean: &clean, run };
        let outcome = stage.run(&mut ctx, &facts, &Shown::default()).unwrap();
        // Findings travel as JSON between stages and between runs.
        let json = serde_json::to_string(&outcome.gives).unwrap();
        facts.extend(serde_json::from_str(&json).unwrap());
    }
    let moved = typed.network().params().state_dict().unwrap();
    assert!(moved.iter().any(|(name, tensor)| bits(tensor) != bits(&attacked[name])), "the stages did something");
    assert_same(&moved, &erased.network().params().state_dict().unwrap());
}

#[rstest]
fn a_stage_without_its_findings_or_test_data_says_so(attacked: &StateDict) {
    let clean = clean();
    let mut model = model(attacked);
    let mut ctx = Context { model: &mut model, received: None, clean: &clean, run: Run::quiet(0) };
    let facts = FactStore::default();
    let message = AnyStage::run(&LogitRepel::default(), &mut ctx, &facts, &Shown::default()).unwrap_err().to_string();
    assert!(message.contains("`backdoor-class`"), "{message}");
    let message = AnyStage::run(&Evaluate::default(), &mut ctx, &facts, &Shown::default()).unwrap_err().to_string();
    assert!(message.contains("needs test data"), "{message}");
}
