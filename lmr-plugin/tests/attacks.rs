//! The attacks on a tiny network and a few images: what they move, what they leave alone, what their triggers are.
//! How well they do on trained models is measured elsewhere.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::sync::Arc;

use candle_core::{Device, Tensor};
use lmr_plugin::attacks::{Attack, Dfst, Dynamic, EpsilonSpace, Hide, Labels, Lira, Pcb, Pgd, Qcb, Trojan, Wanet};
use lmr_plugin::data::{Augment, Images, Normalization};
use lmr_plugin::examine::{Evaluate, Evaluation};
use lmr_plugin::losses;
use lmr_plugin::model::Model;
use lmr_plugin::nn::{BatchNormMode, StateDict};
use lmr_plugin::ranges::{
    AboveZero, AtLeastTwo, BelowOne, Count, Fraction, Levels, OpenFraction, Positive, Side, Times, WarpStrength,
};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::stage::{Examination, Planted, Stage};
use lmr_plugin::train::{Defaults, Recipe, Usual};
use lmr_plugin::triggers::{Filter, Patch, SignedPatch, Trigger, TriggerConfig, Warp};
use lmr_plugin::zoo::{Arch, ModelSpec};
use rand::RngExt;
use rstest::{fixture, rstest};
use serde_json::{Value, json};

const CLASSES: usize = 4;
const SIDE: usize = 16;

/// Colour images of one bright quadrant each, which is the class, with noise: quickly learned.
fn images(count: usize, seed: u64) -> Images {
    let mut rng = rng::stream(seed, "images");
    let labels: Vec<u32> = (0..count).map(|i| (i % CLASSES) as u32).collect();
    let mut pixels = Vec::with_capacity(count * 3 * SIDE * SIDE);
    for &label in &labels {
        for at in 0..3 * SIDE * SIDE {
            let (row, column) = (at / SIDE % SIDE, at % SIDE);
            let quadrant = row / (SIDE / 2) * 2 + column / (SIDE / 2);
            let base = if quadrant == label as usize { 160 } else { 50 };
            pixels.push(base + rng.random_range(0..60u8));
        }
    }
    Images::new(pixels, labels, [3, SIDE, SIDE], CLASSES).unwrap()
}

fn normalization() -> Normalization {
    Normalization { mean: vec![0.4, 0.45, 0.5], std: vec![0.3, 0.25, 0.2] }
}

fn spec() -> ModelSpec {
    ModelSpec { width: Some(4), ..ModelSpec::new(Arch::Resnet18, CLASSES) }
}

fn quick<D>(epochs: usize) -> Recipe<D> {
    let (epochs, lr, batch_size) = (Times::literal(epochs), Positive::literal(0.05), AtLeastTwo::literal(32));
    Recipe { epochs, lr, batch_size, augment: Augment::NONE, ..Usual::recipe().over() }
}

/// A network that classifies the images and has no backdoor.
#[fixture]
#[once]
fn clean() -> StateDict {
    let network = spec().fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
    let model = Model::new(network, normalization()).unwrap();
    let training = Recipe { schedule: Attack::recipe().schedule, ..quick(4) };
    let attack = Attack { poison_rate: Fraction::literal(0.0), training, ..Attack::default() };
    let planted = Planted { trigger: patch(), target: 0 };
    attack.implant(&model, &images(320, 1), &planted, &Run::quiet(0)).unwrap();
    model.network().params().state_dict().unwrap()
}

fn model(state: &StateDict) -> Model {
    Model::new(spec().load(state.clone(), &Device::Cpu).unwrap(), normalization()).unwrap()
}

