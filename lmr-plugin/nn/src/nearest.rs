//! Names that may be meant.

/// The names that differ from `name` in at most so many characters, the nearest first.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let distance = |other: &'a str| (strsim::damerau_levenshtein(name, other), other);
    let mut near: Vec<_> = names.map(distance).filter(|(distance, _)| *distance <= most).collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().map(|(_, other)| other).collect()
}
