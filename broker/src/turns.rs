//! Whose turn it is among sources that wait: a pure function, smooth weighted round robin.

/// Whoever waits gains its weight, whoever is served pays for all.
#[derive(Debug)]
pub(crate) struct Turns<const SOURCES: usize> {
    weights: [i64; SOURCES],
    gained: [i64; SOURCES],
}

impl<const SOURCES: usize> Turns<SOURCES> {
    pub(crate) fn new(weights: [i64; SOURCES]) -> Self {
        Self { weights, gained: [0; SOURCES] }
    }

    /// The next source among those that have something.
    pub(crate) fn next(&mut self, has: [bool; SOURCES]) -> Option<usize> {
        let mut total = 0;
        for source in (0..SOURCES).filter(|source| has[*source]) {
            self.gained[source] += self.weights[source];
            total += self.weights[source];
        }
        let chosen =
            (0..SOURCES).filter(|source| has[*source]).max_by_key(|source| (self.gained[*source], SOURCES - source))?;
        self.gained[chosen] -= total;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEIGHTS: [i64; 4] = [12, 3, 1, 3];

    #[test]
    fn each_gets_turns_by_its_weight_and_none_has_none() {
        let mut turns = Turns::new(WEIGHTS);
        let mut got = [0; 4];
        for _ in 0..190 {
            got[turns.next([true; 4]).expect("all have something")] += 1;
        }
        assert_eq!(got, [120, 30, 10, 30]);
        assert_eq!(turns.next([false; 4]), None);
    }

    proptest! {
        #[test]
        fn only_a_source_that_has_something_gets_a_turn(has in prop::collection::vec(prop::array::uniform4(any::<bool>()), 1..50)) {
            let mut turns = Turns::new(WEIGHTS);
            for has in has {
                match turns.next(has) {
                    Some(source) => prop_assert!(has[source]),
                    None => prop_assert!(!has.contains(&true)),
                }
            }
        }
    }
}
