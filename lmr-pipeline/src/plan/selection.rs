//! Which stages' models are published.

use lmr_plugin::stage::ModelUse;

use crate::problem::{hint, quoted};
use crate::registry::StageKind;

/// A stage as far as the choice depends on it.
#[derive(Clone, Copy)]
pub struct Link<'a> {
    /// Its kind.
    pub kind: &'static StageKind,
    /// Its name.
    pub name: &'a str,
    /// The stage whose model it takes; `None` for the model as it was received.
    pub from: Option<usize>,
}

/// The stages whose models are published, by their position in the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The one with the purified model.
    pub stage: usize,
    /// Those with forms of it that are deployed.
    pub forms: Vec<usize>,
}

/// A key of `[publish]`, and what is wrong with it.
pub type Fault = (&'static str, String);

impl Selection {
    /// Chooses the named stage, or the only one whose purified model no other stage purifies further.
    pub fn of(links: &[Link], stage: Option<&str>, include: &[String]) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let stage = match stage {
            Some(name) => named(links, name),
            None => last_purified(links),
        };
        let stage = stage.map_err(|message| faults.push(("stage", message))).ok();
        let mut forms = Vec::new();
        for name in include {
            match form(links, name, stage) {
                Ok(index) if forms.contains(&index) => {}
                Ok(index) => forms.push(index),
                Err(message) => faults.push(("include", message)),
            }
        }
        forms.sort_unstable();
        let folders: Vec<String> = forms.iter().map(|&index| folder(links[index].name)).collect();
        for (at, name) in folders.iter().enumerate() {
            if folders[..at].contains(name) {
                faults.push(("include", format!("two stages would both be published as `{name}/`; rename one")));
            }
        }
        match stage {
            Some(stage) if faults.is_empty() => Ok(Self { stage, forms }),
            _ => Err(faults),
        }
    }
}

/// The stage that last changed the model which a stage looks at or leaves; `None` for the model as it was received. What
/// an attack leaves is what the defender receives.
pub fn maker(links: &[Link], index: usize) -> Option<usize> {
    let mut line = std::iter::successors(Some(index), |&index| links[index].from);
    line.find(|&index| links[index].kind.model.changes_model()).filter(|&index| !links[index].kind.implants())
}

/// The name of a form's folder in the repository.
pub fn folder(stage: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = stage.split(|c: char| !fits(c)).filter(|word| !word.is_empty()).collect();
    // The files beside it have dots in their names, so it cannot be one of them.
    if words.is_empty() { "form".into() } else { words.join("-") }
}

fn purifies(link: &Link) -> bool {
    link.kind.model == ModelUse::Writes && !link.kind.implants()
}

fn named(links: &[Link], name: &str) -> Result<usize, String> {
    let names = || links.iter().filter(|link| purifies(link)).map(|link| link.name).collect::<Vec<_>>();
    match links.iter().position(|link| link.name == name) {
        Some(index) if purifies(&links[index]) => Ok(index),
        Some(index) if links[index].kind.implants() => Err(format!("`{name}` implants a backdoor")),
        Some(index) if links[index].kind.model == ModelUse::Deploys => {
            Err(format!("`{name}` leaves a deployed form; put its name in `include`"))
        }
        Some(_) => Err(format!("`{name}` does not change the model{}", hint(name, &names()))),
        None => Err(format!("no stage is called `{name}`{}", hint(name, &names()))),
    }
}

fn last_purified(links: &[Link]) -> Result<usize, String> {
    let goes_on = |index: usize| {
        let from = |link: &Link| link.from.and_then(|from| maker(links, from)) == Some(index);
        links.iter().any(|link| purifies(link) && from(link))
    };
    let ends: Vec<usize> = (0..links.len()).filter(|&index| purifies(&links[index]) && !goes_on(index)).collect();
    match ends.as_slice() {
        [one] => Ok(*one),
        [] => Err("no stage purifies the model, so there is nothing to publish".into()),
        several => {
            let names: Vec<&str> = several.iter().map(|&index| links[index].name).collect();
            Err(format!("the pipeline ends in several purified models, {}; name one", quoted(&names)))
        }
    }
}

