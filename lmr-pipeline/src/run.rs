//! Runs a plan: every stage once, and none that a former run has finished.
//!
//! A trigger that an attack learns passes through here and nowhere else: from the attack's attachment into the examination that
//! later stages of the branch are shown, if that is their role.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lmr_plugin::model::Model;
use lmr_plugin::nn::with_compute_dtype;
use lmr_plugin::run::{Quiet, Run};
use lmr_plugin::stage::{Context, Examination, FactStore, ModelUse, Planted, Shown};
use lmr_plugin::zoo::Network;
use serde_json::{Map, Value, json};

use crate::artifacts::{CONFIG_FILE, EXPORT_PREFIX, Finished, Record, RunFolder, finished};
use crate::files::{MODEL_FILE, json as to_json};
use crate::inputs::Inputs;
use crate::log::{Log, Logged};
use crate::observer::RunObserver;
use crate::plan::{Plan, Step};
use crate::report::{Report, StageReport};
use crate::tensors::{digest, sha256, to_safetensors};
use crate::triggers::{TRIGGER_FILE, restore};
use crate::{Error, Result, report};

/// Where and how a plan runs.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// The run folder; `runs/<name>` if absent.
    pub out: Option<PathBuf>,
    /// Whether to run stages that a former run has finished.
    pub fresh: bool,
}

impl Options {
    /// Writes to this folder instead of `runs/<name>`.
    #[must_use]
    pub fn with_out(mut self, out: impl Into<PathBuf>) -> Self {
        self.out = Some(out.into());
        self
    }

    /// Runs every stage, finished or not.
    #[must_use]
    pub fn with_fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }

    /// The run folder of a plan.
    pub fn folder(&self, plan: &Plan) -> PathBuf {
        self.out.clone().unwrap_or_else(|| Path::new("runs").join(&plan.run.name))
    }
}

/// Fetches what is on the Hub, runs every stage that is not finished yet, and writes the report. The plan then names the
/// commit that a branch on the Hub was at.
pub fn run(plan: &mut Plan, options: &Options, observer: &dyn RunObserver) -> Result<Report> {
    let clock = Instant::now();
    let started = jiff::Timestamp::now();
    let path = options.folder(plan);
    let loaded = plan.fetch(observer).and_then(|()| Inputs::load(plan, observer));
    let (model, inputs) = loaded.map_err(|error| match error {
        Error::Model(lmr_plugin::Error::Interrupted) => Error::Interrupted { folder: path.clone() },
        error => error,
    })?;
    let plan = &*plan;
    let folder = RunFolder::open(&path)?;
    folder.write("config.toml", plan.to_toml(folder.path())?.as_bytes())?;
    folder.write("data.json", &to_json(&inputs.data)?)?;
    let mut runner = Runner::new(plan, model, &inputs, &folder, options.fresh, observer)?;
    let mut stages = Vec::new();
    for step in &plan.steps {
        let report = runner.step(step)?;
        observer.finished(step, &report, plan.steps.len());
        stages.push(report);
    }
    let report = Report::new(plan, &inputs, stages, started, clock.elapsed().as_secs_f64());
    folder.write("report.json", &to_json(&report)?)?;
    folder.write("report.md", report::markdown(plan, &inputs, &report, folder.path()).as_bytes())?;
    Ok(report)
}

/// Which stages a run would reuse, in order. Nothing is downloaded: as long as something has to be, it is none.
pub fn reusable(plan: &Plan, options: &Options) -> Result<Vec<bool>> {
    let path = options.folder(plan);
    if options.fresh || !path.is_dir() || plan.remote()?.iter().any(|input| !input.cached) {
        return Ok(vec![false; plan.steps.len()]);
    }
    let (model, inputs) = Inputs::load(plan, &Quiet)?;
    let received = State::received(&model, &inputs)?;
    let mut states: Vec<Option<State>> = Vec::new();
    for step in &plan.steps {
        let before = step.from.map_or(Some(&received), |from| states[from].as_ref());
        let after = before.and_then(|before| {
            let (key, _) = key(plan, &inputs, step, before).ok()?;
            Some(before.after(step, &finished(&path, &step.folder(), &key)?.record))
        });
        states.push(after);
    }
    Ok(states.iter().map(Option::is_some).collect())
}

