//! Pooling by averages, activations, batch norm of its own, and the layers of a transformer.

use candle_core::{DType, Device, Tensor, Var};
use lmr_nn::rng;
use lmr_nn::{
    Activation, BatchNorm2d, BatchNormMode, Builder, Conv2d, ConvBn, ConvConfig, ConvSpec, Eval, Forward, Layer, Node,
    Padding, StateDict, Train, Trunk, adaptive_avg_pool2d, attend, avg_pool2d, conv2d, conv2d_inference, layer_norm,
    linear, to_images, to_internal, with_portable_path,
};
use proptest::prelude::*;
use rand::RngExt;

use super::reference::{self, Config, Images};
use super::{assert_close, tensor, tensor_images, values, var, vector};

pub fn random(seed: u64, purpose: &str, dims: &[usize]) -> Tensor {
    let mut rng = rng::stream(seed, purpose);
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

fn random_images(seed: u64, purpose: &str, dims: [usize; 4]) -> Images {
    tensor_images(&random(seed, purpose, &dims))
}

/// The same values behind other strides.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    x.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap()
}

/// The tensor's gradient in the sum of `y · dy`.
pub fn gradients(y: &Tensor, dy: &Tensor) -> candle_core::backprop::GradStore {
    (y * dy).unwrap().sum_all().unwrap().backward().unwrap()
}

/// Compares the gradient of every input of `f` with differences of its values, in f64 on the portable path.
pub fn check_differences(f: impl Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&wide(t)).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors);
    let dy = wide(&random(7, "dy", y.dims()));
    let grads = gradients(&y, &dy);
    let total = |inputs: &[Tensor]| (f(inputs) * &dy).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let found = values(grads.get(var).unwrap());
        let base = values(var);
        for at in (0..base.len()).step_by(base.len().div_ceil(12)) {
            let shifted = |by: f64| {
                let mut moved = base.clone();
                moved[at] += by;
                let mut inputs: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor()).collect();
                inputs[i] = Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap();
                total(&inputs)
            };
            let step = 1e-5;
            let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
            // Candle's constant in the slope of GELU has six digits.
            assert!(
                (found[at] - slope).abs() < 3e-6 * (1.0 + slope.abs()),
                "input {i}[{at}]: {} against {slope}",
                found[at]
            );
        }
    }
}

#[test]
fn portable_gradients_agree_with_differences() {
    let x = random(1, "x", &[2, 3, 6]);
    let (w, b) = (random(1, "w", &[12, 6]), random(1, "b", &[12]));
    for activation in [Activation::None, Activation::Relu, Activation::Relu6, Activation::Gelu] {
        let f = |t: &[Tensor]| linear(&(&t[0] * 4.0).unwrap(), &t[1], Some(&t[2]), activation).unwrap();
        check_differences(f, &[x.clone(), w.clone(), b.clone()]);
    }
    let (gamma, beta) = (random(1, "gamma", &[6]), random(1, "beta", &[6]));
    check_differences(|t| layer_norm(&t[0], &t[1], &t[2], 1e-6).unwrap(), &[x.clone(), gamma, beta]);
    check_differences(|t| attend(&t[0], 2).unwrap(), &[random(1, "qkv", &[2, 5, 12])]);
    let images = random(1, "images", &[2, 2, 7, 5]);
    check_differences(|t| avg_pool2d(&t[0], 3, 2, 1).unwrap(), std::slice::from_ref(&images));
    check_differences(|t| adaptive_avg_pool2d(&t[0], (3, 2)).unwrap(), &[images]);
}

/// Plain averages: `window(o)` are the inputs of an output coordinate, padding included, and their share.
fn reference_average(x: &Images, size: (usize, usize), window: impl Fn(usize, usize) -> (Vec<isize>, f64)) -> Images {
    let [b, c, h, w] = x.dims;
    let mut y = Images::zeros([b, c, size.0, size.1]);
    for at in y.indices() {
        let ((rows, a), (columns, b)) = (window(0, at[2]), window(1, at[3]));
        let k = y.at(at);
        for &iy in rows.iter().filter(|&&i| i >= 0 && (i as usize) < h) {
            for &ix in columns.iter().filter(|&&i| i >= 0 && (i as usize) < w) {
                y.data[k] += x.data[x.at([at[0], at[1], iy as usize, ix as usize])] * a * b;
            }
        }
    }
    y
}

pub fn run(portable: bool, f: impl FnOnce()) {
    if portable { with_portable_path(f) } else { f() }
}

