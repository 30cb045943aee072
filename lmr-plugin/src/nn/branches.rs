//! Several forms of one network at once, with batch norm that sees all of them together.

use candle_core::{DType, Tensor};

use super::{Activation, BatchNorm2d, Conv2d, ConvBn, Forward, Linear, PatchEmbedding, Trunk, Weighted, ops};
use crate::{Error, Result};

/// Other weights for some layers of a network, differentiable; `None` where the form computes with the layer's own.
pub type Form<'a> = dyn Fn(Weighted<'_>) -> Result<Option<Tensor>> + 'a;

/// Trains several forms of one convolutional network together. Every form sees the same images; logits come form after form, so there are
/// as many rows as images times forms. Weights are those before folding: batch norm normalizes what comes out of the
/// convolutions of all forms with the statistics of all, and moves one pair of running statistics.
///
/// As long as no form has met a layer of its own, all compute the same, and it is computed once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lmr_plugin::{models::{Arch, ModelSpec}, nn::{Branches, Weighted}, rng};
///
/// let spec = ModelSpec { width: Some(8), channels: 1, ..ModelSpec::new(Arch::Resnet18, 10) };
/// let model = spec.fresh(rng::stream(0, "init"), &Device::Cpu)?;
/// let images = Tensor::zeros((4, 1, 28, 28), DType::F32, &Device::Cpu)?;
/// let doubled_head = |layer: Weighted<'_>| match layer {
///     Weighted::Linear(head) => Ok(Some((head.weight().as_tensor() * 2.0)?)),
///     _ => Ok(None),
/// };
/// let logits = model.layered().expect("the zoo's networks are").interpret(&mut Branches::new(&[&|_| Ok(None), &doubled_head], 4), &images)?;
/// assert_eq!(logits.dims(), [8, 10]);
/// # Ok::<(), lmr_plugin::Error>(())
/// ```
pub struct Branches<'a> {
    forms: &'a [&'a Form<'a>],
    images: usize,
}

impl<'a> Branches<'a> {
    /// These forms, for batches of so many images.
    pub fn new(forms: &'a [&'a Form<'a>], images: usize) -> Self {
        Self { forms, images }
    }

    /// The weights that the forms have for a layer; `None` if all have the layer's own.
    fn own(&self, layer: Weighted<'_>) -> Result<Option<Vec<Tensor>>> {
        let own: Vec<Option<Tensor>> = self.forms.iter().map(|form| form(layer)).collect::<Result<_>>()?;
        let any = own.iter().any(Option::is_some);
        let or_layer = |own: Option<Tensor>| own.unwrap_or_else(|| layer.weight().as_tensor().clone());
        Ok(any.then(|| own.into_iter().map(or_layer).collect()))
    }

    /// The weights that the forms compute a layer with.
    fn all(&self, layer: Weighted<'_>) -> Result<Vec<Tensor>> {
        let own = self.own(layer)?;
        Ok(own.unwrap_or_else(|| vec![layer.weight().as_tensor().clone(); self.forms.len()]))
    }

    /// One share of the batch for every form.
    fn fan_out(&self, x: &Tensor) -> Result<Tensor> {
        if self.forms.len() == 1 || ops::rows(x) > self.images {
            return Ok(x.clone());
        }
        ops::join(&vec![x.clone(); self.forms.len()])
    }

    /// Both for one share, or both for every form's.
    fn alike(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        match residual {
            Some(residual) if ops::rows(residual) != ops::rows(x) => {
                Ok((self.fan_out(x)?, Some(self.fan_out(residual)?)))
            }
            residual => Ok((x.clone(), residual.cloned())),
        }
    }

    /// Every form's share through `f` with the form's weight.
    fn each(&self, x: &Tensor, weights: &[Tensor], f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let shares = ops::split(&self.fan_out(x)?, weights.len())?;
        let outputs = shares.iter().zip(weights).map(|(share, weight)| f(share, weight));
        ops::join(&outputs.collect::<Result<Vec<_>>>()?)
    }

    /// The convolution of every form, without what follows it.
    fn convolve(&self, conv: &Conv2d, x: &Tensor, weights: &[Tensor]) -> Result<Tensor> {
        let bias = match conv.bias() {
            Some(bias) => bias.as_tensor().clone(),
            None => Tensor::zeros(conv.out_channels(), DType::F32, conv.weight().device())?,
        };
        self.each(x, weights, |x, weight| ops::conv2d(x, weight, &bias, conv.config(), None, Activation::None))
    }

    /// `activation(y + residual)`.
    fn finish(&self, y: Tensor, residual: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        match residual {
            Some(residual) => activation.apply(&(y + self.fan_out(residual)?)?),
            None => activation.apply(&y),
        }
    }
}

impl Forward for Branches<'_> {
    fn recorded(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn conv_bn(
        &mut self,
        layer: &ConvBn,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let Some(weights) = self.own(Weighted::ConvBn(layer))? else {
            let (x, residual) = self.alike(x, residual)?;
            return ops::conv_bn_batch(&x, layer, residual.as_ref(), activation);
        };
        let alone = if residual.is_some() { Activation::None } else { activation };
        let y = ops::batch_norm_batch(&self.convolve(layer.conv(), x, &weights)?, layer.bn(), alone)?;
        if residual.is_some() { self.finish(y, residual, activation) } else { Ok(y) }
    }

    fn conv(
        &mut self,
        layer: &Conv2d,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let weights = self.all(Weighted::Conv(layer))?;
        self.finish(self.convolve(layer, x, &weights)?, residual, activation)
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::batch_norm_batch(x, layer, activation)
    }

    fn trunk(&mut self, trunk: &Trunk, x: &Tensor) -> Result<Tensor> {
        trunk.run(self, x)
    }

    fn embed(&mut self, layer: &PatchEmbedding, _: &Tensor) -> Result<Tensor> {
        let name = layer.conv().name();
        Err(Error::invalid(format!("{name}: forms of a vision transformer cannot be trained together, only of a CNN")))
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let weights = self.all(Weighted::Linear(layer))?;
        let bias = layer.bias().map(|bias| bias.as_tensor().clone());
        self.each(x, &weights, |x, weight| ops::linear(x, weight, bias.as_ref(), activation))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rstest::rstest;

    use super::*;
    use crate::model::Classifier;
    use crate::models::{Arch, ModelSpec};
    use crate::nn::{Mode, with_portable_path};
    use crate::rng;

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

    fn own(layer: Weighted<'_>) -> Result<Option<Tensor>> {
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
                let of = |var: &candle_core::Var| gradients.get(var).unwrap().clone();
                (logits, model.params().trainable().map(|(name, var)| (name.to_string(), of(var))).collect::<Vec<_>>())
            };
            let twice = Tensor::cat(&[&x, &x], 0).unwrap();
            let expected = step(plain.as_ref(), plain.forward(&twice, Mode::default()).unwrap());
            let none = |_: Weighted<'_>| Ok(None);
            let forms: [&Form<'_>; 2] = if from_the_head { [&none, &none] } else { [&none, &own] };
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
}
