//! The names of tensors in checkpoints of torchvision, timm and transformers, as far as an architecture has several.
//!
//! Torchvision's names are the ones that models here have; an architecture's file says what others call its tensors.
//! Translation renames tensors and, where a library has them apart, joins the projections of q, k and v into one or splits
//! them again; a name that no rule knows stays as it is, so that loading reports it.

use std::cmp::Reverse;

use candle_core::Tensor;

use super::{Arch, Pooling, ZooError};
use crate::Result;
use crate::nn::StateDict;

/// Whose names a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `encoder.layers.encoder_layer_0.self_attention.in_proj_weight`.
    Torchvision,
    /// `blocks.0.attn.qkv.weight`.
    Timm,
    /// The same where the mean over the patches is normalized: `fc_norm.weight`.
    TimmMean,
    /// `vit.encoder.layer.0.attention.attention.query.weight`: files on the Hub, and transformers up to version 4.
    Transformers,
    /// `vit.layers.0.attention.q_proj.weight`: transformers from version 5 on.
    Transformers5,
    /// `layer2.0.shortcut.0.weight` and `linear.weight`: the residual networks of kuangliu's `pytorch-cifar`.
    Kuangliu,
}

/// Beginnings of names, torchvision's first; `#` stands for the number of a block. The three parts of a projection are
/// renamed to `in_proj_q_weight` and its like before they are joined.
pub(super) type Rules = &'static [(&'static str, &'static str)];

/// How a library names the tensors of an architecture.
pub(super) struct Names {
    /// What a reader knows them as.
    pub title: &'static str,
    /// Beginnings of names by which they are told, `#` for a number: a checkpoint has them all.
    pub marks: &'static [&'static str],
    /// Whose they are and the way to them from the names that models here have; `None` if they are not translated.
    pub translation: Option<(Scheme, Rules)>,
}

impl Names {
    fn fit(&self, names: &[&str]) -> bool {
        self.marks.iter().all(|mark| names.iter().any(|name| fits(mark, name).is_some()))
    }
}

/// The naming among `known` that a checkpoint with these names has: where several fit, the one told by most marks.
fn told<'a>(names: &[&str], known: impl Iterator<Item = &'a Names>) -> Option<&'a Names> {
    known.filter(|naming| naming.fit(names)).min_by_key(|naming| Reverse(naming.marks.len()))
}

/// Everybody's names for all architectures.
fn all() -> impl Iterator<Item = &'static Names> {
    Arch::ALL.iter().flat_map(|arch| arch.architecture().names)
}

/// Whose names these are, in words; `None` if they are not known, or of another architecture.
pub fn title<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    let names: Vec<&str> = names.into_iter().collect();
    told(&names, all()).map(|naming| naming.title)
}

/// The scheme of a checkpoint whose names are translated, and the way to it.
fn translation<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<(Scheme, Rules)> {
    let names: Vec<&str> = names.into_iter().collect();
    told(&names, all().filter(|naming| naming.translation.is_some()))?.translation
}

/// What the head of a vision transformer with these names reads, as far as they tell.
pub(super) fn pooling<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Pooling> {
    match Scheme::detect(names)? {
        Scheme::TimmMean => Some(Pooling::Mean),
        // timm has `norm` also where the mean is over normalized tokens, but then `config.json` tells.
        // Models here have torchvision's names whatever they pool.
        Scheme::Torchvision | Scheme::Kuangliu => None,
        Scheme::Timm | Scheme::Transformers | Scheme::Transformers5 => Some(Pooling::ClassToken),
    }
}

/// The way to `scheme` from a state dict under the names that models here have; none if nothing is to be renamed.
fn way(state: &StateDict, scheme: Scheme) -> Rules {
    let names: Vec<&str> = state.keys().map(String::as_str).collect();
    let own = |arch: &&Arch| arch.architecture().names.first().is_some_and(|own| own.fit(&names));
    let named = Arch::ALL.iter().find(own).map(|arch| arch.architecture().names).unwrap_or_default();
    let mut ways = named.iter().filter_map(|naming| naming.translation);
    ways.find(|(known, _)| *known == scheme).map_or(&[], |(_, rules)| rules)
}

