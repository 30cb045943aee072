//! What would run, checked as a whole before anything runs.

mod labels;
mod remote;
mod resolved;
mod selection;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lmr_plugin::data::Normalization;
use lmr_plugin::stage::{AnyStage, CleanUse, ModelUse};
use lmr_plugin::zoo::ModelSpec;

use crate::config::{
    Bound, Clean, DataTable, Draft, ExpectTable, NO_UPLOADS, Overrides, PublishTable, RunTable, SearchPath, StageTable,
    TriggerTable, is_name,
};
use crate::datasets::Dataset;
use crate::device::DeviceChoice;
use crate::model_config::{Convention, OwnConfig};
use crate::place::{Faults, Place};
use crate::preprocess::{Preprocessing, Resize};
use crate::problem::{hint, quoted};
use crate::registry::{STAGES, StageKind};
use crate::triggers::{Built, Learned};
use crate::{Error, Result};
pub use remote::RemoteInput;
pub use selection::{Link, Selection, folder as published_folder, maker};
pub use weights::{Checkpoint, LocalCheckpoint};

/// A pipeline that can run.
#[non_exhaustive]
pub struct Plan {
    /// The pipeline file.
    pub file: PathBuf,
    /// Where its relative paths lead.
    pub(crate) search: SearchPath,
    /// `[run]`.
    pub run: RunTable,
    /// The device asked for.
    pub device: DeviceChoice,
    /// `[model]` without its weights; keys that are not given are as the checkpoint's `config.json` has them, or else the
    /// architecture's defaults.
    pub model: ModelSpec,
    /// The keys that are given.
    given: ModelSpec,
    /// The checkpoint to start from; without one, weights are drawn from the seed.
    pub weights: Option<Checkpoint>,
    /// `[data]`.
    pub data: DataTable,
    /// The dataset it names.
    pub dataset: Dataset,
    /// `[trigger]`.
    pub trigger: Option<TriggerTable>,
    /// The stages in the order they run.
    pub steps: Vec<Step>,
    /// `[expect]`: what the numbers of the run must come to.
    pub expect: ExpectTable,
    /// `[publish]`: where the purified model goes in the end.
    pub publish: Option<PublishTable>,
}

/// A stage in its place.
#[non_exhaustive]
pub struct Step {
    /// Position in the pipeline file, from 0.
    pub index: usize,
    /// What kind it is.
    pub kind: &'static StageKind,
    /// Its name, unique in the pipeline.
    pub name: String,
    /// The stage whose model and findings it takes; `None` for the model as it was received.
    pub from: Option<usize>,
    /// The stage.
    pub stage: Box<dyn AnyStage>,
}

impl Step {
    /// The name of its folder in the run folder: `07-purified-int8` for a stage called "purified + int8".
    pub fn folder(&self) -> String {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        let words: Vec<&str> = self.name.split(|c: char| !fits(c)).filter(|word| !word.is_empty()).collect();
        format!("{:02}-{}", self.index, words.join("-"))
    }
}

impl Plan {
    /// What the model was trained to expect of pixels: as the pipeline's `preprocessing` says, or else the model's
    /// `config.json`, or else as usual for the dataset.
    pub fn normalization(&self) -> Normalization {
        let local = self.weights.as_ref().and_then(|weights| weights.local.as_ref());
        let config = local.and_then(|local| local.config.as_ref()?.preprocessing.as_ref());
        let config = config.filter(|_| self.data.preprocessing.is_none());
        match config {
            Some(images) => images.normalization(),
            None => self.dataset.descriptor().normalization.clone(),
        }
    }

    /// What is done to an image before the model sees it.
    pub fn images(&self) -> Preprocessing {
        let (image, normal) = (self.dataset.descriptor().image, self.normalization());
        // The decimal number that was meant, not the nearest binary one with all its digits.
        let decimal = |value: &f32| value.to_string().parse().unwrap_or_else(|_| f64::from(*value));
        let size = [image.height, image.width];
        Preprocessing {
            size,
            resize: image.resize.unwrap_or(Resize::Exact(size)),
            interpolation: image.interpolation.unwrap_or_default(),
            mean: normal.mean.iter().map(decimal).collect(),
            std: normal.std.iter().map(decimal).collect(),
        }
    }

    /// What describes a model of this pipeline beside its weights.
    pub fn own_config(&self, model: &ModelSpec) -> OwnConfig {
        let labels = self.dataset.descriptor().classes.clone();
        OwnConfig { model: model.resolved(), labels, preprocessing: self.images() }
    }

