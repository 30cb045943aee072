//! The keys of a `config.json` by which the same tensors compute something else: each is obeyed, must have the one value that
//! models here compute, or says nothing about the forward pass. Any other key is named in a warning.

use lmr_plugin::zoo::{HiddenActivation, ModelSpec, PaddingRule, Pooling};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::preprocess::check_side;

/// What a file says about a key of `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stated {
    /// The key of `[model]`.
    pub key: &'static str,
    /// Its value there.
    pub value: Value,
    /// The key of the file.
    pub from: String,
}

impl Stated {
    /// Refuses a number that no model has; the file's key is named.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { key, value, from } = self;
        match (*key, value.as_f64(), value.as_u64()) {
            ("norm-eps", Some(eps), _) if !(eps > 0.0 && eps < 1.0) => {
                Err(format!("{from}: expected a number in (0, 1), found {eps}"))
            }
            ("patch-size" | "image-size", _, side) => {
                check_side(from, side.and_then(|side| usize::try_from(side).ok()).unwrap_or_default())
            }
            ("width" | "depth" | "heads" | "channels", _, None | Some(0)) => {
                Err(format!("{from}: expected a number above 0, found {value}"))
            }
            _ => Ok(()),
        }
    }
}

/// How a key is treated.
enum Meaning {
    /// It is this key of `[model]`, with the same number.
    Model(&'static str),
    /// It is this key, translated; `None` for a value that models here do not have.
    Translated(&'static str, fn(&Value) -> Option<Value>, &'static str),
    /// Models here compute what it says with one of these values (JSON), and nothing else.
    Only(&'static [&'static str]),
    /// It says nothing about the forward pass.
    Free,
}

use Meaning::{Free, Model, Only, Translated};

/// Keys with a meaning.
type Keys = &'static [(&'static str, Meaning)];

fn activation(value: &Value) -> Option<Value> {
    let found = match value.as_str()? {
        "gelu" => HiddenActivation::Gelu,
        "relu" => HiddenActivation::Relu,
        _ => return None,
    };
    Some(json!(found))
}

fn pooling(value: &Value) -> Option<Value> {
    match value.as_str()? {
        "token" => Some(json!(Pooling::ClassToken)),
        "avg" => Some(json!(Pooling::Mean)),
        _ => None,
    }
}

fn padding(value: &Value) -> Option<Value> {
    Some(json!(if value.as_bool()? { PaddingRule::TfSame } else { PaddingRule::Torch }))
}

/// transformers, whatever the model.
const TRANSFORMERS: Keys = &[
    ("num_channels", Model("channels")),
    ("pruned_heads", Only(&["{}"])),
    ("quantization_config", Only(&[])),
    ("architectures", Free),
    ("model_type", Free),
    ("id2label", Free),
    ("label2id", Free),
    ("num_labels", Free),
    ("problem_type", Free),
    ("torch_dtype", Free),
    ("dtype", Free),
    ("transformers_version", Free),
    ("initializer_range", Free),
    ("hidden_dropout_prob", Free),
    ("attention_probs_dropout_prob", Free),
    ("classifier_dropout_prob", Free),
    ("_name_or_path", Free),
    ("_commit_hash", Free),
    ("finetuning_task", Free),
    ("output_attentions", Free),
    ("output_hidden_states", Free),
    ("return_dict", Free),
    ("use_cache", Free),
    ("torchscript", Free),
    ("auto_map", Free),
];

/// `ViTForImageClassification`.
const TRANSFORMERS_VIT: Keys = &[
    ("hidden_size", Model("width")),
    ("num_hidden_layers", Model("depth")),
    ("num_attention_heads", Model("heads")),
    ("hidden_act", Translated("activation", activation, "\"gelu\" or \"relu\"")),
    ("layer_norm_eps", Model("norm-eps")),
    ("image_size", Model("image-size")),
    ("patch_size", Model("patch-size")),
    ("qkv_bias", Only(&["true"])),
    // Compared with `hidden_size` below.
    ("intermediate_size", Free),
    // Of the token that stands for masked patches in pretraining, of the pooler and of reconstruction: a classifier has none.
    ("encoder_stride", Free),
    ("pooler_act", Free),
    ("pooler_output_size", Free),
];

