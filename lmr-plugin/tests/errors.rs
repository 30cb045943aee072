//! Faults that an embedder tells apart by their variants and fields, without reading messages.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lmr_plugin::attacks::{Attack, AttackError};
use lmr_plugin::data::{CleanSet, DataError, Images, Normalization, stratified_split};
use lmr_plugin::deploy::{FormError, Integers, Quantize, Ranges, Rounding, Scheme, StoredError, mask};
use lmr_plugin::model::Model;
use lmr_plugin::nn::{self, StateDict};
use lmr_plugin::optim::{Optimizer, OptimizerError, Rule};
use lmr_plugin::purify::{DeltaPrune, HeadDelta, PurifyError};
use lmr_plugin::ranges::{BelowOne, Fraction, NonNegative, Shares, Side};
use lmr_plugin::run::Run;
use lmr_plugin::stage::Planted;
use lmr_plugin::triggers::{Filter, Filtered, Patch, TriggerConfig, TriggerError, Warp};
use lmr_plugin::zoo::{Arch, ModelSpec, ZooError};
use lmr_plugin::{Error, Result, rng};
use rstest::rstest;

fn images(labels: &[u32]) -> Result<Images> {
    Images::new(vec![128; 64 * labels.len()], labels.to_vec(), [1, 8, 8], 2)
}

fn spec() -> ModelSpec {
    ModelSpec { width: Some(2), channels: 1, ..ModelSpec::new(Arch::Resnet18, 2) }
}

fn model() -> Model {
    let network = spec().fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap();
    Model::new(network, Normalization { mean: vec![0.5], std: vec![0.25] }).unwrap()
}

fn scheme() -> Scheme {
    match Quantize::default().rounding() {
        Rounding::Integers(scheme) => scheme,
        Rounding::Blocks(_) => panic!("integers are the default"),
    }
}

fn empty_clean_set() -> Result<()> {
    CleanSet::new(images(&[])?).map(drop)
}

fn label() -> Result<()> {
    images(&[0, 1, 5]).map(drop)
}

fn count_too_large() -> Result<()> {
    stratified_split(&[0, 1], 2, 3, 0).map(drop)
}

fn normalization() -> Result<()> {
    Normalization { mean: vec![0.5], std: vec![0.0] }.validate(1)
}

fn patch_size() -> Result<()> {
    Patch { size: Side::new(9)?, ..Patch::default() }.build(1, 8, 8).map(drop)
}

fn channels() -> Result<()> {
    Filter::default().build(1, 8, 8).map(drop)
}

fn too_small_to_warp() -> Result<()> {
    Warp::default().build(1, 1, 8).map(drop)
}

fn stored_trigger() -> Result<()> {
    let alpha = Tensor::new(&[f32::NAN], &Device::Cpu)?;
    Filtered::FORM.restore([("alpha".to_string(), alpha)].into(), [3, 8, 8]).map(drop)
}

fn stored_target() -> Result<()> {
    let metadata = BTreeMap::from([("target".to_string(), "cat".to_string())]);
    let tensors = Patch::default().build(1, 8, 8)?.tensors()?;
    Planted::restore(tensors, &metadata, [1, 8, 8]).map(drop)
}

fn specification() -> Result<()> {
    ModelSpec { widths: Some(vec![4]), ..spec() }.fresh(rng::stream(0, "weights"), &Device::Cpu).map(drop)
}

fn poison_rate() -> Result<()> {
    let attack = Attack { poison_rate: Fraction::new(1.0)?, ..Attack::default() };
    let planted = Planted { trigger: Patch::default().build(1, 8, 8)?, target: 0 };
    attack.implant(&model(), &images(&[0, 0, 1])?, &planted, &Run::quiet(0)).map(drop)
}

fn scores() -> Result<()> {
    DeltaPrune::default().prune(&model(), &HeadDelta { scores: vec![1.0] }).map(drop)
}

