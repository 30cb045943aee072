//! A zoo: models with known backdoors, each made by a pipeline of one folder, to measure defenses on.
//!
//! `<root>/<profile>/<name>/` is the run folder of `<configs>/<name>.toml` with that profile. Once the pipeline has run, it
//! also holds what a defender receives, `model.safetensors` with a `config.json`, and what only the examiner knows,
//! `trigger.safetensors` and a model card. The member `clean` comes first: the others begin with its model.

mod card;
mod sheet;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::artifacts::{CONFIG_FILE, write_whole};
use crate::files::{MODEL_FILE, json as to_json};
use crate::observer::RunObserver;
use crate::plan::Step;
use crate::report::{Measurement, Report};
use crate::run::Options;
use crate::triggers::TRIGGER_FILE;
use crate::{Error, Overrides, Plan, Result, run};

/// The member that carries no backdoor.
pub const CLEAN: &str = "clean";
/// The contact sheet.
pub const SHEET_FILE: &str = "sheet.png";
/// The model card.
const CARD_FILE: &str = "README.md";

/// The pipelines of a folder, and where what they make is kept.
#[derive(Clone, Debug)]
pub struct Zoo {
    /// The folder with a pipeline a member.
    pub configs: PathBuf,
    /// The folder of all profiles.
    pub root: PathBuf,
    /// The profile of the pipelines.
    pub profile: String,
}

/// One attack.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name: that of its pipeline file.
    pub name: String,
    /// Its pipeline.
    pub config: PathBuf,
    /// Its run folder.
    pub folder: PathBuf,
    profile: String,
}

impl Zoo {
    /// Every member, `clean` first, the others by name.
    pub fn members(&self) -> Result<Vec<Member>> {
        let entries = fs::read_dir(&self.configs).map_err(Error::io("list", &self.configs))?;
        let mut members = Vec::new();
        for entry in entries {
            let config = entry.map_err(Error::io("list", &self.configs))?.path();
            let name = config.file_stem().map(|name| name.to_string_lossy().into_owned());
            if let Some(name) = name.filter(|_| config.extension().is_some_and(|ending| ending == "toml")) {
                let folder = self.root.join(&self.profile).join(&name);
                members.push(Member { name, config, folder, profile: self.profile.clone() });
            }
        }
        if members.is_empty() {
            return Err(Error::input(&self.configs, "holds no pipeline file (*.toml)"));
        }
        members.sort_by_key(|member| (member.name != CLEAN, member.name.clone()));
        Ok(members)
    }

    /// The members of these names, all if there are none.
    pub fn select(&self, names: &[String]) -> Result<Vec<Member>> {
        let members = self.members()?;
        let known: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
            let message = format!("has no pipeline `{unknown}`{}", crate::problem::hint(unknown, &known));
            return Err(Error::input(&self.configs, message));
        }
        Ok(members.into_iter().filter(|member| names.is_empty() || names.contains(&member.name)).collect())
    }
}

impl Member {
    /// Its pipeline, with `--set` values and environment variables on top of the profile.
    pub fn plan(&self, set: Vec<String>) -> Result<Plan> {
        Plan::load(&self.config, &Overrides::from_process(Some(self.profile.clone()), set))
    }

    /// Runs the pipeline, or what is left of it, and lays out what it made.
    pub fn build(&self, set: Vec<String>, observer: &dyn RunObserver) -> Result<Report> {
        let mut plan = self.plan(set)?;
        let maker = plan.steps.iter().rposition(|step| step.kind.implants());
        let maker = maker.ok_or_else(|| Error::input(&self.config, "has no stage that implants a backdoor"))?;
        let options = Options { out: Some(self.folder.clone()), fresh: false };
        let report = run::run(&mut plan, &options, observer)?;
        self.lay_out(&plan, &plan.steps[maker], &report)?;
        Ok(report)
    }

    /// What the last finished build found, if there was one. The card is written last, so what it describes is there.
    pub fn report(&self) -> Option<Report> {
        if !self.folder.join(CARD_FILE).is_file() {
            return None;
        }
        serde_json::from_slice(&fs::read(self.folder.join("report.json")).ok()?).ok()
    }

    /// The attacked model, for a pipeline that starts from it.
    pub fn weights(&self) -> PathBuf {
        self.folder.join(MODEL_FILE)
    }

    /// The trigger, for a pipeline that measures with it.
    pub fn trigger(&self) -> PathBuf {
        self.folder.join(TRIGGER_FILE)
    }

    /// What was measured last of the model as it was attacked.
    pub fn measured<'a>(&self, report: &'a Report) -> Option<Measurement<'a>> {
        report.measurements().into_iter().next_back()
    }

    /// Copies the model and the trigger out of the stage's folder and writes what describes them.
    fn lay_out(&self, plan: &Plan, maker: &Step, report: &Report) -> Result<()> {
        let stage = self.folder.join(maker.folder());
        for name in [MODEL_FILE, TRIGGER_FILE] {
            let from = stage.join(name);
            write_whole(&self.folder.join(name), &fs::read(&from).map_err(Error::io("read", &from))?)?;
        }
        let config = plan.own_config(&plan.model);
        write_whole(&self.folder.join(CONFIG_FILE), &to_json(&json!({ "lmr": config }))?)?;
        write_whole(&self.folder.join(CARD_FILE), card::write(self, plan, maker, report)?.as_bytes())
    }

    /// Draws what the trigger does to a few test images; see [`SHEET_FILE`].
    pub fn sheet(&self, observer: &dyn RunObserver) -> Result<PathBuf> {
        let path = self.folder.join(SHEET_FILE);
        write_whole(&path, &sheet::draw(&self.resolved()?, &self.trigger(), observer)?)?;
        Ok(path)
    }

    /// The pipeline as it was built.
    fn resolved(&self) -> Result<Plan> {
        Plan::load(&self.folder.join("config.toml"), &Overrides::default())
    }

    /// `--set` values that put this member in place of the model, the data and the trigger of another pipeline. Keys
    /// of the other one's that this one does not have stay, so both are of one kind of architecture.
    pub fn as_received(&self) -> Result<Vec<String>> {
        let plan = self.resolved()?;
        let internal = |error: String| Error::Internal(format!("{}: {error}", plan.file.display()));
        let value = |value: Result<toml::Value, toml::ser::Error>| value.map_err(|error| internal(error.to_string()));
        let mut set = Vec::new();
        let tables = [("model", toml::Value::try_from(&plan.model)), ("data", toml::Value::try_from(&plan.data))];
        for (section, table) in tables {
            for (key, value) in value(table)?.as_table().into_iter().flatten() {
                set.push(format!("{section}.{key}={value}"));
            }
        }
        let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
        let target = plan.trigger.as_ref().map(|table| table.target).unwrap_or_default();
        set.push(format!("model.weights.path={}", text(&self.weights())));
        set.push(format!("trigger.path={}", text(&self.trigger())));
        set.push(format!("trigger.target={target}"));
        Ok(set)
    }
}
