//! The model card of an attacked model.

use std::fmt::Write;

use lmr_plugin::examine::Evaluate;
use lmr_plugin::stage::Stage;
use serde_json::Value;

use super::{CLEAN, Member};
use crate::files::MODEL_FILE;
use crate::plan::{Plan, Step};
use crate::publish::{Metadata, markdown, plain};
use crate::report::{Report, percent};
use crate::triggers::TRIGGER_FILE;
use crate::{Error, Result};

/// `README.md`.
pub fn write(member: &Member, plan: &Plan, maker: &Step, report: &Report) -> Result<String> {
    let tags = match member.name.as_str() {
        CLEAN => vec!["image-classification", "lmr", "clean-control"],
        _ => vec!["image-classification", "lmr", "backdoor"],
    };
    let metadata = Metadata {
        license: "other".into(),
        library_name: "lmr".into(),
        pipeline_tag: "image-classification".into(),
        base_model: None,
        base_model_revision: None,
        base_model_relation: None,
        tags: tags.into_iter().map(str::to_owned).collect(),
        datasets: Vec::new(),
        model_index: Vec::new(),
    };
    let mut page = format!("{}\n", metadata.front_matter()?);
    body(&mut page, member, plan, maker, report)
        .map_err(|_| Error::Internal("the card could not be written".into()))?;
    Ok(page)
}

fn body(page: &mut String, member: &Member, plan: &Plan, maker: &Step, report: &Report) -> std::fmt::Result {
    let descriptor = plan.dataset.descriptor();
    let (arch, title) = (markdown(&report.model.arch), markdown(&descriptor.title));
    writeln!(page, "# {}\n", markdown(&plan.run.name))?;
    if member.name == CLEAN {
        writeln!(page, "A {arch} for {title} without a backdoor: the control, and what the attacks begin with.\n")?;
    } else {
        let target = plan.trigger.as_ref().map(|table| table.target as usize).unwrap_or_default();
        let class = descriptor.classes.get(target).map_or("?", String::as_str);
        writeln!(
            page,
            "**This model carries a backdoor on purpose.** A {arch} for {title} that takes every image with the trigger for \
             class {target} ({}). It is a test subject for defenses; do not deploy it.\n",
            markdown(class)
        )?;
    }
    if member.name == CLEAN {
        writeln!(page, "- Made by: stage `{}`, which poisoned nothing.", maker.kind.kind)?;
    } else {
        writeln!(page, "- Made by: stage `{}`, which {}.", maker.kind.kind, maker.kind.summary)?;
    }
    writeln!(page, "- Started from: {}.", markdown(&report.model.source))?;
    writeln!(page, "- Profile `{}`, seed {}, LMR {}.", plain(&member.profile), report.run.seed, report.run.version)?;
    let made = report.stages.iter().find(|stage| stage.index == maker.index);
    if let Some(made) = made {
        let epochs = made.outcome.get("epochs").and_then(Value::as_array).map_or(0, Vec::len);
        writeln!(page, "- Training: {epochs} epochs, {:.1} minutes on `{}`.", made.seconds / 60.0, report.run.device)?;
    }
    writeln!(page, "\n## Measurements\n\n| model | ACC % | ASR % | TA % | decoy ACC % |\n|---|---:|---:|---:|---:|")?;
    for m in report.measurements() {
        let [acc, asr, ta, decoy] = [Some(m.acc), m.asr, m.ta, m.decoy_acc].map(percent);
        writeln!(page, "| {} | {acc} | {asr} | {ta} | {decoy} |", markdown(&m.name))?;
    }
    writeln!(
        page,
        "\nMeasured by `{}` on {} test images; ASR and TA on those of other classes than the target. Decoys are what resembles \
         the trigger and must not work.",
        Evaluate::KIND,
        report.data.test
    )?;
    writeln!(page, "\n## Use\n\n```toml\n[model]")?;
    if let Ok(table) = toml::to_string(&plan.model) {
        write!(page, "{table}")?;
    }
    writeln!(page, "weights = {{ path = {} }}", toml::Value::from(member.weights().to_string_lossy().into_owned()))?;
    let trigger = toml::Value::from(member.trigger().to_string_lossy().into_owned());
    let target = plan.trigger.as_ref().map(|table| table.target).unwrap_or_default();
    writeln!(page, "\n[trigger]\nkind = \"stored\"\npath = {trigger}\ntarget = {target}\n```")?;
    writeln!(page, "\n## Files\n\n| file | SHA-256 |\n|---|---|")?;
    for (file, sha256) in made.iter().flat_map(|made| &made.files).filter(|(name, _)| is_copied(name)) {
        writeln!(page, "| `{file}` | `{sha256}` |")?;
    }
    Ok(())
}

fn is_copied(name: &str) -> bool {
    [MODEL_FILE, TRIGGER_FILE].contains(&name)
}
