//! Shares of a whole, one after the other.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};

use super::OpenFraction;

/// Ascending shares in (0, 1): where something happens on the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares(Vec<OpenFraction>);

/// Shares that do not ascend, or are not shares.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("expected ascending shares in (0, 1), found {found:?}")]
pub struct NotAscending {
    /// What was found.
    pub found: Vec<f64>,
}

impl Shares {
    /// These shares, if they are ascending and in (0, 1).
    pub fn new(shares: impl IntoIterator<Item = f64>) -> Result<Self, NotAscending> {
        let shares: Vec<f64> = shares.into_iter().collect();
        let inside: Option<Vec<OpenFraction>> = shares.iter().map(|share| OpenFraction::new(*share).ok()).collect();
        match inside.filter(|inside| inside.is_sorted()) {
            Some(inside) => Ok(Self(inside)),
            None => Err(NotAscending { found: shares }),
        }
    }

    /// One share.
    pub fn one(share: OpenFraction) -> Self {
        Self(vec![share])
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|share| share.get())
    }
}

impl<'de> Deserialize<'de> for Shares {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(Vec::<f64>::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Shares {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Shares".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<OpenFraction>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], true)]
    #[case(&[0.5, 0.5, 0.75], true)]
    #[case(&[0.5, 0.25], false)]
    #[case(&[0.0], false)]
    #[case(&[0.5, 1.0], false)]
    #[case(&[f64::NAN], false)]
    fn shares_ascend(#[case] shares: &[f64], #[case] fine: bool) {
        match Shares::new(shares.iter().copied()) {
            Ok(found) => assert!(fine && found.iter().eq(shares.iter().copied())),
            Err(error) => {
                let message = error.to_string();
                assert!(!fine && message.starts_with("expected ascending shares in (0, 1), found ["), "{message}");
            }
        }
    }
}
