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
    /// New zeroed memory, of huge pages where the system has enough of them set aside. Elsewhere
    /// [`Region::populate`] asks for them.
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
            let huge = huge.map_err(create);
            if let Ok(mapping) = huge.and_then(|fd| Self::new_sealed(fd, bytes, Self::map_anywhere))
            {
                return Ok(mapping);
            }
        }
        let fd = rustix::fs::memfd_create(name, flags).map_err(create)?;
        // What has no room for a huge page may lie anywhere.
        Self::new_sealed(fd, bytes, if bytes < HUGE_PAGE { Self::map_anywhere } else { Self::map })
    }

    fn new_sealed(
        fd: OwnedFd,
        bytes: u64,
        map: fn(OwnedFd, u64, Access) -> Result<Self, ArenaError>,
    ) -> Result<Arc<Self>, ArenaError> {
        let create = |errno: Errno| ArenaError::Create { bytes, source: errno.into() };
        rustix::fs::ftruncate(&fd, bytes).map_err(create)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(create)?;
        Ok(Arc::new(map(fd, bytes, Access::ReadWrite)?))
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

    /// As the kernel places it, which it does on huge pages of its own accord where the memory is of
    /// them. It fails where too few are set aside, and then must have touched nothing: no range was
    /// given up for it.
    fn map_anywhere(fd: OwnedFd, bytes: u64, access: Access) -> Result<Self, ArenaError> {
        let map = |errno: Errno| ArenaError::Map { bytes, source: errno.into() };
        let (protection, flags) = (protection(access), MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let base =
            unsafe { mm::mmap(std::ptr::null_mut(), length(bytes), protection, flags, &fd, 0) };
        let base = base.map_err(map)?;
        let base = NonNull::new(base.cast()).expect("the kernel maps nothing at null");
        Ok(Self { base, bytes, access, fd })
    }

    fn map(fd: OwnedFd, bytes: u64, access: Access) -> Result<Self, ArenaError> {
        let protection = protection(access);
        let map = |errno: Errno| ArenaError::Map { bytes, source: errno.into() };
        let reserved = Reserved::new(bytes).map_err(map)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range was reserved just now, and nothing else is in it.
        let base = unsafe {
            mm::mmap(reserved.aligned.as_ptr(), length(bytes), protection, flags, &fd, 0)
        };
        // Also where it failed: that may have taken the reservation away, and another thread's memory
        // may lie there by now. A range that nobody gives back costs addresses alone.
        reserved.keep(bytes);
        let base =
            NonNull::new(base.map_err(map)?.cast()).expect("the kernel maps nothing at null");
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

fn protection(access: Access) -> ProtFlags {
    match access {
        Access::ReadOnly => ProtFlags::READ,
        Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    }
}

/// Addresses that nothing is at, for a mapping that begins on a huge page: where addresses and
/// offsets of the file do not have that in common, no huge page can be mapped.
struct Reserved {
    start: *mut c_void,
    aligned: NonNull<c_void>,
    bytes: usize,
}

impl Reserved {
    fn new(bytes: u64) -> Result<Self, Errno> {
        let bytes = length(bytes).checked_add(length(HUGE_PAGE)).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start =
            unsafe { mm::mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::empty(), flags)? };
        let aligned = start.map_addr(|address| address.next_multiple_of(length(HUGE_PAGE)));
        let aligned = NonNull::new(aligned).expect("the kernel maps nothing at null");
        Ok(Self { start, aligned, bytes })
    }

    /// Gives all back but the first `bytes` from `aligned` on, which are another mapping by now.
    fn keep(self, bytes: u64) {
        let before = self.aligned.addr().get() - self.start.addr();
        let after = before + length(bytes).next_multiple_of(length(PAGE_SIZE));
        self.unmap(after, self.bytes - after);
        self.unmap(0, before);
    }

    fn unmap(&self, from: usize, bytes: usize) {
        if bytes > 0 {
            let start = self.start.wrapping_byte_add(from);
            // SAFETY: the range is of the reservation, and nothing was mapped over it.
            let unmapped = unsafe { mm::munmap(start, bytes) };
            debug_assert!(unmapped.is_ok(), "an own reservation unmaps");
        }
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

    /// Makes it resident, of huge pages where the kernel can gather them: a device takes larger
    /// pieces at once of such memory. It may be in use meanwhile; contents do not change.
    pub fn populate(&self) -> io::Result<()> {
        // What is resident already, if only in part, is what the kernel gathers huge pages from.
        let first = self.offset.next_multiple_of(HUGE_PAGE);
        let end = (self.offset + self.length) / HUGE_PAGE * HUGE_PAGE;
        for offset in (first..end).step_by(length(HUGE_PAGE)) {
            self.slice(offset - self.offset, PAGE_SIZE).touch()?;
        }
        if first < end {
            // Where it cannot, for want of memory or by an old kernel, ordinary pages do.
            let _ = self.slice(first - self.offset, end - first).gather();
        }
        self.touch()
    }

    /// Makes it resident, in pages as they come.
    fn touch(&self) -> io::Result<()> {
        // SAFETY: the range lies in the mapping, and the advice changes no contents.
        let populated = unsafe {
            mm::madvise(self.pointer().cast(), length(self.length), Advice::LinuxPopulateWrite)
        };
        Ok(populated?)
    }

    /// Has whole huge pages made of it, also where transparent ones are off for shared memory.
    fn gather(&self) -> io::Result<()> {
        let start = self.pointer().cast();
        // SAFETY: the range lies in the mapping, and the advice changes no contents.
        let gathered = unsafe { libc::madvise(start, length(self.length), libc::MADV_COLLAPSE) };
        if gathered == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: the offset lies in the mapping, checked when the region was made.
        unsafe { self.mapping.base.as_ptr().add(length(self.offset)) }
    }
}

const HUGE_PAGE: u64 = 2 << 20;

/// Whether the kernel gathers huge pages from ordinary ones of shared memory, where none are set
/// aside: from Linux 6.1 on.
pub fn gathers_huge_pages() -> bool {
    let fd = rustix::fs::memfd_create(
        "refrain-huge-page",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    );
    let mapping = fd.ok().and_then(|fd| Mapping::new_sealed(fd, HUGE_PAGE, Mapping::map).ok());
    let page = mapping.and_then(|mapping| mapping.region(0, HUGE_PAGE).ok());
    page.is_some_and(|page| page.touch().is_ok() && page.gather().is_ok())
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}

#[cfg(test)]
mod tests;