impl Scheme {
    /// The scheme of names that are translated; `None` for the names of any other network.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        translation(names).map(|(scheme, _)| scheme)
    }
}

/// The number and the end of a name that begins as `pattern` does.
fn fits<'a>(pattern: &str, name: &'a str) -> Option<(&'a str, &'a str)> {
    let Some((before, after)) = pattern.split_once('#') else {
        return name.strip_prefix(pattern).map(|end| ("", end));
    };
    let rest = name.strip_prefix(before)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&digits| digits > 0)?;
    let (number, rest) = rest.split_at(digits);
    rest.strip_prefix(after).map(|end| (number, end))
}

/// `name` by the first rule that fits; `forth` from torchvision's names, otherwise back to them.
fn rename(name: &str, rules: Rules, forth: bool) -> String {
    let renamed = rules.iter().find_map(|&(ours, theirs)| {
        let (from, to) = if forth { (ours, theirs) } else { (theirs, ours) };
        let (number, end) = fits(from, name)?;
        Some(format!("{}{end}", to.replace('#', number)))
    });
    renamed.unwrap_or_else(|| name.to_string())
}

/// The name of the joined projection and the index (q 0, k 1, v 2) of one of its parts.
fn part(name: &str) -> Option<(String, usize)> {
    ["in_proj_q_", "in_proj_k_", "in_proj_v_"]
        .into_iter()
        .enumerate()
        .find_map(|(index, part)| name.contains(part).then(|| (name.replace(part, "in_proj_"), index)))
}

/// A state dict under torchvision's names, from any scheme; one whose names are not translated stays as it is.
pub fn to_torchvision(state: StateDict) -> Result<StateDict> {
    let rules = translation(state.keys().map(String::as_str)).map_or(&[] as Rules, |(_, rules)| rules);
    if rules.is_empty() {
        return Ok(state);
    }
    let mut renamed = StateDict::new();
    let mut parts = std::collections::BTreeMap::<String, [Option<Tensor>; 3]>::new();
    for (name, tensor) in state {
        let ours = rename(&name, rules, false);
        match part(&ours) {
            Some((whole, index)) => parts.entry(whole).or_default()[index] = Some(tensor),
            None => drop(renamed.insert(ours, tensor)),
        }
    }
    for (name, parts) in parts {
        let [Some(q), Some(k), Some(v)] = &parts else {
            let missing: String =
                parts.iter().zip("qkv".chars()).filter(|(p, _)| p.is_none()).map(|(_, c)| c).collect();
            return Err(ZooError::MissingPart { name, missing }.into());
        };
        renamed.insert(name, Tensor::cat(&[q, k, v], 0)?);
    }
    Ok(renamed)
}

