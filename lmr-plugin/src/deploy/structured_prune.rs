//! Removes whole filters by their norm, as a user would to make the model smaller.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Ship;
use super::prune::{self, Norm, Pruned, Removed};
use crate::Result;
use crate::data::CleanSet;
use crate::model::{ChannelGroup, Classifier, Form, Model, Prunable, Slice};
use crate::nn::StateDict;
use crate::ranges::BelowOne;
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Deploys, Outcome, Stage};

/// Prunes the filters with the smallest norm in every convolution (shortcuts included, the head not); in a vision transformer
/// the hidden units of every MLP. Nothing is fine-tuned afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StructuredPrune {
    /// Share of filters; at least one of every layer stays.
    pub ratio: BelowOne,
    /// What makes a filter small: `l1` or `l2`.
    pub norm: Norm,
    /// Whether the share is of every layer's filters (`layer`), or of all filters, each measured by its layer's mean norm
    /// (`network`).
    pub scope: Scope,
    /// What becomes of a pruned filter.
    pub form: PruneForm,
}

/// What a ratio is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Scope {
    /// Every layer's filters.
    #[default]
    Layer,
    /// The whole network's.
    Network,
}

/// What becomes of a pruned filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PruneForm {
    /// Its weights and its bias become 0, layer by layer. Batch norm stays, so the channel emits the constant that batch
    /// norm makes of zero: the literature's evaluation.
    #[default]
    Mask,
    /// As `mask`, and batch norm's weight and bias become 0, too: the channel is silent. Layers whose outputs are added, or
    /// filtered one by one, share their channels, which are ranked by the sum of their norms.
    Zero,
    /// The channels that `zero` silences are taken out of every tensor: a smaller, faster network with the same outputs.
    Remove,
}

impl Default for StructuredPrune {
    fn default() -> Self {
        Self { ratio: const { BelowOne::literal(0.5) }, norm: Norm::L1, scope: Scope::Layer, form: PruneForm::Mask }
    }
}

/// What was pruned of one layer, or of several that share their channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// The layer's name; of several, the first one's.
    pub layer: String,
    /// The names of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tied: Vec<String>,
    /// Its filters or hidden units in all.
    pub filters: usize,
    /// The pruned ones, ascending.
    pub pruned: Vec<usize>,
}

impl StructuredPrune {
    /// Prunes `model` in place, with zeros whatever the form. In a layer of n filters, `n − round(ratio·n)` with the largest
    /// norm stay (of tied ones those with the higher index go).
    pub fn prune(&self, model: &dyn Classifier) -> Result<Vec<Ranked>> {
        let groups = self.groups(model)?;
        let ranked = self.rank(model, &groups)?;
        let params = model.params();
        for (group, ranked) in groups.iter().zip(&ranked) {
            for slice in group.slices.iter().filter(|slice| slice.dim == 0) {
                // Running statistics may stay: with a weight and a bias of 0 they no longer count.
                let Some(var) = params.trainable().find(|(name, _)| *name == slice.tensor).map(|(_, var)| var) else {
                    continue;
                };
                let keep = prune::mask(var, &ranked.pruned)?;
                var.set(&var.as_tensor().detach().broadcast_mul(&keep)?)?;
            }
        }
        Ok(ranked)
    }

    /// The network without the pruned channels; `model` stays as it is.
    pub fn remove(&self, model: &dyn Classifier) -> Result<(Box<dyn Classifier>, Vec<Ranked>)> {
        let groups = model.channel_groups()?;
        let ranked = self.rank(model, &groups)?;
        let mut state = model.params().state_dict()?;
        for (group, ranked) in groups.iter().zip(&ranked) {
            let kept: Vec<usize> = (0..ranked.filters).filter(|channel| !ranked.pruned.contains(channel)).collect();
            group.slices.iter().try_for_each(|slice| select(&mut state, slice, &kept))?;
        }
        Ok((model.rebuild(state, model.device())?, ranked))
    }

    /// What is ranked together: every layer alone, or layers that share their channels.
    fn groups(&self, model: &dyn Classifier) -> Result<Vec<ChannelGroup>> {
        if self.form != PruneForm::Mask {
            return model.channel_groups();
        }
        let alone = |(index, layer): (usize, &Prunable<'_>)| ChannelGroup {
            makers: vec![index],
            slices: std::iter::once("weight")
                .chain(layer.bias.map(|_| "bias"))
                .map(|tensor| Slice { tensor: format!("{}.{tensor}", layer.name), dim: 0, repeat: 1 })
                .collect(),
        };
        Ok(model.prunable().iter().enumerate().map(alone).collect())
    }

