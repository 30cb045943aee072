//! transformers' `config.json`, complete.

use lmr_plugin::zoo::Transformers;
use serde_json::{Map, Value, json};

use super::{Described, torch_dtype};

/// What `AutoModelForImageClassification.from_pretrained` wants; `None` if transformers has no such model.
pub fn config(described: &Described) -> Option<Value> {
    let Transformers { class, model_type, config: network } = described.model.transformers()?;
    let label = |(index, label): (usize, &String)| (index.to_string(), json!(label));
    let id = |(index, label): (usize, &String)| (label.clone(), json!(index));
    let id2label: Map<String, Value> = described.labels.iter().enumerate().map(label).collect();
    let label2id: Map<String, Value> = described.labels.iter().enumerate().map(id).collect();
    let mut config = Map::new();
    config.insert("architectures".into(), json!([class]));
    config.insert("model_type".into(), json!(model_type));
    config.extend(network);
    config.extend([
        ("id2label".into(), Value::Object(id2label)),
        ("label2id".into(), Value::Object(label2id)),
        ("problem_type".into(), json!("single_label_classification")),
        ("torch_dtype".into(), json!(torch_dtype(described.dtype))),
    ]);
    Some(Value::Object(config))
}
