//! Who holds how much memory of which device, so that a model is not loaded where it does not fit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::engine::{Device, cuda};

/// The memory of a host's devices.
pub struct Memory {
    /// In MiB, by device. Of a device that is not here the system is asked, or the GPUs' driver.
    limits: BTreeMap<String, u64>,
    held: Mutex<BTreeMap<String, Held>>,
    freed: Notify,
    /// Grows whenever a model begins to be loaded or is gone.
    changes: AtomicU64,
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
    device: Device,
    mib: u64,
    loaded: bool,
    /// What was taken of the device, if that can be told, and what had changed before the model was loaded.
    taken_mib: Option<f64>,
    changes: u64,
}

/// Where copies of a loaded model take their memory, each as much as the model itself.
#[derive(Clone)]
pub struct Copies {
    memory: Arc<Memory>,
    device: Device,
    mib: u64,
}

impl Copies {
    /// Takes memory for one more.
    pub fn reserve(&self) -> Result<Reservation, String> {
        self.memory.reserve(self.device, self.mib)
    }
}

impl Reservation {
    /// For copies of the model, once that is loaded.
    pub fn copies(&self) -> Copies {
        Copies { memory: Arc::clone(&self.memory), device: self.device, mib: self.mib }
    }

    /// The model is loaded: from now on the system counts its memory as well. Returns the MiB that loading took, if that can be told:
    /// where nothing else of this process was loaded or unloaded meanwhile, and at least what it took `before`. Where that is more than
    /// was declared, it counts.
    pub fn loaded(&mut self, before: u64) -> Option<u64> {
        if std::mem::replace(&mut self.loaded, true) {
            return None;
        }
        let undisturbed = self.memory.changes.load(Ordering::Acquire) == self.changes;
        let taken = || Some((taken_mib(self.device)? - self.taken_mib?).max(0.0).ceil() as u64);
        let measured = if undisturbed { taken() } else { None }.map(|mib| mib.max(before));
        let declared = self.mib;
        self.mib = declared.max(measured.unwrap_or(before));
        if let Some(held) = self.memory.held().get_mut(&self.device.to_string()) {
            held.loading = held.loading.saturating_sub(declared);
            held.all += self.mib - declared;
        }
        measured
    }
}

impl Memory {
    /// With these limits in MiB by device.
    pub fn new(limits: BTreeMap<String, u64>) -> Arc<Self> {
        Arc::new(Self { limits, held: Mutex::default(), freed: Notify::new(), changes: AtomicU64::new(0) })
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
        let changes = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        let taken_mib = taken_mib(device);
        Ok(Reservation { memory: Arc::clone(self), device, mib, loaded: false, taken_mib, changes })
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
            None => match device {
                Device::Cpu => Some(available_mib()?.saturating_sub(taken.loading)),
                // What libtorch keeps to use again, the driver calls taken; so this process's own count is what is left.
                Device::Cuda(gpu) => Some(cuda::total_mib(gpu)?.saturating_sub(taken.all)),
            },
        }
    }

    /// What models may take of a device all in all, if that is known.
    pub fn total(&self, device: &str) -> Option<u64> {
        let limit = self.limits.get(device).copied();
        let held = || self.held().get(device).map_or(0, |held| held.all - held.loading);
        let asked = || match Device::parse(device).ok()? {
            Device::Cpu => Some(available_mib()? + held()),
            Device::Cuda(gpu) => cuda::total_mib(gpu),
        };
        limit.or_else(asked)
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
        _ = self.loaded(0);
        if let Some(held) = self.memory.held().get_mut(&self.device.to_string()) {
            held.all = held.all.saturating_sub(self.mib);
        }
        self.memory.changes.fetch_add(1, Ordering::AcqRel);
        self.memory.freed.notify_waiters();
    }
}

/// What is taken of a device's memory: of the machine's by this process, of a GPU's by all.
pub fn taken_mib(device: Device) -> Option<f64> {
    match device {
        Device::Cpu => resident_mib(),
        Device::Cuda(gpu) => cuda::taken_mib(gpu).map(|mib| mib as f64),
    }
}

fn resident_mib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: sysconf only reads.
    Some(pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as f64 / (1 << 20) as f64)
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
    fn what_loading_took_counts_where_it_is_more_than_was_declared() {
        let memory = Memory::new([("cpu".to_owned(), 1000)].into());
        let mut first = memory.reserve(Device::Cpu, 1).expect("fits");
        // Written, so that it is really there.
        let weights = vec![1_u8; 300 << 20];
        let measured = first.loaded(0).expect("nothing else was loaded");
        assert!((290..400).contains(&measured), "{measured} MiB");
        assert!(memory.reserve(Device::Cpu, 720).is_err(), "only some 700 MiB are left");
        assert!(weights.iter().step_by(4096).all(|byte| *byte == 1));
        let mut second = memory.reserve(Device::Cpu, 1).expect("fits");
        drop(first);
        assert_eq!(second.loaded(0), None, "what was given back meanwhile would be mistaken for it");
        assert!(memory.reserve(Device::Cpu, 990).is_ok(), "all that it took is given back");
    }

    #[test]
    fn each_copy_takes_as_much_as_the_model_and_gives_it_back() {
        let memory = Memory::new([("cpu".to_owned(), 100)].into());
        let mut model = memory.reserve(Device::Cpu, 30).expect("fits");
        // Something else was loaded meanwhile: what is declared counts.
        drop(memory.reserve(Device::Cpu, 1));
        assert_eq!(model.loaded(0), None);
        let copies = model.copies();
        let (second, third) = (copies.reserve().expect("fits"), copies.reserve().expect("fits"));
        let refusal = copies.reserve().err().expect("does not fit");
        assert_eq!(refusal, "it needs 30 MiB, and cpu has 10 MiB left");
        drop((second, third));
        assert!(memory.reserve(Device::Cpu, 70).is_ok());
    }

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
