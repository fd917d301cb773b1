//! Copies programs of the host into the guest, with their libraries.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{archive::Archive, output_of};

/// The programs that the guest's init, injector and the tests call. Busybox provides everything else.
const TOOLS: &[&str] = &[
    "bash", "bpftool", "busybox", "cat", "dash", "date", "dmesg", "echo", "env", "ethtool",
    "false", "fping", "ip", "kill", "ls", "mount", "nsenter", "ping", "pkill", "prlimit", "ps",
    "rm", "runc", "seq", "setpriv", "setsid", "sh", "sleep", "stty", "tc", "timeout", "true",
    "umount", "unshare",
];

/// Optional tools.
const OPTIONAL: &[&str] = &["iperf3", "ipvsadm", "nft", "strace", "wg"];

/// Adds all tools.
pub fn add(archive: &mut Archive) -> Result<()> {
    for tool in TOOLS {
        let path = find(tool)
            .with_context(|| format!("{tool} is not here; scripts/setup-vm installs it"))?;
        add_program(archive, &path)?;
    }
    for path in OPTIONAL.iter().filter_map(|tool| find(tool)) {
        add_program(archive, &path)?;
    }
    Ok(())
}

fn add_program(archive: &mut Archive, path: &Path) -> Result<()> {
    let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    add_content(archive, path, &content)
}

/// Adds a program at its path on the host, with this content, and its libraries.
pub fn add_content(archive: &mut Archive, path: &Path, content: &[u8]) -> Result<()> {
    archive.program(&place(path)?, content);
    for library in libraries(path)? {
        let place = place(&library)?;
        if !archive.contains(&place) {
            let content = fs::read(&library)
                .with_context(|| format!("reading library {}", library.display()))?;
            archive.program(&place, &content);
        }
    }
    Ok(())
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::split_paths(&path);
    // Users' PATH lacks sbin.
    let system = ["/usr/sbin", "/usr/bin"].map(PathBuf::from);
    own.chain(system).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// Resolves links in the directory of a path (/bin is /usr/bin), but not the file itself.
fn place(path: &Path) -> Result<PathBuf> {
    let (folder, file) = path.parent().zip(path.file_name()).context("not the path of a file")?;
    let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
    Ok(folder.join(file))
}

/// The shared libraries of a program with the loader, by ldd(1).
fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // Static programs and scripts have none.
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in text.lines() {
        // "NAME => PATH (ADDRESS)", or "PATH (ADDRESS)".
        let line = line.rsplit_once("=> ").map_or(line, |(_, path)| path).trim();
        ensure!(line != "not found", "a library of {} is missing: {text}", path.display());
        if let Some((library, _)) = line.split_once(" (")
            && library.starts_with('/')
        {
            found.push(library.into());
        }
    }
    Ok(found)
}

/// A program without its symbols, which are ten times as large.
pub fn stripped(program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    output_of(Command::new("strip").arg("-o").arg(scratch).arg(program))?;
    let content = fs::read(scratch)?;
    fs::remove_file(scratch)?;
    Ok(content)
}
