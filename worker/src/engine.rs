//! The engine seam: something that loads a package onto a device, and runs batches. TorchScript by libtorch today.
//! Knows nothing of brokers, envelopes or replies.

mod arguments;
pub mod compare;
pub(crate) mod cuda;
pub mod example;
mod gather;
mod native;
mod operators;
mod pieces;
mod scatter;
mod script;
pub mod state;
mod torch_error;
pub mod torchscript;
mod warmup;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_core::Tensor;
use sluice_core::manifest::EngineKind;

use crate::package::Package;

pub use pieces::run_requests;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The host's processors.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl Device {
    /// Reads `cpu` or `cuda:N`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            Some(("cuda", number)) if number.parse::<usize>().is_ok_and(|number| number < 64) => {
                Ok(Device::Cuda(number.parse().unwrap_or_default()))
            }
            _ => Err(format!("is `{text}`: neither `cpu` nor `cuda:N`")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => formatter.write_str("cpu"),
            Device::Cuda(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

/// Whose fault a failed execution is, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The input: the same request fails again.
    Request,
    /// The circumstances, such as memory: it may succeed later.
    Circumstances,
    /// The device or the process, which is of no more use.
    Process,
}

/// A failed load or execution.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// Whose fault it is.
    pub blame: Blame,
    /// One line for the caller.
    pub message: String,
    /// All of it, cut, for the log.
    pub detail: String,
}

impl EngineError {
    /// An error whose message says it all.
    pub fn new(blame: Blame, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { blame, detail: message.clone(), message }
    }
}

/// A batch whose tensors are filled, ready to run on a slot's thread.
pub type Gathered = Box<dyn FnOnce() -> Result<Vec<Vec<Tensor>>, EngineError> + Send>;

/// A loaded model.
pub trait Model: Send + Sync {
    /// Fills tensors with the rows of `requests`, each a list of inputs in the manifest's order. Running the result
    /// gives the outputs of each request in the manifest's order.
    fn gather(self: Arc<Self>, requests: &[&[Tensor]]) -> Result<Gathered, EngineError>;

    /// The model for one more slot of its device: itself, or a copy where running it writes into it.
    fn for_another_slot(self: Arc<Self>) -> Arc<dyn Model>;

    /// Loads and warms up what [`Model::for_another_slot`] promised, on the thread of that slot.
    fn make_ready(self: Arc<Self>) -> Result<(), EngineError> {
        Ok(())
    }

    /// What running it writes into it, by the names of its attributes: then no two slots share it.
    fn writes(&self) -> &[String] {
        &[]
    }
}

/// Prepares the calling thread, which is to be a slot's, to load and run models. The guard is held while it does.
pub fn prepare_thread(threads: usize) -> impl Drop {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(1));
    native::catch_warnings();
    tch::no_grad_guard()
}

/// How many GPUs libtorch can use.
pub fn gpus() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Prepares the process, before any thread uses an engine. `allow_operators` are those that models may name beside the ones that compute.
pub fn prepare_process(jit_profiling: bool, allow_operators: &[String]) -> Result<(), EngineError> {
    tune_allocator();
    tch::set_num_threads(1);
    tch::jit::set_profiling_mode(jit_profiling);
    native::catch_prints();
    operators::confine(allow_operators)
}

/// Activations of some megabytes are otherwise returned to the kernel after every call and faulted in again.
fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Gives memory that a model left behind back to the system, and to GPUs' drivers.
pub fn release_memory() {
    if let Err(error) = native::empty_cache() {
        tracing::warn!(%error, "libtorch keeps the GPU memory of a model that is gone");
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim is thread-safe and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A model that can run.
#[derive(Clone)]
pub struct Loaded {
    /// The first slot's.
    pub model: Arc<dyn Model>,
    /// How long a row took to run in a full batch of zeros: what there is to go by until requests come.
    pub row_time: Duration,
}

/// Loads a package and warms it up. Runs on a slot's thread.
pub fn load(package: &Package, device: Device) -> Result<Loaded, EngineError> {
    match package.manifest.engine {
        EngineKind::TorchScript => {
            let (model, row_time) = torchscript::TorchScript::start(package, device)?;
            Ok(Loaded { model, row_time })
        }
    }
}
