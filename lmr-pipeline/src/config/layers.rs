//! Where values come from: the pipeline file, then one of its profiles, then `LMR_…` environment variables, then `--set`.

use std::collections::BTreeMap;
use std::path::Path;

use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use toml::{Table, Value};

use super::Overrides;
use crate::place::show;
use crate::problem::{Problem, Problems, hint};
use crate::{Error, Result};

/// A value from outside the file.
#[derive(Clone, Debug)]
struct Override {
    path: Vec<String>,
    value: Value,
    origin: String,
    /// Whether it is from the command line or the environment, and so from where the program was started.
    typed: bool,
}

/// All layers merged, and which keys were not taken from the file.
pub struct Layered {
    pub table: Table,
    pub overridden: BTreeMap<Vec<String>, String>,
    /// Those of them that came from the command line or the environment.
    pub typed: Vec<Vec<String>>,
}

/// The layer of one override, as figment wants it.
struct Overlay<'a> {
    origin: &'a str,
    data: Dict,
}

impl Provider for Overlay<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }
    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.data.clone())]))
    }
}

/// The table of a pipeline file that holds its profiles: other values under names.
pub const PROFILES: &str = "profile";

/// Reads the file and puts the values of a profile, environment variables (`LMR_RUN__SEED=1`) and `--set` values
/// (`run.seed=1`) on top.
///
/// A stage is addressed as `stage.<name>.<key>`, as `stage.<kind>.<key>` (every stage of that kind), or by its index.
pub fn load(file: &Path, from: &Overrides) -> Result<Layered> {
    let text = std::fs::read_to_string(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::input(file, "there is no such file"),
        _ => Error::input(file, error.to_string()),
    })?;
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| Error::input(file, syntax(&text, &error)))?;
    let mut problems = Vec::new();
    let mut overrides = Vec::new();
    let profiles = table.remove(PROFILES);
    match profile(profiles, from.profile.as_deref()) {
        Ok(values) => {
            let origin = || format!("profile {}", from.profile.as_deref().unwrap_or_default());
            overrides.extend(values.into_iter().map(|(path, value)| Override {
                path,
                value,
                origin: origin(),
                typed: false,
            }));
        }
        Err(message) => {
            problems.push(Problem { origin: file.display().to_string(), key: PROFILES.into(), message });
        }
    }
    let mut env: Vec<_> = from.env.iter().filter(|(name, _)| name.starts_with("LMR_")).collect();
    env.sort();
    for (name, value) in env {
        let origin = format!("environment variable {name}");
        // Shells allow no hyphen in a name, keys use nothing else.
        let key = name["LMR_".len()..].to_lowercase().replace("__", ".").replace('_', "-");
        push(&mut overrides, &mut problems, origin, &key, value, "LMR_RUN__SEED=1");
    }
    for set in &from.set {
        let origin = format!("--set {set}");
        let (key, value) = set.split_once('=').unwrap_or((set, ""));
        if set.contains('=') {
            push(&mut overrides, &mut problems, origin, key.trim(), value.trim(), "--set run.seed=1");
        } else {
            problems.push(Problem { origin, key: String::new(), message: "expected key=value".into() });
        }
    }
    let layered = merge(&table, overrides, &mut problems)?;
    if problems.is_empty() { Ok(layered) } else { Err(Error::Rejected(Problems(problems))) }
}

/// The values of the profile of that name, each with its path; none if no profile was asked for.
fn profile(profiles: Option<Value>, name: Option<&str>) -> Result<Vec<(Vec<String>, Value)>, String> {
    let profiles = match profiles {
        Some(Value::Table(profiles)) => profiles,
        Some(other) => return Err(format!("expected a table of profiles, found {}", show(&other))),
        None => Table::new(),
    };
    if let Some((name, other)) = profiles.iter().find(|(_, profile)| !profile.is_table()) {
        return Err(format!("{name}: expected a table, found {}", show(other)));
    }
    let Some(name) = name else { return Ok(Vec::new()) };
    let Some(profile) = profiles.get(name).and_then(Value::as_table) else {
        let names: Vec<&str> = profiles.keys().map(String::as_str).collect();
        return Err(match names.is_empty() {
            true => format!("there is no profile `{name}`: this pipeline has none"),
            false => format!("there is no profile `{name}`{}", hint(name, &names)),
        });
    };
    let mut values = Vec::new();
    leaves(&mut Vec::new(), profile, &mut values);
    match values.iter().find(|(path, _)| path.len() < 2) {
        Some((path, _)) => Err(format!("{name}.{}: expected keys of a section, such as run.seed", path.join("."))),
        None => Ok(values),
    }
}

/// Everything in a table that is no table itself, with its path.
fn leaves(path: &mut Vec<String>, table: &Table, out: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => leaves(path, inner, out),
            leaf => out.push((path.clone(), leaf.clone())),
        }
        path.pop();
    }
}

