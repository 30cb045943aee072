//! Seed, progress and cancellation: what every long-running piece of work is handed.

use crate::rng::{self, Rng};
use crate::{Error, Result};

/// Something that happened while a stage ran.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// `done` of `total` units of the current phase are finished.
    Progress {
        /// What is going on ("unlearn 1", "recover", "triggered images"); stays the same while `done` counts up.
        phase: &'a str,
        /// Units finished.
        done: usize,
        /// Units in all.
        total: usize,
        /// What a unit is ("step", "image").
        unit: &'static str,
    },
    /// A number worth a curve.
    Metric {
        /// Name, such as `loss`.
        name: &'a str,
        /// Where on the curve, in optimizer steps.
        step: usize,
        /// The number.
        value: f64,
    },
    /// Something a person should read.
    Warning(&'a str),
}

/// Subscribes to events; a progress bar, a log, a report. Also says when to stop.
pub trait Observer: Send + Sync {
    /// Called on the thread that runs the stage; must not block.
    fn event(&self, event: &Event<'_>);

    /// True once the user asked to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// An [`Observer`] that ignores everything.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Observer for Quiet {
    fn event(&self, _: &Event<'_>) {}
}

/// Seed and observer of a piece of work.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    seed: u64,
    observer: &'a dyn Observer,
    silent: bool,
}

impl<'a> Run<'a> {
    /// Same seed, same results.
    pub fn new(seed: u64, observer: &'a dyn Observer) -> Self {
        Self { seed, observer, silent: false }
    }

    /// Without an observer.
    pub fn quiet(seed: u64) -> Run<'static> {
        Run { seed, observer: &Quiet, silent: true }
    }

    /// The same piece of work without a word, for what is too short to report; it can still be stopped.
    pub fn silent(&self) -> Self {
        Self { silent: true, ..*self }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The random stream for `purpose`; see [`rng::stream`].
    pub fn stream(&self, purpose: &str) -> Rng {
        rng::stream(self.seed, purpose)
    }

    /// Reports progress.
    pub fn progress(&self, phase: &str, done: usize, total: usize, unit: &'static str) {
        self.event(&Event::Progress { phase, done, total, unit });
    }

    /// Reports a point of a curve.
    pub fn metric(&self, name: &str, step: usize, value: f64) {
        self.event(&Event::Metric { name, step, value });
    }

    /// Reports something a person should read.
    pub fn warn(&self, message: &str) {
        self.event(&Event::Warning(message));
    }

    fn event(&self, event: &Event<'_>) {
        if !self.silent {
            self.observer.event(event);
        }
    }

    /// [`Error::Interrupted`] once the user asked to stop.
    pub fn checkpoint(&self) -> Result<()> {
        if self.observer.cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
