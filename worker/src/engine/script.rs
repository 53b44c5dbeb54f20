//! A TorchScript module over torch-sys. The safe wrapper's `forward_is` leaks every input when a call fails; this one
//! frees them, and reads outputs of any nesting.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::raw::c_int;
use std::path::Path;
use std::ptr;

use tch::{TchError, Tensor};
use torch_sys::{CIValue, CModule_};

use super::arguments::Given;
use super::native::{self, Inspection};

/// What a module returned.
#[derive(Debug)]
pub(super) enum Value {
    Tensor(Tensor),
    /// A tuple or a list.
    Sequence(Vec<Value>),
    Dict(Vec<(String, Value)>),
    /// Anything that is no output, by what it is.
    Other(&'static str),
}

/// A loaded module.
pub(super) struct Script(*mut CModule_);

// SAFETY: a TorchScript module whose `forward` does not write into it may be run from several threads: libtorch's interpreter keeps its
// state per call. One that does has a `Script` for each slot, which `TorchScript` sees to.
unsafe impl Send for Script {}
// SAFETY: as above.
unsafe impl Sync for Script {}

/// Tags of `ati_tag`, from torch-sys's `torch_api.cpp`.
mod tag {
    pub const NONE: i32 = 0;
    pub const TENSOR: i32 = 1;
    pub const TUPLE: i32 = 5;
    pub const STRING: i32 = 9;
    pub const TENSOR_LIST: i32 = 10;
    pub const GENERIC_LIST: i32 = 12;
    pub const DICT: i32 = 13;
}

/// A device as torch-sys counts them.
fn number_of(device: tch::Device) -> c_int {
    match device {
        tch::Device::Cuda(number) => c_int::try_from(number).unwrap_or(c_int::MAX),
        _ => -1,
    }
}

/// Takes the calling thread's last libtorch error.
fn checked<T>(value: T) -> Result<T, TchError> {
    // SAFETY: returns null or a string from malloc that is ours to free.
    unsafe {
        let error = torch_sys::get_and_reset_last_err();
        if error.is_null() {
            return Ok(value);
        }
        let text = std::ffi::CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        Err(TchError::Torch(text))
    }
}

/// A value of libtorch's that is freed when dropped.
struct Owned(*mut CIValue);

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from libtorch and is freed once.
            unsafe { torch_sys::ati_free(self.0) }
        }
    }
}

impl Script {
    /// Loads a file onto a device, in evaluation mode.
    pub(super) fn load(file: &Path, device: tch::Device) -> Result<Self, TchError> {
        let path = CString::new(file.as_os_str().as_encoded_bytes())?;
        // SAFETY: the path is a terminated string that outlives the call.
        let module = checked(unsafe { torch_sys::atm_load_on_device(path.as_ptr(), number_of(device)) })?;
        let script = Self(module);
        // SAFETY: the module was just loaded: nobody else has it.
        unsafe {
            checked(torch_sys::atm_eval(script.0))?;
            native::move_constants(script.0, number_of(device))?;
        }
        Ok(script)
    }

    /// What `forward` takes, and what it writes.
    pub(super) fn inspect(&self) -> Result<Inspection, TchError> {
        // SAFETY: the module is alive.
        unsafe { native::inspect(self.0) }
    }

    /// What its buffers hold, to be compared. Not while it runs.
    pub(super) fn buffers(&self) -> Result<BTreeMap<String, String>, TchError> {
        // SAFETY: the module is alive.
        unsafe { native::buffers(self.0) }
    }

    /// Runs `forward`.
    pub(super) fn forward(&self, given: &[Given], inputs: &[Tensor]) -> Result<Value, TchError> {
        let mut arguments = Vec::with_capacity(given.len());
        for one in given {
            // SAFETY: tensor and module are alive; the value takes a reference of its own.
            let pointer = match one {
                Given::Input(at) => checked(unsafe { torch_sys::ati_tensor(inputs[*at].as_ptr().cast_mut()) })?,
                Given::Default(at) => unsafe { native::default(self.0, *at)? },
            };
            arguments.push(Owned(pointer));
        }
        let pointers: Vec<*mut CIValue> = arguments.iter().map(|argument| argument.0).collect();
        // SAFETY: the pointers are as many as said, and alive until the call returns.
        let output = checked(unsafe { torch_sys::atm_forward_(self.0, pointers.as_ptr(), pointers.len() as c_int) })?;
        read(Owned(output))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // SAFETY: loaded once, freed once.
        unsafe { torch_sys::atm_free(self.0) }
    }
}

/// Turns a returned value into ours, freeing it.
fn read(value: Owned) -> Result<Value, TchError> {
    let pointer = value.0;
    // SAFETY: in each call the value is alive and of the kind that its tag says; arrays have the length that libtorch
    // said, and what it puts into them is ours to free.
    unsafe {
        match checked(torch_sys::ati_tag(pointer))? {
            tag::NONE => Ok(Value::Other("None")),
            tag::TENSOR => Ok(Value::Tensor(Tensor::from_ptr(checked(torch_sys::ati_to_tensor(pointer))?))),
            tag::TUPLE => {
                let length = checked(torch_sys::ati_tuple_length(pointer))?;
                sequence(length, |array| torch_sys::ati_to_tuple(pointer, array, length))
            }
            tag::GENERIC_LIST => {
                let length = checked(torch_sys::ati_length(pointer))?;
                sequence(length, |array| torch_sys::ati_to_generic_list(pointer, array, length))
            }
            tag::TENSOR_LIST => {
                let length = checked(torch_sys::ati_length(pointer))?;
                let mut tensors = vec![ptr::null_mut(); length as usize];
                checked(torch_sys::ati_to_tensor_list(pointer, tensors.as_mut_ptr(), length))?;
                Ok(Value::Sequence(tensors.into_iter().map(|tensor| Value::Tensor(Tensor::from_ptr(tensor))).collect()))
            }
            tag::DICT => {
                let length = checked(torch_sys::ati_length(pointer))?;
                let mut items =
                    owned(2 * length, |array| torch_sys::ati_to_generic_dict(pointer, array, length))?.into_iter();
                let mut dict = Vec::with_capacity(length as usize);
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    dict.push((text(&key)?, read(value)?));
                }
                Ok(Value::Dict(dict))
            }
            tag::STRING => Ok(Value::Other("text")),
            _ => Ok(Value::Other("something that is neither a tensor nor made of tensors")),
        }
    }
}

fn owned(length: c_int, fill: impl FnOnce(*mut *mut CIValue)) -> Result<Vec<Owned>, TchError> {
    let mut array = vec![ptr::null_mut(); length as usize];
    fill(array.as_mut_ptr());
    let values = array.into_iter().map(Owned).collect();
    checked(values)
}

fn sequence(length: c_int, fill: impl FnOnce(*mut *mut CIValue)) -> Result<Value, TchError> {
    owned(length, fill)?.into_iter().map(read).collect::<Result<_, _>>().map(Value::Sequence)
}

fn text(key: &Owned) -> Result<String, TchError> {
    // SAFETY: the value is alive; a returned string is from malloc and ours to free.
    unsafe {
        if checked(torch_sys::ati_tag(key.0))? != tag::STRING {
            return Err(TchError::Kind("a dict whose keys are not text".into()));
        }
        let pointer = checked(torch_sys::ati_to_string(key.0))?;
        if pointer.is_null() {
            return Err(TchError::Kind("a dict with a key that cannot be read".into()));
        }
        let text = std::ffi::CStr::from_ptr(pointer).to_string_lossy().into_owned();
        libc::free(pointer.cast());
        Ok(text)
    }
}
