//! The pipeline format described from its types: a JSON Schema for editors, and the reference of kinds and options.

use lmr_plugin::zoo::ModelSpec;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::config::{DataTable, ExpectTable, PublishTable, RunTable, WeightsTable};
use crate::registry::{STAGES, TRIGGERS};

/// JSON Schema (draft 7, which TOML editors understand) of a pipeline file.
pub fn pipeline() -> Value {
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut model = inline::<ModelSpec>(&mut generator);
    let mut weights = generator.subschema_for::<WeightsTable>().to_value();
    weights["description"] = json!("Checkpoint to start from; without one, weights are drawn from the seed.");
    model["properties"]["weights"] = weights;
    let stages: Vec<Value> = STAGES
        .iter()
        .map(|kind| {
            let mut schema = (kind.schema)(&mut generator).to_value();
            let own = json!({
                "kind": { "const": kind.kind, "description": kind.summary },
                "name": { "type": "string", "description": "Name in the report and for `from`; the kind if absent." },
                "from": { "type": "string", "description": "The earlier stage to continue from; the one before if absent." },
            });
            add(&mut schema, own);
            schema
        })
        .collect();
    let triggers: Vec<Value> = TRIGGERS
        .iter()
        .map(|kind| {
            let mut schema = (kind.schema)(&mut generator).to_value();
            let own = json!({
                "kind": { "const": kind.kind, "description": kind.summary },
                "target": { "type": "integer", "minimum": 0, "description": "The attacker's class." },
            });
            let mut required = vec!["kind".to_string(), "target".to_string()];
            let keys = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            required.extend(keys.filter_map(|key| key.as_str().map(str::to_string)));
            add(&mut schema, own);
            schema["required"] = json!(required);
            schema
        })
        .collect();
    let properties = json!({
        "run": inline::<RunTable>(&mut generator),
        "model": model,
        "data": inline::<DataTable>(&mut generator),
        "trigger": { "description": "What the attacker does to an image. Only stages that measure or implant see it.", "oneOf": triggers },
        "stage": { "type": "array", "minItems": 1, "items": { "oneOf": stages } },
        "expect": inline::<ExpectTable>(&mut generator),
        "publish": inline::<PublishTable>(&mut generator),
        "profile": {
            "description": "Other values under names: `--profile paper` takes what is in `[profile.paper]`. Stages as for --set.",
            "type": "object",
            "additionalProperties": { "type": "object" },
        },
    });
    let mut schema: Schema = json_schema!({
        "title": "Pipeline",
        "description": "A pipeline of `lmr pipeline`.",
        "type": "object",
        "additionalProperties": false,
        "required": ["model", "data", "stage"],
        "properties": properties,
    });
    schema.insert("$schema".into(), json!("http://json-schema.org/draft-07/schema#"));
    schema.insert("definitions".into(), Value::Object(generator.take_definitions(false)));
    for transform in generator.transforms_mut() {
        transform.transform(&mut schema);
    }
    schema.to_value()
}

fn inline<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    T::json_schema(generator).to_value()
}

/// Puts keys in front of those a schema has.
fn add(schema: &mut Value, keys: Value) {
    let (Some(schema), Value::Object(mut properties)) = (schema.as_object_mut(), keys) else { return };
    if let Some(Value::Object(own)) = schema.remove("properties") {
        properties.extend(own);
    }
    schema.insert("properties".into(), Value::Object(properties));
    schema.insert("additionalProperties".into(), json!(false));
    schema.insert("required".into(), json!(["kind"]));
}

/// A kind of stage or trigger with its options, for the reference.
pub struct Entry {
    /// The name in a pipeline file.
    pub kind: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Findings it needs; empty for a trigger.
    pub needs: Vec<&'static str>,
    /// Findings it gives; empty for a trigger.
    pub gives: Vec<&'static str>,
    /// Its options.
    pub options: Vec<EntryOption>,
}

/// An option of a kind.
pub struct EntryOption {
    /// The key; with that of its table before it where it stands in one.
    pub key: String,
    /// Its default as TOML; `none` where the option is absent unless given.
    pub default: String,
    /// What it may be, where numbers have a range.
    pub range: Option<String>,
    /// What it means.
    pub description: String,
}

/// Every kind of stage.
pub fn stages() -> Vec<Entry> {
    let entry = |kind: &crate::registry::StageKind| Entry {
        kind: kind.kind,
        summary: kind.summary,
        needs: (kind.needs)(),
        gives: (kind.gives)(),
        options: options(kind.schema, &(kind.defaults)()),
    };
    STAGES.iter().map(entry).collect()
}

/// Every kind of trigger.
pub fn triggers() -> Vec<Entry> {
    let entry = |kind: &crate::registry::TriggerKind| Entry {
        kind: kind.kind,
        summary: kind.summary,
        needs: Vec::new(),
        gives: Vec::new(),
        options: options(kind.schema, &(kind.defaults)()),
    };
    TRIGGERS.iter().map(entry).collect()
}

fn options(schema: fn(&mut SchemaGenerator) -> Schema, defaults: &Value) -> Vec<EntryOption> {
    let schema = schema(&mut SchemaGenerator::default()).to_value();
    let mut options = Vec::new();
    options_of("", &schema, defaults, &mut options);
    options
}

/// The options of a table, and after each that is a table itself its own.
fn options_of(prefix: &str, schema: &Value, defaults: &Value, options: &mut Vec<EntryOption>) {
    for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let default = defaults.get(key).unwrap_or(&Value::Null);
        let key = format!("{prefix}{key}");
        let shown = match schema.get("properties") {
            Some(_) if !default.is_null() => "{ .. }".into(),
            _ if default.is_null() => "none".into(),
            _ => toml_of(default),
        };
        options.push(EntryOption {
            key: key.clone(),
            default: shown,
            range: range(schema),
            description: schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " "),
        });
        options_of(&format!("{key}."), schema, default, options);
    }
}

/// The numbers that a schema allows: `0 < x < 1`.
fn range(schema: &Value) -> Option<String> {
    let bound = |key: &str| schema.get(key).filter(|bound| bound.is_number());
    let (low, high) = (bound("exclusiveMinimum"), bound("exclusiveMaximum"));
    let below = low.map(|low| format!("{low} < ")).or_else(|| Some(format!("{} ≤ ", bound("minimum")?)));
    let above = high.map(|high| format!(" < {high}")).or_else(|| Some(format!(" ≤ {}", bound("maximum")?)));
    (below.is_some() || above.is_some()).then(|| format!("{}x{}", below.unwrap_or_default(), above.unwrap_or_default()))
}

/// A JSON value as one would write it in TOML.
fn toml_of(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs: Vec<String> = map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| format!("{key} = {}", toml_of(value)))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}
