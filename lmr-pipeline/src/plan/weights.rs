//! The checkpoint of a plan: a file, or one on the Hub that is here or will be.

use std::path::PathBuf;

use lmr_plugin::run::{Observer, Quiet};
use lmr_plugin::zoo::ModelSpec;

use super::labels::{self, Verdict};
use super::{Plan, check_fit, check_images, preprocess};
use crate::config::{Draft, Head, WeightsTable};
use crate::datasets::Dataset;
use crate::hub::{Hub, HubCheckpoint, HubError, RemoteCheckpoint, names};
use crate::model_config::{Convention, ModelConfig, Stated, differing, filled};
use crate::place::{Faults, Place};
use crate::{Error, Result, weights};

/// A checkpoint.
#[non_exhaustive]
pub struct Checkpoint {
    /// As the pipeline has it; once it is fetched, with the commit and the file that were taken from the Hub.
    pub table: WeightsTable,
    /// Where it is on this machine; `None` for one on the Hub that is not in the cache.
    pub local: Option<LocalCheckpoint>,
}

/// A checkpoint on this machine.
#[non_exhaustive]
pub struct LocalCheckpoint {
    /// Where it is.
    pub file: PathBuf,
    /// What the `config.json` beside it says.
    pub config: Option<ModelConfig>,
    /// Where on the Hub it is from.
    pub origin: Option<HubCheckpoint>,
}

impl LocalCheckpoint {
    fn new(file: PathBuf, origin: Option<HubCheckpoint>) -> Result<Self> {
        let config = ModelConfig::beside(&file)?;
        if let Some(ModelConfig { unknown, .. }) = &config
            && let [first, ..] = unknown.as_slice()
        {
            let (count, folder) = (unknown.len(), file.parent().unwrap_or(&file).display());
            tracing::warn!(
                "{folder}: `{first}` in its configuration is not known here, and is left out ({count} in all); if it \
                 changes what the model computes, its numbers will be wrong"
            );
        }
        Ok(Self { file, config, origin })
    }
}