fn push(out: &mut Vec<Override>, problems: &mut Vec<Problem>, origin: String, key: &str, value: &str, example: &str) {
    let path: Vec<String> = key.split('.').map(str::to_string).collect();
    if path.len() < 2 || path.iter().any(String::is_empty) {
        let message = format!("expected a section and a key, as in {example}");
        problems.push(Problem { origin, key: String::new(), message });
    } else {
        out.push(Override { path, value: parse(value), origin, typed: true });
    }
}

/// A TOML value where the text is one, else the text itself: `--set data.name=cifar10` needs no quotes.
fn parse(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_string()))
}

fn merge(file: &Table, overrides: Vec<Override>, problems: &mut Vec<Problem>) -> Result<Layered> {
    let mut stages = file.get("stage").cloned();
    let mut figment = Figment::from(Overlay { origin: "file", data: dict(file.clone())? });
    let (mut overridden, mut all_typed) = (BTreeMap::new(), Vec::new());
    for Override { path, value, origin, typed } in overrides {
        if typed {
            all_typed.push(path.clone());
        }
        if path[0] != "stage" {
            let data = nest(&path[1..], value);
            figment =
                figment.merge(Overlay { origin: &origin, data: dict(Table::from_iter([(path[0].clone(), data)]))? });
            overridden.insert(path, origin);
            continue;
        }
        let list = stages.as_mut().and_then(Value::as_array_mut);
        let found = addressed(list.as_deref().map_or(&[], Vec::as_slice), &path[1]);
        if path.len() < 3 || found.is_empty() {
            problems.push(Problem { origin, key: path.join("."), message: unaddressed(stages.as_ref(), &path) });
            continue;
        }
        for index in found {
            let Some(table) = list_entry(&mut stages, index) else { continue };
            insert(table, &path[2..], value.clone());
            let mut resolved = path.clone();
            resolved[1] = index.to_string();
            overridden.insert(resolved, origin.clone());
        }
    }
    // Figment replaces arrays as a whole, so the stages, overrides included, go in as one layer.
    if let Some(stages) = stages {
        let data = dict(Table::from_iter([("stage".to_string(), stages)]))?;
        figment = figment.merge(Overlay { origin: "stages", data });
    }
    let table = figment.extract().map_err(|error| Error::Internal(format!("merging the configuration: {error}")))?;
    Ok(Layered { table, overridden, typed: all_typed })
}

/// Indices of the stages that a name, a kind or an index means; a name wins over a kind.
fn addressed(stages: &[Value], address: &str) -> Vec<usize> {
    let with = |key: &str| -> Vec<usize> {
        let is = |stage: &&(usize, &Value)| stage.1.get(key).and_then(Value::as_str) == Some(address);
        stages.iter().enumerate().collect::<Vec<_>>().iter().filter(is).map(|(index, _)| *index).collect()
    };
    match address.parse::<usize>() {
        Ok(index) if index < stages.len() => vec![index],
        _ => Some(with("name")).filter(|named| !named.is_empty()).unwrap_or_else(|| with("kind")),
    }
}

fn unaddressed(stages: Option<&Value>, path: &[String]) -> String {
    if path.len() < 3 {
        return "expected stage.<name, kind or index>.<key>".into();
    }
    let text = |stage: &Value, key: &str| stage.get(key).and_then(Value::as_str).map(str::to_string);
    let stages = stages.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names: Vec<String> = stages.iter().flat_map(|s| [text(s, "name"), text(s, "kind")]).flatten().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("no stage has the name, kind or index `{}`{}", path[1], hint(&path[1], &names))
}

fn list_entry(stages: &mut Option<Value>, index: usize) -> Option<&mut Table> {
    stages.as_mut()?.as_array_mut()?.get_mut(index)?.as_table_mut()
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => insert(inner, rest, value),
                // The type error is reported where the table is read.
                other => *other = nest(rest, value),
            }
        }
    }
}

fn nest(path: &[String], value: Value) -> Value {
    path.iter().rev().fold(value, |inner, key| Value::Table(Table::from_iter([(key.clone(), inner)])))
}

fn dict(table: Table) -> Result<Dict> {
    let value = figment::value::Value::serialize(table)
        .map_err(|error| Error::Internal(format!("merging the configuration: {error}")))?;
    value.into_dict().ok_or_else(|| Error::Internal("merging the configuration: not a table".into()))
}

/// `line 3, column 7: …` for a TOML syntax error.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().next().unwrap_or("not valid TOML");
    match error.span() {
        Some(span) => {
            let before = &text[..text.floor_char_boundary(span.start)];
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("line {line}, column {column}: {message}")
        }
        None => message.to_string(),
    }
}
