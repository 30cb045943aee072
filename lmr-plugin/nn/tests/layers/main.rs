//! Every layer against plain loops: values and gradients, on both paths, over random shapes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod enlargement;
mod more;
mod reference;

use candle_core::{DType, Device, Tensor, Var};
use lmr_nn::rng;
use lmr_nn::{
    Activation, BatchNorm2d, BatchNormMode, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Eval, Forward, Padding,
    StateDict, Train, conv2d, conv2d_inference, max_pool2d, to_images, to_internal, with_portable_path,
};
use proptest::prelude::*;
use rand::RngExt;
use reference::{Config, Images};

/// A convolution with everything around it.
#[derive(Clone, Debug)]
struct Case {
    x: [usize; 4],
    weight: [usize; 4],
    config: Config,
    relu: bool,
    residual: bool,
    portable: bool,
    /// Whether inputs come as transposed views.
    strided: bool,
    /// Whether inputs come in the kernels' own layout.
    internal: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let channels = (1usize..4, 1usize..6, 1usize..10);
    let padding = prop_oneof![3 => (0usize..3).prop_map(Padding::from), 1 => Just(Padding::Same)];
    let kernel = (1usize..4, 1usize..4, 1usize..4, padding, 1usize..3);
    let size = (prop_oneof![1usize..6, 14usize..20, Just(33)], 0usize..6, 0usize..6);
    (channels, kernel, size, any::<[bool; 5]>(), any::<u64>()).prop_map(
        |((groups, c, o), (kh, kw, stride, padding, dilation), (batch, more_h, more_w), flags, seed)| {
            let least = |k: usize| match padding {
                Padding::Symmetric(each) => (dilation * (k - 1) + 1).saturating_sub(2 * each).max(1),
                Padding::Same => 1,
            };
            let [relu, residual, portable, strided, internal] = flags;
            Case {
                x: [batch, c * groups, least(kh) + more_h, least(kw) + more_w],
                weight: [o * groups, c, kh, kw],
                config: Config { stride, padding, dilation, groups },
                relu,
                residual,
                portable,
                strided,
                internal,
                seed,
            }
        },
    )
}

impl Case {
    fn random(&self, purpose: &str, dims: [usize; 4]) -> Images {
        let mut rng = rng::stream(self.seed, purpose);
        let mut draw = || f64::from(rng.random::<f32>() * 2.0 - 1.0);
        let mut images = Images::zeros(dims);
        images.data.iter_mut().for_each(|v| *v = draw());
        images
    }

    fn config(&self) -> ConvConfig {
        let Config { stride, padding, dilation, groups } = self.config;
        ConvConfig { stride, padding, dilation, groups }
    }

    fn activation(&self) -> Activation {
        if self.relu { Activation::Relu } else { Activation::None }
    }

    /// An input as the layer sees it, recorded behind `var`.
    fn view(&self, var: &Tensor) -> Tensor {
        let view = match self.strided {
            true => var.transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap(),
            false => var.clone(),
        };
        if self.internal { to_internal(&view).unwrap() } else { view }
    }

    fn run(&self, f: impl FnOnce()) {
        if self.portable { with_portable_path(f) } else { f() }
    }
}

fn tensor(images: &Images) -> Tensor {
    let data: Vec<f32> = images.data.iter().map(|&v| v as f32).collect();
    Tensor::from_vec(data, &images.dims, &Device::Cpu).unwrap()
}

fn var(images: &Images) -> Var {
    Var::from_tensor(&tensor(images)).unwrap()
}

fn vector(images: &Images) -> Var {
    Var::from_tensor(&tensor(images).flatten_all().unwrap()).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    let t = t.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    t.to_vec1().unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &[f64]) {
    assert_close_sum(what, found, expected, expected);
}

/// `sizes` are the sums of the absolute values of the terms that `expected` are the sums of: terms may cancel.
fn assert_close_sum(what: &str, found: &Tensor, expected: &[f64], sizes: &[f64]) {
    let found = values(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = sizes.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 2e-5 * scale, "{what}[{i}]: {found}, expected {expected} (of {scale})");
    }
}

