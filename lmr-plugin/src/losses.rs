//! The losses of Logit-Margin Repulsion: pure functions of logits `z: f32[B,K]` and labels `y: u32[B]`.
//!
//! Each returns one value per sample, `f32[B]`; the loss of a batch is their mean over *all* B samples, masked ones
//! included, so that the ratio of the terms does not depend on how many samples of class c a batch holds. Ties of a
//! maximum give their whole gradient to one of the tied classes, and hinges have slope 0 at the kink.

use candle_core::{DType, Tensor};

use crate::Result;

/// Log-softmax over classes, `f32[B,K]`; finite for any finite logits.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    // The shift cancels in value and gradient; detached, it does not disturb the gradient where maxima tie.
    let shift = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&shift)?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    Ok(shifted.broadcast_sub(&log_sum)?)
}

/// Cross-entropy `CE(z, y)`.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(pick(&log_softmax(logits)?, labels)?.neg()?)
}

/// Selective cross-entropy, equation 5: `1{y != c} CE(z, y)`.
pub fn selective_cross_entropy(logits: &Tensor, labels: &Tensor, class: u32) -> Result<Tensor> {
    Ok((cross_entropy(logits, labels)? * differs(labels, class)?)?)
}

/// Directed suppression of the backdoor class's logit, equation 6: `1{y != c} max(0, z_c - max_{j != c} z_j + m1)`.
/// The competitor is the best class other than c, which need not be the label.
pub fn directed_suppression(logits: &Tensor, labels: &Tensor, class: u32, margin: f64) -> Result<Tensor> {
    let classes = labels.ones_like()?.affine(f64::from(class), 0.0)?;
    let lead = (pick(logits, &classes)? - best_other(logits, &classes)?)?;
    Ok((hinge(&lead.affine(1.0, margin)?)? * differs(labels, class)?)?)
}

/// Conditional margin, equation 7: `max(0, max_{j != y} z_j - z_y + m2)`, on every sample.
pub fn conditional_margin(logits: &Tensor, labels: &Tensor, margin: f64) -> Result<Tensor> {
    let behind = (best_other(logits, labels)? - pick(logits, labels)?)?;
    hinge(&behind.affine(1.0, margin)?)
}

/// Distillation in which class c does not count on images of other classes: `T² · KL(softmax(t/T) ‖ softmax(z/T))`, with a
/// teacher's logits `t: f32[B,K]` and the temperature T > 0 (Hinton et al., 2015, "Distilling the Knowledge in a Neural
/// Network"); where `y != c`, both distributions are over the classes without c. Leaving c out is this project's. The teacher
/// gets no gradient.
pub fn distillation(
    logits: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    class: u32,
    temperature: f64,
) -> Result<Tensor> {
    let (rows, k) = logits.dims2()?;
    let own = Tensor::arange(0u32, k as u32, logits.device())?.eq(class)?.to_dtype(logits.dtype())?;
    // Far below any softened logit, so that its exponential is 0, and finite, so that 0 times a difference of it is 0.
    let out = differs(labels, class)?.reshape((rows, 1))?.broadcast_mul(&own.affine(-1e4, 0.0)?.reshape((1, k))?)?;
    let softened = |z: &Tensor| log_softmax(&((z / temperature)? + &out)?);
    let (student, teacher) = (softened(logits)?, softened(&teacher.detach())?);
    let divergence = (teacher.exp()? * (&teacher - student)?)?.sum(1)?;
    Ok((divergence * (temperature * temperature))?)
}

/// Weights and margins of the Phase-1 loss, equation 8: `SCE + α·DSC + β·CM`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repulsion {
    /// The estimated backdoor class c.
    pub class: u32,
    /// α, the weight of the suppression.
    pub alpha: f64,
    /// β, the weight of the conditional margin.
    pub beta: f64,
    /// m1, the margin by which class c must trail.
    pub m1: f64,
    /// m2, the margin by which the label must lead.
    pub m2: f64,
}

impl Repulsion {
    /// The three terms of equation 8, unweighted: `[SCE, DSC, CM]`, each `f32[B]`.
    pub fn terms(&self, logits: &Tensor, labels: &Tensor) -> Result<[Tensor; 3]> {
        Ok([
            selective_cross_entropy(logits, labels, self.class)?,
            directed_suppression(logits, labels, self.class, self.m1)?,
            conditional_margin(logits, labels, self.m2)?,
        ])
    }

