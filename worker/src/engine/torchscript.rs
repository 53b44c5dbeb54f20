//! The libtorch engine: TorchScript files, in inference mode.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sluice_core::{Manifest, Tensor};
use tracing::info;

use super::arguments::{Given, give};
use super::gather::{fill, kind_of};
use super::scatter::{Layout, Memory, scatter};
use super::script::Script;
use super::{Blame, Device, EngineError, Gathered, Model, native, state, torch_error, warmup};
use crate::package::Package;

/// A TorchScript model. Slots share it, unless its `forward` writes into the module: then each has a copy.
pub struct TorchScript {
    package: Package,
    device: tch::Device,
    given: Vec<Given>,
    /// The attributes that `forward` writes, once that is known.
    writes: OnceLock<Vec<String>>,
    /// A copy is loaded by the thread that is to run it.
    script: OnceLock<Script>,
    loading: Mutex<()>,
}

impl TorchScript {
    /// Loads the package's file, warms it up, and finds out what it writes. Returns how long a row took as well.
    pub fn start(package: &Package, device: Device) -> Result<(Arc<Self>, Duration), EngineError> {
        let manifest = &package.manifest;
        for (role, specs) in [("input", &manifest.inputs), ("output", &manifest.outputs)] {
            if let Some(spec) = specs.iter().find(|spec| kind_of(spec.datatype).is_none()) {
                let message =
                    format!("{role} `{}`: the torchscript engine does not support {}", spec.name, spec.datatype);
                return Err(refuse(message));
            }
        }
        let device = found(device)?;
        let script = open(package, device)?;
        let explain = |error: tch::TchError| torch_error::explain(&error);
        let inspection = script.inspect().map_err(explain)?;
        let given = give(&inspection.arguments, manifest.inputs.len()).map_err(refuse)?;
        let before = script.buffers().map_err(explain)?;
        let model = Arc::new(Self {
            package: package.clone(),
            device,
            given,
            writes: OnceLock::new(),
            script: OnceLock::from(script),
            loading: Mutex::default(),
        });
        let row_time = warmup::warm_up(&model, manifest)?;
        let after = model.script()?.buffers().map_err(explain)?;
        let writes = model.writes.get_or_init(|| state::written(inspection.writes, &before, &after));
        if !writes.is_empty() {
            let model: Arc<dyn Model> = model.clone();
            if inspection.random && state::is_random(&model, manifest) {
                return Err(refuse(state::random_refusal(writes)));
            }
            if state::remembers(&model, manifest) {
                return Err(refuse(state::refusal(writes)));
            }
        }
        if !writes.is_empty() {
            info!(model = %manifest.name, writes = state::names(writes), "forward writes into the module: each slot has a copy of its own");
        }
        Ok((model, row_time))
    }

    fn script(&self) -> Result<&Script, EngineError> {
        // One load at a time; whoever waited finds it there.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(script) = self.script.get() {
            return Ok(script);
        }
        let script = open(&self.package, self.device)?;
        Ok(self.script.get_or_init(|| script))
    }

    fn forward(&self, inputs: &[tch::Tensor], layout: &Layout) -> Result<Vec<Vec<Tensor>>, EngineError> {
        // Some calls of the wrapper panic where libtorch throws.
        let run = AssertUnwindSafe(|| {
            let script = self.script()?;
            let moved = match self.device {
                tch::Device::Cuda(gpu) => Some(move_to(gpu, inputs).map_err(|error| torch_error::explain(&error))?),
                _ => None,
            };
            let inputs = moved.as_deref().unwrap_or(inputs);
            let value = script.forward(&self.given, inputs).map_err(|error| torch_error::explain(&error))?;
            // What the module holds is written by its next run, which may come before the answers have left.
            let memory = if self.writes().is_empty() { Memory::Shared } else { Memory::Copied };
            scatter(&self.package.manifest, value, layout, memory)
        });
        catch_unwind(run).unwrap_or_else(|panic| Err(of_panic(&*panic)))
    }
}