/// The model and the findings that a stage leaves behind.
#[derive(Clone)]
struct State {
    slot: usize,
    facts: Map<String, Value>,
    digest: String,
    /// Key of the stage that put the model into a deployed form, or digest of the file that it came in: weights alone do
    /// not tell.
    form: Option<String>,
    /// Slot and digest of the model as the defender received it: from before the first purifying stage.
    received: (usize, String),
    /// The stage that learned the trigger, and the SHA-256 of the file it left.
    learned: Option<(usize, String)>,
}

impl State {
    fn received(model: &Model, inputs: &Inputs) -> Result<Self> {
        let digest = digest_of(model)?;
        let file = inputs.source.sha256.clone();
        Ok(Self {
            slot: 0,
            facts: Map::new(),
            digest: digest.clone(),
            form: file.filter(|_| model.full_precision().is_err()),
            received: (0, digest),
            learned: None,
        })
    }

    fn after(&self, step: &Step, record: &Record) -> Self {
        let mut facts = self.facts.clone();
        facts.extend(record.findings.clone());
        let slot = if step.kind.model.changes_model() { step.index + 1 } else { self.slot };
        Self {
            slot,
            // What an attack leaves is what the defender receives.
            received: if step.kind.implants() { (slot, record.model.clone()) } else { self.received.clone() },
            learned: match record.files.get(TRIGGER_FILE).filter(|_| step.kind.learns()) {
                Some(sha256) => Some((step.index, sha256.clone())),
                None => self.learned.clone(),
            },
            facts,
            digest: record.model.clone(),
            form: if step.kind.model == ModelUse::Deploys { Some(record.key.clone()) } else { self.form.clone() },
        }
    }
}

fn digest_of(model: &Model) -> Result<String> {
    digest(&model.network().params().state_dict()?)
}

/// What decides whether a result can be reused, as a digest and in full.
fn key(plan: &Plan, inputs: &Inputs, step: &Step, before: &State) -> Result<(String, Value)> {
    let needs = step.stage.needs();
    let needed: Map<String, Value> = before
        .facts
        .iter()
        .filter(|(name, _)| needs.contains(&name.as_str()))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    let mut value = json!({
        "kind": step.stage.kind(),
        "version": step.stage.version(),
        "crate": env!("CARGO_PKG_VERSION"),
        "config": step.stage.config()?,
        "seed": plan.run.seed,
        "model": { "spec": plan.model, "digest": before.digest, "form": before.form, "received": before.received.1 },
        "data": inputs.identity(step),
        "findings": needed,
    });
    if !plan.run.dtype.is_f32() {
        value["dtype"] = json!(plan.run.dtype);
    }
    if let Some((_, sha256)) = before.learned.as_ref().filter(|_| step.kind.examines()) {
        value["learned-trigger"] = json!(sha256);
    }
    Ok((sha256(&to_json(&value)?), value))
}

struct Runner<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs,
    folder: &'a RunFolder,
    fresh: bool,
    observer: &'a dyn RunObserver,
    log: Log,
    /// Models by slot: 0 as received, `i + 1` as stage `i` left it. Dropped once no later stage needs them.
    models: Vec<Option<Model>>,
    /// Triggers by the stage that learned them.
    learned: Vec<Option<Planted>>,
    received: State,
    states: Vec<State>,
}

impl<'a> Runner<'a> {
    fn new(
        plan: &'a Plan,
        model: Model,
        inputs: &'a Inputs,
        folder: &'a RunFolder,
        fresh: bool,
        observer: &'a dyn RunObserver,
    ) -> Result<Self> {
        let received = State::received(&model, inputs)?;
        let mut models = vec![Some(model)];
        models.resize_with(plan.steps.len() + 1, || None);
        let learned = plan.steps.iter().map(|_| None).collect();
        let log = Log::open(folder.path())?;
        Ok(Self { plan, inputs, folder, fresh, observer, log, models, learned, received, states: Vec::new() })
    }