    /// Where a relative path of the pipeline file leads, if anywhere: from its folder or one above it, else from the working
    /// directory.
    pub fn locate(&self, path: &Path) -> Option<PathBuf> {
        self.search.locate(path)
    }

    /// Reads and checks a pipeline; every fault found is in the error. The Hub is not asked: what depends on a checkpoint
    /// that is not in its cache is checked by [`Plan::fetch`].
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self> {
        let mut draft = Draft::load(file, overrides)?;
        let mut faults = std::mem::take(&mut draft.faults);
        let device = draft.run.as_mut().and_then(|run| check_run(run, file, &mut faults));
        settle_clean(&mut draft);
        let given = draft.model.clone();
        let checkpoint = weights::check(&mut draft, &mut faults);
        draft.model = draft.model.map(|model| model.resolved());
        let dataset = check_data(&draft, checkpoint.as_ref(), &mut faults);
        let dataset = match &checkpoint {
            Some(checkpoint) => dataset.map(|dataset| weights::with_labels(checkpoint, dataset, &mut faults)),
            None => dataset,
        };
        check_trigger(&draft, dataset.as_ref(), &mut faults);
        let from = check_stages(&draft, &mut faults);
        check_expect(&draft, &mut faults);
        check_publish(&draft, &from, &mut faults);
        if !faults.is_empty() {
            return Err(Error::Rejected(faults.into_problems()));
        }
        let steps = draft.stages.into_iter().zip(from).enumerate().map(|(index, (table, from))| {
            Some(Step { index, kind: table.kind?, name: table.name, from, stage: table.stage? })
        });
        let assemble = || {
            Some(Self {
                file: draft.file,
                search: draft.search,
                run: draft.run?,
                device: device?,
                model: draft.model?,
                given: given?,
                weights: checkpoint,
                data: draft.data?,
                dataset: dataset?,
                trigger: draft.trigger,
                steps: steps.collect::<Option<_>>()?,
                expect: draft.expect,
                publish: draft.publish,
            })
        };
        assemble().ok_or_else(|| Error::Internal("a pipeline without faults is incomplete".into()))
    }
}

fn check_run(run: &mut RunTable, file: &Path, faults: &mut Faults) -> Option<DeviceChoice> {
    let place = Place::section("run");
    if run.name.is_empty() {
        run.name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    }
    if !is_name(&run.name) {
        faults.add(&place.key("name"), format!("expected letters, digits, `_`, `-` and `.`, found {:?}", run.name));
    }
    // The resolved configuration is TOML, whose integers are signed.
    if i64::try_from(run.seed).is_err() {
        faults.add(&place.key("seed"), format!("expected at most {}, found {}", i64::MAX, run.seed));
    }
    let device = DeviceChoice::parse(&run.device).map_err(|message| faults.add(&place.key("device"), message)).ok()?;
    if device.is_cpu() && !run.dtype.is_f32() {
        let message = "expected \"f32\", which is all that the CPU computes in; others need a GPU (`device`)";
        faults.add(&place.key("dtype"), message);
    }
    Some(device)
}

fn check_data(draft: &Draft, checkpoint: Option<&Checkpoint>, faults: &mut Faults) -> Option<Dataset> {
    let data = draft.data.as_ref()?;
    let place = Place::section("data");
    if let Some(clean) = data.clean {
        check_clean(draft, clean, faults);
    }
    for (key, count) in [("test.count", data.test.count), ("train.count", data.train.count)] {
        if count == Some(0) {
            faults.add(&place.key(key), "expected at least 1, found 0");
        }
    }
    let root = data.root.as_ref().and_then(|root| {
        let found = draft.search.locate(root).filter(|root| root.is_dir());
        if found.is_none() {
            let message = format!("there is no folder {}{}", root.display(), draft.search.tried(root));
            faults.add(&place.key("root"), message);
        }
        found
    });
    let mut dataset = open_dataset(draft, &data.name, &place.key("name"), faults)?;
    if let Some(classes) = &data.classes {
        let wrong = |faults: &mut Faults, all: Vec<String>| {
            all.into_iter().for_each(|fault| faults.add(&place.key("classes"), fault));
        };
        dataset = dataset.with_classes(classes).map_err(|all| wrong(faults, all)).ok()?;
    }
    if data.partial && !dataset.allow_missing_classes() {
        let message =
            format!("is for folders that are called as their classes, which the dataset {} has not", data.name);
        faults.add(&place.key("partial"), message);
    }
    // What a checkpoint says about images is not known before it is here.
    let unknown = data.preprocessing == Some(Convention::Checkpoint)
        && checkpoint.is_some_and(|checkpoint| checkpoint.local.is_none());
    if !unknown {
        dataset = preprocess(dataset, data, checkpoint, faults)?;
        if let Some(model) = &draft.model {
            check_images(model, &dataset, faults);
        }
    }
    if let Some(root) = root {
        dataset = dataset.with_root(root);
    }
    let uses = |split, why: &str, faults: &mut Faults, key: &str| {
        if dataset.descriptor().source(split).is_none() {
            faults.add(&place.key(key), format!("the dataset {} has no {split} split, which {why}", data.name));
        } else if let Err(error) = dataset.check_build(split) {
            faults.add(&place.key(key), error.to_string());
        }
    };
    if let Some(clean) = data.clean {
        uses(clean.split, "the clean images come from", faults, "clean.split");
    }
    if draft.stages.iter().any(|stage| stage.kind.is_some_and(|kind| kind.examines())) {
        uses(data.test.split, "evaluation measures on", faults, "test.split");
    }
    if draft.stages.iter().any(|stage| stage.kind.is_some_and(|kind| kind.implants())) {
        uses(data.train.split, "the attack trains on", faults, "train.split");
    }
    Some(dataset)
}

