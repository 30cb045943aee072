//! How many output channels each prunable layer has, of networks that have lost some.

use super::ModelSpec;
use super::ZooError;
use crate::{Error, Result};

/// Hands out one width after the other while a network is built.
pub(super) struct Widths<'a> {
    given: Option<&'a [usize]>,
    taken: usize,
}

impl<'a> Widths<'a> {
    /// Those that a specification gives, if it does.
    pub fn of(spec: &'a ModelSpec) -> Self {
        Self { given: spec.widths.as_deref(), taken: 0 }
    }

    /// The next layer's: the one that is given, or the architecture's own.
    pub fn take(&mut self, own: usize) -> Result<usize> {
        self.taken += 1;
        match self.given {
            Some(given) => given.get(self.taken - 1).copied().ok_or_else(|| self.wrong_number()),
            None => Ok(own),
        }
    }

    /// Refuses widths that nothing took.
    pub fn finish(self) -> Result<()> {
        if self.given.is_some_and(|given| given.len() != self.taken) { Err(self.wrong_number()) } else { Ok(()) }
    }

    fn wrong_number(&self) -> Error {
        let found = self.given.map_or(0, <[usize]>::len);
        let expected = (found >= self.taken).then_some(self.taken);
        ZooError::WidthCount { expected, found }.into()
    }
}
