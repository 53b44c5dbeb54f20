//! What is handed to placing, and what came of it for each model.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_core::manifest::{DeviceKind, WhileStopped};
use sluice_core::print::count;
use sluice_core::scaler::Changed;

use super::{Brain, Round, Seen};
use crate::catalog::Entry;
use crate::decide::Reason;
use crate::place::{Host, Unplaced, Want};
use crate::share::PATIENCE;

/// A model's last changes that are kept.
const CHANGES: usize = 20;

/// For a model that has failed at so many places lately and serves nowhere, nobody moves.
const ENOUGH_TRIES: usize = 3;

impl Brain {
    /// What is to be placed, those that matter most first, and which of the models each is.
    pub(super) fn wants(&self, seen: &Seen, hosts: &[Host]) -> (Vec<usize>, Vec<Want>) {
        // What was measured where all was taken, by whatever chance, fits on the largest device when nothing else is there.
        let mut most: BTreeMap<bool, u64> = BTreeMap::new();
        for device in hosts.iter().flat_map(|host| &host.devices) {
            let most = most.entry(device.kind() == DeviceKind::Cuda).or_default();
            *most = device.memory_mib.map_or(u64::MAX, |mib| mib.max(*most));
        }
        let mut wants: Vec<(i32, usize, Want)> = Vec::with_capacity(seen.models.len());
        for (at, ((model, entry), mind)) in seen.models.iter().zip(self.minds.values()).enumerate() {
            let manifest = &entry.manifest;
            // What hosts run by their own configuration is there already.
            let listed = mind.listed;
            let refuses = !entry.started && manifest.serving.while_stopped == WhileStopped::Refuse;
            let (slots, units, memory_mib) = match refuses {
                // Somebody has to say so; that takes no room.
                true => (usize::from(listed == 0), 0, 0),
                false => {
                    let most = *most.get(&(manifest.resources.device == DeviceKind::Cuda)).unwrap_or(&0);
                    let measured = mind.memory_mib.map_or(0, |(mib, _)| mib.min(most));
                    let memory_mib = manifest.resources.memory_mib.max(measured);
                    (mind.granted.saturating_sub(listed), units(entry), memory_mib)
                }
            };
            // One that comes to serve nowhere is not to drain one healthy device after the other.
            let tried_enough = mind.serving == 0 && mind.failures.places(seen.now) >= ENOUGH_TRIES;
            let want = Want {
                model: model.clone(),
                slots,
                owed: if refuses || tried_enough { 0 } else { mind.owed },
                waited: mind.waiting_since.map_or(Duration::ZERO, |since| seen.now.saturating_sub(since)),
                kind: manifest.resources.device,
                units,
                memory_mib,
                sharing: manifest.resources.sharing,
                selector: manifest.scaling.selector.clone(),
                avoid: mind.failures.to_avoid(seen.now),
            };
            wants.push((manifest.scaling.priority, at, want));
        }
        wants.sort_by_key(|(priority, ..)| std::cmp::Reverse(*priority));
        wants.into_iter().map(|(_, at, want)| (at, want)).unzip()
    }

    pub(super) fn note_changes(&mut self, seen: &Seen, round: &mut Round) {
        for ((model, entry), mind) in seen.models.iter().zip(self.minds.values_mut()) {
            let (from, to) = (mind.placed, mind.places.values().sum());
            mind.placed = to;
            if from != to {
                let mut reason = mind.reason.as_ref().map(Reason::to_string).unwrap_or_default();
                if to < from && to < mind.wanted {
                    // The decision does not tell: a host is gone, or others have a better right.
                    reason += &format!("; {} of {} have no room now", mind.wanted - to, mind.wanted);
                }
                let changed = Changed { at: seen.clock, from, to, reason };
                mind.changes.push_front(changed.clone());
                mind.changes.truncate(CHANGES);
                round.changes.push((model.clone(), changed));
            }
            // A turn lasts until it has served: a slot that is taken back while it loads is of no use to anybody.
            mind.serving_since = if to > 0 && mind.serving > 0 { mind.serving_since.or(Some(seen.now)) } else { None };
            let had_turn = mind.serving_since.is_some_and(|since| seen.now.saturating_sub(since) >= PATIENCE);
            let wants = mind.wanted > 0 && !had_turn;
            mind.waiting_since = if wants { mind.waiting_since.or(Some(seen.now)) } else { None };
            mind.fits_nowhere = round.unplaced.get(model).is_some_and(|unplaced| !unplaced.full);
            let refused = mind.wanted.saturating_sub(mind.granted);
            if let Some(unplaced) = round.unplaced.get_mut(model) {
                unplaced.slots += refused;
                if let Some(reason) = mind.failures.reason(seen.now) {
                    unplaced.reason += &format!("; {reason}");
                }
                mind.trouble = Some(format!(
                    "{}: {}",
                    count(unplaced.slots, "slot fits nowhere", "slots fit nowhere"),
                    unplaced.reason
                ));
            } else if refused > 0 {
                let gpu = entry.manifest.resources.device == DeviceKind::Cuda;
                let reason = match (self.claims.get(&gpu).map_or(0, |(capacity, _)| *capacity), gpu) {
                    (0, true) => "no host that may be used has a GPU (`sluice hosts`)",
                    (0, false) => "no host may be used: none reports, or all are drained (`sluice hosts`)",
                    _ => "there is not room for all, and this is what the shares of groups leave it",
                };
                let reason = reason.to_owned();
                mind.trouble = Some(format!("{}: {reason}", count(refused, "slot waits", "slots wait")));
                round.unplaced.insert(model.clone(), Unplaced { slots: refused, reason, full: true });
            }
            if mind.trouble != mind.told {
                if let Some(trouble) = &mind.trouble
                    && mind.told.is_none()
                {
                    round.troubles.push((model.clone(), trouble.clone()));
                }
                mind.told = mind.trouble.clone();
            }
        }
    }
}

/// What a slot takes of a device.
pub(super) fn units(entry: &Entry) -> usize {
    match entry.manifest.resources.device {
        DeviceKind::Cpu => entry.manifest.resources.threads,
        DeviceKind::Cuda => 1,
    }
}
