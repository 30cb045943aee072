//! The pipeline as resolved, defaults included, as a file that gives the same run again.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Plan;
use crate::config::PATH_KEYS;
use crate::{Error, Result};

impl Plan {
    /// The whole configuration as TOML, for a file in `folder`: from there, relative paths lead where they lead now.
    pub fn to_toml(&self, folder: &Path) -> Result<String> {
        let internal = |error: &dyn std::fmt::Display| Error::Internal(format!("writing the configuration: {error}"));
        let value = |value: Result<Value, serde_json::Error>| value.map_err(|error| internal(&error));
        let mut model = value(serde_json::to_value(&self.model))?;
        if let (Some(weights), Value::Object(model)) = (&self.weights, &mut model) {
            model.insert("weights".into(), value(serde_json::to_value(&weights.table))?);
        }
        let mut stages = Vec::new();
        for step in &self.steps {
            let mut stage = Map::from_iter([("kind".into(), json!(step.kind.kind)), ("name".into(), json!(step.name))]);
            if let Some(from) = step.from {
                stage.insert("from".into(), json!(self.steps[from].name));
            }
            if let Value::Object(config) = step.stage.config()? {
                stage.extend(config);
            }
            stages.push(Value::Object(stage));
        }
        let mut pipeline = Map::from_iter([
            ("run".into(), value(serde_json::to_value(&self.run))?),
            ("model".into(), model),
            ("data".into(), value(serde_json::to_value(&self.data))?),
        ]);
        if let Some(table) = &self.trigger {
            let mut trigger =
                Map::from_iter([("kind".into(), json!(table.trigger.kind())), ("target".into(), json!(table.target))]);
            if let Value::Object(config) = table.trigger.config() {
                trigger.extend(config);
            }
            pipeline.insert("trigger".into(), Value::Object(trigger));
        }
        pipeline.insert("stage".into(), Value::Array(stages));
        if !self.expect.is_empty() {
            pipeline.insert("expect".into(), value(serde_json::to_value(&self.expect))?);
        }
        if let Some(publish) = &self.publish {
            pipeline.insert("publish".into(), value(serde_json::to_value(publish))?);
        }
        let mut pipeline = Value::Object(pipeline);
        let named = PATH_KEYS
            .iter()
            .filter_map(|keys| Some(PathBuf::from(pipeline.pointer(&format!("/{}", keys.join("/")))?.as_str()?)));
        let paths: Vec<PathBuf> = named.chain([PathBuf::from(format!("datasets/{}.toml", self.data.name))]).collect();
        let from = self.search.seen_from(folder, &paths);
        if let Some(Value::Object(run)) = pipeline.get_mut("run") {
            run.remove("paths-from");
            if !from.is_empty() {
                run.insert("paths-from".into(), value(serde_json::to_value(from))?);
            }
        }
        strip_null(&mut pipeline);
        toml::to_string(&pipeline).map_err(|error| internal(&error))
    }
}

/// TOML has no null; a key that is absent says the same.
fn strip_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_null);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_null),
        _ => {}
    }
}
