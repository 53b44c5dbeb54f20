//! What each host is to be told now: an assignment that differs from the one sent before, or one that the host has not taken up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_core::assignment::{Assigned, Assignment, Gate, Generation, Lease};

/// A host that does not follow what it was sent so long ago did not hear it.
const UNHEARD_AFTER: Duration = Duration::from_secs(1);

/// What was sent under one term.
#[derive(Debug)]
pub struct Assigner {
    term: u64,
    counter: u64,
    sent: BTreeMap<String, (Assignment, Duration)>,
    /// Hosts that follow what this leader did not send, and had to be outbid.
    outbid: BTreeSet<String>,
}

/// What a host should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Which process does the work under its name, if it says so.
    pub instance: Option<String>,
    /// Another that reports under it.
    pub twin: Option<String>,
    /// Its slots, sorted.
    pub slots: Vec<Assigned>,
    /// What an operator lets it have.
    pub gate: Gate,
    /// Its devices that are lent.
    pub leases: Vec<Lease>,
}

impl Assigner {
    /// For a leader that begins: everything is said anew, since nobody follows this term yet.
    pub fn new(term: u64) -> Self {
        Self { term, counter: 0, sent: BTreeMap::new(), outbid: BTreeSet::new() }
    }

    /// Whether a host had to be sent a greater number than this leader counts, for the first time.
    pub fn has_outbid(&mut self, assignment: &Assignment) -> bool {
        assignment.generation.term != self.term && self.outbid.insert(assignment.host.clone())
    }

    /// What to send, given the generation that each host follows.
    pub fn due(
        &mut self,
        wanted: &BTreeMap<String, Wanted>,
        followed: &BTreeMap<String, Generation>,
        now: Duration,
    ) -> Vec<Assignment> {
        self.sent.retain(|host, _| wanted.contains_key(host));
        self.outbid.retain(|host| wanted.contains_key(host));
        let mut due = Vec::new();
        for (host, wanted) in wanted {
            if let Some((sent, at)) = self.sent.get(host) {
                let same = sent.slots == wanted.slots
                    && sent.gate == wanted.gate
                    && sent.leases == wanted.leases
                    && (&sent.instance, &sent.twin) == (&wanted.instance, &wanted.twin);
                let heard = followed.get(host) == Some(&sent.generation) || now.saturating_sub(*at) < UNHEARD_AFTER;
                if same && heard {
                    continue;
                }
            }
            self.counter += 1;
            let assignment = Assignment {
                host: host.clone(),
                instance: wanted.instance.clone(),
                twin: wanted.twin.clone(),
                // Whatever it follows was sent by one who does not lead: no later leader may be locked out by it.
                generation: followed.get(host).copied().unwrap_or_default().outbid(self.term, self.counter),
                slots: wanted.slots.clone(),
                gate: wanted.gate,
                leases: wanted.leases.clone(),
            };
            self.sent.insert(host.clone(), (assignment.clone(), now));
            due.push(assignment);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_sent_once_and_what_was_not_heard_again() {
        let slots = |count| vec![Assigned { model: "m".parse().expect("a name"), device: "cpu".into(), slots: count }];
        let wanted = |count| BTreeMap::from([("a".to_owned(), Wanted { slots: slots(count), ..Wanted::default() })]);
        let mut assigner = Assigner::new(7);
        let ms = Duration::from_millis;
        let nothing = BTreeMap::new();
        let first = assigner.due(&wanted(1), &nothing, ms(0));
        assert_eq!(first[0].generation, Generation { term: 7, counter: 1 });
        assert_eq!(assigner.due(&wanted(1), &nothing, ms(500)), [], "it may be on its way");
        let again = assigner.due(&wanted(1), &nothing, ms(1100));
        assert!(again[0].generation > first[0].generation && again[0].slots == first[0].slots);
        let followed = BTreeMap::from([("a".to_owned(), again[0].generation)]);
        assert_eq!(assigner.due(&wanted(1), &followed, ms(9000)), []);
        assert_eq!(assigner.due(&wanted(2), &followed, ms(9500))[0].slots, slots(2));
        // A host that comes back after it was given up is told, whatever it was told before.
        assigner.due(&BTreeMap::new(), &followed, ms(10_000));
        assert_eq!(assigner.due(&wanted(2), &followed, ms(10_500)).len(), 1);
    }

    #[test]
    fn a_host_that_follows_what_nobody_sent_is_outbid() {
        let wanted = BTreeMap::from([("a".to_owned(), Wanted::default()), ("b".to_owned(), Wanted::default())]);
        let forged = Generation { term: 1 << 40, counter: 1 << 50 };
        let mut followed = BTreeMap::from([("a".to_owned(), forged)]);
        let mut assigner = Assigner::new(7);
        let ms = Duration::from_millis;
        let due = assigner.due(&wanted, &followed, ms(0));
        assert!(due[0].generation > forged && forged.may_become(due[0].generation).is_ok(), "{}", due[0].generation);
        assert_eq!(due[1].generation, Generation { term: 7, counter: 2 }, "the others are told as ever");
        assert_eq!(due.iter().map(|due| assigner.has_outbid(due)).collect::<Vec<_>>(), [true, false]);
        assert!(!assigner.has_outbid(&due[0]), "told once");
        followed.extend(due.iter().map(|due| (due.host.clone(), due.generation)));
        assert_eq!(assigner.due(&wanted, &followed, ms(5000)), [], "both have taken it up");
    }
}
