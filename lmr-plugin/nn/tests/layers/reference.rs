//! Layers as plain loops in f64.

use lmr_nn::Padding;

/// `[B,C,H,W]`, row-major.
#[derive(Clone, Debug)]
pub struct Images {
    pub dims: [usize; 4],
    pub data: Vec<f64>,
}

impl Images {
    pub fn zeros(dims: [usize; 4]) -> Self {
        Self { dims, data: vec![0.0; dims.iter().product()] }
    }

    pub fn at(&self, [b, c, y, x]: [usize; 4]) -> usize {
        let [_, cs, h, w] = self.dims;
        ((b * cs + c) * h + y) * w + x
    }

    /// Every index in order.
    pub fn indices(&self) -> impl Iterator<Item = [usize; 4]> + use<> {
        let [bs, cs, h, w] = self.dims;
        (0..bs * cs * h * w).map(move |i| [i / (cs * h * w), i / (h * w) % cs, i / w % h, i % w])
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub stride: usize,
    pub padding: Padding,
    pub dilation: usize,
    pub groups: usize,
}

/// Positions before an image and around it, from TensorFlow's documentation of `SAME`.
fn around(padding: Padding, size: usize, extent: usize, stride: usize) -> (usize, usize) {
    match padding {
        Padding::Symmetric(each) => (each, 2 * each),
        Padding::Same => {
            let total = extent.saturating_sub(if size.is_multiple_of(stride) { stride } else { size % stride });
            (total / 2, total)
        }
    }
}

/// All `(x, weight, y)` element triples that a convolution multiplies and adds.
fn products(x: &Images, weight: &Images, y: &Images, config: Config, mut f: impl FnMut(usize, usize, usize)) {
    let [_, c_group, kh, kw] = weight.dims;
    let o_group = y.dims[1] / config.groups;
    for [b, o, oy, ox] in y.indices() {
        for i in 0..c_group {
            for ky in 0..kh {
                for kx in 0..kw {
                    let before = |size, k| around(config.padding, size, config.dilation * (k - 1) + 1, config.stride).0;
                    let iy = (oy * config.stride + ky * config.dilation).checked_sub(before(x.dims[2], kh));
                    let ix = (ox * config.stride + kx * config.dilation).checked_sub(before(x.dims[3], kw));
                    if let (Some(iy), Some(ix)) = (iy.filter(|&v| v < x.dims[2]), ix.filter(|&v| v < x.dims[3])) {
                        let c = o / o_group * c_group + i;
                        f(x.at([b, c, iy, ix]), weight.at([o, i, ky, kx]), y.at([b, o, oy, ox]));
                    }
                }
            }
        }
    }
}

pub fn conv(x: &Images, weight: &Images, config: Config) -> Images {
    let [b, _, h, w] = x.dims;
    let [o, _, kh, kw] = weight.dims;
    let out = |size: usize, k: usize| {
        let extent = config.dilation * (k - 1) + 1;
        (size + around(config.padding, size, extent, config.stride).1 - extent) / config.stride + 1
    };
    let mut y = Images::zeros([b, o, out(h, kh), out(w, kw)]);
    let empty = y.clone();
    products(x, weight, &empty, config, |i, j, k| y.data[k] += x.data[i] * weight.data[j]);
    y
}

/// Gradients with respect to input and weight.
pub fn conv_backward(x: &Images, weight: &Images, dy: &Images, config: Config) -> (Images, Images) {
    let (mut dx, mut dw) = (Images::zeros(x.dims), Images::zeros(weight.dims));
    products(x, weight, dy, config, |i, j, k| {
        dx.data[i] += weight.data[j] * dy.data[k];
        dw.data[j] += x.data[i] * dy.data[k];
    });
    (dx, dw)
}

/// Mean and biased variance per channel.
pub fn moments(z: &Images) -> (Vec<f64>, Vec<f64>) {
    let channels = z.dims[1];
    let count = (z.data.len() / channels) as f64;
    let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
    for at in z.indices() {
        mean[at[1]] += z.data[z.at(at)] / count;
    }
    for at in z.indices() {
        var[at[1]] += (z.data[z.at(at)] - mean[at[1]]).powi(2) / count;
    }
    (mean, var)
}

/// Batch norm by the batch's statistics.
pub fn batch_norm(z: &Images, gamma: &[f64], beta: &[f64]) -> Images {
    let (mean, var) = moments(z);
    let mut y = z.clone();
    for at in z.indices() {
        let c = at[1];
        y.data[z.at(at)] = (z.data[z.at(at)] - mean[c]) / (var[c] + 1e-5).sqrt() * gamma[c] + beta[c];
    }
    y
}

/// Gradients with respect to input, gamma and beta.
pub fn batch_norm_backward(z: &Images, gamma: &[f64], dy: &Images) -> (Images, Vec<f64>, Vec<f64>) {
    let (mean, var) = moments(z);
    let channels = z.dims[1];
    let count = (z.data.len() / channels) as f64;
    let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
    let normal = |at: [usize; 4]| (z.data[z.at(at)] - mean[at[1]]) / (var[at[1]] + 1e-5).sqrt();
    for at in z.indices() {
        dgamma[at[1]] += dy.data[z.at(at)] * normal(at);
        dbeta[at[1]] += dy.data[z.at(at)];
    }
    let mut dz = z.clone();
    for at in z.indices() {
        let c = at[1];
        let centred = dy.data[z.at(at)] - (dbeta[c] + normal(at) * dgamma[c]) / count;
        dz.data[z.at(at)] = centred * gamma[c] / (var[c] + 1e-5).sqrt();
    }
    (dz, dgamma, dbeta)
}

/// The maxima, and for each the input element that is the first maximum of its window.
pub fn max_pool(x: &Images, kernel: usize, stride: usize, padding: Padding) -> (Images, Vec<usize>) {
    let [b, c, h, w] = x.dims;
    let out = |size: usize| (size + around(padding, size, kernel, stride).1 - kernel) / stride + 1;
    let before = |size: usize| around(padding, size, kernel, stride).0;
    let mut y = Images::zeros([b, c, out(h), out(w)]);
    let mut winners = Vec::new();
    for at in y.indices() {
        let mut best: Option<usize> = None;
        for tap in 0..kernel * kernel {
            let iy = (at[2] * stride + tap / kernel).checked_sub(before(h)).filter(|&v| v < h);
            let ix = (at[3] * stride + tap % kernel).checked_sub(before(w)).filter(|&v| v < w);
            if let (Some(iy), Some(ix)) = (iy, ix) {
                let i = x.at([at[0], at[1], iy, ix]);
                if best.is_none_or(|best| x.data[i] > x.data[best]) {
                    best = Some(i);
                }
            }
        }
        let best = best.unwrap();
        let k = y.at(at);
        y.data[k] = x.data[best];
        winners.push(best);
    }
    (y, winners)
}
