//! How much the harnesses do, and the seeded choices they make.

/// Rounds of damage without `KILN_HARNESS_ROUNDS`: enough to notice when something is broken altogether.
const FEW: usize = 24;
/// The number of rounds that the full numbers of other things belong to.
const FULL: usize = 500;

/// Returns how many rounds of damage are asked for.
pub fn rounds() -> usize {
    number("KILN_HARNESS_ROUNDS").unwrap_or(FEW)
}

/// Returns what part of `full` belongs to the rounds that are asked for; at least one.
pub fn share(full: usize) -> usize {
    (full * rounds()).div_ceil(FULL).clamp(1, full)
}

/// Returns the seed of this run.
pub fn seed() -> u64 {
    number("KILN_HARNESS_SEED").unwrap_or(1) as u64
}

/// Returns the variable `name` as a number.
pub fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// Pseudo-random choices (splitmix64).
pub struct Choices(u64);

impl Choices {
    /// Returns the choices that belong to a seed and to the place of use.
    pub fn new(seed: u64, place: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`, or 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    /// Returns one of `all`, if there is one.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }
}
