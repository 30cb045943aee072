//! Phase 2, first half: cuts the head's columns that Phase 1 moved most for the backdoor class (equation 9).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PurifyError;
use super::logit_repel::HeadDelta;
use crate::model::Model;
use crate::nn::Linear;
use crate::ranges::BelowOne;
use crate::stage::{CleanOnly, Context, Finding, Outcome, Purifies, Stage};
use crate::{Error, Result};

/// Zeroes the `⌊ratio·D⌋` head columns (all K rows) with the largest score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeltaPrune {
    /// p: share of the head's D columns. The paper does not publish its value; 0 prunes nothing.
    pub ratio: BelowOne,
}

impl Default for DeltaPrune {
    fn default() -> Self {
        Self { ratio: const { BelowOne::literal(0.05) } }
    }
}

/// The head columns that are zero and stay so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedColumns {
    /// Indices below D, ascending.
    pub columns: Vec<usize>,
}

impl Finding for PrunedColumns {
    const NAME: &'static str = "pruned-columns";
}

impl DeltaPrune {
    /// The `⌊ratio·D⌋` columns with the largest score, ascending; of tied ones those with the lower index.
    ///
    /// ```
    /// use lmr_plugin::ranges::BelowOne;
    /// use lmr_plugin::purify::{DeltaPrune, HeadDelta};
    /// let delta = HeadDelta { scores: vec![0.1, 0.5, 0.0, 0.5, 0.2] };
    /// assert_eq!(DeltaPrune { ratio: BelowOne::literal(0.4) }.choose(&delta).columns, [1, 3]);
    /// assert!(DeltaPrune { ratio: BelowOne::literal(0.0) }.choose(&delta).columns.is_empty());
    /// ```
    pub fn choose(&self, delta: &HeadDelta) -> PrunedColumns {
        let scores = &delta.scores;
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        order.truncate((self.ratio.get() * scores.len() as f64).floor() as usize);
        order.sort_unstable();
        PrunedColumns { columns: order }
    }

    /// Chooses the columns and zeroes them in the model's head.
    pub fn prune(&self, model: &Model, delta: &HeadDelta) -> Result<PrunedColumns> {
        let head = model.full_precision()?.head();
        let width = head.weight().dims2()?.1;
        if delta.scores.len() != width {
            return Err(PurifyError::ScoreCount { columns: width, found: delta.scores.len() }.into());
        }
        if let Some(column) = delta.scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::NotFinite { what: "column score", step: column, value: delta.scores[column].into() });
        }
        let pruned = self.choose(delta);
        let weight = head.weight();
        weight.set(&weight.as_tensor().detach().broadcast_mul(&pruned.keep(head)?)?)?;
        Ok(pruned)
    }
}

impl PrunedColumns {
    /// 1 for columns that stay and 0 for pruned ones, `f32[1,D]` on the head's device.
    pub fn keep(&self, head: &Linear) -> Result<candle_core::Tensor> {
        let width = head.weight().dims2()?.1;
        let mut keep = vec![1f32; width];
        for &column in &self.columns {
            *keep.get_mut(column).ok_or(PurifyError::NoSuchColumn { column, columns: width })? = 0.0;
        }
        Ok(candle_core::Tensor::from_vec(keep, (1, width), head.weight().device())?)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ratio: BelowOne,
    columns: &'a [usize],
    scores: &'a [f32],
}

impl Stage for DeltaPrune {
    const KIND: &'static str = "delta-prune";
    const SUMMARY: &'static str = "zeroes the head columns that moved most for the backdoor class";
    type Role = Purifies;
    type Needs = (HeadDelta,);
    type Gives = (PrunedColumns,);

    fn run(&self, ctx: &mut Context<'_>, (delta,): (HeadDelta,), _: &CleanOnly) -> Result<Outcome<(PrunedColumns,)>> {
        let pruned = self.prune(ctx.model, &delta)?;
        let report = Report { ratio: self.ratio, columns: &pruned.columns, scores: &delta.scores };
        Outcome::new((pruned.clone(),), &report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use serde_json::Value;

    #[test]
    fn scores_and_columns_agree_with_the_fixture() {
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/lmr_losses.json")).unwrap();
        let case = &fixture["delta_prune"];
        let row =
            |v: &Value| -> Vec<f32> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect() };
        let matrix = |v: &Value| {
            let rows: Vec<Vec<f32>> = v.as_array().unwrap().iter().map(row).collect();
            Tensor::new(rows, &Device::Cpu).unwrap()
        };
        let class = case["c"].as_u64().unwrap() as u32;
        let delta = HeadDelta::between(&matrix(&case["w0"]), &matrix(&case["w1"]), class).unwrap();
        for (found, expected) in delta.scores.iter().zip(row(&case["scores"])) {
            assert!((found - expected).abs() < 1e-6);
        }
        for choice in case["choices"].as_array().unwrap() {
            let expected: Vec<usize> =
                choice["columns"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap() as usize).collect();
            let p = choice["p"].as_f64().unwrap();
            let Ok(ratio) = BelowOne::new(p) else {
                assert_eq!(p, 1.0, "the one ratio that a stage cannot have");
                continue;
            };
            assert_eq!(DeltaPrune { ratio }.choose(&delta).columns, expected, "p = {ratio}");
        }
    }
}
