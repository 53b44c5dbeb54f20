//! Who gets how much when there is not enough for all: groups by weight, each with a guaranteed minimum, nested; within a group by
//! priority, then evenly. A pure function of the claims.
//!
//! What a group does not use goes to the others (max-min fairness, weighted: the next unit goes to whom has the least per weight).
//! Whoever has waited for its first slot for [`PATIENCE`] comes before all but guaranteed minimums, so that nobody starves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Who has waited so long for a first slot comes first.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The share of a group, `team` or `team/project`, as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its path.
    pub name: String,
    /// Its part beside its siblings.
    #[serde(default = "one")]
    pub weight: f64,
    /// Units that it has whenever it wants them: threads of processors, or slots of GPUs.
    #[serde(default)]
    pub minimum: usize,
}

fn one() -> f64 {
    1.0
}

/// What one model, or one lease, wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Whose share it is part of.
    pub group: String,
    /// Higher ones first, within the group.
    pub priority: i32,
    /// Slots that it wants.
    pub wants: usize,
    /// Slots that it has.
    pub has: usize,
    /// Units that a slot takes.
    pub units: usize,
    /// For how long it has wanted something and had nothing.
    pub waited: Duration,
}

/// What a claim gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Granted {
    /// Slots.
    pub slots: usize,
    /// Of these, what it must have even if that moves others: its part of a guaranteed minimum, or the first slot after [`PATIENCE`].
    pub owed: usize,
}

/// Slots for each claim, in their order, out of so many units.
pub fn share(capacity: usize, groups: &[Group], claims: &[Claim]) -> Vec<Granted> {
    let units = claims.iter().map(|claim| claim.wants.saturating_mul(claim.units));
    let enough = units.fold(0, usize::saturating_add) <= capacity;
    let all = |owed: &[usize]| -> Vec<Granted> {
        claims.iter().zip(owed).map(|(claim, owed)| Granted { slots: claim.wants, owed: *owed }).collect()
    };
    let mut given = vec![0; claims.len()];
    let mut starved: Vec<usize> =
        (0..claims.len()).filter(|claim| claims[*claim].waited >= PATIENCE && claims[*claim].wants > 0).collect();
    if enough && starved.is_empty() && groups.iter().all(|group| group.minimum == 0) {
        return all(&given);
    }
    let mut tree = Node::root(groups, claims);
    let mut left = capacity;
    // Guaranteed minimums first, the inner ones before what they stand in.
    tree.guarantee(claims, &mut given, &mut left);
    starved.sort_by_key(|claim| (Reverse(claims[*claim].waited), *claim));
    for claim in starved {
        if given[claim] == 0 && claims[claim].units <= left {
            tree.give_to(claim, levels(&claims[claim]), claims, &mut given, &mut left);
        }
    }
    let owed = given.clone();
    if enough {
        return all(&owed);
    }
    while left > 0 && tree.give(claims, &mut given, &mut left) {}
    given.into_iter().zip(owed).map(|(slots, owed)| Granted { slots, owed }).collect()
}

/// A group, or the whole.
#[derive(Default)]
struct Node {
    weight: f64,
    minimum: usize,
    /// Units that it has so far.
    units: usize,
    /// Groups within it.
    children: Vec<Node>,
    names: BTreeMap<String, usize>,
    /// Children that may still want something, by what they have per weight.
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    /// Its own claims that may still want something: by priority, then those with least, then those that have it already.
    claims: BinaryHeap<Reverse<Rank>>,
}

/// The lower, the earlier: the priority turned round, slots given, whether it has fewer by now, how long it has not waited, which.
type Rank = (Reverse<i32>, usize, bool, Reverse<Duration>, usize);

fn rank(claim: usize, claims: &[Claim], given: &[usize]) -> Rank {
    let Claim { priority, has, waited, .. } = claims[claim];
    (Reverse(priority), given[claim], given[claim] >= has, Reverse(waited), claim)
}

/// The way from the root to a claim's node: a group's own claims stand beside its groups, as one more of weight 1.
fn levels(claim: &Claim) -> impl Iterator<Item = &str> {
    claim.group.split('/').chain([""])
}

