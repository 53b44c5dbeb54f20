//! `native/`, which binds what torch-sys does not: what `forward` takes and writes, tensors made plain, what models print, which
//! operators there are, and a GPU's streams and memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use tch::{TchError, Tensor};
use torch_sys::{C_tensor, CIValue, CModule_};

unsafe extern "C" {
    fn sluice_inspect(module: *mut c_void, error: *mut *mut c_char) -> *mut c_char;
    fn sluice_move_constants(module: *mut c_void, gpu: c_int, error: *mut *mut c_char);
    fn sluice_default(module: *mut c_void, at: usize, error: *mut *mut c_char) -> *mut c_void;
    fn sluice_buffers(module: *mut c_void, error: *mut *mut c_char) -> *mut c_char;
    fn sluice_plain(tensor: *mut c_void, copy: bool, error: *mut *mut c_char) -> *mut c_void;
    fn sluice_on_print(handler: unsafe extern "C" fn(*const c_char));
    fn sluice_on_warning();
    fn sluice_operators(error: *mut *mut c_char) -> *mut c_char;
    fn sluice_forget(names: *const c_char, error: *mut *mut c_char);
    fn sluice_own_stream(gpu: c_int, error: *mut *mut c_char);
    fn sluice_wait_for(gpu: c_int, error: *mut *mut c_char);
    fn sluice_pinned_like(tensor: *mut c_void, error: *mut *mut c_char) -> *mut c_void;
    fn sluice_empty_cache(error: *mut *mut c_char);
}

/// What is known of a module's `forward` before it runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Without the module itself.
    pub arguments: Vec<Argument>,
    /// Attributes that it sets or writes into, in some runs at least.
    pub writes: Vec<String>,
    /// Whether it draws random numbers.
    pub random: bool,
}

/// One of `forward`'s arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Argument {
    pub name: String,
    /// In the words of Python's annotations.
    pub kind: String,
    /// It need not be given.
    pub has_default: bool,
}

/// Calls the shim, and takes the error that it may give.
fn call<T>(function: impl FnOnce(*mut *mut c_char) -> T) -> Result<T, TchError> {
    let mut error = ptr::null_mut();
    let value = function(&mut error);
    if error.is_null() { Ok(value) } else { Err(TchError::Torch(take(error))) }
}

/// A string of the shim's, which is freed.
fn take(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the shim gives terminated strings from malloc, which are ours to free.
    unsafe {
        let taken = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        taken
    }
}

/// Reads `forward`'s declaration and its code.
///
/// # Safety
/// The module is alive.
pub(super) unsafe fn inspect(module: *mut CModule_) -> Result<Inspection, TchError> {
    // SAFETY: as promised by the caller.
    let lines = call(|error| unsafe { sluice_inspect(module.cast(), error) })?;
    Ok(inspection(&take(lines)))
}

fn inspection(lines: &str) -> Inspection {
    let mut found = Inspection::default();
    for line in lines.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["argument", name, kind, ref rest @ ..] => {
                // Of an argument without an annotation it is said that this was inferred.
                let kind = kind.trim_end_matches(" (inferred)").to_owned();
                found.arguments.push(Argument { name: name.into(), kind, has_default: !rest.is_empty() });
            }
            ["writes", path] => found.writes.push(path.into()),
            ["random"] => found.random = true,
            _ => {}
        }
    }
    found
}

/// Lets code that names a GPU run on the device. To be called before the module runs.
///
/// # Safety
/// The module is alive, and nothing else uses it meanwhile.
pub(super) unsafe fn move_constants(module: *mut CModule_, gpu: c_int) -> Result<(), TchError> {
    // SAFETY: as promised by the caller.
    call(|error| unsafe { sluice_move_constants(module.cast(), gpu, error) })
}

/// The value of an argument that is not given. It is the caller's to free.
///
/// # Safety
/// The module is alive.
pub(super) unsafe fn default(module: *mut CModule_, at: usize) -> Result<*mut CIValue, TchError> {
    // SAFETY: as promised by the caller.
    call(|error| unsafe { sluice_default(module.cast(), at, error) }).map(<*mut c_void>::cast)
}

/// A hash of each buffer's bytes, by the buffer's path.
///
/// # Safety
/// The module is alive, and does not run.
pub(super) unsafe fn buffers(module: *mut CModule_) -> Result<BTreeMap<String, String>, TchError> {
    // SAFETY: as promised by the caller.
    let lines = take(call(|error| unsafe { sluice_buffers(module.cast(), error) })?);
    let entries = lines.lines().filter_map(|line| line.split_once('\t'));
    Ok(entries.map(|(path, hash)| (path.to_owned(), hash.to_owned())).collect())
}

