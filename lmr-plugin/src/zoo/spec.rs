//! The specification of a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::options::{HiddenActivation, PaddingRule, Pooling, Stem};
use super::{Arch, ZooError};
use crate::Result;

macro_rules! options {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty, $key:literal;)*) => {
        /// What has to be known to build a model; the `[model]` table of a pipeline without its weights. A key that the
        /// architecture does not know is an error.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct ModelSpec {
            /// The architecture.
            pub arch: Arch,
            /// Number of classes K, at least 2.
            pub classes: usize,
            /// Channels of an image: 3 for colour, 1 for grey.
            #[serde(default = "default_channels")]
            pub channels: usize,
            /// Output channels of every prunable layer in the order they run, of a network that `structured-prune` removed
            /// filters from; the architecture's own if absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub widths: Option<Vec<usize>>,
            $($(#[doc = $doc])*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $name: Option<$type>,)*
        }

        /// The keys that apply to an architecture: those with a default.
        #[derive(Clone, Copy, Debug)]
        pub(super) struct Options {
            $(pub $name: Option<$type>,)*
        }

        impl Options {
            /// None applies.
            pub const NONE: Self = Self { $($name: None,)* };
        }

        impl ModelSpec {
            /// An architecture with its defaults, for colour images.
            pub fn new(arch: Arch, classes: usize) -> Self {
                Self { arch, classes, channels: default_channels(), widths: None, $($name: None,)* }
            }

            /// With every key that applies filled in.
            pub fn resolved(&self) -> Self {
                let defaults = self.arch.architecture().options;
                Self { $($name: self.$name.or(defaults.$name),)* ..self.clone() }
            }

            /// Keys that are given although the architecture does not know them.
            fn foreign_keys(&self) -> Vec<&'static str> {
                let known = self.arch.architecture().options;
                let mut keys = Vec::new();
                $(if self.$name.is_some() && known.$name.is_none() {
                    keys.push($key);
                })*
                keys
            }

            /// The keys that this specification gives and the other one has otherwise, as `key = value`.
            pub fn differing(&self, other: &Self) -> Vec<String> {
                let (resolved, mut keys) = (other.resolved(), Vec::new());
                let mut compare = |key: &str, ours: Option<String>, theirs: Option<String>| {
                    if let Some(ours) = ours.filter(|ours| Some(ours) != theirs.as_ref()) {
                        keys.push(format!("{key} = {ours}"));
                    }
                };
                let text = |value: serde_json::Value| Some(value.to_string());
                compare("arch", text(json!(self.arch)), text(json!(other.arch)));
                compare("classes", text(json!(self.classes)), text(json!(other.classes)));
                compare("channels", text(json!(self.channels)), text(json!(other.channels)));
                let widths = |spec: &Self| spec.widths.as_ref().and_then(|widths| text(json!(widths)));
                compare("widths", widths(self), widths(other));
                // Where all widths agree, the one that they are derived from without removal says nothing more.
                let settled = self.widths.is_some() && self.widths == other.widths;
                $(if !(settled && $key == "width") {
                    compare($key, self.$name.and_then(|v| text(json!(v))), resolved.$name.and_then(|v| text(json!(v))));
                })*
                keys
            }

            /// The keys that apply beside `arch`, `classes` and `channels`.
            fn own_keys(&self) -> Vec<&'static str> {
                let known = self.arch.architecture().options;
                let mut keys = Vec::new();
                $(if known.$name.is_some() {
                    keys.push($key);
                })*
                keys
            }
        }
    };
}

options! {
    /// Convolutional networks: whether the network is for small images (`cifar`, the default) or photographs
    /// (`imagenet`).
    stem: Stem, "stem";
    /// ResNet and MobileNetV2: padding of convolutions and pooling, `torch` (the default) or `tf-same` for weights from
    /// TensorFlow.
    padding: PaddingRule, "padding";
    /// Residual networks and VGG: channels of the first stage, 64 by default; later stages have up to 8 times as many.
    /// Vision transformers: features of a token.
    width: usize, "width";
    /// MobileNetV2: factor on all channel counts, 0.1 to 4; 1 by default.
    width_multiplier: f64, "width-multiplier";
    /// Vision transformers: height and width of an image, 224 by default.
    image_size: usize, "image-size";
    /// Vision transformers: height and width of a patch, 16 by default; 4 suits 32x32 images. Divides `image-size`.
    patch_size: usize, "patch-size";
    /// Vision transformers: encoder blocks, 12 by default.
    depth: usize, "depth";
    /// Vision transformers: attention heads, which divide `width`; 3, 6 and 12 by default.
    heads: usize, "heads";
    /// Vision transformers: what follows the hidden units, `gelu` by default.
    activation: HiddenActivation, "activation";
    /// Vision transformers: what the head reads, `class-token` by default.
    pooling: Pooling, "pooling";
    /// Vision transformers: ε of layer norm, 1e-6 by default as in torchvision and timm; checkpoints made with
    /// transformers have 1e-12.
    norm_eps: f64, "norm-eps";
}

