//! Several forms of one network at once are the network on a larger batch.

use candle_core::{Device, Tensor, Var};
use lmr_plugin::model::Classifier;
use lmr_plugin::nn::{self, Branch, Branches, Mode, Weighted, with_portable_path};
use lmr_plugin::rng;
use lmr_plugin::zoo::{Arch, ModelSpec};
use rstest::rstest;

fn network(arch: Arch) -> Box<dyn Classifier> {
    let mut spec = ModelSpec { channels: 1, ..ModelSpec::new(arch, 3) };
    match arch {
        Arch::MobilenetV2 => spec.width_multiplier = Some(0.1),
        _ => spec.width = Some(4),
    }
    spec.fresh(rng::stream(0, "weights"), &Device::Cpu).unwrap()
}

fn images(count: usize) -> Tensor {
    let values = (0..count * 32 * 32).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(values, (count, 1, 32, 32), &Device::Cpu).unwrap()
}

fn own(layer: Weighted<'_>) -> nn::Result<Option<Tensor>> {
    Ok(Some(layer.weight().as_tensor().clone()))
}

fn squares(t: &Tensor) -> f64 {
    f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
}

/// The distance of lists of tensors, relative to the first one's length.
fn apart<'a>(pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (a, b) in pairs {
        difference += squares(&(a - b).unwrap());
        size += squares(a);
    }
    (difference / size).sqrt()
}

/// Two forms with the layers' own weights are the network on a batch that holds every image twice: logits, gradients and
/// running statistics; from the first layer on and from the head on.
#[rstest]
fn equal_forms_are_a_doubled_batch(
    #[values(Arch::Resnet18, Arch::PreactResnet18, Arch::Vgg16Bn, Arch::MobilenetV2)] arch: Arch,
    #[values(16, 5)] count: usize,
    #[values(false, true)] from_the_head: bool,
    #[values(false, true)] portable: bool,
) {
    let check = || {
        let (plain, x) = (network(arch), images(count));
        let branched = plain.copy().unwrap();
        let weights = Tensor::arange(0f32, 6.0 * count as f32, &Device::Cpu).unwrap().reshape((2 * count, 3));
        let weights = weights.unwrap().sin().unwrap();
        let step = |model: &dyn Classifier, logits: Tensor| {
            let loss = (logits.clone() * &weights).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let of = |var: &Var| gradients.get(var).unwrap().clone();
            (logits, model.params().trainable().map(|(name, var)| (name.to_string(), of(var))).collect::<Vec<_>>())
        };
        let twice = Tensor::cat(&[&x, &x], 0).unwrap();
        let expected = step(plain.as_ref(), plain.forward(&twice, Mode::default()).unwrap());
        let none = |_: Weighted<'_>| Ok(None);
        let forms: [&Branch<'_>; 2] = if from_the_head { [&none, &none] } else { [&none, &own] };
        let found = branched.layered().unwrap().interpret(&mut Branches::new(&forms, count), &x).unwrap();
        let found = step(branched.as_ref(), found);
        assert!(apart(std::iter::once((&expected.0, &found.0))) < 1e-3, "logits");
        // Rounding moves values across the kinks of ReLU, of many ReLU6 above all; a few gradients then differ.
        let gradients = expected.1.iter().zip(&found.1).map(|((_, a), (_, b))| (a, b));
        let limit = if arch == Arch::MobilenetV2 { 0.2 } else { 0.05 };
        assert!(apart(gradients.clone()) < limit, "{}", apart(gradients));
        let (expected, found) = (plain.params().state_dict().unwrap(), branched.params().state_dict().unwrap());
        let means = expected.iter().filter(|(name, _)| name.contains("running_mean"));
        assert!(apart(means.map(|(name, mean)| (mean, &found[name]))) < 1e-3);
    };
    if portable { with_portable_path(check) } else { check() }
}

/// Each form answers with its own weights.
#[test]
fn forms_differ_in_their_share_alone() {
    let (model, x) = (network(Arch::Resnet18), images(4));
    let none = |_: Weighted<'_>| Ok(None);
    let halved = |layer: Weighted<'_>| match layer {
        Weighted::Linear(head) => Ok(Some((head.weight().as_tensor() * 0.5)?)),
        _ => Ok(None),
    };
    let logits = model.layered().unwrap().interpret(&mut Branches::new(&[&none, &halved], 4), &x).unwrap();
    let bias = model.head().bias().unwrap().as_tensor().clone();
    let without = |from| logits.narrow(0, from, 4).unwrap().broadcast_sub(&bias).unwrap();
    assert!(apart(std::iter::once((&(without(0) * 0.5).unwrap(), &without(4)))) < 1e-6);
}
