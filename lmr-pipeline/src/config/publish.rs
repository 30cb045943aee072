//! `[publish]`: where the purified model goes once the report is written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hub::names::{check_commit, check_license, check_repo, check_revision};

/// What is said of uploads in a build without them.
pub(crate) const NO_UPLOADS: &str = "this build of LMR cannot upload; build it with the feature `hub-upload`";

/// `[publish]`: sends the purified model to the Hugging Face Hub as the last thing a pipeline does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PublishTable {
    /// The model repository, `owner/name`; it is created if there is none.
    pub repo: String,
    /// Whether a repository that is created is private. One that is there stays as it is.
    #[serde(default)]
    pub private: bool,
    /// The branch, which must be there unless it is `main`.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The stage whose model is published; the last one that purifies if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Names of stages whose deployed forms of it are published, too, each in a folder of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// The licence as the Hub spells it, such as `mit`; what the received model says of itself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Whether the folder is written only, and nothing sent.
    #[serde(default)]
    pub dry_run: bool,
}

fn main_branch() -> String {
    "main".into()
}

impl PublishTable {
    /// To the branch `main` of a public repository, the last purified model.
    pub fn to(repo: impl Into<String>) -> Self {
        Self {
            repo: repo.into(),
            private: false,
            revision: main_branch(),
            stage: None,
            include: Vec::new(),
            license: None,
            dry_run: false,
        }
    }

    /// The first key with an impossible value, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        check_repo(&self.repo).map_err(|message| ("repo", message))?;
        check_revision(&self.revision).map_err(|message| ("revision", message))?;
        if check_commit(&self.revision).is_ok() {
            return Err(("revision", "found a commit, expected a branch: nothing can be added to a commit".into()));
        }
        match &self.license {
            Some(license) => check_license(license).map_err(|message| ("license", message)),
            None => Ok(()),
        }
    }
}