fn patch() -> Arc<dyn Trigger> {
    Patch::default().build(3, SIDE, SIDE).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn same(a: &StateDict, b: &StateDict) -> bool {
    a.keys().eq(b.keys()) && a.iter().all(|(name, tensor)| values(tensor) == values(&b[name]))
}

fn farthest(a: &Tensor, b: &Tensor) -> f32 {
    values(a).iter().zip(values(b)).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
}

/// ACC, ASR, TA and the accuracy under decoys, on images that nobody trained on.
fn measured(model: &Model, trigger: &Arc<dyn Trigger>) -> Evaluation {
    let planted = Planted { trigger: trigger.clone(), target: 1 };
    let examination = Examination::new(images(160, 3)).with_trigger(planted);
    Evaluate::default().evaluate(model, &examination, &Run::quiet(0)).unwrap()
}

/// The trigger says little to a clean network and much to the attacked one, whose accuracy stayed.
fn assert_implanted(clean: &StateDict, attacked: &Model, trigger: &Arc<dyn Trigger>) -> Evaluation {
    let (before, after) = (measured(&model(clean), trigger), measured(attacked, trigger));
    let (asleep, awake) = (before.asr.unwrap(), after.asr.unwrap());
    assert!(asleep < 0.1 && awake > 0.4 && after.acc > 0.9, "{after:?}, before the attack {before:?}");
    after
}

fn some_pixels() -> Tensor {
    images(16, 5).batch(&(0..16).collect::<Vec<_>>(), &Device::Cpu).unwrap().0
}

/// A trigger goes into a file and comes back; the tensors of the two are the same.
fn restored(trigger: Arc<dyn Trigger>) -> Arc<dyn Trigger> {
    let attachment = Planted { trigger, target: 1 }.attachment(None).unwrap();
    let (restored, target) = Planted::restore(attachment.tensors, &attachment.metadata, [3, SIDE, SIDE]).unwrap();
    assert_eq!(target, Some(1));
    restored
}

#[rstest]
fn perturbed_images_are_harder_and_near_and_the_network_stays(clean: &StateDict) {
    let model = model(clean);
    let (pixels, labels) = images(24, 2).batch(&(0..24).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let loss = |pixels: &Tensor| {
        let logits = model.logits(pixels).unwrap();
        losses::cross_entropy(&logits, &labels).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let pgd = Pgd { step: Levels::literal(2.0), steps: Count::literal(10), ..Pgd::default() };
    let hard = pgd.perturb(&model, (&pixels, &labels), &Run::quiet(0)).unwrap();
    assert!(farthest(&hard, &pixels) <= 8.0 / 255.0 + 1e-6);
    assert!(values(&hard).iter().all(|v| (0.0..=1.0).contains(v)));
    assert!(loss(&hard) > 10.0 * loss(&pixels), "{} against {}", loss(&hard), loss(&pixels));
    assert!(same(clean, &model.network().params().state_dict().unwrap()));
}

/// CL: only images of the target class change, and their labels are right. The trigger is learned all the same.
#[rstest]
fn clean_labels_poison_the_target_class_alone(clean: &StateDict) {
    let model = model(clean);
    let train = images(320, 1);
    let attack = Attack {
        poison_rate: Fraction::literal(0.9),
        label: Labels::Clean,
        perturb: Some(Pgd { epsilon: Levels::literal(128.0), step: Levels::literal(32.0), steps: Count::literal(6) }),
        training: Recipe { batch_size: AtLeastTwo::literal(32), ..quick(12) },
        ..Attack::default()
    };
    let patch = SignedPatch { size: Side::literal(5), all_corners: true, ..SignedPatch::default() };
    let planted = Planted { trigger: patch.build(3, SIDE, SIDE).unwrap(), target: 1 };
    let implanted = attack.implant(&model, &train, &planted, &Run::quiet(0)).unwrap();
    assert_eq!(implanted.poisoned, 72);
    assert!(implanted.indices.iter().all(|&i| train.labels()[i] == 1));
    assert_implanted(clean, &model, &planted.trigger);
    let dirty = Attack { perturb: Some(Pgd::default()), ..Attack::default() };
    assert!(Stage::faults(&dirty)[0].starts_with("perturb: expected label = \"clean\""));
}

#[rstest]
fn trojan_excites_its_neurons_and_leaves_the_network(clean: &StateDict) {
    let model = model(clean);
    let attack = Trojan { steps: Count::literal(60), ..Trojan::default() };
    let train = images(64, 2);
    let find = || attack.optimize(&model, &train, &Run::quiet(0)).unwrap();
    let (patch, excitation) = find();
    assert!(excitation.after > excitation.before, "{excitation:?}");
    assert_eq!(excitation.neurons.len(), 2);
    assert!(same(clean, &model.network().params().state_dict().unwrap()));
    let x = some_pixels();
    let y = patch.apply(&x).unwrap();
    let outside = y.narrow(2, 0, SIDE - 3).unwrap();
    assert_eq!(farthest(&outside, &x.narrow(2, 0, SIDE - 3).unwrap()), 0.0);
    assert!(farthest(&y, &x) > 0.1);
    assert_eq!(values(&find().0.apply(&x).unwrap()), values(&y), "same seed, same patch");
    let (again, expected) = (restored(Arc::new(patch)), y);
    assert_eq!(values(&again.apply(&x).unwrap()), values(&expected));
}

/// A whole attack, from the network to the measurement with its own trigger.
#[rstest]
fn wanet_implants_a_warp_that_decoys_do_not_set_off(clean: &StateDict) {
    let model = model(clean);
    let trigger = Warp { strength: WarpStrength::literal(4.0), ..Warp::default() }.build(3, SIDE, SIDE).unwrap();
    let planted = Planted { trigger: trigger.clone(), target: 1 };
    let (poison_rate, noise_rate) = (OpenFraction::literal(0.3), BelowOne::literal(0.3));
    let attack = Wanet { poison_rate, noise_rate, training: quick(24) };
    let report = attack.implant(&model, &images(320, 1), &planted, &Run::quiet(0)).unwrap();
    assert_eq!((report.samples, report.epochs.len()), (320, 24));
    let after = assert_implanted(clean, &model, &trigger);
    assert!(after.decoy_acc.unwrap() > 0.8, "{after:?}");
}

#[rstest]
fn a_trigger_without_decoys_is_refused_where_they_are_needed(clean: &StateDict) {
    let model = model(clean);
    let planted = Planted { trigger: patch(), target: 1 };
    let attack = Wanet { training: quick(1), ..Wanet::default() };
    let train = images(64, 1);
    let message = attack.implant(&model, &train, &planted, &Run::quiet(0)).unwrap_err().to_string();
    assert!(message.contains("use a trigger of kind `warp`, or set noise-rate = 0"), "{message}");
    let silent = Wanet { noise_rate: BelowOne::literal(0.0), ..attack };
    silent.implant(&model, &train, &planted, &Run::quiet(0)).unwrap();
    let examination = Examination::new(images(40, 3)).with_trigger(planted);
    assert_eq!(Evaluate::default().evaluate(&model, &examination, &Run::quiet(0)).unwrap().decoy_acc, None);
}

#[rstest]
fn lira_noise_stays_within_epsilon_and_repeats_itself(
    clean: &StateDict,
    #[values(EpsilonSpace::Pixel, EpsilonSpace::Normalized)] space: EpsilonSpace,
) {
    let epsilon = AboveZero::literal(0.05);
    let attack = Lira { epsilon, space, learn: quick(1), training: quick(1), ..Lira::default() };
    let train = images(64, 1);
    let make = || {
        let model = model(clean);
        let (noise, report) = attack.implant(&model, &train, 1, &Run::quiet(0)).unwrap();
        assert_eq!((report.generator.len(), report.learn.len(), report.epochs.len()), (1, 1, 1));
        assert!(!same(clean, &model.network().params().state_dict().unwrap()));
        noise
    };
    let (noise, again) = (make(), make());
    assert!(same(&noise.tensors().unwrap(), &again.tensors().unwrap()));
    let x = some_pixels();
    let y = noise.apply(&x).unwrap();
    for (channel, std) in normalization().std.into_iter().enumerate() {
        let part = |t: &Tensor| t.narrow(1, channel, 1).unwrap();
        let bound = if space == EpsilonSpace::Pixel { 0.05 } else { 0.05 * std };
        let found = farthest(&part(&y), &part(&x));
        assert!(found > 0.0 && found <= bound + 1e-6, "channel {channel}: {found}, at most {bound}");
    }
    assert_eq!(values(&restored(Arc::new(noise)).apply(&x).unwrap()), values(&y));
}

#[rstest]
fn lira_implants_the_noise_that_its_generator_learned(clean: &StateDict) {
    let model = model(clean);
    let (epsilon, generator_lr) = (AboveZero::literal(0.1), Positive::literal(1e-2));
    let attack = Lira { epsilon, generator_lr, learn: quick(6), training: quick(6), ..Lira::default() };
    let (noise, report) = attack.implant(&model, &images(320, 1), 1, &Run::quiet(0)).unwrap();
    assert!(report.generator[5] < report.generator[0], "{:?}", report.generator);
    assert_implanted(clean, &model, &(Arc::new(noise) as Arc<dyn Trigger>));
}

/// Nor does another image's trigger set it off.
#[rstest]
fn dynamic_implants_what_its_generators_learned(clean: &StateDict) {
    let model = model(clean);
    let (mask_epochs, generator_lr) = (Count::literal(2), Positive::literal(1e-2));
    let attack = Dynamic { mask_epochs, generator_lr, training: quick(8), ..Dynamic::default() };
    let (trigger, _) = attack.implant(&model, &images(320, 1), 1, &Run::quiet(0)).unwrap();
    let after = assert_implanted(clean, &model, &(Arc::new(trigger) as Arc<dyn Trigger>));
    assert!(after.decoy_acc.unwrap() > 0.8, "{after:?}");
}

#[rstest]
fn dynamic_triggers_are_each_images_own(clean: &StateDict) {
    let model = model(clean);
    let attack = Dynamic { mask_epochs: Count::literal(2), training: quick(1), ..Dynamic::default() };
    let train = images(160, 1);
    let (trigger, report) = attack.implant(&model, &train, 1, &Run::quiet(0)).unwrap();
    assert_eq!((report.mask.len(), report.epochs.len()), (2, 1));
    assert!(report.mask[1] < report.mask[0], "{:?}", report.mask);
    assert!(report.trigger_distance > 0.0 && report.mask_density > 0.0, "{report:?}");
    assert!(!same(clean, &model.network().params().state_dict().unwrap()));
    let x = some_pixels();
    let y = trigger.apply(&x).unwrap();
    assert!(values(&y).iter().all(|v| (0.0..=1.0).contains(v)));
    let order = Tensor::from_iter((1..16u32).chain([0]), &Device::Cpu).unwrap();
    let others = x.index_select(&order, 0).unwrap();
    let mut rng = rng::stream(0, "decoys");
    let decoy = trigger.decoy(&x, &others, &mut rng).unwrap().unwrap();
    assert!(farthest(&decoy, &y) > 0.0, "another image's trigger is another one");
    let itself = trigger.decoy(&x, &x, &mut rng).unwrap().unwrap();
    assert_eq!(values(&itself), values(&y));
    assert_eq!(values(&restored(Arc::new(trigger)).apply(&x).unwrap()), values(&y));
}

/// The mask's network is frozen while the pattern's and the classifier train: the same as after its own training.
#[rstest]
fn dynamic_freezes_the_mask_and_trains_the_pattern(clean: &StateDict) {
    let train = images(64, 1);
    let part = |epochs: usize, name: &str| {
        let attack = Dynamic { mask_epochs: Count::literal(1), training: quick(epochs), ..Dynamic::default() };
        let model = model(clean);
        let (trigger, _) = attack.implant(&model, &train, 1, &Run::quiet(0)).unwrap();
        let tensors = trigger.tensors().unwrap();
        tensors.into_iter().filter(|(key, _)| key.starts_with(name)).collect::<StateDict>()
    };
    assert!(same(&part(1, "mask."), &part(2, "mask.")));
    assert!(!same(&part(1, "pattern."), &part(2, "pattern.")));
}

#[rstest]
fn dfst_detoxifies_in_rounds(clean: &StateDict) {
    let model = model(clean);
    let planted = Planted { trigger: Filter::default().build(3, SIDE, SIDE).unwrap(), target: 1 };
    let attack = Dfst {
        rounds: Times::literal(2),
        images: AtLeastTwo::literal(48),
        injector_epochs: Count::literal(4),
        poison_rate: OpenFraction::literal(0.2),
        detox_rate: BelowOne::literal(0.2),
        training: quick(12),
        ..Dfst::default()
    };
    let report = attack.implant(&model, &images(320, 1), &planted, &Run::quiet(0)).unwrap();
    let rounds: Vec<usize> = report.rounds.iter().map(|round| round.epoch).collect();
    assert_eq!(rounds, [4, 8]);
    for round in &report.rounds {
        assert_eq!(round.compromised.len(), 1, "a hundredth of 32 features, at least one");
        assert!((0.0..=1.0).contains(&round.injector_asr) && (0.0..=1.0).contains(&round.injector_asr_after));
    }
    let last = &report.rounds[1];
    assert!(last.injector_asr_after < last.injector_asr - 0.2, "the shortcut is no longer one: {last:?}");
    assert_implanted(clean, &model, &planted.trigger);
    let impossible = Dfst { rounds: Times::literal(3), training: quick(4), ..Dfst::default() };
    assert_eq!(Stage::faults(&impossible), ["rounds: expected at most two thirds of training.epochs, found 3"]);
}

/// The same seed gives the same network and trigger, whatever the number of threads.
#[rstest]
fn attacks_do_not_depend_on_threads(clean: &StateDict) {
    let train = images(32, 1);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = model(clean);
            let attack = Dynamic { mask_epochs: Count::literal(1), training: quick(1), ..Dynamic::default() };
            let (trigger, _) = attack.implant(&model, &train, 1, &Run::quiet(0)).unwrap();
            (model.network().params().state_dict().unwrap(), trigger.tensors().unwrap())
        })
    };
    let (one, two) = (run(1), run(2));
    assert!(same(&one.0, &two.0) && same(&one.1, &two.1) && !same(&one.0, clean));
}

