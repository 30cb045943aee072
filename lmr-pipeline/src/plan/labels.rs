//! The names of the classes in a `config.json` against the dataset's: class i must be the same thing in both.

use std::collections::HashMap;

/// What the names tell.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Same,
    /// Some names differ, and none stands elsewhere: spelled otherwise, so far as can be told.
    Spelled(String),
    /// The same names in another order: where each of the dataset's classes is in the model, and an example.
    Reordered(Vec<u32>, String),
    /// The classes are not the same.
    Different(String),
}

/// Compares the names of a model with those of a dataset.
pub fn compare(model: &[String], dataset: &[String]) -> Verdict {
    // What transformers writes where nobody gave names.
    let numbered = |name: &String| name.strip_prefix("LABEL_").is_some_and(|rest| rest.parse::<usize>().is_ok());
    if model.is_empty() || model.iter().all(numbered) {
        return Verdict::Same;
    }
    let (theirs, ours): (Vec<String>, Vec<String>) =
        (model.iter().map(|name| plain(name)).collect(), dataset.iter().map(|name| plain(name)).collect());
    if theirs.len() == ours.len() + 1 && theirs[1..].iter().zip(&ours).filter(|(a, b)| a == b).count() * 2 > ours.len()
    {
        return Verdict::Different(format!(
            "config.json names one class more, {:?}, before the dataset's: every label would be off by one; take weights \
             without it, or cut its row off the head",
            shown(&model[0])
        ));
    }
    if theirs.len() != ours.len() {
        // Another number of classes is a fault of its own.
        return Verdict::Same;
    }
    let Some(first) = (0..ours.len()).find(|&class| theirs[class] != ours[class]) else { return Verdict::Same };
    let mut places: HashMap<&str, Option<usize>> = HashMap::new();
    for (class, name) in ours.iter().enumerate() {
        places.entry(name).and_modify(|place| *place = None).or_insert(Some(class));
    }
    let moved =
        |class: &usize| places.get(theirs[*class].as_str()).is_some_and(|place| place.is_some_and(|at| at != *class));
    let example = |class: usize| {
        format!("class {class} is {:?} there and {:?} in the dataset", shown(&model[class]), shown(&dataset[class]))
    };
    let (mut a, mut b) = (theirs.clone(), ours.clone());
    a.sort_unstable();
    b.sort_unstable();
    match (0..ours.len()).find(moved) {
        Some(class) if a == b => {
            let at =
                |name: &String| theirs.iter().position(|other| other == name).and_then(|at| u32::try_from(at).ok());
            match ours.iter().map(at).collect::<Option<Vec<u32>>>() {
                Some(order) if a.windows(2).all(|pair| pair[0] != pair[1]) => Verdict::Reordered(order, example(class)),
                _ => Verdict::Different(format!(
                    "config.json has names of classes in another place ({})",
                    example(class)
                )),
            }
        }
        Some(class) => {
            Verdict::Different(format!("config.json has names of classes in another place ({})", example(class)))
        }
        None if theirs.iter().zip(&ours).all(|(a, b)| a != b) => {
            Verdict::Different(format!("config.json has other names of classes ({})", example(first)))
        }
        None => Verdict::Spelled(example(first)),
    }
}

/// A name without its synonyms, in one spelling: `Tench_fish, Tinca tinca` is `tench fish`.
fn plain(name: &str) -> String {
    let first = name.split(',').next().unwrap_or_default();
    first.replace(['_', '-'], " ").trim().to_lowercase()
}

fn shown(name: &str) -> String {
    name.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split('|').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    #[rstest]
    #[case::same("cat|dog", "cat|dog", None)]
    #[case::spelling("Tench, Tinca tinca|T-shirt", "tench|t shirt", None)]
    #[case::none("", "cat|dog", None)]
    #[case::numbers("LABEL_0|LABEL_1", "cat|dog", None)]
    #[case::twice_moved("dog|cat|dog", "cat|dog|dog", Some("in another place (class 1"))]
    #[case::moved("dog|bird", "cat|dog", Some("in another place (class 0"))]
    #[case::other("ant|bee", "cat|dog", Some("other names of classes (class 0 is \"ant\""))]
    #[case::background("background|cat|dog", "cat|dog", Some("one class more, \"background\""))]
    #[case::other_number("ant|bee|cow", "cat|dog", None)]
    #[case::twice("crane|crane", "crane|crane", None)]
    fn names_are_compared(#[case] model: &str, #[case] dataset: &str, #[case] expected: Option<&str>) {
        match (compare(&names(model), &names(dataset)), expected) {
            (Verdict::Same, None) => {}
            (Verdict::Different(message), Some(expected)) => assert!(message.contains(expected), "{message}"),
            (verdict, _) => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn the_same_names_in_another_order_are_mapped() {
        let verdict = compare(&names("bird|Cat|dog"), &names("cat|dog|bird"));
        let Verdict::Reordered(order, example) = verdict else { panic!("{verdict:?}") };
        assert_eq!((order, example.as_str()), (vec![1, 2, 0], "class 0 is \"bird\" there and \"cat\" in the dataset"));
    }

    #[test]
    fn a_few_other_spellings_are_told() {
        let verdict = compare(&names("cat|hound"), &names("cat|dog"));
        assert_eq!(verdict, Verdict::Spelled("class 1 is \"hound\" there and \"dog\" in the dataset".into()));
    }
}