impl Checkpoint {
    /// Where it comes from, for the report: the path, or `owner/name@commit/file`.
    pub fn source(&self) -> String {
        let origin = self.local.as_ref().and_then(|local| local.origin.as_ref());
        match (origin, &self.table.path) {
            (Some(origin), _) => origin.to_string(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => self.table.hub.clone().unwrap_or_default(),
        }
    }
}

/// The revision of a repository that the pipeline does not name.
pub(super) fn revision(table: &WeightsTable) -> &str {
    table.revision.as_deref().unwrap_or("main")
}

/// Does something with the checkpoint on the Hub that a table names.
fn on_hub<T>(
    table: &WeightsTable,
    repo: &str,
    ask: impl FnOnce(&Hub, &RemoteCheckpoint) -> Result<T, HubError>,
) -> Result<T, HubError> {
    let sha256 = table.sha256.as_ref().map(|sha256| sha256.to_ascii_lowercase());
    let wanted = RemoteCheckpoint {
        repo,
        revision: revision(table),
        file: table.file.as_deref(),
        sha256: sha256.as_deref(),
        allow_pickle: table.allow_pickle,
    };
    ask(&Hub::from_env(), &wanted)
}

/// Checks `weights`, and what is on this machine of it.
pub(super) fn check(draft: &mut Draft, faults: &mut Faults) -> Option<Checkpoint> {
    let table = draft.weights.clone()?;
    let place = Place::section("model").key("weights");
    if let Some(sha256) = &table.sha256
        && !names::is_hex(&sha256.to_ascii_lowercase(), 64)
    {
        faults.add(&place.key("sha256"), format!("expected 64 hexadecimal digits, found {sha256:?}"));
    }
    let local = match (&table.path, &table.hub) {
        (Some(path), None) => {
            for (key, given) in [
                ("revision", table.revision.is_some()),
                ("file", table.file.is_some()),
                ("allow-pickle", table.allow_pickle),
            ] {
                if given {
                    faults.add(&place.key(key), "belongs to `hub`, but there is `path`; remove one of them");
                }
            }
            let Some(found) = draft.search.locate(path) else {
                let message = format!("there is no file {}{}", path.display(), draft.search.tried(path));
                faults.add(&place.key("path"), message);
                return None;
            };
            let found = weights::in_folder(&found).and_then(|file| LocalCheckpoint::new(file, None));
            Some(found.map_err(|error| faults.add(&place.key("path"), error.to_string())).ok()?)
        }
        (None, Some(repo)) => in_cache(&table, repo, &place, faults)?,
        (Some(_), Some(_)) => {
            faults.add(&place, "there are both `path` and `hub`; remove one of them");
            return None;
        }
        (None, None) => {
            faults.add(
                &place,
                "expected `path` (a file or folder) or `hub` (a repository, \"owner/name\"), found neither",
            );
            return None;
        }
    };
    if let (Some(model), Some(config)) = (&mut draft.model, local.as_ref().and_then(|local| local.config.as_ref())) {
        *model = stated(model, config, faults);
        check_model_config(model, config, table.head, faults);
    }
    Some(Checkpoint { table, local })
}

/// What the cache has of a checkpoint on the Hub: nothing, or all; `None` for a fault.
fn in_cache(table: &WeightsTable, repo: &str, place: &Place, faults: &mut Faults) -> Option<Option<LocalCheckpoint>> {
    let file = table.file.as_deref();
    let mut sound = true;
    for (key, result) in [
        ("hub", names::check_repo(repo)),
        ("revision", names::check_revision(revision(table))),
        ("file", file.map_or(Ok(()), names::check_path)),
    ] {
        if let Err(fault) = result {
            faults.add(&place.key(key), fault);
            sound = false;
        }
    }
    if let Some(file) = file.filter(|file| weights::is_called_a_pickle(file) && !table.allow_pickle) {
        let message = format!(
            "{file:?} is a pickle, and pickles from the Hub are refused; take a safetensors file, or set `allow-pickle = \
             true` beside it (nothing in it is run)"
        );
        faults.add(&place.key("file"), message);
        sound = false;
    }
    if !sound {
        return None;
    }
    let look = |hub: &Hub, wanted: &RemoteCheckpoint| match hub.cached_checkpoint(wanted)? {
        // No later step of this build could download it.
        None if !cfg!(feature = "hub") => hub.checkpoint(wanted, &Quiet).map(Some),
        found => Ok(found),
    };
    let found = on_hub(table, repo, look).map_err(Error::from);
    let local =
        found.and_then(|found| found.map(|found| LocalCheckpoint::new(found.path.clone(), Some(found))).transpose());
    local.map_err(|error| faults.add(&place.key("hub"), error.to_string())).ok()
}

/// Whether the pipeline's model is the one that a `config.json` describes.
fn check_model_config(model: &ModelSpec, config: &ModelConfig, head: Option<Head>, faults: &mut Faults) {
    let place = Place::section("model");
    let mut compare = |key: &str, found: Option<String>, expected: Option<String>| {
        if let (Some(found), Some(expected)) = (found, expected)
            && found != expected
        {
            let hint = if key == "classes" { "; for other classes, set weights.head = \"fresh\"" } else { "" };
            let message = format!("expected {expected}, as the checkpoint's config.json has, found {found}{hint}");
            faults.add(&place.key(key), message);
        }
    };
    let text = |number: Option<usize>| number.map(|number| number.to_string());
    if head.is_none() {
        compare("classes", text(Some(model.classes)), text(config.classes));
    }
    let means = config.preprocessing.as_ref().map(|images| images.mean.len());
    compare("channels", text(Some(model.channels)), text(means));
    // Positions are brought to another image size.
    for (stated, found) in differing(model, &config.stated).into_iter().filter(|(stated, _)| stated.key != "image-size")
    {
        let Stated { key, value, from } = stated;
        let message = format!("expected {value}, as `{from}` in the checkpoint's config.json has, found {found}");
        faults.add(&place.key(key), message);
    }
    let compared = ["classes", "channels"];
    for difference in config.model.iter().flat_map(|written| written.differing(model)) {
        let key = difference.split(' ').next().unwrap_or_default();
        if !compared.contains(&key) {
            faults.add(&place.key(key), format!("expected {difference}, as the checkpoint's config.json has"));
        }
    }
}

/// The model with what its `config.json` says of keys that the pipeline leaves out.
pub(super) fn stated(model: &ModelSpec, config: &ModelConfig, faults: &mut Faults) -> ModelSpec {
    filled(model, &config.stated).unwrap_or_else(|message| {
        faults.add(&Place::section("model"), format!("the checkpoint's config.json: {message}"));
        model.clone()
    })
}

/// The dataset with its classes in the order in which a `config.json` names them, if it names the same.
pub(super) fn with_labels(checkpoint: &Checkpoint, dataset: Dataset, faults: &mut Faults) -> Dataset {
    let Some(LocalCheckpoint { file, config: Some(config), .. }) = &checkpoint.local else { return dataset };
    if checkpoint.table.head.is_some() || checkpoint.table.labels.is_some() {
        return dataset;
    }
    let place = Place::section("model").key("weights");
    let folder = file.parent().unwrap_or(file).display();
    match labels::compare(&config.labels, &dataset.descriptor().classes) {
        Verdict::Same => dataset,
        Verdict::Spelled(example) => {
            tracing::warn!("{folder}: some classes have other names in config.json than in the dataset: {example}");
            dataset
        }
        Verdict::Reordered(order, example) => {
            tracing::warn!(
                "{folder}: config.json has the dataset's classes in another order ({example}); all classes, also `target`, are \
                 numbered as there"
            );
            dataset.with_order(order)
        }
        Verdict::Different(message) => {
            let hint =
                "; if class i of the model is class i of the dataset all the same, set weights.labels = \"dataset\"";
            faults.add(&place, format!("{message}{hint}"));
            dataset
        }
    }
}

impl Plan {
    /// Brings a checkpoint on the Hub onto this machine, verified, and checks what could not be checked without it. From
    /// then on the plan names its commit and file, whatever a branch does. A plan without one stays as it is.
    pub fn fetch(&mut self, observer: &dyn Observer) -> Result<()> {
        let Some(checkpoint) = &mut self.weights else { return Ok(()) };
        let Some(repo) = checkpoint.table.hub.clone() else { return Ok(()) };
        let found = on_hub(&checkpoint.table, &repo, |hub, wanted| hub.checkpoint(wanted, observer))?;
        checkpoint.table.revision = Some(found.commit.clone());
        checkpoint.table.file = Some(found.file.clone());
        let local = LocalCheckpoint::new(found.path.clone(), Some(found))?;
        let mut faults = Faults::new(self.file.display().to_string(), Default::default());
        if let Some(config) = &local.config {
            self.model = stated(&self.given, config, &mut faults).resolved();
            check_model_config(&self.model, config, checkpoint.table.head, &mut faults);
        }
        checkpoint.local = Some(local);
        if self.data.preprocessing == Some(Convention::Checkpoint)
            && let Some(dataset) = preprocess(self.dataset.clone(), &self.data, self.weights.as_ref(), &mut faults)
        {
            check_images(&self.model, &dataset, &mut faults);
            if let Some(table) = &self.trigger {
                check_fit(table, &dataset, &self.search, &mut faults);
            }
            self.dataset = dataset;
        }
        if let Some(checkpoint) = &self.weights {
            self.dataset = with_labels(checkpoint, self.dataset.clone(), &mut faults);
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Rejected(faults.into_problems())) }
    }
}