/// A state dict under the names of `scheme`, from torchvision's.
pub fn from_torchvision(state: &StateDict, scheme: Scheme) -> Result<StateDict> {
    let rules = way(state, scheme);
    let separate = rules.iter().any(|rule| rule.0.contains("in_proj_q_"));
    let mut renamed = StateDict::new();
    for (name, tensor) in state {
        match name.split_once("in_proj_").filter(|_| separate) {
            Some((before, end)) => {
                let rows = tensor.dim(0)?;
                if rows % 3 != 0 {
                    return Err(ZooError::Rows { name: name.clone(), rows }.into());
                }
                for (index, letter) in ["q", "k", "v"].into_iter().enumerate() {
                    let part = tensor.narrow(0, index * rows / 3, rows / 3)?.contiguous()?;
                    renamed.insert(rename(&format!("{before}in_proj_{letter}_{end}"), rules, true), part);
                }
            }
            None => drop(renamed.insert(rename(name, rules, true), tensor.clone())),
        }
    }
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use rstest::rstest;

    use super::*;
    use crate::rng;
    use crate::zoo::ModelSpec;

    fn state() -> StateDict {
        let spec = ModelSpec { width: Some(6), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 4) };
        spec.fresh(rng::stream(1, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap()
    }

    #[rstest]
    #[case(Scheme::Torchvision, "encoder.layers.encoder_layer_1.self_attention.in_proj_bias")]
    #[case(Scheme::Timm, "blocks.1.attn.qkv.bias")]
    #[case(Scheme::TimmMean, "fc_norm.bias")]
    #[case(Scheme::Transformers, "vit.encoder.layer.1.attention.attention.value.bias")]
    #[case(Scheme::Transformers5, "vit.layers.1.attention.v_proj.bias")]
    fn names_survive_the_way_there_and_back(#[case] scheme: Scheme, #[case] name: &str) {
        let ours = state();
        let theirs = from_torchvision(&ours, scheme).unwrap();
        assert!(theirs.contains_key(name), "{:?}", theirs.keys());
        assert_eq!(Scheme::detect(theirs.keys().map(String::as_str)), Some(scheme));
        let back = to_torchvision(theirs).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
        for (name, tensor) in &ours {
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(tensor), values(&back[name]), "{name}");
        }
    }

    #[rstest]
    #[case(&["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], Some("torchvision ResNet"))]
    #[case(&["blocks.0.attn.qkv.weight", "patch_embed.proj.bias"], Some("timm ViT"))]
    #[case(&["features.0.0.weight", "features.1.conv.0.0.weight", "classifier.1.bias"], Some("torchvision MobileNetV2"))]
    #[case(&["features.0.weight", "classifier.bias"], Some("torchvision VGG"))]
    #[case(&["w"], None)]
    fn names_tell_the_library(#[case] names: &[&str], #[case] expected: Option<&str>) {
        assert_eq!(title(names.iter().copied()), expected);
    }

    #[test]
    fn kuangliu_s_resnet_is_translated() {
        let spec = ModelSpec { width: Some(4), ..ModelSpec::new(Arch::Resnet18, 3) };
        let ours = spec.fresh(rng::stream(1, "init"), &Device::Cpu).unwrap().params().state_dict().unwrap();
        let theirs = from_torchvision(&ours, Scheme::Kuangliu).unwrap();
        assert!(["layer2.0.shortcut.1.running_var", "linear.bias"].iter().all(|name| theirs.contains_key(*name)));
        assert_eq!(ModelSpec::recognize(&theirs).unwrap().map(|found| found.resolved()), Some(spec.resolved()));
        assert_eq!(to_torchvision(theirs).unwrap().keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    }

    #[test]
    fn other_networks_are_left_alone_and_half_projections_refused() {
        let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let resnet = StateDict::from([("layer1.0.conv1.weight".to_string(), zeros)]);
        assert_eq!(Scheme::detect(resnet.keys().map(String::as_str)), None);
        assert!(to_torchvision(resnet).unwrap().contains_key("layer1.0.conv1.weight"));
        let mut half = from_torchvision(&state(), Scheme::Transformers).unwrap();
        half.remove("vit.encoder.layer.0.attention.attention.key.weight").unwrap();
        let message = to_torchvision(half).unwrap_err().to_string();
        assert!(message.contains("`k` is missing"), "{message}");
    }

    #[test]
    fn a_name_that_is_nearly_right_is_named() {
        let mut state = state();
        let weight = state.remove("heads.head.weight").unwrap();
        state.insert("heads.haed.weight".into(), weight);
        let spec = ModelSpec { width: Some(6), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 4) };
        let message = spec.load(state, &Device::Cpu).err().unwrap().to_string();
        assert!(message.contains("heads.head.weight (perhaps `heads.haed.weight`)"), "{message}");
    }
}
