//! What NVIDIA's driver tells of its GPUs' memory; libtorch's bindings do not. Functions and types are those of the CUDA driver API
//! (docs.nvidia.com/cuda/cuda-driver-api, "Device Management", "Primary Context Management", "Memory Management").

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock};

use libloading::Library;

/// The driver's library, on every host that has one.
const DRIVER: &str = "libcuda.so.1";
const MIB: usize = 1 << 20;

/// What a GPU has, numbered as libtorch does: `CUDA_VISIBLE_DEVICES` counts.
pub fn total_mib(gpu: usize) -> Option<u64> {
    driver()?.total_mib(gpu)
}

/// What of a GPU's memory is taken, whoever has it. It makes the context in which libtorch works too, unless there is one.
pub fn taken_mib(gpu: usize) -> Option<u64> {
    driver()?.taken_mib(gpu)
}

fn driver() -> Option<&'static Driver> {
    static LOADED: OnceLock<Option<Driver>> = OnceLock::new();
    LOADED.get_or_init(|| Driver::open(DRIVER)).as_ref()
}

type Context = *mut c_void;

/// The functions that are needed. 0 is success.
struct Driver {
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    total_mem: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
    retain: unsafe extern "C" fn(*mut Context, c_int) -> c_int,
    push: unsafe extern "C" fn(Context) -> c_int,
    pop: unsafe extern "C" fn(*mut Context) -> c_int,
    mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> c_int,
    /// Contexts by GPU, as addresses. They are kept for as long as the process lives, as libtorch does.
    contexts: Mutex<BTreeMap<usize, usize>>,
    /// Must outlive the functions.
    _library: Library,
}

impl Driver {
    /// `None` where there is no driver, or one without a GPU.
    fn open(file: &str) -> Option<Self> {
        // SAFETY: it is the driver that libtorch loads as well; the types are those of the driver API.
        unsafe {
            let library = Library::new(file).ok()?;
            let init: unsafe extern "C" fn(c_uint) -> c_int = *library.get(b"cuInit\0").ok()?;
            if init(0) != 0 {
                return None;
            }
            Some(Self {
                device_get: *library.get(b"cuDeviceGet\0").ok()?,
                total_mem: *library.get(b"cuDeviceTotalMem_v2\0").ok()?,
                retain: *library.get(b"cuDevicePrimaryCtxRetain\0").ok()?,
                push: *library.get(b"cuCtxPushCurrent_v2\0").ok()?,
                pop: *library.get(b"cuCtxPopCurrent_v2\0").ok()?,
                mem_get_info: *library.get(b"cuMemGetInfo_v2\0").ok()?,
                contexts: Mutex::default(),
                _library: library,
            })
        }
    }

    fn device(&self, gpu: usize) -> Option<c_int> {
        let mut device = 0;
        // SAFETY: it writes one number.
        let done = unsafe { (self.device_get)(&mut device, c_int::try_from(gpu).ok()?) };
        (done == 0).then_some(device)
    }

    fn total_mib(&self, gpu: usize) -> Option<u64> {
        let mut bytes = 0;
        // SAFETY: it writes one number.
        let done = unsafe { (self.total_mem)(&mut bytes, self.device(gpu)?) };
        (done == 0).then_some((bytes / MIB) as u64)
    }

    fn taken_mib(&self, gpu: usize) -> Option<u64> {
        let context = self.context(gpu)? as Context;
        let (mut free, mut total, mut popped) = (0, 0, std::ptr::null_mut());
        // SAFETY: the context is never given back, and this thread has its own again afterwards.
        let done = unsafe {
            if (self.push)(context) != 0 {
                return None;
            }
            let done = (self.mem_get_info)(&mut free, &mut total);
            (self.pop)(&mut popped);
            done
        };
        (done == 0).then_some((total.saturating_sub(free) / MIB) as u64)
    }

    fn context(&self, gpu: usize) -> Option<usize> {
        let mut contexts = self.contexts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(context) = contexts.get(&gpu) {
            return Some(*context);
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: it writes one address.
        let done = unsafe { (self.retain)(&mut context, self.device(gpu)?) };
        if done != 0 {
            return None;
        }
        contexts.insert(gpu, context as usize);
        Some(context as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A driver of one GPU with 1000 MiB, of which 600 are free in its context alone.
    const STUB: &str = "
        #include <stddef.h>
        static void *current;
        int cuInit(unsigned flags) { return flags; }
        int cuDeviceGet(int *device, int number) { *device = 7; return number == 0 ? 0 : 101; }
        int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1000ul << 20; return device != 7; }
        int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &current; return device != 7; }
        int cuCtxPushCurrent_v2(void *context) { current = context; return 0; }
        int cuCtxPopCurrent_v2(void **context) { *context = current; current = 0; return 0; }
        int cuMemGetInfo_v2(size_t *free, size_t *total) {
            *free = 600ul << 20; *total = 1000ul << 20;
            return current == &current ? 0 : 201;
        }";

    #[test]
    fn the_drivers_figures_are_read_in_the_gpus_context() {
        let folder = std::env::temp_dir().join(format!("sluice-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (source, library) = (folder.join("stub.c"), folder.join("libstub.so"));
        std::fs::write(&source, STUB).expect("written");
        let compiled = Command::new("cc").arg("-shared").arg("-fPIC").arg("-o").arg(&library).arg(&source).status();
        assert!(compiled.expect("a C compiler, as libtorch's bindings need").success());
        let driver = Driver::open(&library.display().to_string()).expect("it has all functions");
        assert_eq!((driver.total_mib(0), driver.total_mib(1)), (Some(1000), None));
        for _ in 0..2 {
            assert_eq!(driver.taken_mib(0), Some(400));
        }
        assert_eq!(driver.taken_mib(1), None, "there is one GPU");
        std::fs::remove_dir_all(&folder).expect("removed");
        assert!(Driver::open("libno-such-driver.so").is_none());
    }

    #[test]
    fn a_gpu_of_this_host_tells_its_memory() {
        let Some(total) = total_mib(0) else {
            println!("skipped: no GPU");
            return;
        };
        let taken = taken_mib(0).expect("it has a context");
        assert!(taken <= total, "{taken} of {total} MiB");
    }
}