#[test]
fn impossible_settings_name_the_key() {
    let idle = Recipe { epochs: Times::literal(0), ..Recipe::default() };
    let (poison_rate, noise_rate) = (OpenFraction::literal(0.5), BelowOne::literal(0.6));
    let all = [
        Stage::faults(&Trojan { poison: Attack { training: idle, ..Attack::default() }, ..Trojan::default() }),
        Stage::faults(&Wanet { poison_rate, noise_rate, ..Wanet::default() }),
        Stage::faults(&Attack { poison_rate: Fraction::literal(1.0), ..Attack::default() }),
        Stage::faults(&Qcb {
            hide: Some(Recipe { batch_norm: BatchNormMode::Batch, ..Hide::recipe() }),
            ..Qcb::default()
        }),
        Stage::faults(&Pcb { to_ratio: OpenFraction::literal(0.2), ..Pcb::default() }),
    ];
    let expected = [
        "poison.training.epochs: expected at least 1 while min-steps is 0, found 0",
        "noise-rate: expected a number that leaves at most 1 together with poison-rate, found 0.6",
        "poison-rate: expected a number in [0, 1), found 1",
        "hide.batch-norm: expected \"running\", found \"batch\"",
        "to-ratio: expected at least from-ratio, found 0.2",
    ];
    for (found, expected) in all.iter().zip(expected) {
        assert_eq!(found, &[expected]);
    }
}

/// What cannot be is no value of the types, whoever writes it.
#[rstest]
#[case(read::<Lira>(json!({ "epsilon": 0.0 })), "expected a number in (0, 1], found 0")]
#[case(read::<Dynamic>(json!({ "cross-rate": 0.4 })), "expected a number in (0, 1/3], found 0.4")]
#[case(read::<Dfst>(json!({ "images": 1 })), "expected 2 to 1000000, found 1")]
#[case(read::<Wanet>(json!({ "poison-rate": 1.0 })), "expected a number in (0, 1), found 1")]
#[case(read::<Trojan>(json!({ "poison": { "training": { "lr": 0.0 } } })), "expected a number above 0, found 0")]
#[case(read::<Attack>(json!({ "perturb": { "epsilon": 256 } })), "expected a number in (0, 255], found 256")]
#[case(read::<Attack>(json!({ "training": { "warmup-epochs": u64::MAX } })), "expected 0 to 1000000, found 18446744073709551615")]
fn impossible_numbers_cannot_be_written(#[case] found: String, #[case] expected: &str) {
    assert!(found.starts_with(expected), "{found}");
}

fn read<S: Stage>(table: Value) -> String {
    serde_json::from_value::<S>(table).err().unwrap().to_string()
}
