//! Writes an initramfs: a cpio archive in the "newc" format, see
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::{
    collections::BTreeSet,
    path::{Component, Path},
};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    /// Whether it has an entry at this absolute path.
    pub fn contains(&self, path: &Path) -> bool {
        self.known.contains(&relative(path))
    }

    /// Adds a directory and its parents.
    pub fn directory(&mut self, path: &Path) {
        let mut parent = String::new();
        for part in relative(path).split('/').filter(|part| !part.is_empty()) {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent += part;
            if !self.known.contains(&parent) {
                self.entry(&parent, DIRECTORY, (0, 0), &[]);
            }
        }
    }

    /// Adds a file and its parent directories.
    pub fn file(&mut self, path: &Path, content: &[u8]) {
        self.add_with_parents(path, FILE, (0, 0), content);
    }

    /// Adds an executable file and its parent directories.
    pub fn program(&mut self, path: &Path, content: &[u8]) {
        self.add_with_parents(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &Path, target: &str) {
        self.add_with_parents(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &Path, major: u32, minor: u32) {
        self.add_with_parents(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Completes the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add_with_parents(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        if !self.contains(path) {
            self.entry(&relative(path), mode, device, content);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let number = self.known.len() as u32 + 1;
        let fields = [
            number,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            content.len() as u32,
            0, // device
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum, unused by this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        self.known.insert(name.to_owned());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn relative(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Archive;

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), b"12345");
        archive.file(Path::new("/a/b/d"), b"");
        let text = String::from_utf8(archive.finish()).expect("ASCII");
        assert_eq!(text.len() % 4, 0);
        let at = |name: &str| text.find(&format!("{name}\0")).expect("it is there");
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c") && at("a/b/c") < at("a/b/d"));
        assert_eq!(text.matches("070701").count(), 5, "four entries and the trailer");
    }
}
