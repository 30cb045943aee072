//! Where in a pipeline a value stands, and the tolerant reader that finds every fault of a table in one go.

mod meant;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::problem::{Problem, Problems, hint, nearest};
use meant::meant;

/// Collects faults, and knows which values came from the command line or the environment.
#[derive(Debug, Default)]
pub struct Faults {
    file: String,
    overridden: BTreeMap<Vec<String>, String>,
    found: Vec<Problem>,
}

/// A place in the tree of keys, with the name it has in messages.
#[derive(Clone, Debug)]
pub struct Place {
    path: Vec<String>,
    shown: String,
}

impl Place {
    /// A table of the file's top level.
    pub fn section(name: &str) -> Self {
        Self { path: vec![name.to_string()], shown: name.to_string() }
    }

    /// A stage: `stage[2] (estimate)`.
    pub fn stage(index: usize, kind: Option<&str>) -> Self {
        let kind = kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
        Self { path: vec!["stage".into(), index.to_string()], shown: format!("stage[{index}]{kind}") }
    }

    /// A key of it.
    pub fn key(&self, key: &str) -> Self {
        let path = self.path.iter().cloned().chain(key.split('.').map(str::to_string)).collect();
        Self { path, shown: format!("{}.{key}", self.shown) }
    }
}

impl Faults {
    /// Nothing found yet.
    pub fn new(file: String, overridden: BTreeMap<Vec<String>, String>) -> Self {
        Self { file, overridden, found: Vec::new() }
    }

    /// Notes a fault.
    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        let origin = (1..=place.path.len()).rev().find_map(|n| self.overridden.get(&place.path[..n]));
        let origin = origin.unwrap_or(&self.file).clone();
        self.found.push(Problem { origin, key: place.shown.clone(), message: message.into() });
    }

    /// Notes a fault that a `faults()` method words as `key: message`.
    pub fn add_keyed(&mut self, place: &Place, fault: &str) {
        match fault.split_once(": ") {
            Some((key, message)) if !key.contains(' ') => self.add(&place.key(key), message),
            _ => self.add(place, fault),
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Everything found.
    pub fn into_problems(self) -> Problems {
        Problems(self.found)
    }
}

/// Reads a `T` out of a table. Every unknown key, every missing key and every value of a wrong type becomes a fault.
/// A faulty key counts as absent, so that what depends on the others can still be checked; `None` if it has no default.
pub fn read<T: DeserializeOwned + JsonSchema>(mut table: Table, place: &Place, faults: &mut Faults) -> Option<T> {
    let schema = schemars::schema_for!(T).to_value();
    let names = |key: &str| -> Vec<String> {
        match schema.get(key) {
            Some(Json::Object(map)) => map.keys().cloned().collect(),
            Some(Json::Array(list)) => list.iter().filter_map(|v| Some(v.as_str()?.to_string())).collect(),
            _ => Vec::new(),
        }
    };
    let (known, required) = (names("properties"), names("required"));
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for key in table.keys().cloned().collect::<Vec<_>>() {
        if !known.contains(&key.as_str()) {
            let meant = meant(&schema, &[], &key).unwrap_or_else(|| hint(&key, &known));
            faults.add(&place.key(&key), format!("unknown key{meant}"));
            table.remove(&key);
        }
    }
    for key in &required {
        if !table.contains_key(key) {
            faults.add(&place.key(key), "missing; it has no default");
        }
    }
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(Value::Table(table.clone())) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let path: Vec<String> = error.path().iter().map(ToString::to_string).filter(|part| part != ".").collect();
        let message = error.inner().message().trim().to_string();
        // A required key that is missing was reported above, and the last fault is out of the way; nothing more to see.
        let Some(top) = path.first().filter(|top| table.contains_key(top.as_str())) else {
            if !message.starts_with("missing field") {
                faults.add(place, message);
            }
            return None;
        };
        let found = path[1..].iter().try_fold(&table[top], |value, part| value.as_table()?.get(part));
        let mut message = explain(&message, found);
        let mut faulty = path.clone();
        if let Some(key) = unknown_field(error.inner().message()) {
            if let Some(meant) = meant(&schema, &path, key) {
                message = format!("unknown key `{key}`{meant}");
            }
            faulty.extend((path.last().map(String::as_str) != Some(key)).then(|| key.to_string()));
        }
        faults.add(&place.key(&path.join(".")), message);
        if !remove(&mut table, &faulty) {
            table.remove(&path[0]);
        }
    }
}

/// Takes a key out of the tables that lead to it; whether it was there.
fn remove(table: &mut Table, path: &[String]) -> bool {
    match path {
        [] => false,
        [key] => table.remove(key).is_some(),
        [key, rest @ ..] => table.get_mut(key).and_then(Value::as_table_mut).is_some_and(|inner| remove(inner, rest)),
    }
}

/// The key that serde does not know.
fn unknown_field(message: &str) -> Option<&str> {
    message.trim().strip_prefix("unknown field `")?.split('`').next()
}

/// serde's sentence in the words of a pipeline file.
fn explain(message: &str, found: Option<&Value>) -> String {
    let names = |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_string).collect() };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let names = names(rest);
        let known: Vec<&str> = names.iter().skip(1).map(String::as_str).collect();
        return format!(
            "unknown key `{}`{}",
            names.first().map_or("", |n| n),
            hint(names.first().map_or("", |n| n), &known)
        );
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let names = names(rest);
        let (unknown, known) = names.split_first().map_or(("", &names[..]), |(first, rest)| (first.as_str(), rest));
        let guess = nearest(unknown, known.iter().map(String::as_str));
        let guess = guess.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
        let known: Vec<String> = known.iter().map(|name| format!("\"{name}\"")).collect();
        return format!("expected {}, found \"{unknown}\"{guess}", known.join(" or "));
    }
    match message.rsplit_once(", expected ") {
        Some((_, expected)) => {
            let found = found.map(show).unwrap_or_else(|| "something else".into());
            format!("expected {}, found {found}", plain(expected.trim()))
        }
        None => message.to_string(),
    }
}

/// What a Rust type is to someone who writes TOML.
fn plain(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "path string" => "a path in quotes",
        "a sequence" => "a list",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}

/// A value as a reader would recognize it.
pub fn show(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}