/// A gradient for `y`, 0 where rounding could flip the ReLU, and that gradient behind the ReLU.
fn cotangents(case: &Case, before: &Images) -> (Images, Images) {
    let mut dy = case.random("dy", before.dims);
    for (dy, v) in dy.data.iter_mut().zip(&before.data) {
        if case.relu && v.abs() < 1e-4 {
            *dy = 0.0;
        }
    }
    let mut masked = dy.clone();
    for (dy, v) in masked.data.iter_mut().zip(&before.data) {
        if case.relu && *v <= 0.0 {
            *dy = 0.0;
        }
    }
    (dy, masked)
}

fn relu(case: &Case, before: &Images) -> Vec<f64> {
    before.data.iter().map(|&v| if case.relu { v.max(0.0) } else { v }).collect()
}

fn add(images: &mut Images, other: &Images) {
    images.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
}

fn channel_sums(images: &Images) -> Vec<f64> {
    let mut sums = vec![0.0; images.dims[1]];
    images.indices().for_each(|at| sums[at[1]] += images.data[images.at(at)]);
    sums
}

fn check_convolution(case: &Case) {
    let (x, weight) = (case.random("x", case.x), case.random("weight", case.weight));
    let bias = case.random("bias", [1, case.weight[0], 1, 1]);
    let mut before = reference::conv(&x, &weight, case.config);
    let residual = case.random("residual", before.dims);
    for at in before.indices() {
        let i = before.at(at);
        before.data[i] += bias.data[at[1]];
    }
    if case.residual {
        add(&mut before, &residual);
    }
    let (dy, masked) = cotangents(case, &before);
    let (dx, dw) = reference::conv_backward(&x, &weight, &masked, case.config);

    let (vx, vw, vb, vr) = (var(&x), var(&weight), vector(&bias), var(&residual));
    let r = case.residual.then(|| case.view(&vr));
    let (config, activation) = (case.config(), case.activation());
    let y = conv2d(&case.view(&vx), &vw, &vb, &config, r.as_ref(), activation).unwrap();
    let y = to_images(&y).unwrap();
    assert_eq!(y.dims(), before.dims);
    assert_close("y", &y, &relu(case, &before));
    let grads = (y * tensor(&dy)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("dx", grads.get(&vx).unwrap(), &dx.data);
    assert_close("dw", grads.get(&vw).unwrap(), &dw.data);
    assert_close("db", grads.get(&vb).unwrap(), &channel_sums(&masked));
    if case.residual {
        assert_close("dr", grads.get(&vr).unwrap(), &masked.data);
    }

    let y = conv2d_inference(&case.view(&vx), &vw, Some(&vb), &config, r.as_ref(), activation).unwrap();
    assert!(!y.track_op());
    assert_close("inference", &to_images(&y).unwrap(), &relu(case, &before));
    // Transposed views of a weight are weights too.
    let weight = vw.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
    let y = conv2d_inference(&case.view(&vx), &weight, None, &config, None, Activation::None).unwrap();
    assert_close("no bias", &to_images(&y).unwrap(), &reference::conv(&x, &tensor_images(&vw), case.config).data);
}

fn tensor_images(t: &Tensor) -> Images {
    Images { dims: t.dims4().unwrap().into(), data: values(t) }
}

fn layer(case: &Case, weight: &Images, gamma: &Images, beta: &Images) -> ConvBn {
    let flat = |i: &Images| tensor(i).flatten_all().unwrap();
    let mut state = StateDict::from([
        ("c.weight".to_string(), tensor(weight)),
        ("n.weight".to_string(), flat(gamma)),
        ("n.bias".to_string(), flat(beta)),
    ]);
    state.insert("n.running_mean".into(), flat(beta));
    state.insert("n.running_var".into(), flat(gamma).abs().unwrap());
    let b = Builder::from_state(state, &Device::Cpu);
    let [out_channels, _, kh, kw] = case.weight;
    let spec = ConvSpec { in_channels: case.x[1], out_channels, kernel: (kh, kw), bias: false, config: case.config() };
    let conv = Conv2d::new(&spec, &b.pp("c")).unwrap();
    ConvBn::new(conv, BatchNorm2d::new(out_channels, &b.pp("n")).unwrap()).unwrap()
}

fn check_batch_norm(case: &Case) {
    let (x, weight) = (case.random("x", case.x), case.random("weight", case.weight));
    let channels = [1, case.weight[0], 1, 1];
    let (gamma, beta) = (case.random("gamma", channels), case.random("beta", channels));
    let z = reference::conv(&x, &weight, case.config);
    let count = (z.data.len() / z.dims[1]) as f64;
    let (mean, var_) = reference::moments(&z);
    let layer = layer(case, &weight, &gamma, &beta);
    let vx = var(&x);
    let mut train = Train { batch_norm: BatchNormMode::Batch };
    if count < 2.0 {
        assert!(train.convolution((&layer).into(), &case.view(&vx), None, case.activation()).is_err());
        return;
    }
    // A nearly constant channel amplifies rounding without bound.
    if var_.iter().any(|&v| v < 1e-2) {
        return;
    }
    let mut before = reference::batch_norm(&z, &gamma.data, &beta.data);
    let residual = case.random("residual", before.dims);
    if case.residual {
        add(&mut before, &residual);
    }
    let (dy, masked) = cotangents(case, &before);
    let (dz, dgamma, dbeta) = reference::batch_norm_backward(&z, &gamma.data, &masked);
    let (dx, dw) = reference::conv_backward(&x, &weight, &dz, case.config);

    let vr = var(&residual);
    let r = case.residual.then(|| case.view(&vr));
    let y = train.convolution((&layer).into(), &case.view(&vx), r.as_ref(), case.activation()).unwrap();
    let y = to_images(&y).unwrap();
    assert_close("y", &y, &relu(case, &before));
    let moved = |old: f64, new: f64| 0.9 * old + 0.1 * new;
    let expected: Vec<f64> = beta.data.iter().zip(&mean).map(|(&b, &m)| moved(b, m)).collect();
    assert_close("running mean", layer.bn().running_mean(), &expected);
    let unbiased = |v: f64| v * count / (count - 1.0);
    let expected: Vec<f64> = gamma.data.iter().zip(&var_).map(|(g, &v)| moved(g.abs(), unbiased(v))).collect();
    assert_close("running var", layer.bn().running_var(), &expected);

    let grads = (y * tensor(&dy)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("dx", grads.get(&vx).unwrap(), &dx.data);
    // Batch norm undoes the scale of its filter, so that along it the gradient is all cancellation.
    let absolute = |images: &Images| Images { data: images.data.iter().map(|v| v.abs()).collect(), ..images.clone() };
    let (_, sizes) = reference::conv_backward(&absolute(&x), &weight, &absolute(&dz), case.config);
    assert_close_sum("dw", grads.get(layer.conv().weight()).unwrap(), &dw.data, &sizes.data);
    assert_close("dgamma", grads.get(layer.bn().weight()).unwrap(), &dgamma);
    assert_close("dbeta", grads.get(layer.bn().bias()).unwrap(), &dbeta);
    if case.residual {
        assert_close("dr", grads.get(&vr).unwrap(), &masked.data);
    }

    // With running statistics, training and inference compute the same.
    let mut running = Train { batch_norm: BatchNormMode::Running };
    let state = values(layer.bn().running_mean());
    let a = running.convolution((&layer).into(), &case.view(&vx), r.as_ref(), case.activation()).unwrap();
    let b = Eval.convolution((&layer).into(), &case.view(&vx), r.as_ref(), case.activation()).unwrap();
    assert_close("running", &to_images(&a).unwrap(), &values(&to_images(&b).unwrap()));
    assert_eq!(values(layer.bn().running_mean()), state);
    let grads = a.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(layer.conv().weight()).is_some() && grads.get(layer.bn().weight()).is_some());
}

fn check_max_pool(case: &Case) {
    let kernel = case.weight[2];
    let padding = match case.config.padding {
        Padding::Symmetric(each) => Padding::from(each.min(kernel / 2)),
        Padding::Same => Padding::Same,
    };
    let [b, c, h, w] = case.x;
    let dims = [b, c, h.max(kernel), w.max(kernel)];
    let mut x = case.random("x", dims);
    // Few distinct values, so that there are ties.
    x.data.iter_mut().for_each(|v| *v = (*v * 3.0).round());
    let (y, winners) = reference::max_pool(&x, kernel, case.config.stride, padding);
    let dy = case.random("dy", y.dims);
    let mut dx = Images::zeros(dims);
    winners.iter().zip(&dy.data).for_each(|(&i, dy)| dx.data[i] += dy);
    let vx = var(&x);
    let found = max_pool2d(&case.view(&vx), kernel, case.config.stride, padding).unwrap();
    let found = to_images(&found).unwrap();
    assert_close("y", &found, &y.data);
    let grads = (found * tensor(&dy)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("dx", grads.get(&vx).unwrap(), &dx.data);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_agrees_with_plain_loops(case in case()) {
        case.run(|| check_convolution(&case));
    }

    #[test]
    fn batch_norm_agrees_with_plain_loops(case in case()) {
        case.run(|| check_batch_norm(&case));
    }

    #[test]
    fn max_pool_agrees_with_plain_loops(case in case()) {
        case.run(|| check_max_pool(&case));
    }
}

/// Depths and channel counts beyond one block or panel of the kernels.
#[test]
fn many_channels_agree_with_plain_loops() {
    for (c, o, k) in [(70, 13, 3), (600, 3, 1), (3, 20, 7)] {
        let case = Case {
            x: [18, c, 7, 6],
            weight: [o, c, k, k],
            config: Config { stride: 2, padding: (k / 2).into(), dilation: 1, groups: 1 },
            relu: true,
            residual: true,
            portable: false,
            strided: false,
            internal: true,
            seed: 1,
        };
        check_convolution(&case);
        check_batch_norm(&case);
    }
}

/// A mean far from 0 must not drown the variance.
#[test]
fn variance_is_exact_far_from_zero() {
    let case = Case {
        x: [20, 1, 9, 9],
        weight: [1, 1, 1, 1],
        config: Config { stride: 1, padding: 0.into(), dilation: 1, groups: 1 },
        relu: false,
        residual: false,
        portable: false,
        strided: false,
        internal: true,
        seed: 5,
    };
    let one = |v: f64| Images { dims: [1; 4], data: vec![v] };
    let layer = layer(&case, &one(1.0), &one(1.0), &one(0.0));
    let mut x = case.random("x", case.x);
    x.data.iter_mut().for_each(|v| *v = f64::from((*v + 1000.0) as f32));
    Train::default().convolution((&layer).into(), &tensor(&x), None, Activation::None).unwrap();
    let (mean, var) = reference::moments(&x);
    let count = x.data.len() as f64;
    assert_close("running mean", layer.bn().running_mean(), &[0.1 * mean[0]]);
    assert_close("running var", layer.bn().running_var(), &[0.9 + 0.1 * var[0] * count / (count - 1.0)]);
}

#[test]
fn relu_has_no_gradient_at_zero() {
    for portable in [false, true] {
        let check = || {
            let x = Var::new(&[[[[0f32, 1.0, -1.0]]]], &Device::Cpu).unwrap();
            let (one, zero) = (Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap(), [0f32]);
            let zero = Tensor::new(&zero, &Device::Cpu).unwrap();
            let y = conv2d(&x, &one, &zero, &ConvConfig::default(), None, Activation::Relu).unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(values(grads.get(&x).unwrap()), [0.0, 1.0, 0.0]);
        };
        if portable { with_portable_path(check) } else { check() }
    }
}

#[test]
fn impossible_convolutions_are_errors() {
    let x = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let residual = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    for weight in [[4, 3, 5, 1], [4, 2, 1, 1]] {
        let weight = Tensor::zeros(&weight, DType::F32, &Device::Cpu).unwrap();
        let config = ConvConfig::default();
        assert!(conv2d_inference(&x, &weight, None, &config, None, Activation::None).is_err());
    }
    let weight = Tensor::zeros((4, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let config = ConvConfig::default();
    assert!(conv2d_inference(&x, &weight, None, &config, Some(&residual), Activation::None).is_err());
    assert!(max_pool2d(&x, 9, 1, 0).is_err());
}
