//! The kernels against plain sums.

use proptest::prelude::*;

use super::*;
use crate::layers::Activation;
use crate::padding::Padding;

/// What the layers should give, from the definition: exact sums, then the one formula.
struct Reference<'a> {
    x: &'a [u8],
    dims: [usize; 4],
    zero: u8,
    weight: &'a [i8],
    shape: [usize; 4],
    config: ConvConfig,
}

impl Reference<'_> {
    /// `[B,H,W,O]`.
    fn sums(&self) -> Vec<i32> {
        let ([b, h, w, c], [o, per_group, kh, kw]) = (self.dims, self.shape);
        let ConvConfig { stride, padding, dilation, groups } = self.config;
        let extent = |k: usize| dilation * (k - 1) + 1;
        let size = |size: usize, k: usize| padding.outputs(size, extent(k), stride).unwrap();
        let (oh, ow) = (size(h, kh), size(w, kw));
        let mut sums = Vec::new();
        for at in 0..b * oh * ow * o {
            let (out, ox, oy, image) = (at % o, at / o % ow, at / o / ow % oh, at / o / ow / oh);
            let mut sum = 0i64;
            for tap in 0..per_group * kh * kw {
                let (kx, ky, k) = (tap % kw, tap / kw % kh, tap / kw / kh);
                let channel = out / (o / groups) * per_group + k;
                let source = |o: usize, k: usize, size: usize, taps: usize| {
                    let (before, _) = padding.around(size, extent(taps), stride);
                    (o * stride + k * dilation).checked_sub(before).filter(|&i| i < size)
                };
                if let (Some(y), Some(x)) = (source(oy, ky, h, kh), source(ox, kx, w, kw)) {
                    let code = self.x[((image * h + y) * w + x) * c + channel];
                    sum += (i64::from(code) - i64::from(self.zero))
                        * i64::from(self.weight[out * per_group * kh * kw + tap]);
                }
            }
            sums.push(i32::try_from(sum).unwrap());
        }
        sums
    }
}

fn affine(scale: f64, zero: u8) -> Affine {
    let zero = f64::from(zero);
    Affine::of(&crate::Grid { scale, low: -zero, high: 255.0 - zero }).unwrap()
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Relu6), Just(Activation::Gelu)]
}

#[derive(Debug)]
struct Case {
    dims: [usize; 4],
    shape: [usize; 4],
    config: ConvConfig,
    x: Vec<u8>,
    residual: Vec<u8>,
    weight: Vec<i8>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    zero: u8,
    activation: Activation,
}

/// Odd sizes, every combination of stride, padding and dilation, weights of 2 to 8 bits.
fn cases(depthwise: bool) -> impl Strategy<Value = Case> {
    // Several small images in a task, several tasks for an image, and rows.
    let small = (1usize..4, 1usize..12, 1usize..12, 1usize..40, 1usize..150, 1usize..5, 1usize..5);
    let large = (1usize..3, 20usize..50, 20usize..50, 1usize..5, 1usize..20, 1usize..5, 1usize..5);
    let rows = (1usize..600, 1usize..2, 1usize..2, 1usize..70, 1usize..40, 1usize..2, 1usize..2);
    let sizes = prop_oneof![small, large, rows];
    let padding = prop_oneof![3 => (0usize..4).prop_map(Padding::from), 1 => Just(Padding::Same)];
    let moves = (1usize..4, padding, 1usize..3, 2u32..=8, any::<u8>(), any::<bool>(), activations(), any::<u64>());
    (sizes, moves).prop_map(
        move |((b, h, w, c, o, kh, kw), (stride, padding, dilation, bits, zero, each, activation, seed))| {
            // Small enough to be seen whole by the kernel: grow images that are not.
            let (h, w) = (h.max(dilation * (kh - 1) + 1), w.max(dilation * (kw - 1) + 1));
            let (o, groups, per_group) = if depthwise { (c, c, 1) } else { (o, 1, c) };
            let config = ConvConfig { stride, padding, dilation, groups };
            let size = |size: usize, k: usize| padding.outputs(size, dilation * (k - 1) + 1, stride).unwrap();
            let outputs = b * size(h, kh) * size(w, kw) * o;
            let mut rng = crate::rng::stream(seed, "codes");
            let mut random = |n: usize| -> Vec<u32> { (0..n).map(|_| rand::RngExt::random(&mut rng)).collect() };
            let half = 1i32 << (bits - 1);
            Case {
                dims: [b, h, w, c],
                shape: [o, per_group, kh, kw],
                config,
                x: random(b * h * w * c).into_iter().map(|v| v as u8).collect(),
                residual: random(outputs).into_iter().map(|v| v as u8).collect(),
                weight: random(o * per_group * kh * kw)
                    .into_iter()
                    .map(|v| (v as i32).rem_euclid(2 * half) - half)
                    .map(|v| v as i8)
                    .collect(),
                scale: random(if each { o } else { 1 }).into_iter().map(|v| 1e-4 + v as f32 * 1e-13).collect(),
                bias: random(o).into_iter().map(|v| v as f32 * 1e-9 - 2.0).collect(),
                zero,
                activation,
            }
        },
    )
}

