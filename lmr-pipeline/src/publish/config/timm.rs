//! timm's `config.json`, which `timm.create_model("local-dir:…")` and `"hf-hub:…"` read.

use lmr_plugin::zoo::naming::Scheme;
use lmr_plugin::zoo::{Arch, Stem};
use serde_json::{Map, Value, json};

use super::transformers::heads;
use super::{Described, images, inner, over};

/// ε of the layer norms of timm's vision transformers, which no `config.json` can change.
const NORM_EPS: f64 = 1e-6;

/// A model of timm.
pub struct Architecture {
    /// Its name.
    name: &'static str,
    /// Arguments of the function that builds it.
    arguments: Map<String, Value>,
    /// Width of the head's input.
    features: usize,
    /// timm's names of the first convolution and of the head.
    ends: [&'static str; 2],
}

/// timm's model with these names, if there is one.
pub fn architecture(described: &Described) -> Option<Architecture> {
    let model = described.model.resolved();
    images::timm(described.images)?;
    let mut arguments = Map::new();
    match model.channels {
        3 => {}
        1 => drop(arguments.insert("in_chans".into(), json!(1))),
        // timm reads a first convolution of other channels as one of three.
        _ => return None,
    }
    let photographs = model.stem == Some(Stem::Imagenet) && model.width == Some(64);
    // Other inputs than 224x224 it pools in another way before the head.
    let vgg = photographs && described.images.size == [224, 224];
    let (name, features, ends) = match model.arch {
        Arch::Resnet18 if photographs => ("resnet18", 512, ["conv1", "fc"]),
        Arch::Resnet34 if photographs => ("resnet34", 512, ["conv1", "fc"]),
        Arch::Vgg16 if vgg => ("vgg16", 4096, ["features.0", "head.fc"]),
        Arch::Vgg16Bn if vgg => ("vgg16_bn", 4096, ["features.0", "head.fc"]),
        Arch::VitTiny | Arch::VitSmall | Arch::VitBase
            if described.scheme == Some(Scheme::Timm) && model.norm_eps == Some(NORM_EPS) =>
        {
            arguments.extend([
                ("img_size".into(), json!(model.image_size)),
                ("patch_size".into(), json!(model.patch_size)),
                ("embed_dim".into(), json!(model.width)),
                ("depth".into(), json!(model.depth)),
                ("num_heads".into(), json!(heads(model.arch))),
            ]);
            let name = match model.arch {
                Arch::VitTiny => "vit_tiny_patch16_224",
                Arch::VitSmall => "vit_small_patch16_224",
                _ => "vit_base_patch16_224",
            };
            (name, model.width?, ["patch_embed.proj", "head"])
        }
        _ => return None,
    };
    Some(Architecture { name, arguments, features, ends })
}

/// The file.
pub fn config(described: &Described) -> Option<Value> {
    let Architecture { name, arguments, features, ends: [first, head] } = architecture(described)?;
    let mut pretrained = images::timm(described.images)?;
    pretrained.extend([
        ("num_classes".into(), json!(described.model.classes)),
        ("fixed_input_size".into(), json!(described.scheme.is_some())),
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
