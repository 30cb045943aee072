//! Parquet in a build without the feature `parquet`.

use lmr_plugin::run::Observer;

use super::{DataError, Dataset, ParquetSource, Parts};

impl Dataset {
    /// Refuses.
    pub(super) fn load_parquet(&self, _: &ParquetSource, _: &dyn Observer) -> Result<Parts, DataError> {
        Err(DataError::NoParquet { file: self.file.clone() })
    }
}
