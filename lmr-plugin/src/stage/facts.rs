//! What one stage finds out and another works from.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// Something one stage finds out and another works from.
pub trait Finding: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The name in messages and files, in kebab-case.
    const NAME: &'static str;
}

/// Findings by name, as JSON, so that a run can resume from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct FactStore(BTreeMap<String, Value>);

impl FactStore {
    /// The finding of type `F`.
    pub fn get<F: Finding>(&self) -> Result<F> {
        let value = self.0.get(F::NAME).ok_or(Error::MissingFinding { name: F::NAME })?;
        serde_json::from_value(value.clone()).map_err(|source| Error::Finding { name: F::NAME, source })
    }

    /// Adds a finding; a later one of the same type replaces it.
    pub fn put<F: Finding>(&mut self, finding: &F) -> Result<()> {
        let value = serde_json::to_value(finding).map_err(|source| Error::Finding { name: F::NAME, source })?;
        self.0.insert(F::NAME.to_string(), value);
        Ok(())
    }

    /// Adds all of another store's findings; later ones replace earlier ones of the same type.
    pub fn extend(&mut self, other: FactStore) {
        self.0.extend(other.0);
    }

    /// The names that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A tuple of findings: what a stage needs or gives.
pub trait Facts: Sized {
    /// Their names.
    fn names() -> Vec<&'static str>;
    /// Takes them out of a store.
    fn read(store: &FactStore) -> Result<Self>;
    /// Puts them into a store.
    fn write(&self, store: &mut FactStore) -> Result<()>;
}

macro_rules! facts {
    ($($finding:ident),*) => {
        impl<$($finding: Finding),*> Facts for ($($finding,)*) {
            fn names() -> Vec<&'static str> {
                vec![$($finding::NAME),*]
            }
            fn read(_store: &FactStore) -> Result<Self> {
                Ok(($(_store.get::<$finding>()?,)*))
            }
            #[allow(non_snake_case)]
            fn write(&self, _store: &mut FactStore) -> Result<()> {
                let ($($finding,)*) = self;
                $(_store.put($finding)?;)*
                Ok(())
            }
        }
    };
}

facts!();
facts!(A);
facts!(A, B);
facts!(A, B, C);
