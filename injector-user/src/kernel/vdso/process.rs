//! Access to one process through its open /proc directory, which is immune to reuse of the PID.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};
use procfs::{
    FromBufRead as _, FromRead as _, ProcError,
    process::{MMPermissions, MMapPath, MemoryMaps, Status},
};

use super::{Refusal, UnknownLayout};

/// An open directory /proc/PID.
#[derive(Debug)]
pub struct Process {
    folder: OwnedFd,
    pid: i32,
}

impl Process {
    /// Opens it.
    pub fn open(pid: i32) -> Result<Self, Refusal> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(format!("/proc/{pid}").as_str(), flags, Mode::empty())
            .map_err(|error| refused("opening its folder in /proc", error.into()))?;
        Ok(Self { folder, pid })
    }

    /// The IDs of its threads.
    pub fn threads(&self) -> Result<Vec<i32>, Refusal> {
        let failed = |error: Errno| refused("listing its threads", error.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder =
            nix::dir::Dir::openat(&self.folder, "task", flags, Mode::empty()).map_err(failed)?;
        let mut threads = Vec::new();
        for entry in folder.iter() {
            let name = entry.map_err(failed)?;
            threads
                .extend(name.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(threads)
    }

    /// Whether it has this thread.
    pub fn has(&self, thread: i32) -> bool {
        self.read(&format!("task/{thread}/stat")).is_ok()
    }

    /// The status of a thread.
    pub fn status(&self, thread: i32) -> Result<Status, Refusal> {
        const WHAT: &str = "reading the state of a thread";
        let file =
            self.read(&format!("task/{thread}/status")).map_err(|error| refused(WHAT, error))?;
        Status::from_read(file).map_err(|error| unreadable(WHAT, error))
    }

    /// The instruction pointer of a thread that sleeps in the kernel; `None` if it runs.
    pub fn sleeps_at(&self, thread: i32) -> Option<u64> {
        let mut text = String::new();
        self.read(&format!("task/{thread}/syscall")).ok()?.read_to_string(&mut text).ok()?;
        let pointer = text.split_whitespace().next_back()?.strip_prefix("0x")?;
        u64::from_str_radix(pointer, 16).ok()
    }

    /// Whether it has ended or is exiting.
    pub fn is_gone(&self) -> bool {
        self.status(self.pid).map_or(true, |status| status.state.starts_with(['Z', 'X']))
    }

    /// Its vDSO.
    pub fn vdso(&self) -> Result<Vdso, Refusal> {
        const WHAT: &str = "reading where its vDSO is";
        let maps = self.read("maps").map_err(|error| refused(WHAT, error))?;
        let maps = MemoryMaps::from_buf_read(BufReader::new(maps))
            .map_err(|error| unreadable(WHAT, error))?;
        let found = maps.iter().find(|map| map.pathname == MMapPath::Vdso);
        let Some(map) = found else {
            return Err(if self.is_gone() { Refusal::Gone } else { Refusal::NoVdso });
        };
        let (start, end) = map.address;
        if !map
            .perms
            .contains(MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE)
            || end - start > Vdso::MAX_LENGTH
        {
            return Err(UnknownLayout::Elf.into());
        }
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let memory = openat(self.folder.as_fd(), "mem", flags, Mode::empty())
            .map_err(|error| refused("opening its memory", error.into()))?;
        Ok(Vdso { memory: File::from(memory), start, length: (end - start) as usize })
    }

    fn read(&self, path: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(self.folder.as_fd(), path, flags, Mode::empty())?))
    }
}

/// Converts an error from /proc.
fn refused(what: &'static str, source: io::Error) -> Refusal {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Refusal::Gone,
        _ => Refusal::Failed { what, source },
    }
}

fn unreadable(what: &'static str, error: ProcError) -> Refusal {
    match error {
        ProcError::NotFound(_) => Refusal::Gone,
        ProcError::Io(source, _) => refused(what, source),
        other => Refusal::Failed { what, source: io::Error::other(other) },
    }
}

/// The vDSO in the memory of a process, valid until the process exits or executes a program.
#[derive(Debug)]
pub struct Vdso {
    memory: File,
    start: u64,
    length: usize,
}

impl Vdso {
    /// The maximum size of a vDSO.
    const MAX_LENGTH: u64 = 1 << 20;

    /// The address.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The whole image.
    pub fn image(&self) -> Result<Vec<u8>, Refusal> {
        let mut image = vec![0; self.length];
        self.read(0, &mut image)?;
        Ok(image)
    }

    /// Reads a part.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Refusal> {
        let at = self.address(offset, bytes.len())?;
        self.memory.read_exact_at(bytes, at).map_err(inaccessible)
    }

    /// Writes a part, for this process only: the page becomes a private copy, though not writable.
    ///
    /// The kernel copies each page at once.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Refusal> {
        let at = self.address(offset, bytes.len())?;
        self.memory.write_all_at(bytes, at).map_err(inaccessible)
    }

    /// The address of a part. Checks the bounds, since offsets may come from the process's memory: it
    /// could otherwise direct accesses to mappings that block.
    fn address(&self, offset: usize, length: usize) -> Result<u64, Refusal> {
        let is_within = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if is_within { Ok(self.start + offset as u64) } else { Err(UnknownLayout::Elf.into()) }
    }
}

/// Converts an error of accessing memory. Memory of an exited process yields 0 bytes; a removed mapping
/// is an error.
fn inaccessible(source: io::Error) -> Refusal {
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero, _)
        | (_, Some(libc::EIO | libc::ESRCH | libc::EFAULT)) => Refusal::Gone,
        _ => Refusal::Failed { what: "accessing its memory", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_accessed_but_the_vdso() {
        let pid = std::process::id().cast_signed();
        let vdso = Process::open(pid).and_then(|process| process.vdso()).expect("it has one");
        let end = vdso.length;
        let mut byte = [0];
        assert!(vdso.read(end - 1, &mut byte).is_ok());
        for offset in [end, end + 4096, usize::MAX] {
            let read = vdso.read(offset, &mut byte);
            assert!(matches!(read, Err(Refusal::Unfit(_))), "{offset:#x}: {read:?}");
        }
        let written = vdso.write(end - 1, &[0; 2]);
        assert!(matches!(written, Err(Refusal::Unfit(_))), "{written:?}");
    }
}