impl Model for TorchScript {
    fn gather(self: Arc<Self>, requests: &[&[Tensor]]) -> Result<Gathered, EngineError> {
        let manifest = &self.package.manifest;
        let mut inputs = Vec::with_capacity(manifest.inputs.len());
        for (at, spec) in manifest.inputs.iter().enumerate() {
            let parts: Vec<&Tensor> = requests.iter().map(|request| &request[at]).collect();
            inputs.push(
                fill(spec, &manifest.padding, &parts, self.device).map_err(|error| torch_error::explain(&error))?,
            );
        }
        let layout = Layout {
            rows: requests.iter().map(|request| request.first().map_or(0, Tensor::rows)).collect(),
            padded: requests.iter().map(|request| padded_sizes(manifest, request)).collect(),
        };
        Ok(Box::new(move || self.forward(&inputs, &layout)))
    }

    fn for_another_slot(self: Arc<Self>) -> Arc<dyn Model> {
        if self.writes().is_empty() {
            return self;
        }
        Arc::new(Self {
            package: self.package.clone(),
            device: self.device,
            given: self.given.clone(),
            writes: self.writes.clone(),
            script: OnceLock::new(),
            loading: Mutex::default(),
        })
    }

    fn make_ready(self: Arc<Self>) -> Result<(), EngineError> {
        // What is shared was made ready by its first slot.
        if self.writes().is_empty() { Ok(()) } else { warmup::warm_up(&self, &self.package.manifest).map(drop) }
    }

    fn writes(&self) -> &[String] {
        self.writes.get().map_or(&[], Vec::as_slice)
    }
}

/// Begins to copy inputs to a GPU, on the calling thread's stream: what runs there next waits for them, and the host does not.
fn move_to(gpu: usize, inputs: &[tch::Tensor]) -> Result<Vec<tch::Tensor>, tch::TchError> {
    native::own_stream(gpu)?;
    inputs.iter().map(|input| input.f_to_device_(tch::Device::Cuda(gpu), input.f_kind()?, true, false)).collect()
}

fn refuse(message: String) -> EngineError {
    EngineError::new(Blame::Request, message)
}

/// libtorch's name of the device, if it is there.
fn found(device: Device) -> Result<tch::Device, EngineError> {
    let Device::Cuda(number) = device else { return Ok(tch::Device::Cpu) };
    let found = super::gpus();
    if number >= found {
        return Err(refuse(format!(
            "device `cuda:{number}` is not there: libtorch sees {found} CUDA devices on this host"
        )));
    }
    Ok(tch::Device::Cuda(number))
}

fn open(package: &Package, device: tch::Device) -> Result<Script, EngineError> {
    let stream = match device {
        tch::Device::Cuda(gpu) => native::own_stream(gpu),
        _ => Ok(()),
    };
    stream.and_then(|()| Script::load(&package.file, device)).map_err(|error| {
        let explained = torch_error::explain(&error);
        EngineError { message: format!("cannot load `{}`: {}", package.file.display(), explained.message), ..explained }
    })
}

/// A request's own sizes of the dimensions that are padded.
fn padded_sizes(manifest: &Manifest, inputs: &[Tensor]) -> BTreeMap<String, i64> {
    let mut sizes = BTreeMap::new();
    if manifest.padding.is_empty() {
        return sizes;
    }
    for (spec, input) in manifest.inputs.iter().zip(inputs) {
        for (dimension, size) in spec.shape.iter().zip(&input.shape) {
            if let Some(name) = dimension.name().filter(|name| manifest.padding.contains_key(*name)) {
                sizes.insert(name.to_owned(), *size);
            }
        }
    }
    sizes
}

/// A panic's text is the engine's error.
pub(super) fn of_panic(panic: &(dyn std::any::Any + Send)) -> EngineError {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "the engine panicked".into());
    torch_error::explain(&tch::TchError::Torch(text))
}
