//! Whether the numbers of a run are what the pipeline's `[expect]` says.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Report, StageReport};
use crate::config::{Bound, ExpectTable, Expectation};
use crate::problem::hint;
use crate::{Error, Result};

/// `expect` of a report: a number that was expected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The stage's name.
    pub stage: String,
    /// What leads to the number in the stage's outcome, joined by dots.
    pub path: String,
    /// What it must be, as the pipeline says.
    pub expected: Bound,
    /// What it is; with `drop-from`, by how much less than there. Null where there is no such number.
    pub found: Option<f64>,
    /// Why there is no such number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
    /// Whether it is as expected.
    pub met: bool,
}

impl Checked {
    /// Where the number stands: `purified.asr`.
    pub fn place(&self) -> String {
        format!("{}.{}", self.stage, self.path)
    }

    /// What was found, as people read it.
    pub fn found(&self) -> String {
        match (self.found, &self.lacking) {
            // Differences of binary fractions have digits that nobody measured.
            (Some(found), _) => ((found * 1e6).round() / 1e6).to_string(),
            (None, Some(lacking)) => lacking.clone(),
            (None, None) => "nothing".into(),
        }
    }
}

/// One that was missed, in a sentence.
impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (place, expected) = (self.place(), &self.expected);
        match &self.lacking {
            Some(lacking) => write!(f, "{place}: expected {expected}, but {lacking}"),
            None => write!(f, "{place}: expected {expected}, found {}", self.found()),
        }
    }
}

/// Everything that is expected of the stages, in the order in which they ran.
pub(super) fn check(table: &ExpectTable, stages: &[StageReport]) -> Vec<Checked> {
    let expectations = table.expectations();
    let of = |stage: &StageReport| {
        let own = expectations.iter().filter(|expectation| expectation.stage == stage.name);
        own.map(|expectation| compare(expectation, stage, stages)).collect::<Vec<_>>()
    };
    stages.iter().flat_map(of).collect()
}

fn compare(expectation: &Expectation<'_>, stage: &StageReport, stages: &[StageReport]) -> Checked {
    let path = &expectation.path;
    let found = match expectation.bound {
        Bound::Equal(_) => number(stage, path),
        Bound::Range(range) => match &range.drop_from {
            Some(other) => drop(stage, stages.iter().find(|stage| &stage.name == other), path),
            None => number(stage, path),
        },
    };
    let met = found.as_ref().is_ok_and(|&found| match expectation.bound {
        Bound::Equal(expected) => found == *expected,
        Bound::Range(range) => range.min.is_none_or(|min| found >= min) && range.max.is_none_or(|max| found <= max),
    });
    Checked {
        stage: stage.name.clone(),
        path: path.join("."),
        expected: expectation.bound.clone(),
        found: found.as_ref().ok().copied(),
        lacking: found.err(),
        met,
    }
}

/// How much less a number is than in another stage.
fn drop(stage: &StageReport, from: Option<&StageReport>, path: &[&str]) -> Result<f64, String> {
    let from = from.ok_or("the stage to compare with is not there")?;
    Ok(number(from, path)? - number(stage, path)?)
}

/// The number at a path of a stage's outcome.
fn number(stage: &StageReport, path: &[&str]) -> Result<f64, String> {
    let mut value = &stage.outcome;
    for (depth, key) in path.iter().enumerate() {
        let here = || match depth {
            0 => format!("the outcome of `{}`", stage.name),
            depth => format!("`{}` of `{}`", path[..depth].join("."), stage.name),
        };
        let inside = match value {
            Value::Object(map) => map.get(*key),
            Value::Array(list) => key.parse::<usize>().ok().and_then(|at| list.get(at)),
            _ => None,
        };
        value = inside.ok_or_else(|| match value {
            Value::Object(map) => {
                let keys: Vec<&str> = map.keys().map(String::as_str).collect();
                format!("{} has no `{key}`{}", here(), hint(key, &keys))
            }
            Value::Array(list) => format!("{} is a list of {}, counted from 0", here(), list.len()),
            other => format!("{} is {}, with nothing inside", here(), shown(other)),
        })?;
    }
    let place = || format!("`{}` of `{}`", path.join("."), stage.name);
    value.as_f64().ok_or_else(|| format!("{} is {}, not a number", place(), shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a table".into(),
        Value::Array(list) => format!("a list of {}", list.len()),
        other => other.to_string(),
    }
}

impl Report {
    /// Every expectation that was missed, in a sentence each.
    pub fn missed(&self) -> Vec<String> {
        self.expect.iter().filter(|checked| !checked.met).map(Checked::to_string).collect()
    }

    /// [`Error::Missed`] if an expectation was.
    pub fn check(&self) -> Result<()> {
        Error::unless_missed(self.missed())
    }
}