/// The same values on the CPU, contiguous, whatever the tensor's strides, layout, device or quantisation; in memory of its own if asked.
/// What comes from a GPU is there once [`wait_for`] has returned.
pub(super) fn plain(tensor: &Tensor, copy: bool) -> Result<Tensor, TchError> {
    // SAFETY: the tensor is alive; what is returned is a tensor that is ours.
    unsafe {
        let made = call(|error| sluice_plain(tensor.as_ptr().cast_mut().cast(), copy, error))?;
        Ok(Tensor::from_ptr(made.cast::<C_tensor>()))
    }
}

/// From now on what this thread has run on a GPU is in no other thread's way. Done once for each thread and GPU.
pub(super) fn own_stream(gpu: usize) -> Result<(), TchError> {
    thread_local! {
        static OWN: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
    }
    if OWN.with_borrow(|own| own.contains(&gpu)) {
        return Ok(());
    }
    // SAFETY: it changes what belongs to this thread alone.
    call(|error| unsafe { sluice_own_stream(number_of(gpu), error) })?;
    OWN.with_borrow_mut(|own| own.insert(gpu));
    Ok(())
}

/// Waits for all that this thread has had run on a GPU.
pub(super) fn wait_for(gpu: usize) -> Result<(), TchError> {
    // SAFETY: it only waits.
    call(|error| unsafe { sluice_wait_for(number_of(gpu), error) })
}

/// An unfilled tensor of the same shape in memory of the host that a GPU can read by itself, while the host does something else.
pub(super) fn pinned_like(tensor: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: the tensor is alive; what is returned is a tensor that is ours.
    unsafe {
        let made = call(|error| sluice_pinned_like(tensor.as_ptr().cast_mut().cast(), error))?;
        Ok(Tensor::from_ptr(made.cast::<C_tensor>()))
    }
}

/// Gives back to the driver, and to the system, what libtorch keeps of memory for GPUs to use again.
pub(super) fn empty_cache() -> Result<(), TchError> {
    // SAFETY: libtorch locks its allocators itself.
    call(|error| unsafe { sluice_empty_cache(error) })
}

fn number_of(gpu: usize) -> c_int {
    c_int::try_from(gpu).unwrap_or(c_int::MAX)
}

/// Sends what models print and warn of to the log instead of to the process's outputs.
pub(super) fn catch_prints() {
    // SAFETY: the handler may be called at any time on any thread.
    unsafe { sluice_on_print(on_print) }
}

/// The same for warnings, which libtorch keeps by thread.
pub(super) fn catch_warnings() {
    // SAFETY: what handles them lives as long as the process.
    unsafe { sluice_on_warning() }
}

/// The operators that models' code may name, and whether each takes text. A name may come more than once.
pub(super) fn operators() -> Result<Vec<(String, bool)>, TchError> {
    // SAFETY: what it reads is libtorch's own, behind a lock.
    let lines = take(call(|error| unsafe { sluice_operators(error) })?);
    let entries = lines.lines().map(|line| match line.split_once('\t') {
        Some((name, _)) => (name.to_owned(), true),
        None => (line.to_owned(), false),
    });
    Ok(entries.collect())
}

/// Takes operators away from models' code. Not while models are loaded.
pub(super) fn forget(names: &[String]) -> Result<(), TchError> {
    let names = CString::new(names.join("\n"))?;
    // SAFETY: the text is terminated and outlives the call.
    call(|error| unsafe { sluice_forget(names.as_ptr(), error) })
}

/// So many lines of a slot are worth everybody's attention; the rest is there for who looks for it.
const SHOWN: u32 = 10;

unsafe extern "C" fn on_print(text: *const c_char) {
    thread_local! {
        static LINES: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    // SAFETY: the shim passes a terminated string.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text: String = text.trim_end().chars().take(500).collect();
    let thread = std::thread::current();
    let slot = thread.name().unwrap_or_default();
    let lines = LINES.replace(LINES.get().saturating_add(1));
    if lines < SHOWN {
        tracing::info!(slot, text, "the model prints");
    } else {
        tracing::debug!(slot, text, "the model prints");
    }
    if lines == SHOWN {
        tracing::info!(slot, "it goes on printing: see the log's level `debug`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_lines_are_read() {
        let lines =
            "argument\tx\tTensor (inferred)\nargument\tsize\tTuple[int, int]\tdefault\nwrites\tlstm.h\nrandom\n";
        let argument =
            |name: &str, kind: &str, has_default| Argument { name: name.into(), kind: kind.into(), has_default };
        let expected = Inspection {
            arguments: vec![argument("x", "Tensor", false), argument("size", "Tuple[int, int]", true)],
            writes: vec!["lstm.h".into()],
            random: true,
        };
        assert_eq!(inspection(lines), expected);
    }
}