fn batch_norm_of(channels: usize, seed: u64) -> BatchNorm2d {
    let names = ["weight", "bias", "running_mean", "running_var"];
    let entry = |name: &str| {
        let values = random(seed, name, &[channels]);
        (format!("n.{name}"), if name == "running_var" { values.abs().unwrap() } else { values })
    };
    let state: StateDict = names.into_iter().map(entry).collect();
    BatchNorm2d::new(channels, &Builder::from_state(state, &Device::Cpu).pp("n")).unwrap()
}

const ACTIVATIONS: [Activation; 4] = [Activation::None, Activation::Relu, Activation::Relu6, Activation::Gelu];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn average_pooling_agrees_with_plain_loops(
        (b, c, h, w) in (1usize..20, 1usize..4, 3usize..9, 3usize..9),
        (kernel, stride, padding) in (1usize..4, 1usize..4, 0usize..2),
        size in (1usize..9, 1usize..9),
        [portable, internal, adaptive, turned]: [bool; 4],
        seed: u64,
    ) {
        run(portable, || {
            let x = random_images(seed, "x", [b, c, h, w]);
            let padding = padding.min(kernel / 2);
            let vx = var(&x);
            let view = if turned { strided(&vx) } else { vx.as_tensor().clone() };
            let view = if internal { to_internal(&view).unwrap() } else { view };
            let (y, expected) = if adaptive {
                let bounds = |axis: usize, o: usize| {
                    let (from, to) = if axis == 0 { (h, size.0) } else { (w, size.1) };
                    let (begin, end) = (o * from / to, ((o + 1) * from).div_ceil(to));
                    ((begin as isize..end as isize).collect(), 1.0 / (end - begin) as f64)
                };
                (adaptive_avg_pool2d(&view, size).unwrap(), reference_average(&x, size, bounds))
            } else {
                let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
                let bounds = |_: usize, o: usize| {
                    let begin = (o * stride) as isize - padding as isize;
                    ((begin..begin + kernel as isize).collect(), 1.0 / kernel as f64)
                };
                let expected = reference_average(&x, (out(h), out(w)), bounds);
                (avg_pool2d(&view, kernel, stride, padding).unwrap(), expected)
            };
            let y = to_images(&y).unwrap();
            assert_eq!(y.dims(), expected.dims);
            assert_close("y", &y, &expected.data);
            // Averages are linear, so the gradient's inner product with the input is that of the outputs.
            let dy = random(seed, "dy", y.dims());
            let grads = gradients(&y, &dy);
            let sum = |a: &Tensor, b: &Tensor| values(&(a * b).unwrap()).iter().sum::<f64>();
            let (inner, outer) = (sum(grads.get(&vx).unwrap(), &vx), sum(&y.detach(), &dy));
            assert!((inner - outer).abs() < 1e-3 * (1.0 + outer.abs()), "{inner} against {outer}");
        });
    }

    #[test]
    fn depthwise_convolution_agrees_with_plain_loops(
        (b, c, h, w) in (prop_oneof![1usize..6, 14usize..20, Just(33)], 1usize..7, 3usize..9, 3usize..9),
        (kernel, stride, dilation) in (1usize..4, 1usize..4, 1usize..3),
        [bias, relu, internal, same]: [bool; 4],
        seed: u64,
    ) {
        let padding = if same { Padding::Same } else { (kernel / 2 * dilation).into() };
        let config = Config { stride, padding, dilation, groups: c };
        let (x, weight) = (random_images(seed, "x", [b, c, h, w]), random_images(seed, "w", [c, 1, kernel, kernel]));
        let shift = random_images(seed, "b", [1, c, 1, 1]);
        let (vx, vw, vb) = (var(&x), var(&weight), vector(&shift));
        let mut y = reference::conv(&x, &weight, config);
        if bias {
            y.indices().for_each(|at| { let i = y.at(at); y.data[i] += shift.data[at[1]]; });
        }
        let view = if internal { to_internal(&vx).unwrap() } else { vx.as_tensor().clone() };
        let ours = ConvConfig { stride, padding: config.padding, dilation, groups: c };
        let activation = if relu { Activation::Relu } else { Activation::None };
        let expected: Vec<f64> = y.data.iter().map(|&v| if relu { v.max(0.0) } else { v }).collect();
        let found = conv2d_inference(&view, &vw, bias.then_some(vb.as_tensor()), &ours, None, activation).unwrap();
        assert_close("inference", &to_images(&found).unwrap(), &expected);
        let zeros = vb.zeros_like().unwrap();
        let shift = if bias { vb.as_tensor() } else { &zeros };
        let found = to_images(&conv2d(&view, &vw, shift, &ours, None, Activation::None).unwrap()).unwrap();
        assert_close("y", &found, &y.data);
        let dy = random_images(seed, "dy", y.dims);
        let (dx, dw) = reference::conv_backward(&x, &weight, &dy, config);
        let grads = gradients(&found, &tensor(&dy));
        assert_close("dx", grads.get(&vx).unwrap(), &dx.data);
        assert_close("dw", grads.get(&vw).unwrap(), &dw.data);
    }

    #[test]
    fn batch_norm_alone_agrees_with_plain_loops(
        (b, c, h, w) in (2usize..20, 1usize..5, 1usize..6, 1usize..6),
        [portable, internal]: [bool; 2],
        which in 0usize..3,
        seed: u64,
    ) {
        run(portable, || {
            let x = random_images(seed, "x", [b, c, h, w]);
            if reference::moments(&x).1.iter().any(|&v| v < 1e-2) {
                return;
            }
            let (activation, bn) = (ACTIVATIONS[which], batch_norm_of(c, seed));
            let (gamma, beta) = (values(bn.weight()), values(bn.bias()));
            let y = reference::batch_norm(&x, &gamma, &beta);
            let vx = var(&x);
            let view = if internal { to_internal(&vx).unwrap() } else { vx.as_tensor().clone() };
            let found = Train { batch_norm: BatchNormMode::Batch }.batch_norm(&bn, &view, activation).unwrap();
            let found = to_images(&found).unwrap();
            let cut = |v: f64| match activation {
                Activation::Relu => v.max(0.0),
                Activation::Relu6 => v.clamp(0.0, 6.0),
                _ => v,
            };
            let expected: Vec<f64> = y.data.iter().map(|&v| cut(v)).collect();
            assert_close("y", &found, &expected);
            let mut dy = random_images(seed, "dy", y.dims);
            let mut masked = dy.clone();
            for ((dy, masked), &v) in dy.data.iter_mut().zip(&mut masked.data).zip(&y.data) {
                // No gradient where rounding could switch the activation.
                if which > 0 && v.abs() < 1e-4 {
                    (*dy, *masked) = (0.0, 0.0);
                }
                if cut(v) != v {
                    *masked = 0.0;
                }
            }
            let (dx, dgamma, dbeta) = reference::batch_norm_backward(&x, &gamma, &masked);
            let grads = gradients(&found, &tensor(&dy));
            assert_close("dx", grads.get(&vx).unwrap(), &dx.data);
            assert_close("dgamma", grads.get(bn.weight()).unwrap(), &dgamma);
            assert_close("dbeta", grads.get(bn.bias()).unwrap(), &dbeta);
            // With running statistics, training and inference compute the same.
            let running = Train { batch_norm: BatchNormMode::Running }.batch_norm(&bn, &view, activation).unwrap();
            let inference = Eval.batch_norm(&bn, &view, activation).unwrap();
            assert_close("running", &to_images(&running).unwrap(), &values(&to_images(&inference).unwrap()));
        });
    }

    /// The kernels for tokens against the portable path, whose gradients are checked above.
    #[test]
    fn token_kernels_agree_with_the_portable_path(
        (b, t) in (1usize..9, 1usize..40),
        (heads, depth) in (1usize..4, 1usize..6),
        outputs in 1usize..110,
        [turned, bias]: [bool; 2],
        which in 0usize..4,
        seed: u64,
    ) {
        let d = heads * depth;
        let x = Var::from_tensor(&(random(seed, "x", &[b, t, d]) * 3.0).unwrap()).unwrap();
        let qkv = Var::from_tensor(&(random(seed, "qkv", &[b, t, 3 * d]) * 3.0).unwrap()).unwrap();
        let parameter = |name: &str, dims: &[usize]| Var::from_tensor(&random(seed, name, dims)).unwrap();
        let (weight, shift) = (parameter("w", &[outputs, d]), parameter("b", &[outputs]));
        let (gamma, beta) = (parameter("gamma", &[d]), parameter("beta", &[d]));
        let view = |x: &Tensor| if turned { strided(x) } else { x.clone() };
        let pass = || {
            let ys = [
                linear(&view(&x), &weight, bias.then_some(shift.as_tensor()), ACTIVATIONS[which]).unwrap(),
                layer_norm(&view(&x), &gamma, &beta, 1e-3).unwrap(),
                attend(&view(&qkv), heads).unwrap(),
            ];
            let mut found = Vec::new();
            for (y, vars) in ys.iter().zip([vec![&x, &weight], vec![&x, &gamma, &beta], vec![&qkv]]) {
                // ReLU may switch where rounding decides.
                let dy = random(seed, "dy", y.dims());
                let store = gradients(y, &dy);
                found.push(values(y));
                found.extend(vars.into_iter().map(|var| values(store.get(var).unwrap())));
                if bias && found.len() == 3 {
                    found.push(values(store.get(&shift).unwrap()));
                }
            }
            found
        };
        let (fast, portable) = (pass(), with_portable_path(pass));
        for (i, (fast, portable)) in fast.iter().zip(&portable).enumerate() {
            let scale = portable.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (a, b) in fast.iter().zip(portable) {
                prop_assert!((a - b).abs() <= 3e-5 * scale, "{i}: {a} against {b} (of {scale})");
            }
        }
    }
}

