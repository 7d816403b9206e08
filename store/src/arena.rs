//! Host memory shared with other processes, and frames in it.
//!
//! A [`Mapping`] is a memfd mapped shared, sealed so that nobody can shrink it under us: touching
//! it never faults. Each mapping has one writer: the sidecar for the load arena, the worker for its
//! session arena. A [`Frame`] is a block-sized piece of a mapping that its holder alone fills.
#![expect(unsafe_code, reason = "maps memory that the device and other processes share")]

use crate::geometry::PAGE_SIZE;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use thiserror::Error;

mod frames;

pub use frames::{Arena, Frame};

/// Why memory is not shared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArenaError {
    #[error("create an arena of {bytes} bytes")]
    Create { bytes: u64, source: io::Error },
    #[error("map an arena of {bytes} bytes")]
    Map { bytes: u64, source: io::Error },
    #[error("share an arena")]
    Share { source: io::Error },
    #[error("arena is not sealed against shrinking: whoever made it could pull it away")]
    Unsealed,
    #[error("arena has {found} bytes, {declared} were declared")]
    Short { found: u64, declared: u64 },
    #[error("bytes {offset}+{length} lie outside an arena of {bytes}")]
    OutOfRange { offset: u64, length: u64, bytes: u64 },
}

/// What this process may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Memory behind a memfd.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: u64,
    access: Access,
    fd: OwnedFd,
}

// SAFETY: the memory is shared between processes anyway; who may write which bytes when is kept by
// `Region`, whose writers say so.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New zeroed memory, of huge pages where the system has enough of them set aside.
    pub fn create(name: &str, bytes: u64) -> Result<Arc<Self>, ArenaError> {
        let create = |errno: Errno| ArenaError::Create { bytes, source: errno.into() };
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(create(Errno::INVAL));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if bytes.is_multiple_of(HUGE_PAGE) {
            // A hugetlb mapping reserves its pages, so that one that succeeds never faults for lack
            // of them; where too few are set aside, ordinary pages do.
            let huge = rustix::fs::memfd_create(name, flags | MemfdFlags::HUGETLB);
            if let Ok(mapping) = huge.map_err(create).and_then(|fd| Self::new_sealed(fd, bytes)) {
                return Ok(mapping);
            }
        }
        Self::new_sealed(rustix::fs::memfd_create(name, flags).map_err(create)?, bytes)
    }

    fn new_sealed(fd: OwnedFd, bytes: u64) -> Result<Arc<Self>, ArenaError> {
        let create = |errno: Errno| ArenaError::Create { bytes, source: errno.into() };
        rustix::fs::ftruncate(&fd, bytes).map_err(create)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(create)?;
        let mapping = Self::map(fd, bytes, Access::ReadWrite)?;
        // Advice: transparent huge pages of shared memory are off in most kernels.
        // SAFETY: the range is the mapping itself, and the advice changes no contents.
        let _ =
            unsafe { mm::madvise(mapping.base_pointer(), length(bytes), Advice::LinuxHugepage) };
        Ok(Arc::new(mapping))
    }

    /// Maps what another process shared, if it cannot be shrunk and has the bytes it should.
    pub fn open(fd: OwnedFd, bytes: u64, access: Access) -> Result<Arc<Self>, ArenaError> {
        let map = |errno: Errno| ArenaError::Map { bytes, source: errno.into() };
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(map)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(ArenaError::Unsealed);
        }
        let found = u64::try_from(rustix::fs::fstat(&fd).map_err(map)?.st_size).unwrap_or(0);
        if bytes == 0 || found < bytes {
            return Err(ArenaError::Short { found, declared: bytes });
        }
        Ok(Arc::new(Self::map(fd, bytes, access)?))
    }

    fn map(fd: OwnedFd, bytes: u64, access: Access) -> Result<Self, ArenaError> {
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let base = unsafe {
            mm::mmap(std::ptr::null_mut(), length(bytes), protection, MapFlags::SHARED, &fd, 0)
        };
        let base = base.map_err(|errno| ArenaError::Map { bytes, source: errno.into() })?;
        let base = NonNull::new(base.cast()).expect("the kernel maps nothing at null");
        Ok(Self { base, bytes, access, fd })
    }

    /// A descriptor for another process, which can map it for reading alone.
    pub fn share_read_only(&self) -> Result<OwnedFd, ArenaError> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| ArenaError::Share { source: errno.into() })
    }

    /// A descriptor with all rights of this one.
    pub fn share(&self) -> Result<OwnedFd, ArenaError> {
        self.fd.try_clone().map_err(|source| ArenaError::Share { source })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn bytes_len(&self) -> u64 {
        self.bytes
    }

    pub fn region(self: &Arc<Self>, offset: u64, length: u64) -> Result<Region, ArenaError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.bytes => {
                Ok(Region { mapping: Arc::clone(self), offset, length })
            }
            _ => Err(ArenaError::OutOfRange { offset, length, bytes: self.bytes }),
        }
    }

    pub fn access(&self) -> Access {
        self.access
    }

    /// Where it begins in this process, for those who copy by address.
    pub fn address(&self) -> u64 {
        let address = self.base.as_ptr().expose_provenance();
        u64::try_from(address).expect("addresses have 64 bits")
    }

    pub(crate) fn base_pointer(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: every `Region` holds the mapping by `Arc`, so that none is left to point into it.
        let unmapped = unsafe { mm::munmap(self.base_pointer(), length(self.bytes)) };
        debug_assert!(unmapped.is_ok(), "an own mapping unmaps");
    }
}

/// A part of a mapping, which it keeps alive.
///
/// Clones name the same bytes. Whoever writes (the device during a read, the holder of a fresh
/// frame, the worker in its slot) is the only one who uses them meanwhile; a worker that breaks
/// this rule in its own session arena gives bytes that fail their checksum, and nothing worse.
#[derive(Clone, Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    offset: u64,
    length: u64,
}

impl Region {
    /// Bytes from the start of the mapping.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// A part of this part.
    #[must_use]
    pub fn slice(&self, offset: u64, length: u64) -> Self {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "{offset}+{length} in {}", self.length);
        Self { mapping: Arc::clone(&self.mapping), offset: self.offset + offset, length }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping (checked when it was made), which the `Arc` keeps;
        // nobody writes it meanwhile, by the rule of the type.
        unsafe { std::slice::from_raw_parts(self.pointer(), length(self.length)) }
    }

    pub fn copy_from(&self, at: u64, source: &[u8]) {
        self.fill_with(|bytes| {
            bytes[length(at)..][..source.len()].copy_from_slice(source);
        });
    }

    pub fn fill_with<R>(&self, write: impl FnOnce(&mut [u8]) -> R) -> R {
        assert_eq!(self.mapping.access, Access::ReadWrite, "the mapping is for reading");
        // SAFETY: as for `bytes`; the mapping is writable, and the caller is the only one who uses
        // the range meanwhile, by the rule of the type.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.pointer(), length(self.length)) };
        write(bytes)
    }

    /// Has the kernel give all pages now, so that nobody waits for them later.
    pub(crate) fn populate(&self) -> io::Result<()> {
        // SAFETY: the range lies in the mapping, and the advice changes no contents.
        let populated = unsafe {
            mm::madvise(self.pointer().cast(), length(self.length), Advice::LinuxPopulateWrite)
        };
        Ok(populated?)
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: the offset lies in the mapping, checked when the region was made.
        unsafe { self.mapping.base.as_ptr().add(length(self.offset)) }
    }
}

const HUGE_PAGE: u64 = 2 << 20;

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}

#[cfg(test)]
mod tests;