fn no_such_parameter() -> Result<()> {
    let (momentum, decay) = (BelowOne::new(0.9)?, NonNegative::new(0.0)?);
    let mut optimizer = Optimizer::new(model().full_precision()?.params(), Rule::Sgd, momentum, decay)?;
    optimizer.freeze("nothing", &Tensor::new(0f32, &Device::Cpu)?)
}

fn shares() -> Result<()> {
    Ok(Shares::new([0.5, 0.25]).map(drop)?)
}

fn pruned_channel() -> Result<()> {
    mask(&Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, &[1]).map(drop)
}

fn ranges_of_another_network() -> Result<()> {
    let ranges = Ranges([("nowhere".to_string(), (0.0, 1.0))].into());
    Integers::new(model().full_precision()?, scheme(), ranges).map(drop)
}

fn ranges_without_names() -> Result<()> {
    let state = StateDict::from([("activation_ranges".to_string(), Tensor::new(&[0f32, 1.0], &Device::Cpu)?)]);
    Integers::read(model().full_precision()?, &state, scheme()).map(drop)
}

fn passed_through_layers() -> Result<()> {
    Err(nn::Error::from(label().unwrap_err()).into())
}

fn somebody_elses() -> Result<()> {
    Err(nn::Error::Other("a layer of one's own".into()).into())
}

macro_rules! is {
    ($pattern:pat $(if $guard:expr)?) => {
        |error: &Error| matches!(error, $pattern $(if $guard)?)
    };
}

#[rstest]
#[case(empty_clean_set, is!(Error::Data(DataError::EmptyCleanSet)))]
#[case(label, is!(Error::Data(DataError::Label { index: 2, found: 5, classes: 2 })))]
#[case(count_too_large, is!(Error::Data(DataError::CountTooLarge { count: 3, total: 2 })))]
#[case(normalization, is!(Error::Data(DataError::NormalizationValue { list: "std", found: 0.0, .. })))]
#[case(patch_size, is!(Error::Setting { key: "size", found: 9, .. }))]
#[case(channels, is!(Error::Trigger(TriggerError::Channels { found: 1 })))]
#[case(too_small_to_warp, is!(Error::Trigger(TriggerError::TooSmallToWarp { height: 1, width: 8 })))]
#[case(stored_trigger, is!(Error::Trigger(TriggerError::NotFinite { name }) if name == "alpha"))]
#[case(stored_target, is!(Error::Trigger(TriggerError::Target { found }) if found == "cat"))]
#[case(specification, is!(Error::Zoo(ZooError::WidthCount { expected: None, found: 1 })))]
#[case(poison_rate, is!(Error::Attack(AttackError::PoisonRate { asked: 3, available: 1, .. })))]
#[case(scores, is!(Error::Purify(PurifyError::ScoreCount { columns: 16, found: 1 })))]
#[case(no_such_parameter, is!(Error::Optimizer(OptimizerError::NoSuchParameter { name }) if name == "nothing"))]
#[case(shares, is!(Error::NotAscending(fault) if fault.found == [0.5, 0.25]))]
#[case(pruned_channel, is!(Error::Form(FormError::NoSuchChannel { channel: 1, channels: 1 })))]
#[case(
    ranges_of_another_network,
    is!(Error::Form(FormError::OtherNetwork { without, extra }) if without.contains("input") && extra.contains("nowhere"))
)]
#[case(ranges_without_names, is!(Error::Stored(StoredError::UnnamedRanges { .. })))]
#[case(passed_through_layers, is!(Error::Data(DataError::Label { index: 2, .. })))]
#[case(somebody_elses, is!(Error::Other(_)))]
fn faults_are_told_apart_by_their_variants(#[case] fail: fn() -> Result<()>, #[case] expected: fn(&Error) -> bool) {
    let error = fail().unwrap_err();
    assert!(expected(&error), "{error:?}");
}