/// `MobileNetV2ForImageClassification`.
const TRANSFORMERS_MOBILENET: Keys = &[
    ("tf_padding", Translated("padding", padding, "true or false")),
    ("depth_multiplier", Model("width-multiplier")),
    ("depth_divisible_by", Only(&["8"])),
    ("min_depth", Only(&["8"])),
    ("expand_ratio", Only(&["6", "6.0"])),
    ("output_stride", Only(&["32"])),
    ("first_layer_is_expansion", Only(&["true"])),
    ("finegrained_output", Only(&["true"])),
    ("hidden_act", Only(&["\"relu6\""])),
    // ε of batch norm.
    ("layer_norm_eps", Only(&["1e-5", "0.00001"])),
    ("image_size", Free),
    ("semantic_loss_ignore_index", Free),
];

/// timm, at the top of the file.
const TIMM: Keys = &[
    ("architecture", Free),
    ("num_classes", Free),
    ("num_features", Free),
    ("label_names", Free),
    ("label_descriptions", Free),
    ("model_args", Free),
    ("pretrained_cfg", Free),
];

/// `model_args` of timm, whatever the model.
const TIMM_ARGUMENTS: Keys = &[
    ("in_chans", Model("channels")),
    ("num_classes", Free),
    ("drop_rate", Free),
    ("drop_path_rate", Free),
    ("drop_block_rate", Free),
    ("proj_drop_rate", Free),
    ("pos_drop_rate", Free),
    ("attn_drop_rate", Free),
    ("patch_drop_rate", Free),
    ("weight_init", Free),
    ("zero_init_last", Free),
];

/// timm's vision transformers; `global_pool` also stands at the top of the file.
const TIMM_VIT: Keys = &[
    ("img_size", Model("image-size")),
    ("patch_size", Model("patch-size")),
    ("embed_dim", Model("width")),
    ("depth", Model("depth")),
    ("num_heads", Model("heads")),
    ("act_layer", Translated("activation", activation, "\"gelu\" or \"relu\"")),
    ("global_pool", Translated("pooling", pooling, "\"token\" or \"avg\"")),
    ("mlp_ratio", Only(&["4", "4.0"])),
    ("qkv_bias", Only(&["true"])),
    ("qk_norm", Only(&["false"])),
    ("scale_attn_norm", Only(&["false"])),
    ("scale_mlp_norm", Only(&["false"])),
    ("proj_bias", Only(&["true"])),
    ("class_token", Only(&["true"])),
    ("pos_embed", Only(&["\"learn\""])),
    ("no_embed_class", Only(&["false"])),
    ("reg_tokens", Only(&["0"])),
    ("pre_norm", Only(&["false"])),
    ("final_norm", Only(&["true"])),
    ("norm_layer", Only(&["null", "\"layernorm\""])),
    // The default: the norm is behind the pooling exactly where that is a mean.
    ("fc_norm", Only(&["null"])),
    ("dynamic_img_pad", Only(&["false"])),
    // LayerScale is in the tensors.
    ("init_values", Free),
    ("dynamic_img_size", Free),
    ("fix_init", Free),
];

/// timm's convolutional networks.
const TIMM_CONVOLUTIONAL: Keys = &[
    ("global_pool", Only(&["\"avg\""])),
    ("act_layer", Only(&["\"relu\""])),
    ("output_stride", Only(&["32"])),
    ("stem_width", Only(&["64"])),
    ("stem_type", Only(&["\"\""])),
    ("base_width", Only(&["64"])),
    ("cardinality", Only(&["1"])),
    ("avg_down", Only(&["false"])),
    ("replace_stem_pool", Only(&["false"])),
    ("block_args", Only(&["null", "{}"])),
    ("norm_layer", Only(&["null", "\"batchnorm2d\""])),
    ("pad_type", Only(&["\"\""])),
];

impl Meaning {
    /// What a value says of `[model]`, if anything; an error where models here do not compute it.
    fn read(&self, from: &str, found: &Value) -> Result<Option<Stated>, String> {
        let stated = |key: &'static str, value: Value| Some(Stated { key, value, from: from.to_owned() });
        let shown = found.to_string();
        let shown = if shown.len() > 80 { "a longer value".to_owned() } else { shown };
        let refused = |expected: &str| {
            Err(format!("{from}: expected {expected}, which is what models here compute, found {shown}"))
        };
        match self {
            Model(key) => match found {
                Value::Number(_) => Ok(stated(key, found.clone())),
                // Both sides of a square.
                Value::Array(sides) => match sides.as_slice() {
                    [height, width] if height == width && height.is_u64() => Ok(stated(key, height.clone())),
                    _ => refused("a number, or twice the same one"),
                },
                _ => refused("a number"),
            },
            Translated(key, translate, expected) => match translate(found) {
                Some(value) => Ok(stated(key, value)),
                None => refused(expected),
            },
            Only([]) => Err(format!("{from}: weights that it describes cannot be read")),
            Only(values) => {
                let same = |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|value| equal(&value, found));
                if values.iter().any(same) { Ok(None) } else { refused(&values.join(" or ")) }
            }
            Free => Ok(None),
        }
    }
}

