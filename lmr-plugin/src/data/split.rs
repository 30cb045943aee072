//! Drawing the clean set.

use std::cmp::Reverse;

use rand::seq::SliceRandom;

use super::DataError;
use crate::Result;

/// Draws `count` of the images with these `labels`, each class in proportion, and returns (drawn, rest), both ascending.
///
/// A class with the share `s = count * images of the class / all images` gets `floor(s)` or `ceil(s)` images. What is
/// left after rounding down goes first to classes that would otherwise get none, then to the largest fractions; chance
/// breaks ties. So ten images of ten balanced classes are one of each. The draw depends on `seed`, the labels and
/// `count` alone.
///
/// ```
/// use lmr_plugin::data::stratified_split;
/// let labels: Vec<u32> = (0..100).map(|i| i % 10).collect();
/// let (clean, rest) = stratified_split(&labels, 10, 20, 0)?;
/// assert_eq!((clean.len(), rest.len()), (20, 80));
/// assert!((0..10).all(|class| clean.iter().filter(|&&i| labels[i] == class).count() == 2));
/// # Ok::<(), lmr_plugin::Error>(())
/// ```
pub fn stratified_split(labels: &[u32], classes: usize, count: usize, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let total = labels.len();
    if count == 0 {
        return Err(DataError::NoCount.into());
    }
    if count > total {
        return Err(DataError::CountTooLarge { count, total }.into());
    }
    let mut members = vec![Vec::new(); classes];
    for (index, &label) in labels.iter().enumerate() {
        let Some(members) = members.get_mut(label as usize) else {
            return Err(DataError::Label { index, found: label, classes }.into());
        };
        members.push(index);
    }

    let mut rng = crate::rng::stream(seed, "clean-set");
    let quotas = quotas(&members, count, total, &mut rng);
    let mut drawn = vec![false; total];
    for (members, quota) in members.iter_mut().zip(quotas) {
        members.shuffle(&mut rng);
        for &index in &members[..quota] {
            drawn[index] = true;
        }
    }
    Ok((0..total).partition(|&index| drawn[index]))
}

/// How many images each class gives.
fn quotas(members: &[Vec<usize>], count: usize, total: usize, rng: &mut crate::rng::Rng) -> Vec<usize> {
    // Whole numbers in 128 bits: no rounding and no overflow, so the quotas add up to `count` exactly.
    let shares: Vec<u128> = members.iter().map(|members| members.len() as u128 * count as u128).collect();
    let total = total as u128;
    let mut quotas: Vec<usize> = shares.iter().map(|share| (share / total) as usize).collect();
    let fractions: Vec<u128> = shares.iter().map(|share| share % total).collect();
    let left = count - quotas.iter().sum::<usize>();
    // A random order first: the stable sort then leaves ties in it.
    let mut order = crate::rng::permutation(rng, members.len());
    order.retain(|&class| fractions[class] > 0);
    order.sort_by_key(|&class| (quotas[class] != 0, Reverse(fractions[class])));
    for &class in &order[..left] {
        quotas[class] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn per_class(labels: &[u32], classes: usize, chosen: &[usize]) -> Vec<usize> {
        (0..classes).map(|class| chosen.iter().filter(|&&i| labels[i] as usize == class).count()).collect()
    }

    #[rstest]
    #[case::none(0, "count is 0")]
    #[case::too_many(5, "count is 5, but there are only 4")]
    fn impossible_counts_are_refused(#[case] count: usize, #[case] message: &str) {
        let error = stratified_split(&[0, 1, 0, 1], 2, count, 0).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn labels_are_checked() {
        let error = stratified_split(&[0, 4], 2, 1, 0).unwrap_err().to_string();
        assert_eq!(error, "label of image 1: found class 4, expected one below 2");
    }

    #[test]
    fn a_rare_class_comes_before_a_larger_fraction() {
        // Shares of five: 4.75 and 0.25. The rare class still gets one.
        let labels: Vec<u32> = (0..20).map(|i| u32::from(i == 7)).collect();
        let (clean, _) = stratified_split(&labels, 2, 5, 0).unwrap();
        assert_eq!(per_class(&labels, 2, &clean), [4, 1]);
    }

    #[test]
    fn the_seed_decides() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 10).collect();
        let draw = |seed| stratified_split(&labels, 10, 100, seed).unwrap().0;
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    proptest! {
        #[test]
        fn shares_are_rounded_and_nothing_is_lost(
            labels in proptest::collection::vec(0u32..7, 1..200),
            portion in 0.0f64..1.0,
            seed: u64,
        ) {
            let count = 1 + ((labels.len() - 1) as f64 * portion) as usize;
            let (clean, rest) = stratified_split(&labels, 8, count, seed).unwrap();
            prop_assert_eq!(clean.len(), count);
            prop_assert!(clean.is_sorted() && rest.is_sorted());
            let mut all = [clean.clone(), rest].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            let everything: Vec<usize> = (0..labels.len()).collect();
            let sizes = per_class(&labels, 8, &everything);
            for (got, size) in per_class(&labels, 8, &clean).into_iter().zip(sizes) {
                let share = size * count;
                prop_assert!(got == share / labels.len() || got == share.div_ceil(labels.len()));
            }
        }
    }
}
