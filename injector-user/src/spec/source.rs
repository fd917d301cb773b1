//! Reads user-supplied files: whole, up to a maximum size, and without blocking on other processes.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use nix::sys::statfs::{FsType, fstatfs};

/// Default maximum file size.
pub const MAX_BYTES: u64 = 64 << 20;

/// Magic number of the file system of anonymous pipes (`include/uapi/linux/magic.h`).
const PIPEFS_MAGIC: FsType = FsType(0x5049_5045);

/// Opens a regular file, or a pipe passed by a shell: `<(…)`, `/dev/stdin`.
///
/// Refuses all other files without opening them. A named pipe may block forever without a writer,
/// and opening a device may have side effects.
pub fn open(path: &Path) -> io::Result<File> {
    let found = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    let kind = found.metadata()?.file_type();
    let is_handed_on = || fstatfs(&found).is_ok_and(|it| it.filesystem_type() == PIPEFS_MAGIC);
    let other = if kind.is_file() || (kind.is_fifo() && is_handed_on()) {
        return File::open(format!("/proc/self/fd/{}", found.as_raw_fd()));
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {other}; a regular file is required"),
    ))
}

/// Reads an open file, up to `limit` bytes.
pub fn read_bytes(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let size = if limit >= 1 << 20 {
            format!("{} MiB", limit >> 20)
        } else {
            format!("{} KiB", limit >> 10)
        };
        let message = format!("it is larger than {size}, which is the limit");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Opens and reads UTF-8 text, up to `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<String> {
    let bytes = read_bytes(&open(path)?, limit)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn nothing_but_files_and_pipes_without_a_name_is_read() {
        let folder = std::env::temp_dir().join(format!("injector-source-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let (pipe, socket, link) =
            (folder.join("pipe"), folder.join("socket"), folder.join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        std::os::unix::fs::symlink("/dev/zero", &link).expect("a link");
        for (path, expected) in [
            (pipe.as_path(), "it is a named pipe; a regular file is required"),
            (&socket, "it is a socket; a regular file is required"),
            (&folder, "it is a directory; a regular file is required"),
            (&link, "it is a device; a regular file is required"),
            (Path::new("/dev/null"), "it is a device; a regular file is required"),
        ] {
            let error = read(path, MAX_BYTES).expect_err("it is refused");
            assert_eq!(error.to_string(), expected, "{}", path.display());
        }
        fs::remove_dir_all(&folder).expect("it is there");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"text").expect("room");
        drop(writer);
        let handed_on = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(read(Path::new(&handed_on), MAX_BYTES).expect("text"), "text");
    }

    #[test]
    fn sizes_are_limited() {
        let path = std::env::temp_dir().join(format!("injector-size-{}", std::process::id()));
        fs::write(&path, vec![b'#'; 2048]).expect("a file");
        assert_eq!(read(&path, 2048).expect("small enough").len(), 2048);
        let error = read(&path, 1024).expect_err("too large").to_string();
        fs::remove_file(&path).expect("it is there");
        assert_eq!(error, "it is larger than 1 KiB, which is the limit");
    }
}
