//! The Hub in a build without the feature `hub`: there is none, and what is not in the cache is missing.

use std::convert::Infallible;
use std::marker::PhantomData;

use lmr_plugin::run::Observer;

use super::cache::CachedRepository;
use super::{HubError, HubFile, Patience, Refusal, RemoteFile, RemoteFiles, RepoKind};

/// A connection that nobody can have.
pub struct Client<'a> {
    nobody: Infallible,
    borrowed: PhantomData<&'a dyn Observer>,
}

impl<'a> Client<'a> {
    /// Refuses.
    pub fn new(_: &str, _: Option<&'a str>, _: Patience, _: &'a dyn Observer) -> Result<Self, Refusal> {
        Err(Refusal::Absent)
    }

    pub fn commit(&self, _: RepoKind, _: &str, _: &str) -> Result<String, HubError> {
        match self.nobody {}
    }

    pub fn files(&self, _: RepoKind, _: &str, _: &str) -> Result<Vec<String>, HubError> {
        match self.nobody {}
    }

    pub fn download(&self, _: &CachedRepository, _: &RemoteFiles, _: &RemoteFile) -> Result<HubFile, HubError> {
        match self.nobody {}
    }
}
