//! What a seed decides in a simulated run.

use std::ops::Range;

/// The seeds to run: the usual ones, or those of `BERTH_SIMULATION_SEEDS`.
pub(super) fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("BERTH_SIMULATION_SEEDS") else { return usual };
    let (from, to) = text.split_once("..").expect("BERTH_SIMULATION_SEEDS is like 0..200");
    from.parse().unwrap()..to.parse().unwrap()
}

/// A sequence of choices, the same for a seed.
pub(super) struct Choices(pub u64);

impl Choices {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// One of these.
    pub fn one_of(&mut self, of: &[u64]) -> u64 {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}
