//! The file system itself: every call goes to the directory below it, and asks first what fails.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the kernel's numbers have other widths, and fit"
)]

use super::{Faults, Operation, Part, part_of};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// The kernel asks again each time: nothing here is worth remembering.
const TTL: Duration = Duration::ZERO;

pub(super) struct Files {
    root: PathBuf,
    asynchronous: bool,
    pub(super) faults: Arc<Mutex<Faults>>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// By inode number; the root is 1.
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    open: HashMap<u64, (Arc<File>, PathBuf)>,
    next: u64,
}

impl Files {
    pub(super) fn new(root: &Path, asynchronous: bool, faults: Arc<Mutex<Faults>>) -> Self {
        let names = Mutex::new(Names { next: 2, ..Names::default() });
        Self { root: root.into(), asynchronous, faults, names }
    }

    fn path(&self, number: INodeNo) -> PathBuf {
        if number.0 == 1 {
            return self.root.clone();
        }
        self.names.lock().unwrap().paths.get(&number.0).cloned().unwrap_or_default()
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> PathBuf {
        self.path(parent).join(name)
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let found = fs::symlink_metadata(path)?;
        let mut names = self.names.lock().unwrap();
        let number = if path == self.root {
            1
        } else if let Some(number) = names.numbers.get(path) {
            *number
        } else {
            let number = names.next;
            names.next += 1;
            names.paths.insert(number, path.into());
            names.numbers.insert(path.into(), number);
            number
        };
        Ok(attributes(number, &found))
    }

    fn opened(&self, file: File, path: PathBuf) -> (FileHandle, FopenFlags) {
        let is_segment = part_of(&path) == Some(Part::Data);
        let mut names = self.names.lock().unwrap();
        let handle = names.next;
        names.next += 1;
        names.open.insert(handle, (Arc::new(file), path));
        let flags = if is_segment { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        (FileHandle(handle), flags)
    }

    fn handle(&self, handle: FileHandle) -> Option<(Arc<File>, PathBuf)> {
        self.names.lock().unwrap().open.get(&handle.0).cloned()
    }

    /// Two files take each other's name: a change as a write is.
    fn exchange(&self, one: &Path, other: &Path, reply: ReplyEmpty) {
        match self.faults.lock().unwrap().pass(1) {
            Some(1) => {}
            Some(_) | None => return reply.error(Errno::EIO),
        }
        let root = rustix::fs::CWD;
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let exchanged = rustix::fs::renameat_with(root, one, root, other, flags);
        if exchanged.is_ok() {
            let mut names = self.names.lock().unwrap();
            let numbers = [one, other].map(|path| names.numbers.remove(path));
            for (number, path) in numbers.into_iter().zip([other, one]) {
                if let Some(number) = number {
                    names.paths.insert(number, path.into());
                    names.numbers.insert(path.into(), number);
                }
            }
        }
        answer(exchanged.map_err(Into::into), reply);
    }
}

fn attributes(number: u64, found: &Metadata) -> FileAttr {
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64);
    FileAttr {
        ino: INodeNo(number),
        size: found.len(),
        blocks: found.blocks(),
        atime: time(found.atime()),
        mtime: time(found.mtime()),
        ctime: time(found.ctime()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(found.file_type()).unwrap_or(FileType::RegularFile),
        perm: (found.mode() & 0o7777) as u16,
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(5))
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.asynchronous {
            // A kernel that does not know it holds the caller all the same.
            let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.is_shut() {
            return self.refuse(move |errno| reply.error(errno));
        }
        match self.attributes(&self.child(parent, name)) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if self.is_shut() {
            return self.refuse(move |errno| reply.error(errno));
        }
        match self.attributes(&self.path(number)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(number);
        let changed = || {
            if let Some(mode) = mode {
                fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
            }
            if let Some(size) = size {
                File::options().write(true).open(&path)?.set_len(size)?;
            }
            self.attributes(&path)
        };
        match changed() {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let path = self.child(parent, name);
        let made = fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777)))
            .and_then(|()| self.attributes(&path));
        match made {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        self.names.lock().unwrap().numbers.remove(&path);
        answer(fs::remove_file(path), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        self.names.lock().unwrap().numbers.remove(&path);
        answer(fs::remove_dir(path), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.child(parent, name), self.child(newparent, newname));
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return self.exchange(&from, &to, reply);
        }
        let renamed = fs::rename(&from, &to);
        if renamed.is_ok() {
            let mut names = self.names.lock().unwrap();
            names.numbers.remove(&to);
            if let Some(number) = names.numbers.remove(&from) {
                names.paths.insert(number, to.clone());
                names.numbers.insert(to, number);
            }
        }
        answer(renamed, reply);
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.is_shut() {
            return self.refuse(move |errno| reply.error(errno));
        }
        let path = self.path(number);
        let write = flags.0 & 0o3 != 0;
        match File::options().read(true).write(write).open(&path) {
            Ok(file) => {
                let (handle, flags) = self.opened(file, path);
                reply.opened(handle, flags);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let path = self.child(parent, name);
        let exclusive = flags & 0o200 != 0;
        let mut options = File::options();
        options.read(true).write(true).mode(mode & 0o7777);
        let file = if exclusive {
            options.create_new(true).open(&path)
        } else {
            options.create(true).truncate(false).open(&path)
        };
        match file.and_then(|file| Ok((file, self.attributes(&path)?))) {
            Ok((file, found)) => {
                let (handle, flags) = self.opened(file, path);
                reply.created(&TTL, &found, Generation(0), handle, flags);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((file, path)) = self.handle(handle) else { return reply.error(Errno::EBADF) };
        self.faulty(&path, Operation::Read, move |fault| {
            if let Some(fault) = fault {
                return reply.error(fault);
            }
            let mut bytes = vec![0; size as usize];
            match read_up_to(&file, &mut bytes, offset) {
                Ok(found) => reply.data(&bytes[..found]),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((file, path)) = self.handle(handle) else { return reply.error(Errno::EBADF) };
        let mut data = data.to_vec();
        if part_of(&path) == Some(Part::Data) {
            match self.faults.lock().unwrap().pass(data.len()) {
                Some(done) if done == data.len() => {}
                Some(done) => {
                    data.truncate(done);
                    let _ = file.write_all_at(&data, offset);
                    return reply.error(Errno::EIO);
                }
                None => return reply.error(Errno::EIO),
            }
        }
        self.faulty(&path, Operation::Write, move |fault| {
            if let Some(fault) = fault {
                return reply.error(fault);
            }
            match file.write_all_at(&data, offset) {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some((_, path)) = self.handle(handle) else { return reply.error(Errno::EBADF) };
        if part_of(&path) == Some(Part::Data) {
            self.faults.lock().unwrap().unsynced = 0;
        }
        self.faulty(&path, Operation::Sync, move |fault| match fault {
            Some(fault) => reply.error(fault),
            None => reply.ok(),
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.faults.lock().unwrap().unsynced = 0;
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.names.lock().unwrap().open.remove(&handle.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let path = self.path(number);
        let Ok(entries) = fs::read_dir(&path) else { return reply.error(Errno::EIO) };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for (index, name) in names.iter().enumerate().skip(offset as usize) {
            let Ok(found) = self.attributes(&path.join(name)) else { continue };
            if reply.add(found.ino, index as u64 + 1, found.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 22, 1 << 22, 1 << 22, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let Some((file, _)) = self.handle(handle) else { return reply.error(Errno::EBADF) };
        let reserved =
            rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), offset, length);
        answer(reserved.map_err(Into::into), reply);
    }
}

fn answer(outcome: io::Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut found = 0;
    while found < bytes.len() {
        match file.read_at(&mut bytes[found..], offset + found as u64)? {
            0 => break,
            more => found += more,
        }
    }
    Ok(found)
}