/// Whether two values are the same, numbers by what they are and not by how they are written.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Read {
    /// Of keys of `[model]`.
    pub stated: Vec<Stated>,
    /// Keys that are not known, which may change what the model computes.
    pub unknown: Vec<String>,
}

impl Read {
    fn take(&mut self, prefix: &str, object: &Map<String, Value>, keys: &[Keys]) -> Result<(), String> {
        for (name, value) in object {
            let from = format!("{prefix}{name}");
            let known = keys.iter().copied().flatten().find(|(known, _)| known == name);
            match known {
                Some((_, meaning)) => self.stated.extend(meaning.read(&from, value)?),
                None => self.unknown.push(from.escape_debug().to_string()),
            }
        }
        Ok(())
    }
}

/// Reads a `config.json` of transformers.
pub fn transformers(config: &Map<String, Value>) -> Result<Read, String> {
    let mut read = Read::default();
    let own = match config.get("model_type").and_then(Value::as_str) {
        Some("mobilenet_v2") => TRANSFORMERS_MOBILENET,
        Some("vit") | None => TRANSFORMERS_VIT,
        // Another architecture's keys would be called unknown; its tensors are refused by their names.
        Some(_) => return Ok(read),
    };
    read.take("", config, &[TRANSFORMERS, own])?;
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    if let (Some(width), Some(hidden)) = (number("hidden_size"), number("intermediate_size"))
        && width.checked_mul(4) != Some(hidden)
    {
        return Err(format!("intermediate_size: expected 4 times hidden_size ({width}), found {hidden}"));
    }
    Ok(read)
}

/// Reads a `config.json` of timm.
pub fn timm(config: &Map<String, Value>, architecture: &str) -> Result<Read, String> {
    let mut read = Read::default();
    let own = if architecture.starts_with("vit_") { TIMM_VIT } else { TIMM_CONVOLUTIONAL };
    read.take("", config, &[TIMM, own])?;
    if let Some(arguments) = config.get("model_args").and_then(Value::as_object) {
        read.take("model_args.", arguments, &[TIMM_ARGUMENTS, own])?;
    }
    Ok(read)
}

/// `model` with what a file states of keys that it leaves out, as far as they apply to it.
pub fn filled(model: &ModelSpec, stated: &[Stated]) -> Result<ModelSpec, String> {
    let object = |spec: &ModelSpec| match serde_json::to_value(spec) {
        Ok(Value::Object(object)) => Ok(object),
        other => Err(format!("a specification is no object: {other:?}")),
    };
    let (mut keys, applies) = (object(model)?, object(&model.resolved())?);
    for stated in stated.iter().filter(|stated| applies.contains_key(stated.key)) {
        keys.entry(stated.key).or_insert_with(|| stated.value.clone());
    }
    serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())
}

/// What a file states otherwise than `model` has it.
pub fn differing<'a>(model: &ModelSpec, stated: &'a [Stated]) -> Vec<(&'a Stated, Value)> {
    let keys = serde_json::to_value(model.resolved()).unwrap_or_default();
    let found = |stated: &'a Stated| Some((stated, keys.get(stated.key)?.clone()));
    stated.iter().filter_map(found).filter(|(stated, found)| !equal(&stated.value, found)).collect()
}

#[cfg(test)]
mod tests {
    use lmr_plugin::zoo::Arch;
    use rstest::rstest;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    fn vit(key: &str, value: Value) -> Result<Read, String> {
        transformers(&object(json!({"architectures": ["ViTForImageClassification"], "model_type": "vit", key: value})))
    }

    fn mobilenet(key: &str, value: Value) -> Result<Read, String> {
        transformers(&object(json!({"model_type": "mobilenet_v2", key: value})))
    }

    fn timm_vit(key: &str, value: Value) -> Result<Read, String> {
        timm(&object(json!({"architecture": "vit_x", "model_args": {key: value}})), "vit_x")
    }

