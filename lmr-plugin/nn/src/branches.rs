//! Several forms of one network at once, with batch norm that sees all of them together.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::layers::{Activation, BatchNorm2d, Conv2d, Convolution, Linear, PatchEmbedding, Trunk, Weighted};
use crate::layout::rows;
use crate::ops;

/// Other weights for some layers of a network, differentiable; `None` where the form computes with the layer's own.
pub type Branch<'a> = dyn Fn(Weighted<'_>) -> Result<Option<Tensor>> + 'a;

/// Trains several forms of one convolutional network together. Every form sees the same images; logits come form after form, so there are
/// as many rows as images times forms. Weights are those before folding: batch norm normalizes what comes out of the
/// convolutions of all forms with the statistics of all, and moves one pair of running statistics.
///
/// As long as no form has met a layer of its own, all compute the same, and it is computed once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use lmr_nn::{Activation, Branches, Builder, Forward, Linear, Weighted, rng};
///
/// let b = Builder::fresh(rng::stream(0, "init"), &Device::Cpu);
/// let head = Linear::new(8, 10, &b.pp("head"))?;
/// let features = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let doubled_head = |layer: Weighted<'_>| match layer {
///     Weighted::Linear(head) => Ok(Some((head.weight().as_tensor() * 2.0)?)),
///     _ => Ok(None),
/// };
/// let logits = Branches::new(&[&|_| Ok(None), &doubled_head], 4).linear(&head, &features, Activation::None)?;
/// assert_eq!(logits.dims(), [8, 10]);
/// # Ok::<(), lmr_nn::Error>(())
/// ```
pub struct Branches<'a> {
    forms: &'a [&'a Branch<'a>],
    images: usize,
}

impl<'a> Branches<'a> {
    /// These forms, for batches of so many images.
    pub fn new(forms: &'a [&'a Branch<'a>], images: usize) -> Self {
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
        if self.forms.len() == 1 || rows(x) > self.images {
            return Ok(x.clone());
        }
        ops::join(&vec![x.clone(); self.forms.len()])
    }

    /// Both for one share, or both for every form's.
    fn alike(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        match residual {
            Some(residual) if rows(residual) != rows(x) => Ok((self.fan_out(x)?, Some(self.fan_out(residual)?))),
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

    fn convolution(
        &mut self,
        layer: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let Convolution::Normed(normed) = layer else {
            let y = self.convolve(layer.conv(), x, &self.all(layer.into())?)?;
            return self.finish(y, residual, activation);
        };
        let Some(weights) = self.own(layer.into())? else {
            let (x, residual) = self.alike(x, residual)?;
            return ops::conv_bn_batch(&x, normed, residual.as_ref(), activation);
        };
        let alone = if residual.is_some() { Activation::None } else { activation };
        let y = ops::batch_norm_batch(&self.convolve(normed.conv(), x, &weights)?, normed.bn(), alone)?;
        if residual.is_some() { self.finish(y, residual, activation) } else { Ok(y) }
    }

    fn batch_norm(&mut self, layer: &BatchNorm2d, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::batch_norm_batch(x, layer, activation)
    }

    fn trunk(&mut self, trunk: &Trunk, x: &Tensor) -> Result<Tensor> {
        trunk.run(self, x)
    }

    fn embed(&mut self, layer: &PatchEmbedding, _: &Tensor) -> Result<Tensor> {
        Err(Error::NoBranches { layer: layer.conv().name().into() })
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let weights = self.all(Weighted::Linear(layer))?;
        let bias = layer.bias().map(|bias| bias.as_tensor().clone());
        self.each(x, &weights, |x, weight| ops::linear(x, weight, bias.as_ref(), activation))
    }
}