/// Gives a pipeline whose stages need clean images the usual ones, if it names none.
fn settle_clean(draft: &mut Draft) {
    let needed = |stage: &StageTable| stage.stage.as_ref().is_none_or(|stage| stage.clean() != CleanUse::None);
    if let Some(data) = draft.data.as_mut().filter(|data| data.clean.is_none())
        && draft.stages.iter().any(needed)
    {
        data.clean = Some(Clean::default());
    }
}

/// Whether a clean set can serve the stages, as far as its size tells.
fn check_clean(draft: &Draft, clean: Clean, faults: &mut Faults) {
    let place = Place::section("data").key("clean.count");
    if clean.count == 0 {
        faults.add(&place, "expected at least 1, found 0; purification needs clean images");
        return;
    }
    let compares = |stage: &&StageTable| stage.stage.as_ref().is_some_and(|it| it.clean() == CleanUse::EveryClass);
    let classes = draft.model.as_ref().map_or(0, |model| model.classes);
    if let Some(stage) = draft.stages.iter().find(compares).filter(|_| clean.count < classes) {
        let message = format!(
            "expected at least {classes}, an image of every class, since `{}` cannot tell a class without images from \
             the backdoor's; found {}. Or give it the class, `class = …`",
            stage.name, clean.count
        );
        faults.add(&place, message);
    }
}

/// The dataset with the images that the pipeline's `preprocessing` makes of it.
fn preprocess(
    dataset: Dataset,
    data: &DataTable,
    checkpoint: Option<&Checkpoint>,
    faults: &mut Faults,
) -> Option<Dataset> {
    let Some(convention) = data.preprocessing else { return Some(dataset) };
    let file = checkpoint.and_then(|checkpoint| Some(checkpoint.local.as_ref()?.file.as_path()));
    let preprocessing = convention.preprocessing(file).map_err(|error| error.to_string());
    let changed = preprocessing
        .and_then(|preprocessing| dataset.with_preprocessing(&preprocessing).map_err(|error| error.to_string()));
    changed.map_err(|message| faults.add(&Place::section("data").key("preprocessing"), message)).ok()
}

/// Whether the model takes the dataset's images and has its classes.
fn check_images(model: &ModelSpec, dataset: &Dataset, faults: &mut Faults) {
    let descriptor = dataset.descriptor();
    let place = Place::section("model");
    let image = descriptor.image;
    for (key, found, expected) in [
        ("classes", Some(model.classes), descriptor.classes.len()),
        ("channels", Some(model.channels), image.channels),
        ("image-size", model.image_size, image.height),
        ("image-size", model.image_size.filter(|_| image.width != image.height), image.width),
    ] {
        if let Some(found) = found.filter(|found| *found != expected) {
            let message = format!("expected {expected}, as the dataset {} has, found {found}", descriptor.name);
            faults.add(&place.key(key), message);
        }
    }
    let (side, smallest) = (image.height.min(image.width), model.smallest_side());
    if side < smallest {
        let message = format!(
            "its pooling needs images of at least {smallest}x{smallest}; the dataset {} has {}x{} (height, width)",
            descriptor.name, image.height, image.width
        );
        faults.add(&place.key("arch"), message);
    }
}