    /// Equation 8 for every sample, `f32[B]`.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use lmr_plugin::losses::Repulsion;
    ///
    /// let logits = Tensor::new(&[[2f32, 1., 0.], [-3., 2., 0.], [1., 0., 0.], [0., 1., 0.]], &Device::Cpu)?;
    /// let labels = Tensor::new(&[1u32, 1, 0, 0], &Device::Cpu)?;
    /// let loss = Repulsion { class: 0, alpha: 1.0, beta: 0.25, m1: 3.0, m2: 0.5 }.per_sample(&logits, &labels)?;
    /// let expected = [5.7826f32, 0.1328, 0.0, 0.375];
    /// for (found, expected) in loss.to_vec1::<f32>()?.iter().zip(expected) {
    ///     assert!((found - expected).abs() < 1e-4);
    /// }
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn per_sample(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let [sce, dsc, cm] = self.terms(logits, labels)?;
        Ok(((sce + (dsc * self.alpha)?)? + (cm * self.beta)?)?)
    }
}

/// `z[i, class[i]]`, `f32[B]`.
fn pick(z: &Tensor, class: &Tensor) -> Result<Tensor> {
    Ok(z.gather(&class.unsqueeze(1)?, 1)?.squeeze(1)?)
}

/// `max_{j != class[i]} z[i, j]`, `f32[B]`.
fn best_other(z: &Tensor, class: &Tensor) -> Result<Tensor> {
    let (rows, k) = z.dims2()?;
    let columns = Tensor::arange(0u32, k as u32, z.device())?.broadcast_as((rows, k))?;
    let own = columns.broadcast_eq(&class.unsqueeze(1)?)?;
    let lowest = Tensor::full(f32::NEG_INFINITY, (rows, k), z.device())?;
    let best = own.where_cond(&lowest, &z.detach())?.argmax(1)?;
    pick(z, &best)
}

/// `1{y != c}`, `f32[B]`.
fn differs(labels: &Tensor, class: u32) -> Result<Tensor> {
    Ok(labels.ne(class)?.to_dtype(DType::F32)?)
}

