//! Who holds how much memory of which device, so that a model is not loaded where it does not fit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::engine::Device;

/// The memory of a host's devices.
pub struct Memory {
    /// In MiB, by device. A device that is not here is asked, if it can tell.
    limits: BTreeMap<String, u64>,
    held: Mutex<BTreeMap<String, Held>>,
    freed: Notify,
}

/// What models hold of one device, in MiB.
#[derive(Default)]
struct Held {
    all: u64,
    /// Of that, what is not yet there to be seen by the system.
    loading: u64,
}

/// Memory that a loaded model holds, until this is dropped.
pub struct Reservation {
    memory: Arc<Memory>,
    device: String,
    mib: u64,
    loaded: bool,
}

impl Reservation {
    /// The model is loaded: from now on the system counts its memory as well.
    pub fn loaded(&mut self) {
        if !std::mem::replace(&mut self.loaded, true)
            && let Some(held) = self.memory.held().get_mut(&self.device)
        {
            held.loading = held.loading.saturating_sub(self.mib);
        }
    }
}

impl Memory {
    /// With these limits in MiB by device.
    pub fn new(limits: BTreeMap<String, u64>) -> Arc<Self> {
        Arc::new(Self { limits, held: Mutex::default(), freed: Notify::new() })
    }

    /// Takes memory for a model, or says why there is not enough. 0 is a model of which nothing is known: it fits.
    pub fn reserve(self: &Arc<Self>, device: Device, mib: u64) -> Result<Reservation, String> {
        let name = device.to_string();
        let mut held = self.held();
        let taken = held.entry(name.clone()).or_default();
        if let Some(free) = self.free(device, taken).filter(|free| mib > *free) {
            return Err(format!("it needs {mib} MiB, and {name} has {free} MiB left"));
        }
        taken.all += mib;
        taken.loading += mib;
        drop(held);
        Ok(Reservation { memory: Arc::clone(self), device: name, mib, loaded: false })
    }

    /// Whether a model would fit if another gave back what it holds.
    pub fn would_fit(&self, device: Device, mib: u64, given_back: u64) -> bool {
        let mut held = self.held();
        let taken = held.entry(device.to_string()).or_default();
        self.free(device, taken).is_none_or(|free| mib <= free + given_back)
    }

    /// What is left of a device, if that is known.
    fn free(&self, device: Device, taken: &Held) -> Option<u64> {
        match self.limits.get(&device.to_string()) {
            Some(limit) => Some(limit.saturating_sub(taken.all)),
            None if device == Device::Cpu => Some(available_mib()?.saturating_sub(taken.loading)),
            None => None,
        }
    }

    /// What models may take of a device all in all, if that is known.
    pub fn total(&self, device: &str) -> Option<u64> {
        let limit = self.limits.get(device).copied();
        let held = || self.held().get(device).map_or(0, |held| held.all - held.loading);
        limit.or_else(|| Some(available_mib().filter(|_| device == "cpu")? + held()))
    }

    /// Waits until somebody gave memory back. Register before looking: `let freed = memory.freed(); …; freed.await`.
    pub fn freed(&self) -> impl Future<Output = ()> {
        self.freed.notified()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.loaded();
        if let Some(held) = self.memory.held().get_mut(&self.device) {
            held.all = held.all.saturating_sub(self.mib);
        }
        self.memory.freed.notify_waiters();
    }
}

/// What the kernel thinks can be had without swapping.
fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_refused_and_given_back() {
        let memory = Memory::new([("cpu".to_owned(), 100)].into());
        let first = memory.reserve(Device::Cpu, 60).expect("fits");
        let refusal = memory.reserve(Device::Cpu, 60).err().expect("does not fit");
        assert_eq!(refusal, "it needs 60 MiB, and cpu has 40 MiB left");
        assert!(memory.would_fit(Device::Cpu, 100, 60) && !memory.would_fit(Device::Cpu, 101, 60));
        let _unknown = memory.reserve(Device::Cpu, 0).expect("nothing is known of it");
        drop(first);
        assert!(memory.reserve(Device::Cpu, 60).is_ok());
        assert!(memory.reserve(Device::Cuda(3), 1 << 40).is_ok(), "nobody said what it has");
    }
}