fn open_dataset(draft: &Draft, name: &str, place: &Place, faults: &mut Faults) -> Option<Dataset> {
    let wanted = PathBuf::from(format!("datasets/{name}.toml"));
    let Some(file) = draft.search.locate(&wanted) else {
        let folder = draft.search.locate(Path::new("datasets")).and_then(|folder| std::fs::read_dir(folder).ok());
        let files = folder.into_iter().flatten().flatten().map(|entry| entry.path());
        let described = files.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
        let names = described.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
        let names: BTreeSet<String> = names.collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let tried = draft.search.tried(&wanted);
        faults.add(place, format!("there is no datasets/{name}.toml{}{tried}", hint(name, &names)));
        return None;
    };
    Dataset::open(&file.to_string_lossy()).map_err(|error| faults.add(place, error.to_string())).ok()
}

fn check_trigger(draft: &Draft, dataset: Option<&Dataset>, faults: &mut Faults) {
    let place = Place::section("trigger");
    for (index, stage) in draft.stages.iter().enumerate() {
        let Some(kind) = stage.kind.filter(|kind| kind.implants()) else { continue };
        if !draft.has_trigger {
            faults.add(&stage.place(index), "needs a trigger to implant; add a [trigger] table with kind and target");
        }
        let Some(trigger) = draft.trigger.as_ref().map(|table| table.trigger.kind()) else { continue };
        match (kind.learns(), trigger == Learned::KIND) {
            (true, false) => {
                let message = format!("learns its trigger, so trigger.kind must be \"learned\"; found \"{trigger}\"");
                faults.add(&stage.place(index), message);
            }
            (false, true) => {
                let learners = quoted(&learners());
                let message =
                    format!("implants a given trigger, but trigger.kind is \"learned\", which is for {learners}");
                faults.add(&stage.place(index), message);
            }
            _ => {}
        }
    }
    let Some(table) = &draft.trigger else { return };
    let TriggerTable { target, trigger } = table;
    let learns = |stage: &StageTable| stage.kind.is_none_or(|kind| kind.implants());
    if trigger.kind() == Learned::KIND && !draft.stages.iter().any(learns) {
        let message = format!(
            "no stage of this pipeline learns a trigger; add one of kind {}, or read a trigger.safetensors with \
             kind = \"stored\"",
            quoted(&learners())
        );
        faults.add(&place.key("kind"), message);
    }
    if let Some(model) = &draft.model
        && *target as usize >= model.classes
    {
        let message = format!("expected a class below {}, found {target}", model.classes);
        faults.add(&place.key("target"), message);
    }
    if let Some(dataset) = dataset {
        check_fit(table, dataset, &draft.search, faults);
    }
}

/// Whether the trigger fits on the dataset's images, and is what the pipeline says.
fn check_fit(table: &TriggerTable, dataset: &Dataset, search: &SearchPath, faults: &mut Faults) {
    let place = Place::section("trigger");
    match table.trigger.build(dataset.descriptor().image.chw(), &|path| search.find(path)) {
        Err(error) => faults.add_keyed(&place, &error.to_string()),
        Ok(Built::Read { target: Some(stored), .. }) if stored != table.target => {
            let found = table.target;
            faults.add(&place.key("target"), format!("expected {stored}, as the stored trigger has, found {found}"));
        }
        Ok(_) => {}
    }
}

/// Whether every stage of which something is expected is there.
fn check_expect(draft: &Draft, faults: &mut Faults) {
    let names: Vec<&str> = draft.stages.iter().map(|stage| stage.name.as_str()).collect();
    let unknown = |stage: &str| format!("no stage is called `{stage}`{}", hint(stage, &names));
    let mut last = None;
    for expectation in draft.expect.expectations() {
        let place = Place::section("expect").key(expectation.stage).key(&expectation.path.join("."));
        // One fault a stage, however much is expected of it.
        if !names.contains(&expectation.stage) && last.replace(expectation.stage) != Some(expectation.stage) {
            faults.add(&place, unknown(expectation.stage));
        }
        let Bound::Range(range) = expectation.bound else { continue };
        let Some(other) = &range.drop_from else { continue };
        let place = place.key("drop-from");
        if other == expectation.stage {
            faults.add(&place, format!("`{other}` is the stage itself; expected another one"));
        } else if !names.contains(&other.as_str()) {
            faults.add(&place, unknown(other));
        }
    }
}

/// Whether what is to be published can be.
fn check_publish(draft: &Draft, from: &[Option<usize>], faults: &mut Faults) {
    let Some(table) = &draft.publish else { return };
    let place = Place::section("publish");
    if let Err((key, message)) = table.check() {
        faults.add(&place.key(key), message);
    }
    if !table.dry_run && !cfg!(feature = "hub-upload") {
        faults.add(&place, format!("{}, or set `dry-run = true`", NO_UPLOADS));
    }
    let links =
        draft.stages.iter().zip(from).map(|(stage, &from)| Some(Link { kind: stage.kind?, name: &stage.name, from }));
    // A fault here could only repeat an earlier one.
    let Some(links) = links.collect::<Option<Vec<Link>>>().filter(|_| faults.is_empty()) else { return };
    for (key, message) in Selection::of(&links, table.stage.as_deref(), &table.include).err().into_iter().flatten() {
        faults.add(&place.key(key), message);
    }
}

