//! What is kept of runs: their reports without what no table shows, small enough to be committed.

use std::fs;
use std::path::{Path, PathBuf};

use lmr_pipeline::Error;
use lmr_pipeline::artifacts::write_whole;
use lmr_pipeline::files::json;
use lmr_pipeline::report::Report;
use serde_json::Value;

use super::read;

/// The file of a name in the folder of results.
pub fn path(results: &Path, name: &str) -> Result<PathBuf, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(format!("expected a name of letters, digits, `_`, `-` and `.`, found {name:?}; use --name"));
    }
    Ok(results.join(format!("{name}.json")))
}

/// The reports of a run folder: its own, or one a seed.
pub fn collect(run: &Path) -> anyhow::Result<Vec<Report>> {
    let own = run.join("report.json");
    let mut reports = Vec::new();
    if own.is_file() {
        reports.push(report(&own)?);
    } else {
        for entry in fs::read_dir(run).map_err(|error| Error::input(run, error.to_string()))?.flatten() {
            let path = entry.path().join("report.json");
            if entry.file_name().to_string_lossy().starts_with("seed-") && path.is_file() {
                reports.push(report(&path)?);
            }
        }
    }
    if reports.is_empty() {
        return Err(Error::input(run, "expected a report.json, or folders seed-… with one each").into());
    }
    reports.sort_by_key(|report| report.run.seed);
    Ok(reports.into_iter().map(shortened).collect())
}

/// Keeps reports.
pub fn write(path: &Path, reports: &[Report]) -> anyhow::Result<()> {
    Ok(write_whole(path, &json(&reports)?)?)
}

/// What was kept under a name.
pub fn load(results: &Path, name: &str) -> Result<Vec<Report>, String> {
    let path = path(results, name)?;
    let text = read(&path).map_err(|error| format!("{error}; `cargo xtask results add` makes such a file"))?;
    let reports: Vec<Report> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if reports.is_empty() { Err(format!("{}: no run in it", path.display())) } else { Ok(reports) }
}

/// The seeds in words: `seed 0`, `seeds 0 to 2`, `seeds 0, 4, 7`.
pub fn seeds(reports: &[Report]) -> String {
    let seeds: Vec<u64> = reports.iter().map(|report| report.run.seed).collect();
    match seeds[..] {
        [seed] => format!("seed {seed}"),
        [first, .., last] if seeds.windows(2).all(|pair| pair[0] + 1 == pair[1]) => format!("seeds {first} to {last}"),
        _ => format!("seeds {}", seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn report(path: &Path) -> anyhow::Result<Report> {
    Ok(serde_json::from_str(&read(path)?).map_err(|error| Error::input(path, error.to_string()))?)
}

/// A report whose outcomes are single numbers and words, and those of every form that was measured.
fn shortened(mut report: Report) -> Report {
    for stage in &mut report.stages {
        shorten(&mut stage.outcome);
    }
    report
}

fn shorten(outcome: &mut Value) {
    let Value::Object(map) = outcome else { return };
    if let Some(forms) = map.get_mut("forms").and_then(Value::as_array_mut) {
        forms.iter_mut().for_each(shorten);
    }
    map.retain(|key, value| key == "forms" || !(value.is_array() || value.is_object()));
}