/// `max(u, 0)` with slope 0 at 0.
fn hinge(u: &Tensor) -> Result<Tensor> {
    Ok((u * u.detach().gt(0f64)?.to_dtype(u.dtype())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use rstest::rstest;
    use serde_json::Value;

    fn cases() -> Vec<Value> {
        let text = include_str!("../tests/fixtures/lmr_losses.json");
        let fixture: Value = serde_json::from_str(text).unwrap();
        fixture["cases"].as_array().unwrap().clone()
    }

    fn floats(v: &Value) -> Vec<f32> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    fn close(found: &[f32], expected: &[f32], rtol: f32, atol: f32) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= atol + rtol * b.abs())
    }

    /// Against the definition, and the gradient `T · (softmax(z/T) - softmax(t/T))`. The second image is of class c.
    #[rstest]
    fn distillation_follows_its_definition(#[values(0, 2)] class: u32, #[values(1.0, 2.5)] temperature: f64) {
        let (z, t) = ([0.3f32, -1.2, 2.0, 0.7], [1.5f32, 0.2, -0.4, 0.9]);
        let logits = Var::new(&[z, z], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[t, t], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[1, class], &Device::Cpu).unwrap();
        let loss = distillation(&logits, &teacher, &labels, class, temperature).unwrap();
        let gradient = loss.sum_all().unwrap().backward().unwrap().get(&logits).unwrap().to_vec2::<f32>().unwrap();
        for (row, left_out) in [Some(class as usize), None].into_iter().enumerate() {
            let softmax = |values: [f32; 4]| {
                let power = |j| if left_out == Some(j) { 0.0 } else { (f64::from(values[j]) / temperature).exp() };
                let sum: f64 = (0..4).map(power).sum();
                (0..4).map(|j| power(j) / sum).collect::<Vec<f64>>()
            };
            let (p, q) = (softmax(t), softmax(z));
            let kl: f64 = p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum();
            let found = loss.get(row).unwrap().to_scalar::<f32>().unwrap();
            assert!(close(&[found], &[(temperature * temperature * kl) as f32], 1e-5, 1e-6), "{found}");
            let expected: Vec<f32> = q.iter().zip(&p).map(|(q, p)| (temperature * (q - p)) as f32).collect();
            assert!(close(&gradient[row], &expected, 1e-5, 1e-6), "{:?}, expected {expected:?}", gradient[row]);
        }
    }

    /// Every loss agrees with PyTorch's value and gradient in every case of the fixture, ties and kinks included.
    #[rstest]
    fn losses_agree_with_the_fixture(#[values("ce", "sce", "dsc", "cm", "total")] term: &str) {
        for case in cases() {
            let name = &case["name"];
            let rows = case["logits"].as_array().unwrap();
            let flat: Vec<f32> = rows.iter().flat_map(floats).collect();
            let logits = Var::from_vec(flat, (rows.len(), floats(&rows[0]).len()), &Device::Cpu).unwrap();
            let labels: Vec<u32> = floats(&case["labels"]).iter().map(|&l| l as u32).collect();
            let labels = Tensor::new(labels, &Device::Cpu).unwrap();
            let number = |key: &str| case[key].as_f64().unwrap();
            let class = number("c") as u32;
            let all =
                Repulsion { class, alpha: number("alpha"), beta: number("beta"), m1: number("m1"), m2: number("m2") };
            let per_sample = match term {
                "ce" => cross_entropy(&logits, &labels),
                "sce" => selective_cross_entropy(&logits, &labels, class),
                "dsc" => directed_suppression(&logits, &labels, class, all.m1),
                "cm" => conditional_margin(&logits, &labels, all.m2),
                _ => all.per_sample(&logits, &labels),
            }
            .unwrap();
            let expected = &case["expected"][term];
            if expected.get("per_sample").is_some() {
                let found = per_sample.to_vec1::<f32>().unwrap();
                assert!(close(&found, &floats(&expected["per_sample"]), 1e-5, 1e-5), "{name} {term}: {found:?}");
            }
            let mean = per_sample.mean_all().unwrap();
            let value = mean.to_scalar::<f32>().unwrap();
            assert!(
                close(&[value], &[expected["mean"].as_f64().unwrap() as f32], 1e-5, 1e-5),
                "{name} {term}: {value}"
            );

            let grads = mean.backward().unwrap();
            let grad = match grads.get(&logits) {
                Some(grad) => grad.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                None => vec![0.0; logits.elem_count()],
            };
            let expected: Vec<f32> = expected["grad"].as_array().unwrap().iter().flat_map(floats).collect();
            assert!(close(&grad, &expected, 1e-5, 1e-6), "{name} {term}: gradient {grad:?}");
            for row in grad.chunks(logits.dims()[1]) {
                assert!(row.iter().sum::<f32>().abs() < 1e-5, "{name} {term}: gradient row does not sum to 0");
            }
        }
    }

    /// Central differences agree with the analytic gradient away from kinks and ties.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let values: Vec<f32> = (0..40).map(|i| ((i * 37 + 11) % 23) as f32 / 5.0 - 2.0 + i as f32 * 1e-3).collect();
        let labels = Tensor::new(&[0u32, 1, 2, 3, 4, 0, 1, 2], &Device::Cpu).unwrap();
        let loss = Repulsion { class: 2, alpha: 1.5, beta: 0.25, m1: 3.0, m2: 0.5 };
        let at = |v: Vec<f32>| Var::from_vec(v, (8, 5), &Device::Cpu).unwrap();
        let mean = |z: &Var| loss.per_sample(z, &labels).unwrap().mean_all().unwrap();
        let z = at(values.clone());
        let grads = mean(&z).backward().unwrap();
        let grad = grads.get(&z).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..values.len() {
            let h = 1e-2;
            let moved = |d: f32| {
                let mut v = values.clone();
                v[i] += d;
                mean(&at(v)).to_scalar::<f32>().unwrap()
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            assert!((slope - grad[i]).abs() < 2e-3, "element {i}: {slope} against {}", grad[i]);
        }
    }
}
