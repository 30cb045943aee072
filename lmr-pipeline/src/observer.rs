//! Who watches a run.

use lmr_plugin::run::{Observer, Quiet};

use crate::plan::Step;
use crate::report::StageReport;

/// Watches a run from outside; also an [`Observer`] of the stages.
pub trait RunObserver: Observer {
    /// A stage begins, unless a former run has finished it.
    fn started(&self, _step: &Step, _of: usize) {}
    /// A stage is finished, now or by a former run.
    fn finished(&self, _step: &Step, _report: &StageReport, _of: usize) {}
}

impl RunObserver for Quiet {}
