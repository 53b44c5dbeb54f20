//! How a credit is divided among the lanes: a pure function. RabbitMQ's prefetch is set per
//! consumer when it begins, so each lane has a share of its own.

/// What requests come by: the three lanes, and retries.
pub(super) const SOURCES: usize = 4;
/// Shares of the sources that are busy.
const BUSY: [usize; SOURCES] = [10, 4, 1, 1];
/// An idle source gets one in so many, so that a first request in it is delivered at once.
const IDLE: usize = 16;
/// Turns, while each has something.
pub(super) const WEIGHT: [i64; SOURCES] = [12, 3, 1, 3];

/// What each source may hold: a busy one, which holds all that it may, gets what the idle ones leave. If all are idle, the
/// normal lane counts as busy: requests come there first.
pub(super) fn divide(credit: usize, mut busy: [bool; SOURCES]) -> [usize; SOURCES] {
    if !busy.contains(&true) {
        busy[1] = true;
    }
    let idle = (credit / IDLE).max(1);
    let left = credit.saturating_sub(idle * busy.iter().filter(|busy| !**busy).count());
    let weights: usize = (0..SOURCES).filter(|source| busy[*source]).map(|source| BUSY[source]).sum();
    std::array::from_fn(|source| match busy[source] {
        true => (left * BUSY[source] / weights).max(1),
        false => idle,
    })
}

/// Whether a source's bound has drifted so far from what it should be that it is worth the round trips of changing it.
pub(super) fn drifted(is: usize, should: usize) -> bool {
    is >= 2 * should || should >= 2 * is
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_credit_is_divided_and_every_source_has_something() {
        assert_eq!(divide(64, [false; 4]), [4, 52, 4, 4]);
        assert_eq!(divide(64, [true, true, true, false]), [40, 16, 4, 4]);
        assert_eq!(divide(64, [true, false, false, false]), [52, 4, 4, 4]);
        assert_eq!(divide(1, [false; 4]), [1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn the_credit_is_not_exceeded_but_for_one_each(credit in 4_usize..60_000, busy in prop::array::uniform4(any::<bool>())) {
            let shares = divide(credit, busy);
            let at_least_one = shares.iter().filter(|share| **share == 1).count();
            prop_assert!(shares.iter().sum::<usize>() <= credit.max(SOURCES) + at_least_one, "{shares:?}");
        }
    }
}