impl Node {
    fn root(groups: &[Group], claims: &[Claim]) -> Self {
        let mut root = Node { weight: 1.0, ..Node::default() };
        let known: BTreeMap<&str, &Group> = groups.iter().map(|group| (group.name.as_str(), group)).collect();
        let none = vec![0; claims.len()];
        for (index, claim) in claims.iter().enumerate() {
            let mut node = &mut root;
            let mut end = 0;
            for level in levels(claim) {
                end += level.len();
                let next = match node.names.get(level) {
                    Some(next) => *next,
                    None => {
                        let group = claim.group.get(..end).and_then(|path| known.get(path));
                        node.children.push(Node {
                            weight: group.map_or(1.0, |group| group.weight.max(1e-6)),
                            minimum: group.map_or(0, |group| group.minimum),
                            ..Node::default()
                        });
                        let next = node.children.len() - 1;
                        node.names.insert(level.to_owned(), next);
                        node.ready.push(Reverse((0, next)));
                        next
                    }
                };
                node = &mut node.children[next];
                end += 1;
            }
            node.claims.push(Reverse(rank(index, claims, &none)));
        }
        root
    }

    fn guarantee(&mut self, claims: &[Claim], given: &mut [usize], left: &mut usize) {
        for child in &mut self.children {
            let before = *left;
            child.guarantee(claims, given, left);
            self.units += before - *left;
        }
        while self.units < self.minimum && self.give(claims, given, left) {}
        self.reorder();
    }

    /// What children have has changed.
    fn reorder(&mut self) {
        let ready = self.ready.drain().map(|Reverse((_, child))| child).collect::<Vec<_>>();
        self.ready = ready.into_iter().map(|child| Reverse((self.children[child].per_weight(), child))).collect();
    }

    fn per_weight(&self) -> u64 {
        (self.units as f64 / self.weight * 1000.0) as u64
    }

