//! `report.md`.

use std::fmt::Write;
use std::path::Path;

use super::{Measurement, Report, percent};
use crate::inputs::Inputs;
use crate::plan::Plan;

/// The report as a page that says what was done, what came out and how to do it again.
pub fn markdown(plan: &Plan, inputs: &Inputs, report: &Report, folder: &Path) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, plan, inputs, report, folder);
    page
}

fn write(page: &mut String, plan: &Plan, inputs: &Inputs, report: &Report, folder: &Path) -> std::fmt::Result {
    let run = &report.run;
    writeln!(page, "# {}\n", run.name)?;
    writeln!(
        page,
        "{} from {}, {} clean images of {}, seed {}, {}, version {}, {}, {:.1} s.\n",
        report.model.arch,
        report.model.source,
        report.data.clean,
        plan.dataset.descriptor().title,
        run.seed,
        run.device,
        run.version,
        run.started,
        run.seconds
    )?;
    for worst in report.stages.iter().filter_map(Measurement::worst) {
        writeln!(page, "{worst}\n")?;
    }
    let measurements = report.measurements();
    if !measurements.is_empty() {
        // Most triggers know no decoy.
        let decoys = measurements.iter().any(|m| m.decoy_acc.is_some());
        let (title, line) = if decoys { (" decoy ACC % |", "---:|") } else { ("", "") };
        writeln!(page, "| model | ACC % | ASR % | TA % |{title}\n|---|---:|---:|---:|{line}")?;
        for m in &measurements {
            let decoy = if decoys { format!(" {} |", percent(m.decoy_acc)) } else { String::new() };
            writeln!(
                page,
                "| {} | {} | {} | {} |{decoy}",
                m.name,
                percent(Some(m.acc)),
                percent(m.asr),
                percent(m.ta)
            )?;
        }
        writeln!(
            page,
            "\nACC: accuracy on {} clean test images. ASR: share of triggered test images of other classes that are \
             classified as the attacker's class. TA: accuracy on the same triggered images.{}\n",
            report.data.test,
            if decoys { " Decoy ACC: accuracy under what resembles the trigger." } else { "" }
        )?;
    }
    if let Some(estimated) = report.estimated() {
        let names = &plan.dataset.descriptor().classes;
        let name = |class: usize| names.get(class).map_or("?", String::as_str);
        let class = estimated.class as usize;
        writeln!(page, "## Estimated class\n\n{class} ({}). {}", name(class), estimated.verdict())?;
        for reason in &estimated.low_confidence {
            writeln!(page, "Low confidence: {reason}.")?;
        }
        writeln!(page)?;
        writeln!(page, "| class | | score |\n|---:|---|---:|")?;
        for (class, score) in estimated.scores.iter().enumerate() {
            writeln!(page, "| {class} | {} | {score:.4} |", name(class))?;
        }
        writeln!(page)?;
    }
    if !report.expect.is_empty() {
        writeln!(page, "## Expected\n\n| number | expected | found | |\n|---|---|---|---|")?;
        for checked in &report.expect {
            let met = if checked.met { "met" } else { "**missed**" };
            writeln!(page, "| {} | {} | {} | {met} |", checked.place(), checked.expected, checked.found())?;
        }
        writeln!(page)?;
    }
    writeln!(page, "## Stages\n\n| # | stage | kind | from | seconds | |\n|---:|---|---|---|---:|---|")?;
    for stage in &report.stages {
        let from = stage.from.as_deref().unwrap_or("(as received)");
        let reused = if stage.reused { "reused" } else { "" };
        writeln!(
            page,
            "| {} | {} | {} | {from} | {:.2} | {reused} |",
            stage.index, stage.name, stage.kind, stage.seconds
        )?;
    }
    writeln!(page, "\n## Files\n\n| file | SHA-256 |\n|---|---|")?;
    if let Some(sha256) = &report.model.sha256 {
        writeln!(page, "| {} | `{sha256}` |", report.model.source)?;
    }
    for (step, stage) in plan.steps.iter().zip(&report.stages) {
        for (file, sha256) in &stage.files {
            writeln!(page, "| {}/{file} | `{sha256}` |", step.folder())?;
        }
    }
    for file in inputs.data.files.iter().flat_map(|provenance| &provenance.files) {
        let repo = file.repo.as_ref().map(|repo| format!("{repo}: ")).unwrap_or_default();
        writeln!(page, "| {repo}{} | `{}` |", file.path, file.sha256)?;
    }
    writeln!(
        page,
        "\n## Again\n\n`config.toml` beside this file has every setting, defaults included, and `data.json` the images:\n\n\
         ```\nlmr pipeline {} --out <another folder>\n```",
        folder.join("config.toml").display()
    )
}
