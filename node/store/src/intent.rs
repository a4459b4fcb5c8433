//! A note of names that are about to appear or disappear among the trees.
//!
//! Between giving a tree its name and writing it down in the index, and between taking it out of the
//! index and out of the directory, a crash leaves a tree that the index does not know. The note is
//! what tells such a leftover from something that a user put there: only what it names is removed at
//! the next start, and only where the index does not know it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::disk::{Context, Disk, FileError};

/// Between a name and the one before it. Names of trees have no such character.
const SEPARATOR: char = ' ';

/// A name, and the name its tree had before, if it was part of the store then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intended {
    pub(crate) name: String,
    pub(crate) before: Option<String>,
}

impl From<String> for Intended {
    fn from(name: String) -> Self {
        Self { name, before: None }
    }
}

/// The names in a note. A line that was cut short names nothing.
pub(crate) fn names_of(note: &[u8]) -> Vec<Intended> {
    let end = note
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&note[..end]);
    let lines = text
        .split_terminator('\n')
        .map(|line| match line.split_once(SEPARATOR) {
            Some((name, before)) => Intended {
                name: name.to_owned(),
                before: Some(before.to_owned()),
            },
            None => line.to_owned().into(),
        });
    lines.collect()
}

/// The note of these names.
pub(crate) fn note_of(names: &[Intended]) -> String {
    let mut note = String::new();
    for Intended { name, before } in names {
        note.push_str(name);
        if let Some(before) = before {
            note.push(SEPARATOR);
            note.push_str(before);
        }
        note.push('\n');
    }
    note
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Intent {
    file: OwnedFd,
    path: PathBuf,
}

impl Intent {
    pub(crate) fn open(disk: &Disk, path: &Path) -> Result<Self, FileError> {
        let file = disk.open_or_make(path, 0o600).on("open", || path)?;
        let path = path.to_owned();
        Ok(Self { file, path })
    }

    /// The names of the last note. A line that was cut short names nothing.
    pub(crate) fn read(&self) -> Result<Vec<Intended>, FileError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            let offset = bytes.len() as u64;
            match rustix::io::pread(&self.file, &mut buffer, offset).on("read", || &self.path)? {
                0 => break,
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
        Ok(names_of(&bytes))
    }

    pub(crate) fn write(&self, disk: &Disk, names: &[Intended]) -> Result<(), FileError> {
        self.put(disk, note_of(names).as_bytes())
            .on("write", || &self.path)
    }

    pub(crate) fn clear(&self, disk: &Disk) -> Result<(), FileError> {
        disk.truncate(self.file.as_fd(), 0).on("empty", || &self.path)
    }

    fn put(&self, disk: &Disk, note: &[u8]) -> Result<(), Errno> {
        disk.truncate(self.file.as_fd(), 0)?;
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(0))?;
        disk.write(&self.file, note)
    }
}
