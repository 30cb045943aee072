//! What a plan takes from the Hub, and whether it is in the cache.

use super::Plan;
use super::weights::revision;
use crate::datasets::Split;
use crate::{Error, Result};

/// Files that a plan takes from the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteInput {
    /// What for: `weights`, or a split.
    pub what: String,
    /// The repository and revision, `owner/name@revision`.
    pub source: String,
    /// Whether a run would ask the Hub for nothing of it.
    pub cached: bool,
}

impl Plan {
    /// Everything from the Hub. Nothing is asked and no image is read.
    pub fn remote(&self) -> Result<Vec<RemoteInput>> {
        let mut inputs = Vec::new();
        if let Some(checkpoint) = &self.weights
            && let Some(repo) = &checkpoint.table.hub
        {
            let source = format!("{repo}@{}", revision(&checkpoint.table));
            inputs.push(RemoteInput { what: "weights".into(), source, cached: checkpoint.local.is_some() });
        }
        for split in self.splits() {
            let remote = self.dataset.remote(split);
            let remote =
                remote.map_err(|error| Error::Data { name: self.data.name.clone(), message: error.to_string() })?;
            if let Some(remote) = remote {
                let source = format!("{}@{}", remote.source.repo, remote.source.revision);
                inputs.push(RemoteInput { what: format!("{split} split"), source, cached: remote.missing.is_empty() });
            }
        }
        Ok(inputs)
    }

    /// The splits that a run reads.
    fn splits(&self) -> Vec<Split> {
        let mut splits: Vec<Split> = self.data.clean.iter().map(|clean| clean.split).collect();
        if self.measures() {
            splits.push(self.data.test.split);
        }
        if self.implants() {
            splits.push(self.data.train.split);
        }
        splits.sort_by_key(|split| split.name());
        splits.dedup();
        splits
    }

    /// Whether a stage looks at the test images.
    pub(crate) fn measures(&self) -> bool {
        self.steps.iter().any(|step| step.kind.examines())
    }

    /// Whether a stage looks at the training images.
    pub(crate) fn implants(&self) -> bool {
        self.steps.iter().any(|step| step.kind.implants())
    }
}
