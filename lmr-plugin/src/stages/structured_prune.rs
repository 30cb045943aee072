//! Removes whole filters by their L1 norm, as a user would to make the model smaller.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::faults;
use crate::Result;
use crate::model::Deployed;
use crate::models::{Classifier, Prunable};
use crate::stage::{CleanOnly, Context, ModelUse, Outcome, Stage};

/// In every convolution (shortcuts included, the head not) zeroes the filters with the smallest L1 norm, with their
/// biases; in a vision transformer the hidden units of every MLP. Batch norm stays, so a pruned channel emits the constant
/// that its batch norm makes of zero. Nothing is fine-tuned afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StructuredPrune {
    /// Share of each layer's filters, in [0, 1); at least one filter stays.
    pub ratio: f64,
}

impl Default for StructuredPrune {
    fn default() -> Self {
        Self { ratio: 0.5 }
    }
}

/// One layer's pruning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// The layer's name.
    pub layer: String,
    /// Its filters or hidden units in all.
    pub filters: usize,
    /// The zeroed ones, ascending.
    pub pruned: Vec<usize>,
}

impl StructuredPrune {
    /// Prunes `model` in place. In a layer of n filters, `n − round(ratio·n)` with the largest norm stay (of tied ones
    /// those with the higher index go).
    pub fn prune(&self, model: &dyn Classifier) -> Result<Vec<Ranked>> {
        let mut layers = Vec::new();
        for Prunable { name, weight, bias } in model.prunable() {
            let norms: Vec<f32> = weight.as_tensor().detach().abs()?.flatten_from(1)?.sum(1)?.to_vec1()?;
            let n = norms.len();
            let kept = n.saturating_sub((self.ratio * n as f64).round() as usize).max(1);
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
            let mut pruned = order.split_off(kept);
            pruned.sort_unstable();
            let mut keep = vec![1f32; n];
            for &filter in &pruned {
                keep[filter] = 0.0;
            }
            let keep = Tensor::from_vec(keep, n, weight.device())?;
            for var in [Some(weight), bias].into_iter().flatten() {
                // One factor per slice of the first dimension.
                let dims: Vec<usize> = std::iter::once(n).chain(vec![1; var.rank() - 1]).collect();
                var.set(&var.as_tensor().detach().broadcast_mul(&keep.reshape(dims)?)?)?;
            }
            layers.push(Ranked { layer: name.to_string(), filters: n, pruned });
        }
        Ok(layers)
    }
}

#[derive(Serialize)]
struct Report {
    ratio: f64,
    layers: Vec<Ranked>,
}

impl Stage for StructuredPrune {
    const KIND: &'static str = "structured-prune";
    const SUMMARY: &'static str = "zeroes the filters with the smallest L1 norm in every convolution";
    const MODEL: ModelUse = ModelUse::Deploys;
    type Needs = ();
    type Gives = ();
    type Sees = CleanOnly;

    fn faults(&self) -> Vec<String> {
        faults([((0.0..1.0).contains(&self.ratio), "ratio", "a number in [0, 1)", self.ratio.to_string())])
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<()>> {
        let layers = self.prune(ctx.model.full_precision()?)?;
        ctx.model.deploy(Deployed::Pruned);
        Outcome::new((), &Report { ratio: self.ratio, layers })
    }

    fn restore(&self, ctx: &mut Context<'_>, (): &()) -> Result<()> {
        ctx.model.deploy(Deployed::Pruned);
        Ok(())
    }
}