/// Every kind of node, and values that two nodes read, as one operation and one by one on the portable path.
#[test]
fn a_trunk_agrees_with_its_nodes_one_by_one() {
    let build = || {
        let b = Builder::fresh(rng::stream(4, "init"), &Device::Cpu);
        let conv = |from: usize, to: usize, kernel: usize, groups: usize, bias: bool, name: &str| {
            let config = ConvConfig { padding: (kernel / 2).into(), groups, ..ConvConfig::default() };
            let spec = ConvSpec { in_channels: from, out_channels: to, kernel: (kernel, kernel), bias, config };
            Conv2d::new(&spec, &b.pp(name)).unwrap()
        };
        let bn = |channels: usize, name: &str| BatchNorm2d::new(channels, &b.pp(name)).unwrap();
        let node = |layer: Layer, input: usize, residual: Option<usize>, activation: Activation| Node {
            layer,
            input,
            residual,
            activation,
        };
        let conv_bn =
            |conv: Conv2d, name: &str| Layer::ConvBn(ConvBn::new(conv.clone(), bn(conv.out_channels(), name)).unwrap());
        let mut trunk = Trunk::default();
        let stem = trunk.push(Layer::Conv(conv(3, 5, 3, 1, true, "a")), Activation::Relu6);
        trunk.push(conv_bn(conv(5, 20, 1, 1, false, "b"), "b_bn"), Activation::Relu6);
        let filtered = trunk.push(conv_bn(conv(20, 20, 3, 20, false, "c"), "c_bn"), Activation::Relu6);
        let project = conv_bn(conv(20, 5, 1, 1, true, "d"), "d_bn");
        let sum = trunk.push_node(node(project, filtered, Some(stem), Activation::None));
        let normal = trunk.push(Layer::BatchNorm(bn(5, "e")), Activation::Relu);
        let beside = trunk.push_node(node(Layer::Conv(conv(5, 6, 1, 1, false, "f")), normal, None, Activation::None));
        let second = Layer::Conv(conv(5, 6, 3, 1, false, "g"));
        trunk.push_node(node(second, normal, Some(beside), Activation::Relu));
        trunk.push_node(node(conv_bn(conv(5, 6, 3, 1, false, "h"), "h_bn"), sum, Some(beside), Activation::Relu6));
        trunk.push_node(node(conv_bn(conv(6, 6, 1, 1, false, "i"), "i_bn"), 7, Some(8), Activation::Relu));
        trunk.push(Layer::MaxPool(3, 2, Padding::Same), Activation::None);
        (trunk, b.finish().unwrap())
    };
    let x = Var::from_tensor(&random(5, "x", &[18, 3, 9, 8])).unwrap();
    let pass = || {
        let (trunk, params) = build();
        let mut train = Train { batch_norm: BatchNormMode::Batch };
        let input = train.input(&x).unwrap();
        let y = to_images(&train.trunk(&trunk, &input).unwrap()).unwrap();
        let grads = gradients(&y, &random(6, "dy", y.dims()));
        let mut found = vec![("y".to_string(), values(&y)), ("x".to_string(), values(grads.get(&x).unwrap()))];
        found.extend(params.trainable().map(|(name, var)| (name.to_string(), values(grads.get(var).unwrap()))));
        let state = params.state_dict().unwrap().into_iter().filter(|(_, t)| t.dtype().is_float());
        found.extend(state.map(|(name, tensor)| (name, values(&tensor))));
        found
    };
    for ((name, fast), (_, portable)) in pass().iter().zip(&with_portable_path(pass)) {
        let scale = portable.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let distance = fast.iter().zip(portable).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(distance <= 1e-4 * scale, "{name}: {distance} apart, of {scale}");
    }
}

#[test]
fn impossible_pooling_and_attention_are_errors() {
    let images = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
    assert!(avg_pool2d(&images, 5, 1, 0).is_err() && adaptive_avg_pool2d(&images, (0, 1)).is_err());
    let tokens = Tensor::zeros((2, 3, 12), DType::F32, &Device::Cpu).unwrap();
    assert!(attend(&tokens, 0).is_err() && attend(&tokens, 3).is_err());
    let weight = Tensor::zeros((4, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(linear(&tokens, &weight, None, Activation::None).is_err());
}
