//! Generators train, and frozen networks infer with gradients.

use candle_core::{DType, Device, Tensor, Var};
use lmr_plugin::generators::{Autoencoder, Hourglass};
use lmr_plugin::nn::{BatchNormMode, Builder, Forward, Mode, Params, Train, with_portable_path};
use lmr_plugin::rng;
use lmr_plugin::zoo::{Arch, ModelSpec};
use rand::RngExt;
use rstest::rstest;

fn random(seed: u64, purpose: &str, dims: &[usize]) -> Tensor {
    let mut rng = rng::stream(seed, purpose);
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The tensor's gradient in the sum of `y · dy`.
fn gradients(y: &Tensor, dy: &Tensor) -> candle_core::backprop::GradStore {
    (y * dy).unwrap().sum_all().unwrap().backward().unwrap()
}

fn run(portable: bool, f: impl FnOnce()) {
    if portable { with_portable_path(f) } else { f() }
}

type Network = (Params, Box<dyn Fn(&mut dyn Forward, &Tensor) -> Tensor>);

fn autoencoder() -> Network {
    let network = Autoencoder::new(2, &Builder::fresh(rng::stream(1, "autoencoder"), &Device::Cpu)).unwrap();
    (network.params().clone(), Box::new(move |how, x| network.forward(how, x).unwrap()))
}

fn hourglass() -> Network {
    let network = Hourglass::new(2, 3, &Builder::fresh(rng::stream(1, "hourglass"), &Device::Cpu)).unwrap();
    (network.params().clone(), Box::new(move |how, x| network.forward(how, x).unwrap()))
}

/// On both paths: the slope of the loss along a random direction of all weights is the gradient's share in it.
#[rstest]
#[case::autoencoder(autoencoder(), [-1.0, 1.0])]
#[case::hourglass(hourglass(), [0.0, 1.0])]
fn generators_train(
    #[case] (params, forward): Network,
    #[case] range: [f64; 2],
    #[values(false, true)] portable: bool,
) {
    run(portable, || {
        let mut how = Train { batch_norm: BatchNormMode::Batch };
        let x = random(2, "x", &[4, 2, 16, 32]);
        let y = forward(&mut how, &x);
        assert_eq!(&y.dims()[2..], [16, 32]);
        assert!(values(&y).iter().all(|v| (range[0]..=range[1]).contains(v)));
        let dy = random(2, "dy", y.dims());
        let grads = gradients(&y, &dy);
        let start = params.state_dict().unwrap();
        let directions: Vec<(String, Tensor)> =
            params.trainable().map(|(name, var)| (name.to_string(), random(3, name, var.dims()))).collect();
        let expected: f64 = params
            .trainable()
            .zip(&directions)
            .map(|((_, var), (_, d))| values(&(grads.get(var).unwrap() * d).unwrap()).iter().sum::<f64>())
            .sum();
        let mut loss_at = |step: f64| {
            for ((name, var), (_, d)) in params.trainable().zip(&directions) {
                var.set(&(&start[name] + (d * step).unwrap()).unwrap()).unwrap();
            }
            values(&(forward(&mut how, &x) * &dy).unwrap()).iter().sum::<f64>()
        };
        let step = 2e-5;
        let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        // Kinks of ReLU and max pooling, and 32 bits.
        assert!((slope - expected).abs() < 0.05 * expected.abs() + 2.0, "{expected} against {slope}");
    });
}

#[rstest]
#[case::resnet(Arch::Resnet18)]
#[case::preact(Arch::PreactResnet18)]
#[case::vit(Arch::VitTiny)]
fn frozen_is_inference_with_gradients(#[case] arch: Arch, #[values(false, true)] portable: bool) {
    let mut spec = ModelSpec { channels: 2, ..ModelSpec::new(arch, 5) };
    match arch {
        Arch::VitTiny => {
            (spec.width, spec.depth, spec.image_size, spec.patch_size) = (Some(12), Some(2), Some(16), Some(8));
        }
        _ => spec.width = Some(4),
    }
    run(portable, || {
        let model = spec.fresh(rng::stream(1, "weights"), &Device::Cpu).unwrap();
        // Running statistics as after some training.
        model.forward(&random(1, "seen", &[8, 2, 16, 16]), Mode::default()).unwrap();
        let before = model.params().state_dict().unwrap();
        let x = Var::from_tensor(&random(2, "x", &[3, 2, 16, 16])).unwrap();
        let y = model.forward(&x, Mode::Frozen).unwrap();
        let inference = values(&model.forward(&x, Mode::Eval).unwrap());
        let scale = inference.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        assert!(values(&y).iter().zip(&inference).all(|(a, b)| (a - b).abs() <= 2e-5 * scale), "logits");
        let dy = random(3, "dy", y.dims());
        let grads = gradients(&y, &dy);
        assert!(model.params().trainable().all(|(_, var)| grads.get(var).is_none()));
        let direction = random(4, "direction", x.dims());
        let expected: f64 = values(&(grads.get(&x).unwrap() * &direction).unwrap()).iter().sum();
        let total = |step: f64| -> f64 {
            let moved = (x.as_detached_tensor() + (&direction * step).unwrap()).unwrap();
            values(&(model.forward(&moved, Mode::Eval).unwrap() * &dy).unwrap()).iter().sum()
        };
        let slope = (total(1e-3) - total(-1e-3)) / 2e-3;
        assert!((slope - expected).abs() < 0.02 * expected.abs() + 0.02, "{expected} against {slope}");
        let after = model.params().state_dict().unwrap();
        assert!(before.iter().all(|(name, tensor)| values(tensor) == values(&after[name])));
    });
}
