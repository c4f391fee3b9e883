//! The hash maps and sets of the broker, and the state of their hash function.
//!
//! In a shipped program each map draws a seed of its own, so that clients cannot choose names that collide. With the feature `testing`
//! the seed is fixed: the order in which a map is walked is the same in each run, and a simulation is replayed step by step.

/// A hash map with [`State`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, State>;

/// A hash set with [`State`].
pub type HashSet<T> = hashbrown::HashSet<T, State>;

/// What a map's hash function begins with.
#[cfg(not(any(test, feature = "testing")))]
pub type State = foldhash::fast::RandomState;

/// What a map's hash function begins with.
#[cfg(any(test, feature = "testing"))]
pub type State = foldhash::fast::FixedState;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_walked_in_the_same_order_in_each_run() {
        let walk = || (0..1_000_u32).collect::<HashSet<u32>>().into_iter().collect::<Vec<_>>();
        let (one, two) = (walk(), walk());
        assert_eq!(one, two);
        assert_ne!(one, (0..1_000).collect::<Vec<_>>());
    }
}