    fn step(&mut self, step: &Step) -> Result<StageReport> {
        if self.observer.cancelled() {
            return Err(Error::Interrupted { folder: self.folder.path().to_path_buf() });
        }
        let before = step.from.map_or(&self.received, |from| &self.states[from]).clone();
        let (key, inputs) = key(self.plan, self.inputs, step, &before)?;
        let finished = if self.fresh { None } else { finished(self.folder.path(), &step.folder(), &key) };
        let mut model = self.take_model(step, before.slot)?;
        let result = match finished {
            Some(finished) => self.reuse(step, &mut model, finished),
            None => self.execute(step, &mut model, &before, key, inputs),
        };
        let (record, seconds, reused) = result?;
        self.export(step, &model)?;
        if step.kind.learns() {
            self.learned[step.index] = Some(self.learned_trigger(step)?);
        }
        let after = before.after(step, &record);
        self.models[after.slot] = Some(model);
        self.states.push(after);
        for slot in 0..self.models.len() {
            if !self.needed_after(step.index, slot) {
                self.models[slot] = None;
            }
        }
        Ok(StageReport::new(self.plan, step, &record, seconds, reused))
    }

    /// The trigger that a finished stage left in its folder.
    fn learned_trigger(&self, step: &Step) -> Result<Planted> {
        let path = self.folder.path().join(step.folder()).join(TRIGGER_FILE);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let image = self.plan.dataset.descriptor().image.chw();
        match (restore(&bytes, image)?, &self.plan.trigger) {
            ((trigger, _), Some(table)) => Ok(Planted { trigger, target: table.target }),
            _ => Err(Error::Internal(format!("{} learned a trigger without a target", step.kind.kind))),
        }
    }

