//! The seeds of everything random in allocation: functions of the run's seed, so that a resumed run
//! draws what it would have drawn.

/// The seed of reallocation `index` (from 0) of the run seeded with `run`.
///
/// It is `m(m(run) + (index + 1)·γ)` with wrapping arithmetic, where `γ = 0x9e3779b97f4a7c15` and `m`
/// is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
/// generators"). Mixing the run's seed first keeps the reallocations of neighbouring runs apart.
pub fn reallocation_seed(run: u64, index: u64) -> u64 {
    mix(mix(run).wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA)))
}

/// The seed of the initial choice: what would be reallocation number -1.
pub fn initial_seed(run: u64) -> u64 {
    reallocation_seed(run, u64::MAX)
}

/// The seed a scorer or an allocator is given before the first step, for draws of its own: what would be
/// reallocation number -2 for a scorer and -3 for an allocator.
pub fn start_seed(run: u64, scorer: bool) -> u64 {
    reallocation_seed(run, if scorer { u64::MAX - 1 } else { u64::MAX - 2 })
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of the 64-bit numbers in which every input bit touches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_splitmix64s() {
        // The first outputs of the published generator from state 0.
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GAMMA.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
        // m(0) = 0, so run 0 follows that stream.
        assert_eq!(reallocation_seed(0, 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn runs_and_reallocations_do_not_share_seeds() {
        let mut seeds: Vec<u64> = (0..50)
            .flat_map(|run| (0..50).map(move |index| reallocation_seed(run, index)))
            .chain((0..50).map(initial_seed))
            .chain((0..50).flat_map(|run| [true, false].map(|scorer| start_seed(run, scorer))))
            .collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 53 * 50);
    }
}