impl Case {
    fn reference(&self) -> Vec<i32> {
        let &Self { dims, zero, shape, config, .. } = self;
        Reference { x: &self.x, dims, zero, weight: &self.weight, shape, config }.sums()
    }

    fn images(&self) -> Images<'_> {
        Images::new(&self.x, self.dims).unwrap()
    }

    fn channels(&self) -> Channels {
        Channels::new(&self.scale, 0.03, &self.bias)
    }

    /// The definition of [`Real`].
    fn real(&self) -> Vec<f32> {
        let o = self.shape[0];
        let value = |(at, sum): (usize, i32)| {
            let scale = if self.scale.len() == 1 { self.scale[0] } else { self.scale[at % o] };
            sum as f32 * (f64::from(scale) * f64::from(0.03f32)) as f32 + self.bias[at % o]
        };
        self.reference().into_iter().enumerate().map(value).collect()
    }

    /// The definition of [`Rounded`].
    fn rounded(&self, (to, from, last): (Affine, Affine, Affine), with_residual: bool) -> Vec<u8> {
        let activate = |v: f32| finish::activate([v; LANES], self.activation, 1)[0];
        let values = self.real().into_iter().zip(&self.residual);
        let code = |(v, r): (f32, &u8)| match with_residual {
            true => last.code(activate(to.value(to.code(v)) + from.value(*r))),
            false => to.code(activate(v)),
        };
        values.map(code).collect()
    }

    fn finish(&self, (to, from, last): (Affine, Affine, Affine), with_residual: bool) -> Rounded<'_> {
        let residual = with_residual.then_some(Residual { codes: &self.residual, from, to: last });
        Rounded { channels: self.channels(), activation: self.activation, to, residual }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Every kernel gives what the definition does, to the bit.
    #[test]
    fn dense_kernels_are_exact(case in cases(false), with_residual: bool) {
        let dense = Dense::new(&case.weight, case.shape, case.config).unwrap();
        let points = (affine(0.02, 100), affine(0.03, 7), affine(0.04, 30));
        for kernel in Kernel::available() {
            let real = dense.run(kernel, case.images(), case.zero, &Real(case.channels())).unwrap();
            prop_assert_eq!(&real, &case.real());
            let codes = dense.run(kernel, case.images(), case.zero, &case.finish(points, with_residual)).unwrap();
            prop_assert_eq!(&codes, &case.rounded(points, with_residual));
        }
    }

    #[test]
    fn depthwise_kernels_are_exact(case in cases(true), with_residual: bool) {
        let layer = Depthwise::new(&case.weight, case.shape, case.config).unwrap();
        let points = (affine(0.02, 100), affine(0.03, 7), affine(0.04, 30));
        for kernel in Kernel::available() {
            let real = layer.run(kernel, case.images(), case.zero, &Real(case.channels())).unwrap();
            prop_assert_eq!(&real, &case.real());
            let codes = layer.run(kernel, case.images(), case.zero, &case.finish(points, with_residual)).unwrap();
            prop_assert_eq!(&codes, &case.rounded(points, with_residual));
        }
    }
}
