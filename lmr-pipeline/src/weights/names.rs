//! What wrappers do to the names of a state dict.

use lmr_plugin::zoo::naming::title;

/// What known wrappers put before every name: `DataParallel`, `torch.compile`, DeepSpeed.
const WRAPPERS: &[&str] = &["module.", "_orig_mod.", "_forward_module."];
/// How deep modules wrap a network that one of them holds: `LightningModule` with `model`, in it `backbone`.
const MAX_DEPTH: usize = 3;
/// `DataParallel` around the convolutions alone, as in old training scripts for VGG and AlexNet.
const INSIDE: &str = "features.module.";

/// Names of a checkpoint and how they become those of the network in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wrapping {
    /// What stands before every name.
    pub prefix: String,
    /// Whether the convolutions were wrapped alone: `features.module.0` for `features.0`.
    pub inside: bool,
}

impl Wrapping {
    /// That of a checkpoint with these names.
    ///
    /// Known wrappers are taken off; any other beginning that all names share is taken off if what is left are the names of a
    /// network that is known here, and the whole are not.
    pub fn of(names: &[&str]) -> Self {
        let mut prefix = String::new();
        while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| begins(names, &prefix, wrapper)) {
            prefix.push_str(wrapper);
        }
        let mut found = prefix.clone();
        for _ in 0..=MAX_DEPTH {
            let rest = |at: usize| names.iter().map(move |name| &name[at..]);
            let known = title(rest(found.len())).is_some();
            if known {
                prefix = found;
                break;
            }
            let Some(first) = names.first().and_then(|name| name[found.len()..].split_inclusive('.').next()) else {
                break;
            };
            if !first.ends_with('.') || !begins(names, &found, first) {
                break;
            }
            found.push_str(first);
        }
        let inside = {
            let mut features = names.iter().filter(|name| name[prefix.len()..].starts_with("features.")).peekable();
            features.peek().is_some() && features.all(|name| name[prefix.len()..].starts_with(INSIDE))
        };
        Self { prefix, inside }
    }

    /// The name in the network of a name in the file.
    pub fn short(&self, name: &str) -> String {
        let name = name.get(self.prefix.len()..).unwrap_or_default();
        if self.inside { name.replacen(INSIDE, "features.", 1) } else { name.to_owned() }
    }
}

/// Whether every name goes on with `part` behind `prefix`, and does not end there.
fn begins(names: &[&str], prefix: &str, part: &str) -> bool {
    let goes_on = |name: &&str| name[prefix.len()..].strip_prefix(part).is_some_and(|rest| !rest.is_empty());
    !names.is_empty() && names.iter().all(goes_on)
}

/// The entry that `torch.optim.swa_utils.AveragedModel` keeps beside its module, if these are the names of one.
pub fn averaged<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    const COUNT: &str = "n_averaged";
    let mut others = names.clone().filter(|name| *name != COUNT).peekable();
    let counted = names.clone().any(|name| name == COUNT);
    (counted && others.peek().is_some() && others.all(|name| name.starts_with("module."))).then_some(COUNT)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const RESNET: [&str; 3] = ["conv1.weight", "layer1.0.conv1.weight", "fc.bias"];

    #[rstest]
    #[case::none("", "")]
    #[case::parallel("module.", "module.")]
    #[case::compiled("module._orig_mod.", "module._orig_mod.")]
    #[case::deepspeed("_forward_module.", "_forward_module.")]
    #[case::lightning("model.", "model.")]
    #[case::net("net.", "net.")]
    #[case::backbone("backbone.", "backbone.")]
    #[case::timm("timm_model.", "timm_model.")]
    #[case::nested("module.model.backbone.", "module.model.backbone.")]
    #[case::too_deep("a.b.c.d.", "")]
    fn a_prefix_is_told_by_what_is_left(#[case] prefix: &str, #[case] expected: &str) {
        let names: Vec<String> = RESNET.iter().map(|name| format!("{prefix}{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = Wrapping::of(&names);
        assert_eq!((found.prefix.as_str(), found.inside), (expected, false));
        if expected == prefix {
            assert_eq!(found.short(names[2]), "fc.bias");
        }
    }

    #[test]
    fn what_is_left_must_be_known() {
        assert_eq!(Wrapping::of(&["model.a.weight", "model.b.weight"]).prefix, "");
        assert_eq!(Wrapping::of(&["model.conv1.weight", "loss.weight"]).prefix, "");
        assert_eq!(Wrapping::of(&[]), Wrapping::default());
    }

    #[test]
    fn wrapped_convolutions_are_told() {
        let names = ["features.module.0.weight", "features.module.28.weight", "classifier.weight"];
        let found = Wrapping::of(&names);
        assert_eq!(
            (found.short(names[1]).as_str(), found.short(names[2]).as_str()),
            ("features.28.weight", "classifier.weight")
        );
    }

    #[rstest]
    #[case(&["n_averaged", "module.a"], true)]
    #[case(&["module.a"], false)]
    #[case(&["n_averaged", "a"], false)]
    #[case(&["n_averaged"], false)]
    fn an_averaged_model_is_told(#[case] names: &[&str], #[case] expected: bool) {
        assert_eq!(averaged(names.iter().copied()).is_some(), expected);
    }
}