    fn timm_top(key: &str, value: Value) -> Result<Read, String> {
        timm(&object(json!({"architecture": "vit_x", key: value})), "vit_x")
    }

    fn timm_resnet(key: &str, value: Value) -> Result<Read, String> {
        timm(&object(json!({"architecture": "resnet18", "model_args": {key: value}})), "resnet18")
    }

    type Reader = fn(&str, Value) -> Result<Read, String>;

    #[rstest]
    #[case(vit, "num_attention_heads", json!(12), "heads", json!(12))]
    #[case(vit, "hidden_act", json!("relu"), "activation", json!("relu"))]
    #[case(vit, "hidden_act", json!("gelu"), "activation", json!("gelu"))]
    #[case(vit, "layer_norm_eps", json!(1e-12), "norm-eps", json!(1e-12))]
    #[case(vit, "hidden_size", json!(192), "width", json!(192))]
    #[case(vit, "num_hidden_layers", json!(2), "depth", json!(2))]
    #[case(vit, "image_size", json!(32), "image-size", json!(32))]
    #[case(vit, "patch_size", json!([4, 4]), "patch-size", json!(4))]
    #[case(vit, "num_channels", json!(1), "channels", json!(1))]
    #[case(mobilenet, "tf_padding", json!(true), "padding", json!("tf-same"))]
    #[case(mobilenet, "tf_padding", json!(false), "padding", json!("torch"))]
    #[case(mobilenet, "depth_multiplier", json!(0.35), "width-multiplier", json!(0.35))]
    #[case(timm_vit, "num_heads", json!(6), "heads", json!(6))]
    #[case(timm_vit, "embed_dim", json!(384), "width", json!(384))]
    #[case(timm_vit, "depth", json!(6), "depth", json!(6))]
    #[case(timm_vit, "img_size", json!(64), "image-size", json!(64))]
    #[case(timm_vit, "patch_size", json!(8), "patch-size", json!(8))]
    #[case(timm_vit, "in_chans", json!(1), "channels", json!(1))]
    #[case(timm_vit, "act_layer", json!("relu"), "activation", json!("relu"))]
    #[case(timm_vit, "global_pool", json!("avg"), "pooling", json!("mean"))]
    #[case(timm_top, "global_pool", json!("token"), "pooling", json!("class-token"))]
    fn what_a_file_states_is_obeyed(
        #[case] read: Reader,
        #[case] from: &str,
        #[case] found: Value,
        #[case] key: &str,
        #[case] value: Value,
    ) {
        let Read { stated, unknown } = read(from, found).unwrap();
        let [Stated { key: found_key, value: found, .. }] = stated.as_slice() else { panic!("{stated:?}") };
        assert_eq!((*found_key, found, unknown.len()), (key, &value, 0));
        // The key is one of the table, with a value that the table takes.
        let arch = if matches!(key, "padding" | "width-multiplier") { Arch::MobilenetV2 } else { Arch::VitTiny };
        let model = ModelSpec::new(arch, 10);
        let filled = filled(&model, &stated).unwrap();
        if key != "channels" {
            assert_eq!(differing(&filled, &stated), []);
        }
    }

