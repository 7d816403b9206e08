//! The CUDA driver: the only home of `cudarc`.
//!
//! `libcuda` is loaded when a GPU is asked for. All work is done in the device's primary context,
//! the one that PyTorch and the CUDA runtime use, made current for the time of a call and then
//! taken off again: the caller's thread is left as it was.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use crate::arena::Mapping;
use cudarc::driver::sys::{self, CUresult};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use thiserror::Error;

mod batch;
mod calibration;
mod event;
mod kernel;
mod memory;
mod registered;
mod stream;
mod submitter;

use batch::BatchedCopy;
pub use calibration::{Calibration, Trial};
pub(crate) use event::Event;
use kernel::CopyKernel;
pub use memory::DeviceMemory;
pub(crate) use registered::Registered;
pub use stream::{OwnStream, Priority};
pub(crate) use submitter::Submitter;

/// The first driver that understands the embedded kernel.
const DRIVER_MIN: i32 = 12_000;

/// How copies are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Whichever was faster for the size of the copies when the GPU was opened.
    #[default]
    Measured,
    /// The copy engine, many copies a call.
    Batched,
    /// A kernel that reads and writes the mapped arena.
    Kernel,
}

/// Why a GPU cannot be used.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CudaError {
    #[error("no CUDA driver on this machine: libcuda.so.1 cannot be loaded")]
    NoDriver,
    #[error("CUDA driver of version {found}; {needed} or later is needed")]
    OldDriver { found: i32, needed: i32 },
    #[error("no GPU {ordinal}: there are {found}")]
    NoGpu { ordinal: u32, found: i32 },
    #[error("GPU {ordinal} cannot {what}")]
    Unsupported { ordinal: u32, what: &'static str },
    #[error("bytes {offset}+{length} lie outside {bytes} of the GPU's memory")]
    OutOfRange { offset: u64, length: usize, bytes: u64 },
    #[error("{call} answers {code}")]
    Call { call: &'static str, code: Code },
}

/// What a call of the driver answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(CUresult);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// An error for every answer but success.
fn check(call: &'static str, answer: CUresult) -> Result<(), CudaError> {
    if answer == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Call { call, code: Code(answer) })
}

/// A GPU and what copies on it.
#[derive(Debug)]
pub struct Gpu {
    context: Context,
    name: String,
    kernel: CopyKernel,
    batched: Option<BatchedCopy>,
    calibration: OnceLock<Calibration>,
}

impl Gpu {
    pub(crate) fn open(ordinal: u32, way: Way) -> Result<Arc<Self>, CudaError> {
        let context = Context::open(ordinal)?;
        let name = context.name()?;
        let current = context.enter()?;
        let (kernel, batched) = (CopyKernel::load()?, BatchedCopy::find());
        drop(current);
        let gpu = Self { context, name, kernel, batched, calibration: OnceLock::new() };
        let gpu = Arc::new(gpu);
        let calibration = match (way, gpu.batched) {
            (Way::Kernel, _) | (Way::Measured, None) => Calibration::kernel_alone(),
            (Way::Batched, Some(_)) => Calibration::batched_alone(),
            (Way::Batched, None) => {
                let what = "copy in batches: its driver is older than CUDA 12.8";
                return Err(CudaError::Unsupported { ordinal, what });
            }
            (Way::Measured, Some(batched)) => Calibration::measure(&gpu, batched)?,
        };
        gpu.calibration.get_or_init(|| calibration);
        Ok(gpu)
    }

    pub fn ordinal(&self) -> u32 {
        self.context.ordinal
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was measured when it was opened, and what follows from it.
    pub fn calibration(&self) -> &Calibration {
        self.calibration.get().expect("measured before anybody has it")
    }

    pub(crate) fn register(
        self: &Arc<Self>,
        arena: &Arc<Mapping>,
        writable: bool,
    ) -> Result<Registered, CudaError> {
        Registered::new(self, arena, writable)
    }

    /// Makes its context current on this thread, until the guard is dropped.
    pub fn enter(&self) -> Result<Current<'_>, CudaError> {
        self.context.enter()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            self.kernel.unload();
        }
    }
}

/// The primary context of a device.
#[derive(Debug)]
struct Context {
    ordinal: u32,
    device: sys::CUdevice,
    primary: sys::CUcontext,
}

// SAFETY: a context may be made current on any thread, and on several at once.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

/// While it lives, a context is current on this thread.
#[derive(Debug)]
pub struct Current<'a>(PhantomData<(&'a Context, *const ())>);

impl Context {
    fn open(ordinal: u32) -> Result<Self, CudaError> {
        // SAFETY: loads a library by its name, which is what asking for a GPU is about.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        // SAFETY: takes no pointer; zero is the only flag there is.
        check("cuInit", unsafe { sys::cuInit(0) })?;
        let mut found = 0;
        // SAFETY: writes to the integer.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut found) })?;
        if found < DRIVER_MIN {
            return Err(CudaError::OldDriver { found, needed: DRIVER_MIN });
        }
        // SAFETY: writes to the integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut found) })?;
        let number = i32::try_from(ordinal).ok().filter(|number| *number < found);
        let number = number.ok_or(CudaError::NoGpu { ordinal, found })?;
        let (mut device, mut primary) = (0, std::ptr::null_mut());
        // SAFETY: writes to the integer.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
        // SAFETY: writes to the pointer; given back when this is dropped.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut primary, device) };
        check("cuDevicePrimaryCtxRetain", retained)?;
        let context = Self { ordinal, device, primary };
        context.check_abilities()?;
        Ok(context)
    }

    fn check_abilities(&self) -> Result<(), CudaError> {
        use sys::CUdevice_attribute as Attribute;
        let addresses = Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM;
        let read_only = Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
        for (attribute, what) in [
            (addresses, "use registered memory at its own address"),
            (read_only, "register memory that is mapped for reading alone"),
        ] {
            let mut has = 0;
            // SAFETY: writes to the integer; the device is one.
            let answer = unsafe { sys::cuDeviceGetAttribute(&raw mut has, attribute, self.device) };
            check("cuDeviceGetAttribute", answer)?;
            if has == 0 {
                return Err(CudaError::Unsupported { ordinal: self.ordinal, what });
            }
        }
        Ok(())
    }

    fn name(&self) -> Result<String, CudaError> {
        let mut bytes = [0_u8; 128];
        // SAFETY: writes at most the 127 bytes that it is told of, with a closing zero.
        let answer = unsafe { sys::cuDeviceGetName(bytes.as_mut_ptr().cast(), 127, self.device) };
        check("cuDeviceGetName", answer)?;
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    fn enter(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: the context is retained for as long as `self` lives, and taken off before.
        check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.primary) })?;
        Ok(Current(PhantomData))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once. What was made in it is gone: all of it keeps an
        // `Arc` of the `Gpu`, or is dropped before this field. At the end of a process the driver
        // may refuse, and then there is nothing to release.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: writes to the pointer; this thread pushed a context, and whatever was pushed
        // since has been taken off, as guards are dropped in reverse.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}