    /// What examining stages are shown, with the trigger that an earlier stage of the branch learned.
    fn examination(&self, before: &State) -> Option<Cow<'_, Examination>> {
        let examination = self.inputs.examination.as_ref()?;
        match before.learned.as_ref().and_then(|(stage, _)| self.learned[*stage].as_ref()) {
            Some(planted) => Some(Cow::Owned(examination.clone().with_trigger(planted.clone()))),
            None => Some(Cow::Borrowed(examination)),
        }
    }

    /// Writes a changed model as the received one came, if the pipeline asks for that, and what describes a model of other widths. Not part of the stage's result: it
    /// follows from it, and whether it is wanted may change without running the stage again.
    fn export(&self, step: &Step, model: &Model) -> Result<()> {
        let spec = Network::of(model.network()).map(Network::spec);
        if let Some(spec) = spec.filter(|spec| step.kind.model.changes_model() && spec.widths != self.plan.model.widths)
        {
            // The pipeline's `[model]` no longer says what the weights beside it are for.
            let config = self.plan.own_config(spec);
            self.folder.write(&format!("{}/{CONFIG_FILE}", step.folder()), &to_json(&json!({ "lmr": config }))?)?;
        }
        let Some(export) = self.plan.weights.as_ref().and_then(|weights| weights.table.export) else { return Ok(()) };
        let Some(layout) = self.inputs.source.layout.as_ref().filter(|_| step.kind.model.changes_model()) else {
            return Ok(());
        };
        let bytes = layout.write_model(&model.network().params().state_dict()?, export)?;
        self.folder.write(&format!("{}/{EXPORT_PREFIX}{}", step.folder(), export.extension()), &bytes)
    }

    /// The model a stage works on: its own copy if it will change what a later stage still needs.
    fn take_model(&mut self, step: &Step, slot: usize) -> Result<Model> {
        let gone = || Error::Internal(format!("the model that stage[{}] needs is gone", step.index));
        if step.kind.model.changes_model() && self.needed_after(step.index, slot) {
            return Ok(self.models[slot].as_ref().ok_or_else(gone)?.try_clone()?);
        }
        self.models[slot].take().ok_or_else(gone)
    }

    /// Whether a stage after `index` starts from the model in `slot`, or purifies what was received with it.
    fn needed_after(&self, index: usize, slot: usize) -> bool {
        let last = |from: Option<usize>, changes: fn(&Step) -> bool| {
            let mut steps = std::iter::successors(from, |&i| self.plan.steps[i].from);
            steps.find(|&i| changes(&self.plan.steps[i])).map_or(0, |i| i + 1)
        };
        self.plan.steps.iter().skip(index + 1).any(|later| {
            last(later.from, |step| step.kind.model.changes_model()) == slot
                || (later.kind.model == ModelUse::Writes && last(later.from, |step| step.kind.implants()) == slot)
        })
    }

    /// The model as the defender received it, if it is not the one that the stage works on.
    fn received_model(&self, before: &State) -> Option<&Model> {
        if before.slot == before.received.0 { None } else { self.models[before.received.0].as_ref() }
    }

    fn reuse(&mut self, step: &Step, model: &mut Model, finished: Finished) -> Result<(Record, f64, bool)> {
        let Finished { record, model: state, seconds } = finished;
        let failed = stage_error(step, self.folder.path());
        let restore = || {
            if let Some(state) = state {
                model.load_state(state)?;
            }
            let facts = fact_store(&record.findings)?;
            with_compute_dtype(self.plan.run.dtype.dtype(), || step.stage.restore(model, &facts))
        };
        restore().map_err(failed)?;
        self.log.write(&step.name, json!({ "event": "reused" }))?;
        Ok((record, seconds, true))
    }

    fn execute(
        &mut self,
        step: &Step,
        model: &mut Model,
        before: &State,
        key: String,
        inputs: Value,
    ) -> Result<(Record, f64, bool)> {
        self.folder.remove_reports()?;
        self.observer.started(step, self.plan.steps.len());
        self.log.write(&step.name, json!({ "event": "started", "kind": step.kind.kind }))?;
        let clock = Instant::now();
        let logged = Logged { log: &self.log, stage: &step.name, inner: self.observer };
        let facts = fact_store(&before.facts).map_err(stage_error(step, self.folder.path()))?;
        let mut ctx = Context {
            model,
            received: self.received_model(before),
            clean: &self.inputs.clean,
            run: Run::new(self.plan.run.seed, &logged),
        };
        let dtype = self.plan.run.dtype.dtype();
        let examination = self.examination(before);
        let shown = Shown {
            examination: examination.as_deref(),
            material: self.inputs.material.as_ref(),
            learning: self.inputs.learning.as_ref(),
        };
        let outcome = with_compute_dtype(dtype, || step.stage.run(&mut ctx, &facts, &shown));
        let outcome = outcome.map_err(stage_error(step, self.folder.path()))?;
        let seconds = clock.elapsed().as_secs_f64();
        let state = model.network().params().state_dict()?;
        let digest = digest(&state)?;
        let mut files = Vec::new();
        if step.kind.model.changes_model() {
            files.push((MODEL_FILE.to_string(), to_safetensors(&state, &Default::default())?));
        } else if digest != before.digest {
            let message = format!("{} changed the model, which it must not", step.kind.kind);
            return Err(Error::Internal(message));
        }
        for attachment in &outcome.attachments {
            let bytes = to_safetensors(&attachment.tensors, &attachment.metadata)?;
            files.push((format!("{}.safetensors", attachment.name), bytes));
        }
        let record = Record {
            key,
            inputs,
            outcome: outcome.report,
            findings: findings(&outcome.gives)?,
            model: digest,
            files: files.iter().map(|(name, bytes)| (name.clone(), sha256(bytes))).collect(),
        };
        self.folder.keep(&step.folder(), &record, &files, seconds)?;
        self.log.write(&step.name, json!({ "event": "finished", "seconds": seconds }))?;
        Ok((record, seconds, false))
    }
}

/// Findings as stages read them.
pub(crate) fn fact_store(facts: &Map<String, Value>) -> lmr_plugin::Result<FactStore> {
    serde_json::from_value(Value::Object(facts.clone()))
        .map_err(|source| lmr_plugin::Error::Finding { name: "findings", source })
}

fn findings(store: &FactStore) -> Result<Map<String, Value>> {
    match serde_json::to_value(store) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::Internal("findings are no JSON object".into())),
    }
}

/// What a failure inside a stage is to whoever started the run.
fn stage_error(step: &Step, folder: &Path) -> impl FnOnce(lmr_plugin::Error) -> Error + use<> {
    let (index, name, folder) = (step.index, step.name.clone(), folder.to_path_buf());
    move |source| match source {
        lmr_plugin::Error::Interrupted => Error::Interrupted { folder },
        source => Error::Stage { index, name, source: Box::new(source) },
    }
}
