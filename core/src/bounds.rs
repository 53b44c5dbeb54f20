//! What a message of the control plane may say at most, whoever sent it. Whoever receives one checks it here before anything of it is used;
//! what is beyond these bounds was made by nobody who means well.

use std::collections::BTreeMap;

use crate::assignment::{Assignment, Generation, Lease};
use crate::manifest::{GROUP_RULE, is_group};
use crate::report::{Measured, Report};
use crate::scaler::LeaseRequest;

/// Bytes of a host's name, of a device's, of a process's, and of a label: more than a DNS name has (RFC 1035).
pub const NAME: usize = 255;
/// Devices of one lease, and leases of one host: more than a machine has GPUs, many times over.
pub const LEASED: usize = 1024;
/// Models on one host, each on one device: what their names and states take still fits into one message of a broker.
pub const MODELS: usize = 10_000;
/// Devices of one host.
pub const DEVICES: usize = 64;
/// Labels of one host.
pub const LABELS: usize = 64;
/// Bytes of a reason that is kept: of a longer one the beginning says enough.
pub const REASON: usize = 2_000;
/// Hosts that are remembered at once: ten times as many as one leader was seen to place slots on.
pub const HOSTS: usize = 10_000;
/// How far one assignment may raise the term that a host follows. Terms are revisions of a lease that is renewed twice a second, or count
/// leaders: no deployment gets so far in a lifetime. What forges terms has to send billions of assignments to reach the last one.
pub const TERM_LEAP: u64 = 1 << 32;
/// The last term, and the last counter of a term: a leader can always send one that is greater than any that is followed.
pub const LAST_TERM: u64 = u64::MAX - TERM_LEAP;
/// MiB of a device's memory: more than any has, and sums of it do not overflow.
pub const MEMORY_MIB: u64 = 1 << 30;

/// A name of something other than a model: shown to people and written to logs.
pub fn name(what: &str, text: &str) -> Result<(), String> {
    match text.len() {
        1..=NAME if !text.chars().any(char::is_control) => Ok(()),
        0 => Err(format!("{what} is empty")),
        1..=NAME => Err(format!("{what} has control characters")),
        bytes => Err(format!("{what} has {bytes} bytes: {NAME} at most")),
    }
}

/// `cpu` or `cuda:N`.
fn device(text: &str) -> Result<(), String> {
    let gpu = |number: &str| (1..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    match text == "cpu" || text.strip_prefix("cuda:").is_some_and(gpu) {
        true => Ok(()),
        false => Err(format!("`{}` is no device: `cpu` or `cuda:N`", shortened(text, 40))),
    }
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count <= most { Ok(()) } else { Err(format!("{count} {what}: {most} at most")) }
}

fn group(text: &str) -> Result<(), String> {
    // First its length: what is split is bounded.
    match text.len() <= NAME && is_group(text) {
        true => Ok(()),
        false => Err(format!("`{}` is no group: {GROUP_RULE}", shortened(text, 40))),
    }
}

/// The beginning of a text, so long in bytes at most.
pub fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl LeaseRequest {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        name("a lease's id", &self.id)?;
        name("a lease's holder", &self.holder)?;
        group(&self.group)?;
        self.host.as_deref().map_or(Ok(()), |host| name("a host's name", host))?;
        if self.devices == 0 {
            return Err("a lease is of one device or more".into());
        }
        at_most("devices are asked for", self.devices, LEASED)
    }
}

impl Lease {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        name("a lease's id", &self.id)?;
        name("a lease's holder", &self.holder)?;
        group(&self.group)?;
        device(&self.device)
    }
}

impl Assignment {
    /// What is wrong with its names and its numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        at_most("models are assigned", self.slots.len(), MODELS)?;
        at_most("devices are lent", self.leases.len(), LEASED)?;
        self.instance.iter().chain(&self.twin).try_for_each(|instance| name("a process's name", instance))?;
        self.slots.iter().try_for_each(|assigned| device(&assigned.device))?;
        self.leases.iter().try_for_each(Lease::check)
    }

    /// Never more slots on a device than it can run at once, and none on a device that is not there. Gives what was too much.
    pub fn within(&mut self, capacity: &BTreeMap<String, usize>) -> Option<String> {
        let mut told = None;
        self.slots.retain_mut(|assigned| {
            let most = capacity.get(&assigned.device).copied();
            // A model that only refuses requests takes nothing.
            let most = most.map_or(0, |most| most.max(1));
            if assigned.slots > most {
                let (slots, model, device) = (assigned.slots, &assigned.model, &assigned.device);
                told = told
                    .take()
                    .or_else(|| Some(format!("{slots} slots of `{model}` on `{device}`, which has room for {most}")));
                assigned.slots = most;
            }
            assigned.slots > 0
        });
        told
    }
}

