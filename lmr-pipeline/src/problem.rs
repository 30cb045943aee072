//! What is wrong with a pipeline: all of it at once, each fault with its file, its key and a hint.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from: the file, an environment variable or a `--set`.
    pub origin: String,
    /// The key, such as `stage[2] (estimate).lr`; empty where the whole file is meant.
    pub key: String,
    /// What was expected and what was found, and what would help.
    pub message: String,
}

/// Every fault of a pipeline, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.message)
        } else {
            write!(f, "{}: {}: {}", self.origin, self.key, self.message)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            all => {
                write!(f, "{} problems, nothing was run:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// The candidate nearest to `found`, if any is near enough to be meant.
pub fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |name: &str| strsim::damerau_levenshtein(&fold(found), &fold(name));
    let best = candidates.into_iter().map(|name| (score(name), name)).min_by_key(|(score, _)| *score)?;
    (best.0 <= found.chars().count().max(3) / 3 + 1).then_some(best.1)
}

/// Case and separators are never what tells two names apart.
fn fold(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// `; did you mean ...?` where something is near, else the list of what there is.
pub fn hint(found: &str, candidates: &[&str]) -> String {
    match nearest(found, candidates.iter().copied()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None if candidates.is_empty() => String::new(),
        None => format!("; there {} {}", if candidates.len() == 1 { "is" } else { "are" }, quoted(candidates)),
    }
}

/// `` `a`, `b`, `c` ``.
pub fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("epoch", Some("epochs"))]
    #[case("max_steps", Some("max-steps"))]
    #[case("LR", Some("lr"))]
    #[case("frobnicate", None)]
    fn near_names_are_found(#[case] found: &str, #[case] expected: Option<&str>) {
        assert_eq!(nearest(found, ["lr", "epochs", "max-steps"]), expected);
    }
}