    fn rank(&self, model: &dyn Classifier, groups: &[ChannelGroup]) -> Result<Vec<Ranked>> {
        let layers = model.prunable();
        let mut scores: Vec<Vec<f32>> = Vec::new();
        for group in groups {
            let mut sums: Vec<f32> = Vec::new();
            for &maker in &group.makers {
                let norms = self.norm.of(layers[maker].weight)?;
                sums.resize(norms.len(), 0.0);
                sums.iter_mut().zip(norms).for_each(|(sum, norm)| *sum += norm);
            }
            scores.push(sums);
        }
        let pruned = match self.scope {
            Scope::Layer => scores.iter().map(|scores| prune::smallest(scores, self.ratio)).collect(),
            Scope::Network => prune::smallest_of_all(&scores, self.ratio),
        };
        let name = |maker: &usize| layers[*maker].name.to_string();
        let ranked = groups.iter().zip(scores).zip(pruned).map(|((group, scores), pruned)| Ranked {
            layer: group.makers.first().map(name).unwrap_or_default(),
            tied: group.makers.iter().skip(1).map(name).collect(),
            filters: scores.len(),
            pruned,
        });
        Ok(ranked.collect())
    }
}

/// Keeps these channels of a tensor.
fn select(state: &mut StateDict, slice: &Slice, kept: &[usize]) -> Result<()> {
    if let Some(tensor) = state.get_mut(&slice.tensor) {
        let of_channel = |channel: &usize| (channel * slice.repeat..(channel + 1) * slice.repeat).map(|i| i as u32);
        let indices: Vec<u32> = kept.iter().flat_map(of_channel).collect();
        let indices = Tensor::new(indices, tensor.device())?;
        *tensor = tensor.contiguous()?.index_select(&indices, slice.dim)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    ratio: BelowOne,
    form: PruneForm,
    /// Trainable parameters before and after.
    parameters: [usize; 2],
    layers: Vec<Ranked>,
}

impl StructuredPrune {
    /// Puts `model` into the pruned form.
    pub fn deploy(&self, model: &mut Model) -> Result<Vec<Ranked>> {
        let network = model.full_precision()?;
        let ranked = if self.form == PruneForm::Remove {
            let (smaller, ranked) = self.remove(network)?;
            model.replace(smaller);
            ranked
        } else {
            self.prune(network)?
        };
        model.deploy(self.pruned());
        Ok(ranked)
    }

    /// The form of a network that it has pruned.
    fn pruned(&self) -> Box<dyn Form> {
        if self.form == PruneForm::Remove { Box::new(Removed) } else { Box::new(Pruned) }
    }
}

impl Ship for StructuredPrune {
    fn faults(&self) -> Vec<String> {
        Stage::faults(self)
    }

    fn label(&self) -> String {
        format!("{}% pruned", (1e4 * self.ratio.get()).round() / 100.0)
    }

    fn ship(&self, model: &mut Model, _: &CleanSet, _: &Run<'_>) -> Result<()> {
        self.deploy(model).map(drop)
    }

    fn rounded(&self, model: &Model) -> Result<Model> {
        if self.form == PruneForm::Remove {
            return Ok(model.with(self.remove(model.full_precision()?)?.0));
        }
        let copy = model.try_clone()?;
        self.prune(copy.network())?;
        Ok(copy)
    }
}

impl Stage for StructuredPrune {
    const KIND: &'static str = "structured-prune";
    const SUMMARY: &'static str = "prunes the filters with the smallest norm in every convolution";
    type Role = Deploys;
    type Needs = ();
    type Gives = ();

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<()>> {
        let before = ctx.model.network().params().count();
        let layers = self.deploy(ctx.model)?;
        let parameters = [before, ctx.model.network().params().count()];
        Outcome::new((), &Report { ratio: self.ratio, form: self.form, parameters, layers })
    }

    fn restore(&self, model: &mut Model, (): &()) -> Result<()> {
        model.deploy(self.pruned());
        Ok(())
    }
}