fn form(links: &[Link], name: &str, stage: Option<usize>) -> Result<usize, String> {
    let deploys = |link: &&Link| link.kind.model == ModelUse::Deploys;
    let names: Vec<&str> = links.iter().filter(deploys).map(|link| link.name).collect();
    let Some(index) = links.iter().position(|link| link.name == name) else {
        return Err(format!("no stage is called `{name}`{}", hint(name, &names)));
    };
    if links[index].kind.model != ModelUse::Deploys {
        return Err(format!("`{name}` leaves no deployed form{}", hint(name, &names)));
    }
    let source = links[index].from.and_then(|from| maker(links, from));
    match stage {
        Some(stage) if source != Some(stage) => {
            let source =
                source.map_or("the model as it was received".into(), |source| format!("`{}`", links[source].name));
            Err(format!("`{name}` is made from {source}, not from `{}`", links[stage].name))
        }
        _ => Ok(index),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn links<'a>(stages: &[(&str, &'a str, Option<usize>)]) -> Vec<Link<'a>> {
        let link = |&(kind, name, from)| Link { kind: StageKind::find(kind).unwrap(), name, from };
        stages.iter().map(link).collect()
    }

    const TREE: &[(&str, &str, Option<usize>)] = &[
        ("attack", "attack", None),
        ("estimate", "estimate", Some(0)),
        ("logit-repel", "repel", Some(1)),
        ("recover", "purify", Some(2)),
        ("evaluate", "purified", Some(3)),
        ("quantize", "int8", Some(3)),
        ("structured-prune", "half pruned", Some(3)),
        ("quantize", "early", Some(2)),
    ];

    #[test]
    fn the_last_purified_model_is_the_one() {
        let links = links(TREE);
        let include = ["half pruned", "int8"].map(String::from);
        assert_eq!(Selection::of(&links, None, &include).unwrap(), Selection { stage: 3, forms: vec![5, 6] });
        assert_eq!((maker(&links, 4), maker(&links, 1), maker(&links, 6)), (Some(3), None, Some(6)));
        assert_eq!((folder("half pruned"), folder("…")), ("half-pruned".into(), "form".into()));
    }

    #[rstest]
    #[case::attack(Some("attack"), &[], "`attack` implants a backdoor")]
    #[case::form(Some("int8"), &[], "put its name in `include`")]
    #[case::inspects(Some("purified"), &[], "`purified` does not change the model")]
    #[case::unknown(Some("purifi"), &[], "no stage is called `purifi`; did you mean `purify`?")]
    #[case::no_form(None, &["purify"], "`purify` leaves no deployed form")]
    #[case::other_branch(None, &["early"], "`early` is made from `repel`, not from `purify`")]
    fn what_cannot_be_published(#[case] stage: Option<&str>, #[case] include: &[&str], #[case] expected: &str) {
        let include: Vec<String> = include.iter().map(|name| name.to_string()).collect();
        let faults = Selection::of(&links(TREE), stage, &include).unwrap_err();
        assert!(faults[0].1.contains(expected), "{faults:?}");
    }

    #[test]
    fn two_ends_are_a_question_and_none_is_an_error() {
        let two = links(&[("logit-repel", "a", None), ("recover", "b", Some(0)), ("recover", "c", Some(0))]);
        assert!(Selection::of(&two, None, &[]).unwrap_err()[0].1.contains("`b`, `c`; name one"));
        assert_eq!(Selection::of(&two, Some("c"), &[]).unwrap().stage, 2);
        let none = links(&[("evaluate", "a", None)]);
        assert!(Selection::of(&none, None, &[]).unwrap_err()[0].1.contains("nothing to publish"));
    }
}