    #[rstest]
    #[case(vit, "hidden_act", json!("quick_gelu"), "hidden_act: expected \"gelu\" or \"relu\"")]
    #[case(vit, "qkv_bias", json!(false), "qkv_bias: expected true")]
    #[case(vit, "num_attention_heads", json!("twelve"), "num_attention_heads: expected a number")]
    #[case(vit, "image_size", json!([32, 64]), "image_size: expected a number, or twice the same one")]
    #[case(vit, "pruned_heads", json!({"0": [1]}), "pruned_heads: expected {}")]
    #[case(vit, "quantization_config", json!({"bits": 4}), "quantization_config: weights that it describes")]
    #[case(mobilenet, "layer_norm_eps", json!(0.001), "layer_norm_eps: expected 1e-5")]
    #[case(mobilenet, "output_stride", json!(16), "output_stride: expected 32")]
    #[case(mobilenet, "hidden_act", json!("relu"), "hidden_act: expected \"relu6\"")]
    #[case(mobilenet, "tf_padding", json!("yes"), "tf_padding: expected true or false")]
    #[case(mobilenet, "expand_ratio", json!(4), "expand_ratio: expected 6")]
    #[case(mobilenet, "depth_divisible_by", json!(4), "depth_divisible_by: expected 8")]
    #[case(mobilenet, "min_depth", json!(4), "min_depth: expected 8")]
    #[case(mobilenet, "first_layer_is_expansion", json!(false), "first_layer_is_expansion: expected true")]
    #[case(mobilenet, "finegrained_output", json!(false), "finegrained_output: expected true")]
    #[case(timm_vit, "act_layer", json!("gelu_tanh"), "model_args.act_layer: expected")]
    #[case(timm_vit, "global_pool", json!("map"), "model_args.global_pool: expected \"token\" or \"avg\"")]
    #[case(timm_top, "global_pool", json!("avgmax"), "global_pool: expected")]
    #[case(timm_vit, "mlp_ratio", json!(3), "model_args.mlp_ratio: expected 4")]
    #[case(timm_vit, "qkv_bias", json!(false), "model_args.qkv_bias: expected true")]
    #[case(timm_vit, "qk_norm", json!(true), "model_args.qk_norm: expected false")]
    #[case(timm_vit, "class_token", json!(false), "model_args.class_token: expected true")]
    #[case(timm_vit, "no_embed_class", json!(true), "model_args.no_embed_class: expected false")]
    #[case(timm_vit, "reg_tokens", json!(4), "model_args.reg_tokens: expected 0")]
    #[case(timm_vit, "pre_norm", json!(true), "model_args.pre_norm: expected false")]
    #[case(timm_vit, "final_norm", json!(false), "model_args.final_norm: expected true")]
    #[case(timm_vit, "fc_norm", json!(false), "model_args.fc_norm: expected null")]
    #[case(timm_vit, "norm_layer", json!("rmsnorm"), "model_args.norm_layer: expected null")]
    #[case(timm_vit, "pos_embed", json!("none"), "model_args.pos_embed: expected")]
    #[case(timm_resnet, "output_stride", json!(8), "model_args.output_stride: expected 32")]
    #[case(timm_resnet, "act_layer", json!("silu"), "model_args.act_layer: expected \"relu\"")]
    #[case(timm_resnet, "global_pool", json!("max"), "model_args.global_pool: expected \"avg\"")]
    #[case(timm_resnet, "avg_down", json!(true), "model_args.avg_down: expected false")]
    #[case(timm_resnet, "pad_type", json!("same"), "model_args.pad_type: expected")]
    fn what_models_here_do_not_compute_is_refused_by_name(
        #[case] read: Reader,
        #[case] key: &str,
        #[case] value: Value,
        #[case] expected: &str,
    ) {
        let message = read(key, value).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }

    #[rstest]
    #[case(vit, "pooler_act", json!("tanh"), None)]
    #[case(vit, "hidden_dropout_prob", json!(0.1), None)]
    #[case(vit, "layer_scale", json!(true), Some("layer_scale"))]
    #[case(timm_vit, "init_values", json!(1e-5), None)]
    #[case(timm_vit, "rope", json!(true), Some("model_args.rope"))]
    #[case(timm_top, "note", json!(1), Some("note"))]
    fn other_keys_are_told(#[case] read: Reader, #[case] key: &str, #[case] value: Value, #[case] told: Option<&str>) {
        let Read { stated, unknown } = read(key, value).unwrap();
        assert_eq!((stated.len(), unknown.first().map(String::as_str)), (0, told));
    }

    #[test]
    fn hidden_units_are_four_times_the_width() {
        let config =
            |hidden: u64| object(json!({"model_type": "vit", "hidden_size": 192, "intermediate_size": hidden}));
        assert!(transformers(&config(768)).is_ok());
        let message = transformers(&config(1024)).err().unwrap();
        assert!(message.contains("intermediate_size: expected 4 times hidden_size (192), found 1024"), "{message}");
    }

    #[test]
    fn the_pipelines_own_values_are_kept_and_compared() {
        let Read { stated, .. } = vit("num_attention_heads", json!(12)).unwrap();
        let model = ModelSpec { heads: Some(3), ..ModelSpec::new(Arch::VitTiny, 10) };
        assert_eq!(filled(&model, &stated).unwrap().heads, Some(3));
        assert_eq!(differing(&model, &stated), [(&stated[0], json!(3))]);
        // A key that the architecture does not have.
        let other = ModelSpec::new(Arch::Resnet18, 10);
        assert_eq!(filled(&other, &stated).unwrap(), other);
    }
}
