//! transformers' `ViTConfig`, complete.

use lmr_plugin::zoo::Arch;
use serde_json::{Map, Value, json};

use super::{Described, torch_dtype};

/// What `AutoModelForImageClassification.from_pretrained` wants.
pub fn config(described: &Described) -> Value {
    let model = described.model.resolved();
    let label = |(index, label): (usize, &String)| (index.to_string(), json!(label));
    let id = |(index, label): (usize, &String)| (label.clone(), json!(index));
    let id2label: Map<String, Value> = described.labels.iter().enumerate().map(label).collect();
    let label2id: Map<String, Value> = described.labels.iter().enumerate().map(id).collect();
    json!({
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": heads(model.arch),
        "intermediate_size": model.width.map(|width| 4 * width),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": model.norm_eps,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": model.channels,
        "qkv_bias": true,
        "encoder_stride": model.patch_size,
        "id2label": id2label,
        "label2id": label2id,
        "problem_type": "single_label_classification",
        "torch_dtype": torch_dtype(described.dtype),
    })
}

/// Attention heads of a vision transformer.
pub(super) fn heads(arch: Arch) -> Option<usize> {
    match arch {
        Arch::VitTiny => Some(3),
        Arch::VitSmall => Some(6),
        Arch::VitBase => Some(12),
        _ => None,
    }
}