    /// One slot to a claim of this node or below.
    fn give_to<'c>(
        &mut self,
        claim: usize,
        mut levels: impl Iterator<Item = &'c str>,
        claims: &[Claim],
        given: &mut [usize],
        left: &mut usize,
    ) {
        let units = claims[claim].units;
        self.units += units;
        match levels.next().and_then(|level| self.names.get(level)) {
            Some(child) => {
                self.children[*child].give_to(claim, levels, claims, given, left);
                self.reorder();
            }
            None => {
                given[claim] += 1;
                *left -= units;
                let others = self.claims.drain().filter(|Reverse(rank)| rank.4 != claim).collect::<Vec<_>>();
                self.claims.extend(others);
                self.claims.push(Reverse(rank(claim, claims, given)));
            }
        }
    }

    /// One slot to whoever deserves it most; false if nobody wants one that fits.
    fn give(&mut self, claims: &[Claim], given: &mut [usize], left: &mut usize) -> bool {
        while let Some(Reverse(next)) = self.claims.pop() {
            let claim = next.4;
            if given[claim] >= claims[claim].wants || claims[claim].units > *left {
                continue;
            }
            given[claim] += 1;
            *left -= claims[claim].units;
            self.units += claims[claim].units;
            self.claims.push(Reverse(rank(claim, claims, given)));
            return true;
        }
        while let Some(Reverse((_, child))) = self.ready.pop() {
            let before = *left;
            if self.children[child].give(claims, given, left) {
                self.units += before - *left;
                self.ready.push(Reverse((self.children[child].per_weight(), child)));
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(group: &str, wants: usize) -> Claim {
        Claim { group: group.into(), priority: 0, wants, has: 0, units: 1, waited: Duration::ZERO }
    }

    fn slots(capacity: usize, groups: &[Group], claims: &[Claim]) -> Vec<usize> {
        share(capacity, groups, claims).into_iter().map(|granted| granted.slots).collect()
    }

    fn group(name: &str, weight: f64, minimum: usize) -> Group {
        Group { name: name.into(), weight, minimum }
    }

    #[test]
    fn weights_minimums_and_what_others_leave() {
        let groups =
            [group("a", 3.0, 0), group("b", 1.0, 0), group("c", 1.0, 4), group("a/x", 1.0, 0), group("a/y", 2.0, 0)];
        let cases = [
            ("enough for all", 10, vec![claim("a", 4), claim("b", 6)], vec![4, 6]),
            ("by weight", 8, vec![claim("a", 10), claim("b", 10)], vec![6, 2]),
            ("what one leaves flows to the other", 8, vec![claim("a", 1), claim("b", 10)], vec![1, 7]),
            ("a minimum", 5, vec![claim("a", 10), claim("c", 10)], vec![1, 4]),
            ("a minimum that is not wanted is lent", 5, vec![claim("a", 10), claim("c", 1)], vec![4, 1]),
            ("nested", 8, vec![claim("a/x", 10), claim("a/y", 10), claim("b", 10)], vec![2, 4, 2]),
            ("unknown groups have weight 1", 4, vec![claim("z", 10), claim("b", 10)], vec![2, 2]),
        ];
        for (what, capacity, claims, expected) in cases {
            assert_eq!(slots(capacity, &groups, &claims), expected, "{what}");
        }
    }

    #[test]
    fn within_a_group_priority_then_evenly_then_whoever_has_it() {
        let urgent = Claim { priority: 1, ..claim("a", 3) };
        assert_eq!(slots(4, &[], &[claim("a", 3), urgent, claim("a", 3)]), [1, 3, 0]);
        assert_eq!(slots(4, &[], &[claim("a", 3), claim("a", 3)]), [2, 2]);
        let incumbent = Claim { has: 1, ..claim("a", 1) };
        assert_eq!(slots(1, &[], &[claim("a", 1), incumbent.clone()]), [0, 1]);
        let starved = Claim { waited: PATIENCE, ..claim("b", 1) };
        assert_eq!(slots(1, &[], &[incumbent, starved]), [0, 1]);
    }

    #[test]
    fn what_does_not_fit_is_passed_over() {
        let large = Claim { units: 4, ..claim("a", 2) };
        assert_eq!(slots(6, &[], &[large.clone(), claim("b", 5)]), [1, 2]);
        assert_eq!(slots(3, &[], &[large, claim("b", 5)]), [0, 3]);
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        let groups = prop::sample::select(vec!["a", "b", "a/x", "a/y", "c/z"]);
        (groups, -1..2_i32, 0..6_usize).prop_map(|(group, priority, wants)| Claim { priority, ..claim(group, wants) })
    }

    proptest! {
        #[test]
        fn all_is_given_out_and_nobody_gets_more_than_it_wants(
            claims in prop::collection::vec(any_claim(), 1..20),
            capacity in 0..30_usize,
        ) {
            let given = slots(capacity, &[group("a", 2.0, 3)], &claims);
            let wanted: usize = claims.iter().map(|claim| claim.wants).sum();
            prop_assert_eq!(given.iter().sum::<usize>(), wanted.min(capacity));
            prop_assert!(given.iter().zip(&claims).all(|(given, claim)| *given <= claim.wants));
        }

        /// However many want something and however little there is, each has its turn, and keeps it for long enough to be of use. As
        /// the scaler counts it, whoever has been served for [`PATIENCE`] has had its turn.
        #[test]
        fn nobody_starves(mut claims in prop::collection::vec(any_claim(), 1..12), capacity in 2..5_usize) {
            let groups = [group("a", 5.0, 1), group("b", 1.0, 0)];
            let step = Duration::from_secs(5);
            let (mut in_a_row, mut longest) = (vec![0; claims.len()], vec![0; claims.len()]);
            for _ in 0..(claims.len() + 2) * 16 {
                let given = slots(capacity, &groups, &claims);
                for (at, (claim, given)) in claims.iter_mut().zip(given).enumerate() {
                    in_a_row[at] = if given > 0 { in_a_row[at] + 1 } else { 0 };
                    longest[at] = longest[at].max(in_a_row[at]);
                    claim.has = given;
                    let had_turn = step * in_a_row[at] >= PATIENCE;
                    claim.waited = if had_turn || claim.wants == 0 { Duration::ZERO } else { claim.waited + step };
                }
            }
            for (claim, longest) in claims.iter().zip(longest) {
                prop_assert!(step * longest >= PATIENCE || claim.wants == 0, "{claim:?} was served {longest} steps in a row");
            }
        }

        #[test]
        fn what_is_owed_is_part_of_what_is_granted(
            claims in prop::collection::vec((any_claim(), 0..60_u64), 1..12),
            capacity in 0..40_usize,
        ) {
            let waits = |(claim, waited): (Claim, u64)| Claim { waited: Duration::from_secs(waited), ..claim };
            let claims: Vec<Claim> = claims.into_iter().map(waits).collect();
            let granted = share(capacity, &[group("a", 2.0, 3)], &claims);
            prop_assert!(granted.iter().all(|granted| granted.owed <= granted.slots), "{granted:?}");
            let of_a = |(claim, _): &(&Claim, &Granted)| claim.group.starts_with('a');
            let (wanted, owed) = claims
                .iter()
                .zip(&granted)
                .filter(of_a)
                .fold((0, 0), |(wanted, owed), (claim, granted)| (wanted + claim.wants, owed + granted.owed));
            prop_assert!(owed >= wanted.min(3).min(capacity), "{owed} of what is guaranteed to `a`, which wants {wanted}");
        }
    }
}
