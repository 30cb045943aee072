//! What was meant by a key that a table does not know, as far as the schema tells.

use serde_json::Value;

use crate::problem::{hint, nearest};

/// Tables within tables that are looked into.
const DEPTH: usize = 3;

/// Words for it, to follow "unknown key": an option of a table within the one at `path`, or one of a similar name. `None` if the
/// schema has no table there.
pub fn meant(schema: &Value, path: &[String], key: &str) -> Option<String> {
    let table = path.iter().try_fold(schema, |table, key| Some(resolve(schema, properties(table)?.get(key)?)))?;
    let own: Vec<&str> = properties(table)?.keys().map(String::as_str).collect();
    let mut within = Vec::new();
    options_within(schema, table, &mut Vec::new(), &mut within);
    let tables: Vec<&str> =
        within.iter().filter(|(_, option)| *option == key).map(|(table, _)| table.as_str()).collect();
    if let Some(first) = tables.first() {
        let named: Vec<String> = tables.iter().map(|table| format!("`{table}`")).collect();
        return Some(format!("; it is an option of {}, as in `{first}.{key}`", named.join(" and of ")));
    }
    let options = within.iter().map(|(_, option)| *option);
    let similar = if nearest(key, own.iter().copied()).is_none() { nearest(key, options) } else { None };
    Some(match similar.and_then(|similar| within.iter().find(|(_, option)| *option == similar)) {
        Some((table, option)) => format!("; did you mean `{table}.{option}`?"),
        None => hint(key, &own),
    })
}

fn properties(table: &Value) -> Option<&serde_json::Map<String, Value>> {
    table.get("properties")?.as_object()
}

/// What a schema refers to.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
    reference.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

/// The options of the tables within one, each with the path of its table.
fn options_within<'a>(root: &'a Value, table: &'a Value, path: &mut Vec<&'a str>, found: &mut Vec<(String, &'a str)>) {
    for (name, inner) in properties(table).filter(|_| path.len() < DEPTH).into_iter().flatten() {
        let inner = resolve(root, inner);
        path.push(name);
        found.extend(properties(inner).into_iter().flatten().map(|(option, _)| (path.join("."), option.as_str())));
        options_within(root, inner, path, found);
        path.pop();
    }
}
