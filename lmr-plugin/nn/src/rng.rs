//! Seeded random numbers: one master seed, an independent stream for every purpose.
//!
//! A stream depends on the seed and the purpose's name alone, never on how many numbers another purpose has drawn, on
//! the thread count or on the platform. So adding a draw in one place moves nothing elsewhere.

use rand::SeedableRng;
pub use rand_pcg::Pcg64 as Rng;

/// The stream that `seed` gives for `purpose` (for example `"recover/shuffle"`).
///
/// ```
/// use rand::RngExt;
/// let mut a = lmr_nn::rng::stream(0, "shuffle");
/// let mut b = lmr_nn::rng::stream(0, "shuffle");
/// assert_eq!(a.random::<u64>(), b.random::<u64>());
/// assert_ne!(a.random::<u64>(), lmr_nn::rng::stream(0, "augment").random::<u64>());
/// ```
pub fn stream(seed: u64, purpose: &str) -> Rng {
    let mut key = [0u8; 32];
    for (lane, chunk) in key.chunks_exact_mut(8).enumerate() {
        // FNV-1a over the lane number, the seed and the purpose spreads nearby seeds over the whole key.
        let bytes = [lane as u8 + 1].into_iter().chain(seed.to_le_bytes()).chain(purpose.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        chunk.copy_from_slice(&hash.to_le_bytes());
    }
    Rng::from_seed(key)
}

/// `0..n` in a random order (Fisher-Yates).
pub fn permutation(rng: &mut Rng, n: usize) -> Vec<usize> {
    use rand::seq::SliceRandom;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(rng);
    order
}
