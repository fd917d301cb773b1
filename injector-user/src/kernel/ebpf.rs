//! Access to the programs and maps of a loaded object, by name.

use std::{io, ops::AddAssign, thread};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{Program, ProgramError, RawTracePoint},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::chroot,
};

use super::{KernelError, mapped::Mapped};

/// A loader for an object without CO-RE relocations, which does not depend on the kernel's types.
///
/// `EbpfLoader::new` (aya 0.14) decodes all of the kernel's BTF, which takes over 10 ms, unless the file does not exist.
/// So it is called by a thread in whose root directory it does not.
pub(super) fn loader() -> EbpfLoader<'static> {
    let without_types = || {
        // Other threads keep their root directory.
        if unshare(CloneFlags::CLONE_FS).is_ok() {
            // It only takes longer.
            let _ = chroot("/proc");
        }
        EbpfLoader::new()
    };
    let loader = thread::Builder::new().spawn(without_types).ok();
    let mut loader = loader.and_then(|thread| thread.join().ok()).unwrap_or_default();
    loader.btf(None);
    loader
}

/// A map.
pub(super) fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    let map = ebpf.map_mut(name).ok_or(KernelError::Missing(name))?;
    map.try_into().map_err(|source| map_error(name, source))
}

/// Takes a map out of the object.
pub(super) fn take_map<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
    map.try_into().map_err(|source| map_error(name, source))
}

/// Runs `work` on an array.
pub(super) fn array<T: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    work: impl FnOnce(&mut Array<&mut MapData, T>) -> Result<(), MapError>,
) -> Result<(), KernelError> {
    let mut array = map(ebpf, name)?;
    work(&mut array).map_err(|source| map_error(name, source))
}

/// Maps an array of `length` values into memory.
pub(super) fn mapped<T: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    length: u32,
) -> Result<Mapped<T>, KernelError> {
    let Some(Map::Array(map)) = ebpf.map_mut(name) else {
        return Err(KernelError::Missing(name));
    };
    Mapped::new(map.fd(), length).map_err(|source| KernelError::Mapping { map: name, source })
}

/// The sum over all CPUs of the single element of a per-CPU array.
pub(super) fn sum<T: Pod + Default + AddAssign>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    let array: PerCpuArray<&mut MapData, T> = map(ebpf, name)?;
    let values = array.get(&0, 0).map_err(|source| map_error(name, source))?;
    let mut sum = T::default();
    values.iter().for_each(|&value| sum += value);
    Ok(sum)
}

/// Converts the error of a map operation.
pub(super) fn map_error(map: &'static str, source: MapError) -> KernelError {
    KernelError::Map { map, source: source.into() }
}

/// A program of a type.
pub(super) fn program<'a, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut T, KernelError>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    program.try_into().map_err(|_| KernelError::Missing(name))
}

/// Loads and attaches the program of a raw tracepoint. The object keeps its link.
pub(super) fn attach_raw_tracepoint(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
) -> Result<(), KernelError> {
    let program: &mut RawTracePoint = program(ebpf, name)?;
    load(name, || program.load())?;
    let attached = program.attach(tracepoint).map(drop);
    attached.map_err(|source| KernelError::Program { program: name.into(), source: source.into() })
}

/// Loads a program. An error contains the last lines of the verifier's log.
pub(super) fn load(
    program: &str,
    load: impl FnOnce() -> Result<(), ProgramError>,
) -> Result<(), KernelError> {
    load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            refused(program, &verifier_log.to_string(), io_error)
        }
        error => KernelError::Program { program: program.into(), source: error.into() },
    })
}

/// The error for a program that the verifier refused.
pub(super) fn refused(program: &str, log: &str, source: io::Error) -> KernelError {
    tracing::debug!(program, log, "refused");
    // The log may have thousands of lines; the last ones name the problem.
    let mut lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.reverse();
    KernelError::Refused { program: program.into(), reason: lines.join("; "), source }
}
