//! A table of results from what was kept of runs.

use std::path::Path;

use lmr_pipeline::problem::hint;
use lmr_pipeline::report::{Measurement, Report};
use serde::Deserialize;
use serde_json::Value;

use super::extract;
use crate::commands::measured::Measured;

/// What a table shows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Options {
    /// The results: of one, a row for everything that was measured; of several, a row for each.
    of: Of,
    /// Which measurements, by name; all if absent.
    measured: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the name of a result, or a list of names")]
enum Of {
    One(String),
    Several(Vec<String>),
}

/// The table that options ask for, in Markdown, and a line that says what it is of.
pub fn draw(options: &str, results: &Path) -> Result<String, String> {
    let options: Options = toml::from_str(options).map_err(|error| error.message().to_string())?;
    match &options.of {
        Of::One(name) => one(&extract::load(results, name)?, options.measured.as_deref()),
        Of::Several(names) => {
            let loaded = names.iter().map(|name| Ok((name.as_str(), extract::load(results, name)?)));
            several(&loaded.collect::<Result<Vec<_>, String>>()?, options.measured.as_deref())
        }
    }
}

fn one(reports: &[Report], chosen: Option<&[String]>) -> Result<String, String> {
    let mut measured = match reports {
        [report] => Measured::of(report),
        reports => Measured::over(reports).map_err(|error| error.to_string())?,
    };
    if let Some(chosen) = chosen {
        let row = |name: &String| {
            let found = measured.rows.iter().find(|row| row.first() == Some(name));
            found.cloned().ok_or_else(|| unknown(name, &reports[0]))
        };
        measured.rows = chosen.iter().map(row).collect::<Result<_, _>>()?;
    }
    Ok(format!("{}\n{}\n", measured.markdown(), caption(reports)))
}

/// A row a result; in the cells ACC / ASR / TA, lowest to highest of the seeds.
fn several(results: &[(&str, Vec<Report>)], chosen: Option<&[String]>) -> Result<String, String> {
    let names: Vec<String> = match (chosen, results.first()) {
        (Some(chosen), _) => chosen.to_vec(),
        (None, Some((_, reports))) => reports[0].measurements().iter().map(|m| m.name.to_string()).collect(),
        (None, None) => return Err("of: expected at least one name".into()),
    };
    let mut rows = Vec::new();
    for (name, reports) in results {
        let mut row = vec![(*name).to_string()];
        for measured in &names {
            row.push(ranges(reports, measured)?);
        }
        row.extend([classes(reports).unwrap_or_else(|| "–".into()), extract::seeds(reports)]);
        rows.push(row);
    }
    let header = ["".to_string()].into_iter().chain(names).chain(["class named".into(), "of".into()]);
    let table = Measured { header: header.collect(), rows };
    Ok(format!("{}\nACC / ASR / TA in percent, lowest to highest of the seeds.\n", table.markdown()))
}

/// ACC / ASR / TA of a measurement, each from the lowest to the highest.
fn ranges(reports: &[Report], name: &str) -> Result<String, String> {
    let mut all: [Vec<f64>; 3] = Default::default();
    for report in reports {
        let measurements = report.measurements();
        let found = measurements.iter().find(|m| m.name == name).ok_or_else(|| unknown(name, report))?;
        let Measurement { acc, asr, ta, .. } = found;
        for (values, value) in all.iter_mut().zip([Some(*acc), *asr, *ta]) {
            values.extend(value);
        }
    }
    let range = |values: Vec<f64>| {
        let percent = |value: f64| format!("{:.1}", 100.0 * value);
        let (lowest, highest) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
        match (lowest.map(percent), highest.map(percent)) {
            (Some(lowest), Some(highest)) if lowest != highest => format!("{lowest}–{highest}"),
            (Some(value), _) => value,
            _ => "–".into(),
        }
    };
    Ok(all.map(range).join(" / "))
}

fn unknown(name: &str, report: &Report) -> String {
    let measurements = report.measurements();
    let known: Vec<&str> = measurements.iter().map(|m| m.name.as_ref()).collect();
    format!("nothing called `{name}` was measured{}", hint(name, &known))
}

/// What the numbers are of, so that nobody has to say it by hand.
fn caption(reports: &[Report]) -> String {
    let first = &reports[0];
    let mut line = format!(
        "{} of `{}`: {} from {}, {} clean images of {}, measured on {} images; version {}, {}.",
        capital(&extract::seeds(reports)),
        first.run.name,
        first.model.arch,
        first.model.source,
        first.data.clean,
        first.data.name,
        first.data.test,
        first.run.version,
        first.run.device,
    );
    if let Some(classes) = classes(reports) {
        line.push_str(&format!(" Class named: {classes}."));
    }
    line
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// The backdoor class that each run named last.
fn classes(reports: &[Report]) -> Option<String> {
    let named = |report: &Report| {
        let of_stage = |stage: &lmr_pipeline::report::StageReport| stage.outcome.get("class").and_then(Value::as_u64);
        report.stages.iter().rev().find_map(of_stage).map(|class| class.to_string())
    };
    Some(reports.iter().map(named).collect::<Option<Vec<_>>>()?.join(" "))
}
