//! What generators are made of: the transposed convolution and bilinear enlargement.

use candle_core::{Device, Tensor, Var};
use lmr_nn::{conv_transpose2d, to_internal, upsample2d};
use rstest::rstest;

use super::more::{check_differences, gradients, random, run};
use super::{assert_close, values};

/// The definition: every input pixel adds the kernel, scaled, to the output.
fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Vec<f64> {
    let (b, c, h, w) = x.dims4().unwrap();
    let o = weight.dims()[1];
    let (x, weight, bias) = (values(x), values(weight), values(bias));
    let mut y = vec![0.0; b * o * 4 * h * w];
    for (at, y) in y.iter_mut().enumerate() {
        *y = bias[at / (4 * h * w) % o];
    }
    for (i, value) in x.iter().enumerate() {
        let (image, channel, row, column) = (i / (c * h * w), i / (h * w) % c, i / w % h, i % w);
        for (out, ky, kx) in (0..o * 16).map(|k| (k / 16, k / 4 % 4, k % 4)) {
            // Padding 1 cuts a pixel off on every side.
            let (y_row, y_column) = ((2 * row + ky).checked_sub(1), (2 * column + kx).checked_sub(1));
            if let (Some(y_row), Some(y_column)) = (y_row.filter(|r| *r < 2 * h), y_column.filter(|c| *c < 2 * w)) {
                let to = ((image * o + out) * 2 * h + y_row) * 2 * w + y_column;
                y[to] += value * weight[((channel * o + out) * 4 + ky) * 4 + kx];
            }
        }
    }
    y
}

#[rstest]
fn transposed_convolution_agrees_with_plain_loops(#[values(false, true)] portable: bool) {
    run(portable, || {
        for (seed, dims, outputs) in [(0, [2, 3, 4, 5], 2), (1, [3, 16, 2, 2], 8), (2, [1, 1, 1, 3], 1)] {
            let x = Var::from_tensor(&random(seed, "x", &dims)).unwrap();
            let weight = Var::from_tensor(&random(seed, "w", &[dims[1], outputs, 4, 4])).unwrap();
            let bias = Var::from_tensor(&random(seed, "b", &[outputs])).unwrap();
            let y = conv_transpose2d(&to_internal(&x).unwrap(), &weight, &bias).unwrap();
            assert_eq!(y.dims(), [dims[0], outputs, 2 * dims[2], 2 * dims[3]]);
            assert_close("y", &y, &reference(&x, &weight, &bias));
            // It is linear, so a gradient is what a unit change does.
            let dy = random(seed, "dy", y.dims());
            let grads = gradients(&y, &dy);
            for var in [&x, &weight, &bias] {
                let found = values(grads.get(var).unwrap());
                let scale = found.iter().fold(1f64, |m, v| m.max(v.abs()));
                for at in (0..found.len()).step_by(found.len().div_ceil(7)) {
                    let mut unit = vec![0f32; found.len()];
                    unit[at] = 1.0;
                    let unit = Tensor::from_vec(unit, var.shape(), &Device::Cpu).unwrap();
                    let zeros = |v: &Var| v.as_tensor().zeros_like().unwrap();
                    let input = |v: &Var, other: &Tensor| if v.id() == var.id() { unit.clone() } else { other.clone() };
                    let (moved, still) = match var.id() == bias.id() {
                        true => (reference(&zeros(&x), &weight, &unit), reference(&zeros(&x), &weight, &zeros(&bias))),
                        false => (
                            reference(&input(&x, &x), &input(&weight, &weight), &zeros(&bias)),
                            vec![0.0; y.elem_count()],
                        ),
                    };
                    let slope: f64 =
                        values(&dy).iter().zip(moved.iter().zip(&still)).map(|(dy, (m, s))| dy * (m - s)).sum();
                    assert!((found[at] - slope).abs() < 2e-5 * scale, "[{at}]: {} against {slope}", found[at]);
                }
            }
        }
    });
}

/// Values by PyTorch 2.15's bilinear `interpolate` without aligned corners.
#[rstest]
fn enlargement_follows_pytorch(#[values(false, true)] portable: bool) {
    let x = Tensor::new(&[[[[1f32, 2., 4.], [0., 3., 5.]]]], &Device::Cpu).unwrap();
    let expected = [
        1.0, 1.25, 1.75, 2.5, 3.5, 4.0, 0.75, 1.125, 1.875, 2.75, 3.75, 4.25, 0.25, 0.875, 2.125, 3.25, 4.25, 4.75,
        0.0, 0.75, 2.25, 3.5, 4.5, 5.0,
    ];
    run(portable, || {
        let x = Var::from_tensor(&x).unwrap();
        let y = upsample2d(&x).unwrap();
        assert_close("y", &y, &expected);
        let dy = random(0, "dy", y.dims());
        let found = values(gradients(&y, &dy).get(&x).unwrap());
        for at in 0..6 {
            let mut unit = vec![0f32; 6];
            unit[at] = 1.0;
            let unit = Tensor::from_vec(unit, (1, 1, 2, 3), &Device::Cpu).unwrap();
            let slope: f64 = values(&(upsample2d(&unit).unwrap() * &dy).unwrap()).iter().sum();
            assert!((found[at] - slope).abs() < 1e-5, "[{at}]: {} against {slope}", found[at]);
        }
    });
}

#[test]
fn gradients_agree_with_differences() {
    let x = random(1, "x", &[2, 3, 3, 2]);
    check_differences(|t| upsample2d(&t[0]).unwrap(), std::slice::from_ref(&x));
    let (w, b) = (random(1, "w", &[3, 2, 4, 4]), random(1, "b", &[2]));
    check_differences(|t| conv_transpose2d(&t[0], &t[1], &t[2]).unwrap(), &[x, w, b]);
}
