//! The model card: `README.md`.

mod body;
mod metadata;
mod text;

use lmr_plugin::zoo::naming::Scheme;

pub use metadata::{Metadata, license_of};
pub use text::{markdown, plain};

use super::source::FinishedRun;
use super::{PublishedFile, PublishedForm};
use crate::Result;
use crate::datasets;
use crate::model_config::Library;
use crate::plan::Selection;
use metadata::{Entry, Images, Measured, Metric, Named};

/// What a card is written from.
pub struct Card<'a> {
    /// The repository, `owner/name`.
    pub repo: &'a str,
    /// The run.
    pub source: &'a FinishedRun,
    /// What is published of it.
    pub selection: &'a Selection,
    /// The deployed forms among the files.
    pub forms: &'a [PublishedForm],
    /// Which library loads the folder.
    pub library: Library,
    /// Whose names its tensors have, of those that are translated.
    pub scheme: Option<Scheme>,
    /// The dtype of the head's numbers, in short.
    pub dtype: String,
    /// Names of the classes.
    pub labels: &'a [String],
    /// The licence, if one is known.
    pub license: Option<&'a str>,
    /// Every other file.
    pub files: &'a [PublishedFile],
}

impl Card<'_> {
    /// The file.
    pub fn write(&self) -> Result<String> {
        Ok(format!("{}\n{}", self.metadata().front_matter()?, self.body()?))
    }

    fn metadata(&self) -> Metadata {
        let descriptor = self.source.plan.dataset.descriptor();
        let library = match self.library {
            Library::Timm => "timm",
            Library::Transformers => "transformers",
            Library::Lmr => "lmr",
        };
        let arch = &self.source.report.model.arch;
        let tags = ["image-classification", "backdoor-defense", "purified", "lmr", arch];
        let base = self.source.base();
        Metadata {
            license: self.license.unwrap_or("other").to_owned(),
            library_name: library.into(),
            pipeline_tag: "image-classification".into(),
            base_model: base.map(|base| base.repo.to_owned()),
            base_model_revision: base.map(|base| base.commit.to_owned()),
            base_model_relation: base.map(|_| "finetune".into()),
            tags: tags.map(String::from).to_vec(),
            datasets: self.dataset_repos(),
            model_index: self.results(&plain(&descriptor.title)).into_iter().collect(),
        }
    }

    /// Repositories on the Hub that the dataset's files come from.
    fn dataset_repos(&self) -> Vec<String> {
        let descriptor = self.source.plan.dataset.descriptor();
        let mut repos = Vec::new();
        for source in [&descriptor.train, &descriptor.test].into_iter().flatten() {
            if let datasets::Source::Parquet(parquet) = source
                && !repos.contains(&parquet.repo)
            {
                repos.push(parquet.repo.clone());
            }
        }
        repos
    }

    fn results(&self, dataset: &str) -> Option<Entry> {
        let measured = self.source.measured(Some(self.selection.stage))?;
        let metric = |r#type: &str, name: &str, value: Option<f64>| {
            Some(Metric { r#type: r#type.into(), name: name.into(), value: value? })
        };
        let metrics = [
            metric("accuracy", "ACC", Some(measured.acc)),
            metric("attack_success_rate", "ASR", measured.asr),
            metric("accuracy_under_trigger", "TA", measured.ta),
        ];
        let repos = self.dataset_repos();
        let name = self.source.report.data.name.clone();
        let images = Images {
            r#type: repos.into_iter().next().unwrap_or(name),
            name: dataset.to_owned(),
            split: self.source.data.test.as_ref()?.split.to_string(),
        };
        let task = Named { r#type: "image-classification".into(), name: "Image Classification".into() };
        let results = vec![Measured { task, dataset: images, metrics: metrics.into_iter().flatten().collect() }];
        Some(Entry { name: self.repo.split('/').next_back()?.to_owned(), results })
    }
}