impl Generation {
    /// Whether a host that follows `self` may follow `next`, which is greater.
    pub fn may_become(self, next: Self) -> Result<(), String> {
        let leap = next.term.saturating_sub(self.term);
        match leap <= TERM_LEAP && next.term <= LAST_TERM && next.counter <= LAST_TERM {
            true => Ok(()),
            false => Err(format!("{next} is no number that a leader comes to after {self}")),
        }
    }

    /// The next one of a leader that has counted to `counter` under `term`, for a host that follows `self`: greater than that in any case.
    /// One who leads may outbid whatever is followed, since nobody else leads.
    pub fn outbid(self, term: u64, counter: u64) -> Self {
        let own = Self { term, counter };
        if own > self { own } else { Self { term: self.term.saturating_add(1).min(LAST_TERM), counter } }
    }
}

impl Report {
    /// What is wrong with its names and its numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        name("a host's name", &self.host)?;
        at_most("models are reported", self.models.len(), MODELS)?;
        at_most("devices are reported", self.devices.len(), DEVICES)?;
        at_most("labels are reported", self.labels.len(), LABELS)?;
        if !self.instance.is_empty() {
            name("a process's name", &self.instance)?;
        }
        for text in self.labels.iter().flat_map(|(label, value)| [label, value]) {
            at_most("bytes has a label", text.len(), NAME)?;
        }
        self.devices.iter().try_for_each(|of| device(&of.name))?;
        self.models.iter().filter(|of| !of.device.is_empty()).try_for_each(|of| device(&of.device))
    }

    /// As it is used: no device has more than these capacities, by what its name begins with; numbers add up, and reasons are short. Of the
    /// assignment that it follows only what a leader may have said counts: a host that was told otherwise is still a host. Gives what was
    /// too much, or wrong.
    pub fn within(&mut self, largest: &BTreeMap<String, usize>) -> Option<String> {
        let mut told = None;
        for device in &mut self.devices {
            let kind = device.name.split(':').next().unwrap_or_default();
            let most = largest.get(kind).copied().unwrap_or(usize::MAX);
            if device.capacity > most {
                told =
                    Some(format!("`{}` is said to run {} at once; {most} are counted", device.name, device.capacity));
                device.capacity = most;
            }
            device.memory_mib = device.memory_mib.map(|mib| mib.min(MEMORY_MIB));
        }
        let capacity: BTreeMap<_, _> = self.devices.iter().map(|of| (of.name.clone(), of.capacity)).collect();
        if let Some(assignment) = &mut self.assignment {
            assignment.slots.truncate(MODELS);
            assignment.within(&capacity);
            assignment.leases.truncate(LEASED);
            assignment.leases.retain(|lease| match lease.check() {
                Ok(()) => true,
                Err(reason) => {
                    told = Some(format!("a lease that it carries is not taken up: {reason}"));
                    false
                }
            });
        }
        self.refuses = self.refuses.as_deref().map(|reason| shortened(reason, REASON).to_owned());
        let room = capacity.values().copied().max().unwrap_or(1).max(1);
        for model in &mut self.models {
            // One whose place is open yet runs somewhere here.
            model.slots = model.slots.min(capacity.get(&model.device).map_or(room, |most| (*most).max(1)));
            model.reason = model.reason.as_deref().map(|reason| shortened(reason, REASON).to_owned());
            model.serving = model.serving.as_deref().map(|version| shortened(version, NAME).to_owned());
            model.measured = model.measured.within();
        }
        told
    }
}

impl Measured {
    /// Without what no measurement gives: it would poison every mean that it is part of.
    fn within(self) -> Self {
        let number = |value: f64, most: f64| if value.is_finite() { value.clamp(0.0, most) } else { 0.0 };
        Self {
            rows_per_request: number(self.rows_per_request, 1e9),
            row_seconds: number(self.row_seconds, 1e6),
            busy: number(self.busy, 1.0),
            cold_start_seconds: number(self.cold_start_seconds, 1e6),
            memory_mib: self.memory_mib.min(MEMORY_MIB),
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