/// As wide as an architecture's widest layer may be.
const MAX_WIDTH: usize = 8 * 4096;

fn default_channels() -> usize {
    3
}

impl ModelSpec {
    /// What is impossible about this specification, if anything; each message names the key.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, value, range) in [
            ("classes", Some(self.classes), 2..=100_000),
            ("channels", Some(self.channels), 1..=16),
            ("width", self.width, 1..=4096),
            ("image-size", self.image_size, 1..=4096),
            ("patch-size", self.patch_size, 1..=256),
            ("depth", self.depth, 1..=100),
            ("heads", self.heads, 1..=4096),
        ] {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                faults.push(format!("{key}: expected {} to {}, found {value}", range.start(), range.end()));
            }
        }
        for (key, value, range) in
            [("width-multiplier", self.width_multiplier, 0.1..=4.0), ("norm-eps", self.norm_eps, 0.0..=0.1)]
        {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                faults.push(format!("{key}: expected {} to {}, found {value}", range.start(), range.end()));
            }
        }
        let widths = self.widths.iter().flatten();
        if let Some(width) = widths.copied().find(|width| !(1..=MAX_WIDTH).contains(width)) {
            faults.push(format!("widths: expected 1 to {MAX_WIDTH} each, found {width}"));
        }
        for key in self.foreign_keys() {
            let own = self.own_keys().join(", ");
            faults.push(format!("{key}: does not apply to this architecture, which takes {own}"));
        }
        if let ModelSpec { image_size: Some(image), patch_size: Some(patch), .. } = self.resolved()
            && faults.is_empty()
            && (image % patch != 0 || (image / patch).pow(2) > 1 << 16)
        {
            faults.push(format!("patch-size: expected a divisor of image-size = {image}, found {patch}"));
        }
        let residual = matches!(self.arch, Arch::Resnet18 | Arch::Resnet34);
        if self.stem == Some(Stem::CifarPool) && !residual && faults.is_empty() {
            faults
                .push("stem: expected cifar or imagenet, found cifar-pool, which residual networks alone have".into());
        }
        if let ModelSpec { width: Some(width), heads: Some(heads), .. } = self.resolved()
            && faults.is_empty()
            && width % heads != 0
        {
            faults.push(format!("heads: expected a divisor of width = {width}, found {heads}"));
        }
        faults
    }

    /// A side of square images that the model accepts.
    pub fn example_side(&self) -> usize {
        self.resolved().image_size.unwrap_or(32)
    }

    /// Side of the smallest square images that the model takes.
    pub fn smallest_side(&self) -> usize {
        self.arch.architecture().smallest_side
    }
}

/// An option that the registry gives a default.
pub(super) fn given<T>(option: Option<T>, key: &'static str) -> Result<T> {
    Ok(option.ok_or(ZooError::NoDefault { key })?)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(json!({"arch": "vit-tiny", "classes": 10, "stem": "cifar"}), "stem: does not apply")]
    #[case(json!({"arch": "resnet18", "classes": 10, "patch-size": 4}), "patch-size: does not apply to this architecture, which takes stem, padding, width")]
    #[case(json!({"arch": "vit-tiny", "classes": 10, "image-size": 30}), "patch-size: expected a divisor of image-size = 30")]
    #[case(json!({"arch": "vgg16", "classes": 10, "stem": "cifar-pool"}), "stem: expected cifar or imagenet, found cifar-pool")]
    #[case(json!({"arch": "vit-tiny", "classes": 10, "heads": 5}), "heads: expected a divisor of width = 192, found 5")]
    #[case(json!({"arch": "mobilenet-v2", "classes": 1, "width-multiplier": 9.0}), "width-multiplier: expected 0.1 to 4")]
    fn impossible_specifications_name_the_key(#[case] spec: serde_json::Value, #[case] expected: &str) {
        let spec: ModelSpec = serde_json::from_value(spec).unwrap();
        let faults = spec.faults().join("; ");
        assert!(faults.contains(expected), "{faults}");
    }

    #[test]
    fn unknown_keys_are_refused_and_defaults_filled_in() {
        let parse = |value| serde_json::from_value::<ModelSpec>(value);
        assert!(parse(json!({"arch": "resnet18", "classes": 10, "widht": 16})).is_err());
        let spec = parse(json!({"arch": "vgg16-bn", "classes": 10})).unwrap();
        assert_eq!(spec, ModelSpec::new(Arch::Vgg16Bn, 10));
        let resolved = spec.resolved();
        assert_eq!((resolved.width, resolved.stem, resolved.depth), (Some(64), Some(Stem::Cifar), None));
        assert_eq!(parse(serde_json::to_value(&resolved).unwrap()).unwrap(), resolved);
    }
}
