//! Matrix products on a stream, by a cuBLAS that is loaded at run time.
#![expect(unsafe_code, reason = "calls cuBLAS")]

use libloading::Library;
use refrain_gpu_transfer::copier::Copier;
use refrain_gpu_transfer::cuda::{OwnStream, Priority};
use refrain_gpu_transfer::memory::Memory;
use std::ffi::{c_int, c_void};

const LIBRARIES: [&str; 2] = ["libcublas.so.13", "libcublas.so.12"];
/// `CUDA_R_16BF`, `CUBLAS_COMPUTE_32F` and `CUBLAS_GEMM_DEFAULT`.
const BF16: c_int = 14;
const COMPUTE_F32: c_int = 68;
const DEFAULT: c_int = -1;

type Gemm = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const f32,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// Two square matrices of bf16 and their product, on a stream of its own.
#[derive(Debug)]
pub struct Products {
    side: u32,
    stream: OwnStream,
    matrices: [Memory; 3],
    handle: *mut c_void,
    gemm: Gemm,
    _library: Library,
}

impl Products {
    /// `None` where there is no cuBLAS.
    pub fn new(copier: &Copier, side: u32) -> Option<Self> {
        let gpu = copier.gpu()?;
        // SAFETY: loads a library by its name, which is what is asked for.
        let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
        let _current = gpu.enter().expect("the context is there");
        let stream = OwnStream::new(gpu, Priority::Least).expect("a stream");
        // SAFETY: the types are those of cuBLAS since version 11.
        let create = unsafe {
            library.get::<unsafe extern "C" fn(*mut *mut c_void) -> c_int>(b"cublasCreate_v2\0")
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to the pointer.
        let created = unsafe { create.ok()?(&raw mut handle) };
        assert_eq!(created, 0, "cublasCreate");
        // SAFETY: as for `cublasCreate_v2`.
        let on_stream = unsafe {
            library.get::<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>(
                b"cublasSetStream_v2\0",
            )
        };
        let name = usize::try_from(stream.name().0).expect("an address");
        // SAFETY: the handle was created, and the stream lives as long.
        let set = unsafe { on_stream.ok()?(handle, std::ptr::with_exposed_provenance_mut(name)) };
        assert_eq!(set, 0, "cublasSetStream");
        // SAFETY: as for `cublasCreate_v2`.
        let gemm = *unsafe { library.get::<Gemm>(b"cublasGemmEx\0") }.ok()?;
        let matrices = [1, 2, 3].map(|seed| matrix(copier, side, seed));
        Some(Self { side, stream, matrices, handle, gemm, _library: library })
    }

    /// Floating-point operations of one product.
    pub fn operations(&self) -> f64 {
        2.0 * f64::from(self.side).powi(3)
    }

    /// Puts `count` products on the stream.
    pub fn enqueue(&self, copier: &Copier, count: u32) {
        let _current = copier.gpu().expect("made with one").enter().expect("the context is there");
        let side = c_int::try_from(self.side).expect("a few thousand");
        let [a, b, c] = self.matrices.each_ref().map(|matrix| {
            let address = usize::try_from(matrix.addresses().start).expect("an address");
            std::ptr::with_exposed_provenance_mut::<c_void>(address)
        });
        let (one, zero) = (1.0, 0.0);
        for _ in 0..count {
            // SAFETY: three matrices of this side and type on the current device.
            let answer = unsafe {
                (self.gemm)(
                    self.handle,
                    0,
                    0,
                    side,
                    side,
                    side,
                    &raw const one,
                    a,
                    BF16,
                    side,
                    b,
                    BF16,
                    side,
                    &raw const zero,
                    c,
                    BF16,
                    side,
                    COMPUTE_F32,
                    DEFAULT,
                )
            };
            assert_eq!(answer, 0, "cublasGemmEx");
        }
    }

    /// Waits for all that was enqueued.
    pub fn wait(&self) {
        self.stream.wait().expect("the products are made");
    }
}

/// Random numbers from -2 to -1 and from 1 to 2.
fn matrix(copier: &Copier, side: u32, seed: u64) -> Memory {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = (0..u64::from(side).pow(2))
        .flat_map(|_| {
            let bits = random.u16(..);
            (0x3f80 | (bits & 0x807f)).to_le_bytes()
        })
        .collect();
    let gpu = copier.gpu().expect("made with one");
    let length = u64::try_from(bytes.len()).expect("usize fits");
    let memory = Memory::device(gpu, length).expect("memory for a matrix");
    memory.write(0, &bytes).expect("it is written");
    memory
}
