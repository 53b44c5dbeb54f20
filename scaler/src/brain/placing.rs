//! What is handed to placing, and what came of it for each model.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::manifest::{DeviceKind, WhileStopped};
use sluice_core::print::count;
use sluice_core::scaler::Changed;

use super::mind::Mind;
use super::{Brain, Round, Seen};
use crate::catalog::Entry;
use crate::decide::Reason;
use crate::place::{Host, Unplaced, Want};
use crate::share::PATIENCE;

/// So many of those who hold the room are named.
const HOLDERS: usize = 3;

/// A model's last changes that are kept.
const CHANGES: usize = 20;

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
            // One that comes to serve nowhere is not to drain one healthy device after the other, or the same again and again.
            let tried_enough = mind.tried_enough.is_some();
            let (spare, idle) = mind.spare(seen.now);
            let want = Want {
                model: model.clone(),
                slots,
                owed: if refuses || tried_enough { 0 } else { mind.owed },
                waited: mind.waiting_since.map_or(Duration::ZERO, |since| seen.now.saturating_sub(since)),
                lacks_first: mind.lacks_its_first() && !tried_enough,
                needs: if spare == 0 { usize::MAX } else { mind.placed - spare },
                idle,
                kind: manifest.resources.device,
                units,
                memory_mib,
                copied: mind.copied,
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
        let holders = self.holders(seen, round);
        for ((model, entry), mind) in seen.models.iter().zip(self.minds.values_mut()) {
            let (from, to) = (mind.placed, mind.places.values().sum());
            let gave_way = mind.gave_way.take();
            mind.placed = to;
            if from != to {
                let mut reason = mind.reason.as_ref().map(Reason::to_string).unwrap_or_default();
                if let Some(model) = gave_way {
                    reason = format!("idle: it made room for `{model}`, which had no slot");
                }
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
            mind.seated &= wants && to > 0;
            mind.waiting_since = if wants { mind.waiting_since.or(Some(seen.now)) } else { None };
            mind.fits_nowhere = round.unplaced.get(model).is_some_and(|unplaced| !unplaced.full);
            let refused = mind.wanted.saturating_sub(mind.granted);
            if let Some(unplaced) = round.unplaced.get_mut(model) {
                unplaced.slots += refused;
                if let Some(reason) = mind.failures.reason(seen.now) {
                    unplaced.reason += &format!("; {reason}");
                }
                let held = if unplaced.full { held_by(&holders, model, entry) } else { String::new() };
                mind.trouble = Some(format!(
                    "{}: {}{held}",
                    count(unplaced.slots, "slot fits nowhere", "slots fit nowhere"),
                    unplaced.reason
                ));
            } else if refused > 0 {
                let gpu = entry.manifest.resources.device == DeviceKind::Cuda;
                let held = held_by(&holders, model, entry);
                let reason = match (self.claims.get(&gpu).map_or(0, |(capacity, _)| *capacity), gpu) {
                    (0, true) => "no host that may be used has a GPU (`sluice hosts`)",
                    (0, false) => "no host may be used: none reports, or all are drained (`sluice hosts`)",
                    _ => "there is not room for all, and this is what the shares of groups leave it",
                };
                let reason = reason.to_owned();
                mind.trouble = Some(format!("{}: {reason}{held}", count(refused, "slot waits", "slots wait")));
                round.unplaced.insert(model.clone(), Unplaced { slots: refused, reason, full: true });
            }
            if let (None, Some(failure)) = (&mind.trouble, &mind.failure) {
                mind.trouble = Some(format!("it does not load: {failure}"));
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

impl Brain {
    /// Who holds the room, if some model lacks it.
    fn holders(&self, seen: &Seen, round: &Round) -> Vec<Holder> {
        let is_short = |mind: &Mind| mind.wanted > mind.granted;
        if round.unplaced.is_empty() && !self.minds.values().any(is_short) {
            return Vec::new();
        }
        let models = seen.models.iter().zip(self.minds.values()).filter_map(|((model, entry), mind)| {
            let slots: usize = mind.places.values().sum();
            let (spare, idle) = mind.idle.spare(seen.now);
            let idle = match spare {
                0 => String::new(),
                spare if spare >= slots => format!(", idle for {} s", idle.as_secs()),
                spare => format!(", {spare} of them idle"),
            };
            let text = format!("`{model}` ({}{idle})", count(slots, "slot", "slots"));
            let holder = Holder { model: Some(model.clone()), kind: entry.manifest.resources.device, slots, text };
            (slots > 0 && units(entry) > 0).then_some(holder)
        });
        let leases = self.leases.iter().flat_map(|(id, held)| {
            let gpus = held.devices.keys().filter(|(_, device)| device.starts_with("cuda")).count();
            let kinds = [(DeviceKind::Cuda, gpus), (DeviceKind::Cpu, held.devices.len() - gpus)];
            kinds.into_iter().filter(|(_, devices)| *devices > 0).map(move |(kind, devices)| {
                let text = format!("lease `{id}` ({})", count(devices, "device", "devices"));
                Holder { model: None, kind, slots: usize::MAX, text }
            })
        });
        let mut holders: Vec<Holder> = models.chain(leases).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.slots));
        holders
    }
}

/// Who holds room.
struct Holder {
    model: Option<ModelName>,
    kind: DeviceKind,
    slots: usize,
    text: String,
}

/// Those who hold most of what a model lacks, for people.
fn held_by(holders: &[Holder], model: &ModelName, entry: &Entry) -> String {
    let others = holders.iter().filter(|holder| holder.model.as_ref() != Some(model));
    let others: Vec<&str> = others
        .filter(|holder| holder.kind == entry.manifest.resources.device)
        .map(|holder| holder.text.as_str())
        .collect();
    let more = match others.len().saturating_sub(HOLDERS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match others.is_empty() {
        true => String::new(),
        false => format!("; the room is held by {}{more}", others[..others.len().min(HOLDERS)].join(", ")),
    }
}

/// What a slot takes of a device.
pub(super) fn units(entry: &Entry) -> usize {
    match entry.manifest.resources.device {
        DeviceKind::Cpu => entry.manifest.resources.threads,
        DeviceKind::Cuda => 1,
    }
}
