//! The forms that stored triggers have, one line each.

use super::form::shorten;
use super::{Addition, Filtered, Form, InputAware, Noise, Overlay, TriggerError, Warped};
use crate::Result;

/// What stored triggers there are, each described in its own file.
static FORMS: &[Form] = &[Overlay::FORM, Addition::FORM, Warped::FORM, Filtered::FORM, Noise::FORM, InputAware::FORM];

impl Form {
    /// The form of that name.
    pub fn parse(name: &str) -> Result<Self> {
        let found = FORMS.iter().find(|form| form.name == name).copied();
        let known = || FORMS.iter().map(|form| form.name).collect();
        Ok(found.ok_or_else(|| TriggerError::UnknownForm { known: known(), found: shorten(name) })?)
    }
}
