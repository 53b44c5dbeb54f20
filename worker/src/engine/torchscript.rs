//! The libtorch engine: TorchScript files, in inference mode.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use sluice_core::{Manifest, Tensor};

use super::gather::{fill, kind_of};
use super::scatter::{Layout, scatter};
use super::script::Script;
use super::{Blame, Device, EngineError, Gathered, Model, torch_error};
use crate::package::Package;

/// A loaded TorchScript model.
pub struct TorchScript {
    script: Script,
    manifest: Manifest,
    device: tch::Device,
}

impl TorchScript {
    /// Loads the package's file. Outputs are checked by the warm-up.
    pub fn load(package: &Package, device: Device) -> Result<Self, EngineError> {
        let manifest = &package.manifest;
        let refuse = |message: String| EngineError::new(Blame::Request, message);
        for (role, specs) in [("input", &manifest.inputs), ("output", &manifest.outputs)] {
            for spec in specs {
                if kind_of(spec.datatype).is_none() {
                    return Err(refuse(format!(
                        "{role} `{}`: the torchscript engine does not support {}",
                        spec.name, spec.datatype
                    )));
                }
            }
        }
        let device = match device {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(number) => {
                let found = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
                if number >= found {
                    return Err(refuse(format!(
                        "device `cuda:{number}` is not there: libtorch sees {found} CUDA devices on this host"
                    )));
                }
                tch::Device::Cuda(number)
            }
        };
        let script = Script::load(&package.file, device).map_err(|error| {
            let explained = torch_error::explain(&error);
            EngineError {
                message: format!("cannot load `{}`: {}", package.file.display(), explained.message),
                ..explained
            }
        })?;
        if let Some(arguments) = script.arguments()
            && arguments.len() != manifest.inputs.len()
        {
            return Err(refuse(format!(
                "the manifest has {} inputs, the model's forward takes {}: {}",
                manifest.inputs.len(),
                arguments.len(),
                arguments.join(", ")
            )));
        }
        Ok(Self { script, manifest: manifest.clone(), device })
    }

    fn forward(&self, inputs: &[tch::Tensor], layout: &Layout) -> Result<Vec<Vec<Tensor>>, EngineError> {
        // Some calls of the wrapper panic where libtorch throws.
        let run = AssertUnwindSafe(|| {
            let moved: Vec<tch::Tensor>;
            let inputs = if self.device == tch::Device::Cpu {
                inputs
            } else {
                let moving = inputs.iter().map(|input| input.f_to_device(self.device));
                moved = moving.collect::<Result<_, _>>().map_err(|error| torch_error::explain(&error))?;
                &moved
            };
            let value = self.script.forward(inputs).map_err(|error| torch_error::explain(&error))?;
            scatter(&self.manifest, value, layout)
        });
        catch_unwind(run).unwrap_or_else(|panic| Err(of_panic(&*panic)))
    }
}

impl Model for TorchScript {
    fn gather(self: Arc<Self>, requests: &[&[Tensor]]) -> Result<Gathered, EngineError> {
        let manifest = &self.manifest;
        let mut inputs = Vec::with_capacity(manifest.inputs.len());
        for (at, spec) in manifest.inputs.iter().enumerate() {
            let parts: Vec<&Tensor> = requests.iter().map(|request| &request[at]).collect();
            inputs.push(fill(spec, &manifest.padding, &parts).map_err(|error| torch_error::explain(&error))?);
        }
        let layout = Layout {
            rows: requests.iter().map(|request| request.first().map_or(0, Tensor::rows)).collect(),
            padded: requests.iter().map(|request| padded_sizes(manifest, request)).collect(),
        };
        Ok(Box::new(move || self.forward(&inputs, &layout)))
    }
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
