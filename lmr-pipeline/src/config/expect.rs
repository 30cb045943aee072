//! `[expect]`: what the numbers of a run must come to.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::place::{Faults, Place, read, show};

/// What is said of a value that is no expectation.
const EXPECTED: &str = "expected a number, or a table with `min`, `max` or `drop-from`";

/// `[expect]`: what the numbers of the stages' outcomes must come to, by stage and then by path, as in
/// `purified.asr = { max = 0.05 }`, `estimate.class = 0` or `purified.forms.1.asr = { max = 0.1 }`. Checked when all stages
/// are finished; a run that misses one ends with exit code 3
/// and publishes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ExpectTable(BTreeMap<String, BTreeMap<String, Expected>>);

/// What stands at a place of an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
enum Expected {
    /// A number that is expected.
    Number(Bound),
    /// More numbers, by the keys or the positions (from 0) of what the outcome has there.
    Inside(BTreeMap<String, Expected>),
}

/// What a number must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Bound {
    /// Exactly this number.
    Equal(f64),
    /// In a range.
    Range(Range),
}

/// A range, ends included; one of the ends at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Range {
    /// The smallest number it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The largest number it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Another stage: the range is then for how much less the number is than at the same path of that stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_from: Option<String>,
}

/// A number of an outcome, and what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// What leads to the number in the stage's outcome.
    pub path: Vec<&'a str>,
    /// What it must be.
    pub bound: &'a Bound,
}

impl ExpectTable {
    /// Reads the table, noting every fault.
    pub(crate) fn read(table: Table, faults: &mut Faults) -> Self {
        let mut stages = BTreeMap::new();
        for (stage, value) in table {
            let place = Place::section("expect").key(&stage);
            match value {
                Value::Table(numbers) => {
                    stages.insert(stage, inside(numbers, &place, faults));
                }
                other => {
                    let message = format!("expected numbers of a stage, as in {stage}.acc = {{ min = 0.9 }}, found ");
                    faults.add(&place, message + &show(&other));
                }
            }
        }
        Self(stages)
    }

    /// Whether nothing is expected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is expected, by stage and path in the order of their names.
    pub fn expectations(&self) -> Vec<Expectation<'_>> {
        let mut found = Vec::new();
        for (stage, numbers) in &self.0 {
            collect(stage, &mut Vec::new(), numbers, &mut found);
        }
        found
    }
}

impl Range {
    /// The first key that cannot be, and why.
    fn fault(&self) -> Option<(&'static str, String)> {
        for (key, end) in [("min", self.min), ("max", self.max)] {
            if let Some(end) = end.filter(|end| !end.is_finite()) {
                return Some((key, format!("expected a finite number, found {end}")));
            }
        }
        match (self.min, self.max) {
            (Some(min), Some(max)) if min > max => Some(("min", format!("expected at most max = {max}, found {min}"))),
            _ => None,
        }
    }
}

/// As a sentence goes on after "expected".
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { min, max, drop_from } = match self {
            Self::Equal(number) => return number.fmt(f),
            Self::Range(range) => range,
        };
        if let Some(stage) = drop_from {
            write!(f, "a drop from `{stage}` of ")?;
        }
        match (min, max) {
            (Some(min), Some(max)) => write!(f, "{min} to {max}"),
            (Some(min), None) => write!(f, "at least {min}"),
            (None, Some(max)) => write!(f, "at most {max}"),
            (None, None) => f.write_str("any size"),
        }
    }
}

fn inside(table: Table, place: &Place, faults: &mut Faults) -> BTreeMap<String, Expected> {
    let read = |(key, value): (String, Value)| {
        let expected = expected(value, &place.key(&key), faults)?;
        Some((key, expected))
    };
    table.into_iter().filter_map(read).collect()
}

/// A number, a range, or what leads to some: a table is a range if it has a key of one.
fn expected(value: Value, place: &Place, faults: &mut Faults) -> Option<Expected> {
    let bound = match value {
        Value::Integer(number) => Bound::Equal(number as f64),
        Value::Float(number) if number.is_finite() => Bound::Equal(number),
        Value::Table(table) if table.is_empty() => {
            faults.add(place, format!("{EXPECTED}, found an empty table"));
            return None;
        }
        Value::Table(table) if ["min", "max", "drop-from"].iter().any(|key| table.contains_key(*key)) => {
            Bound::Range(range(table, place, faults)?)
        }
        Value::Table(table) => return Some(Expected::Inside(inside(table, place, faults))),
        other => {
            faults.add(place, format!("{EXPECTED}, found {}", show(&other)));
            return None;
        }
    };
    Some(Expected::Number(bound))
}

fn range(table: Table, place: &Place, faults: &mut Faults) -> Option<Range> {
    let open = !table.contains_key("min") && !table.contains_key("max");
    let range: Range = read(table, place, faults)?;
    if open {
        faults.add(place, "expected `min` or `max` beside `drop-from`: how much may it drop?");
        return None;
    }
    if let Some((key, message)) = range.fault() {
        faults.add(&place.key(key), message);
        return None;
    }
    Some(range)
}

fn collect<'a>(
    stage: &'a str,
    path: &mut Vec<&'a str>,
    numbers: &'a BTreeMap<String, Expected>,
    found: &mut Vec<Expectation<'a>>,
) {
    for (key, expected) in numbers {
        path.push(key);
        match expected {
            Expected::Number(bound) => found.push(Expectation { stage, path: path.clone(), bound }),
            Expected::Inside(numbers) => collect(stage, path, numbers, found),
        }
        path.pop();
    }
}