/// The kinds of stages that learn a trigger.
fn learners() -> Vec<&'static str> {
    STAGES.iter().filter(|kind| kind.learns()).map(|kind| kind.kind).collect()
}

/// What is known about the model and the findings after a stage.
#[derive(Clone, Default)]
struct After {
    facts: BTreeSet<&'static str>,
    deployed: Option<String>,
    /// A fault here would only repeat an earlier one.
    unknown: bool,
}

/// Checks names, `from` and order; gives each stage's resolved `from`.
fn check_stages(draft: &Draft, faults: &mut Faults) -> Vec<Option<usize>> {
    if draft.stages.is_empty() && faults.is_empty() {
        faults.add(&Place::section("stage"), "there is no stage; add at least one [[stage]]");
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut after: Vec<After> = Vec::new();
    let mut from = Vec::new();
    for (index, table) in draft.stages.iter().enumerate() {
        let place = table.place(index);
        let source = match &table.from {
            Some(name) => resolve(name, index, &draft.stages, &names, &place, faults),
            None => Ok(index.checked_sub(1)),
        };
        let mut state = match source {
            Ok(Some(source)) => after[source].clone(),
            Ok(None) => After::default(),
            Err(()) => After { unknown: true, ..After::default() },
        };
        from.push(source.unwrap_or_default());
        match table.kind {
            Some(kind) => check_order(kind, table, &place, &mut state, &draft.stages[..index], faults),
            None => state.unknown = true,
        }
        after.push(state);
        if let Some(first) = names.get(table.name.as_str()) {
            let message = format!("stage[{first}] is called `{}` too; give one of them another `name`", table.name);
            faults.add(&place.key("name"), message);
        } else if !table.name.is_empty() {
            names.insert(&table.name, index);
        }
    }
    from
}

fn resolve(
    name: &str,
    index: usize,
    stages: &[StageTable],
    earlier: &BTreeMap<&str, usize>,
    place: &Place,
    faults: &mut Faults,
) -> Result<Option<usize>, ()> {
    if let Some(found) = earlier.get(name) {
        return Ok(Some(*found));
    }
    let later = stages.iter().skip(index).any(|stage| stage.name == name);
    let names: Vec<&str> = earlier.keys().copied().collect();
    let message = match later {
        true => format!("`{name}` does not run before this stage; expected the name of an earlier one"),
        false if names.is_empty() => format!("no stage is called `{name}`, and this is the first one"),
        false => format!("no earlier stage is called `{name}`{}", hint(name, &names)),
    };
    faults.add(&place.key("from"), message);
    Err(())
}

fn check_order(
    kind: &StageKind,
    table: &StageTable,
    place: &Place,
    state: &mut After,
    before: &[StageTable],
    faults: &mut Faults,
) {
    if !state.unknown {
        if let Some(deployed) = &state.deployed
            && table.stage.as_ref().map_or(kind.model, |stage| stage.model_use()) != ModelUse::Inspects
        {
            let message = format!(
                "works on the full-precision model, but gets the one that `{deployed}` deployed; \
                 name a stage before `{deployed}` in `from`"
            );
            faults.add(place, message);
        }
        for need in (kind.needs)() {
            if !state.facts.contains(need) {
                faults.add(place, lacking(need, before));
            }
        }
    }
    state.facts.extend((kind.gives)());
    if kind.model == ModelUse::Deploys {
        state.deployed = Some(table.name.clone());
    }
}

/// Says which stage to add, or where the one that is there went.
fn lacking(need: &str, before: &[StageTable]) -> String {
    let gives = |kind: &&StageKind| (kind.gives)().contains(&need);
    if let Some(elsewhere) = before.iter().find(|stage| stage.kind.as_ref().is_some_and(gives)) {
        return format!(
            "needs `{need}`, which `{}` gives, but that stage is on another branch; check `from`",
            elsewhere.name
        );
    }
    let givers: Vec<&str> = STAGES.iter().filter(gives).map(|kind| kind.kind).collect();
    match givers.as_slice() {
        [] => format!("needs `{need}`, which no stage gives"),
        givers => format!("needs `{need}`; put a stage of kind {} before it", quoted(givers)),
    }
}
