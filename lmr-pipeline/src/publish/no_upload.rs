//! Uploads in a build without the feature `hub-upload`.

use lmr_plugin::run::Observer;

use super::{Publication, Sent};
use crate::config::{NO_UPLOADS, PublishTable};
use crate::hub::Hub;
use crate::{Error, Result};

/// Refuses: this build was made without the feature `hub-upload`.
pub fn check_access(table: &PublishTable, _: &Hub, _: &dyn Observer) -> Result<()> {
    Err(refusal(table))
}

/// Refuses: this build was made without the feature `hub-upload`.
pub fn send(publication: &Publication, _: &Hub, _: &dyn Observer) -> Result<Sent> {
    Err(refusal(&publication.table))
}

fn refusal(table: &PublishTable) -> Error {
    Error::Unpublishable(format!("{}: {NO_UPLOADS}", table.repo))
}
