//! The architectures there are: one line each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::Layers;
use super::recognize::Shapes;
use super::spec::{ModelSpec, Options};
use super::vit::VisionTransformer;
use super::{mobilenet_v2, preact_resnet, resnet, vgg};
use crate::Result;
use crate::nn::Builder;

/// What there is to know about an architecture.
pub(super) struct Architecture {
    /// The keys that apply to it, with their defaults.
    pub options: Options,
    /// What model of this architecture a checkpoint is for, if it is for one.
    pub recognize: fn(Arch, &Shapes) -> Option<ModelSpec>,
    /// Builds its layers from a specification whose options are filled in.
    pub build: fn(&ModelSpec, &Builder) -> Result<Box<dyn Layers>>,
}

/// `Name: options, recognize => build`, with the documentation that the schema shows.
macro_rules! architectures {
    ($($(#[doc = $doc:literal])* $name:ident: $options:expr, $recognize:expr => $build:expr;)*) => {
        /// The architectures there are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum Arch {
            $($(#[doc = $doc])* $name,)*
        }

        impl Arch {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub(super) fn architecture(self) -> Architecture {
                match self {
                    $(Self::$name => Architecture {
                        options: $options,
                        recognize: $recognize,
                        build: |spec, b| Ok(Box::new($build(spec, b)?)),
                    },)*
                }
            }
        }
    };
}

architectures! {
    /// ResNet-18 (He et al., 2016), torchvision's names.
    Resnet18: resnet::OPTIONS, |arch, s| resnet::recognize(arch, &[2, 2, 2, 2], s)
        => |spec, b| resnet::build(spec, &[2, 2, 2, 2], b);
    /// ResNet-34.
    Resnet34: resnet::OPTIONS, |arch, s| resnet::recognize(arch, &[3, 4, 6, 3], s)
        => |spec, b| resnet::build(spec, &[3, 4, 6, 3], b);
    /// ResNet-18 with pre-activation (He et al., 2016, "Identity Mappings"), BackdoorBench's names.
    PreactResnet18: preact_resnet::OPTIONS, |arch, s| preact_resnet::recognize(arch, &[2, 2, 2, 2], s)
        => |spec, b| preact_resnet::build(spec, &[2, 2, 2, 2], b);
    /// VGG-16 without batch norm (Simonyan & Zisserman, 2015), torchvision's names.
    Vgg16: vgg::OPTIONS, |arch, s| vgg::recognize(arch, false, s) => |spec, b| vgg::build(spec, false, b);
    /// VGG-16 with batch norm.
    Vgg16Bn: vgg::OPTIONS, |arch, s| vgg::recognize(arch, true, s) => |spec, b| vgg::build(spec, true, b);
    /// MobileNetV2 (Sandler et al., 2018), torchvision's names.
    MobilenetV2: mobilenet_v2::OPTIONS, mobilenet_v2::recognize => mobilenet_v2::build;
    /// Vision transformer with 192 features in 3 heads; torchvision's, timm's or transformers' names.
    VitTiny: VisionTransformer::options(192), |arch, s| VisionTransformer::recognize(arch, 192, s)
        => |spec, b| VisionTransformer::new(spec, 3, b);
    /// Vision transformer with 384 features in 6 heads.
    VitSmall: VisionTransformer::options(384), |arch, s| VisionTransformer::recognize(arch, 384, s)
        => |spec, b| VisionTransformer::new(spec, 6, b);
    /// Vision transformer with 768 features in 12 heads (Dosovitskiy et al., 2021); ViT-B/16 with the default patch.
    VitBase: VisionTransformer::options(768), |arch, s| VisionTransformer::recognize(arch, 768, s)
        => |spec, b| VisionTransformer::new(spec, 12, b);
}
