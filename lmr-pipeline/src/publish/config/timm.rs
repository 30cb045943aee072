//! timm's `config.json`, which `timm.create_model("local-dir:…")` and `"hf-hub:…"` read.

use lmr_plugin::zoo::Timm;
use serde_json::{Map, Value, json};

use super::{Described, images, inner, over};

/// timm's model with these names, if there is one.
pub fn architecture(described: &Described) -> Option<Timm> {
    let model = described.model.resolved();
    images::timm(described.images)?;
    let mut arguments = Map::new();
    match model.channels {
        3 => {}
        1 => drop(arguments.insert("in_chans".into(), json!(1))),
        // timm reads a first convolution of other channels as one of three.
        _ => return None,
    }
    let found = model.timm()?;
    arguments.extend(found.arguments);
    let same = found.scheme == described.scheme && found.image.is_none_or(|size| size == described.images.size);
    same.then_some(Timm { arguments, ..found })
}

/// The file.
pub fn config(described: &Described) -> Option<Value> {
    let Timm { name, arguments, features, ends: [first, head], .. } = architecture(described)?;
    let mut pretrained = images::timm(described.images)?;
    pretrained.extend([
        ("num_classes".into(), json!(described.model.classes)),
        ("fixed_input_size".into(), json!(described.model.resolved().image_size.is_some())),
        ("first_conv".into(), json!(first)),
        ("classifier".into(), json!(head)),
    ]);
    let pretrained = over(&inner(described.received, "pretrained_cfg"), Value::Object(pretrained));
    let written = json!({
        "architecture": name,
        "num_classes": described.model.classes,
        "num_features": features,
        "label_names": described.labels,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    });
    Some(over(described.received, written))
}
