//! Where two builds of one derivation differ.
//!
//! Only what a store keeps counts: kinds, names, contents, targets and the owner's executable bit. Neither
//! links are followed nor anything but files opened: one side may be as a hostile build left it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};

use crate::limits::{COMPARE_DEPTH, DIFFERENCES};

/// Bytes compared at once.
const BUFFER_BYTES: usize = 64 << 10;

/// One place where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where in the tree; empty for its top.
    pub path: PathBuf,
    /// How.
    pub kind: DifferenceKind,
}

/// How one place differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// It is not there any more.
    Gone,
    /// It was not there before.
    New,
    /// It is another kind of thing.
    Kind {
        /// What it was.
        before: &'static str,
        /// What it is.
        after: &'static str,
    },
    /// A file has become executable, or is not any more.
    Executable {
        /// Whether it is.
        after: bool,
    },
    /// A file has other content.
    Content {
        /// Bytes from the start that are equal.
        equal: u64,
        /// Size it had.
        before: u64,
        /// Size it has.
        after: u64,
    },
    /// A link points elsewhere.
    Target {
        /// Where it pointed to.
        before: PathBuf,
        /// Where it points to.
        after: PathBuf,
    },
    /// It cannot be compared.
    Unreadable(
        /// Why not.
        String,
    ),
}

impl fmt::Display for Difference {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            write!(to, "the output itself ")?;
        } else {
            // With quotes and escapes: names are the build's choice.
            write!(to, "{:?} ", self.path)?;
        }
        match &self.kind {
            DifferenceKind::Gone => write!(to, "is missing"),
            DifferenceKind::New => write!(to, "is new"),
            DifferenceKind::Kind { before, after } => write!(to, "was {before} and is {after}"),
            DifferenceKind::Executable { after: true } => write!(to, "has become executable"),
            DifferenceKind::Executable { after: false } => write!(to, "is not executable any more"),
            DifferenceKind::Content { equal, before, after } if before == after => {
                write!(to, "differs from byte {equal} on ({after} bytes)")
            }
            DifferenceKind::Content { equal, before, after } => {
                write!(
                    to,
                    "differs from byte {equal} on (it had {before} bytes and has {after})"
                )
            }
            DifferenceKind::Target { before, after } => {
                write!(to, "pointed to {before:?} and points to {after:?}")
            }
            DifferenceKind::Unreadable(why) => write!(to, "cannot be compared: {why}"),
        }
    }
}

/// Compares two trees, and gives the first [`DIFFERENCES`] places where they differ, by name. Blocks.
pub(crate) fn differences(before: &Path, after: &Path) -> Vec<Difference> {
    let mut comparison = Comparison::default();
    let names = c_name(before.as_os_str().as_bytes()).and_then(|before| {
        let after = c_name(after.as_os_str().as_bytes())?;
        Ok((before, after))
    });
    match names {
        Ok((before, after)) => comparison.entry(Some((CWD.as_fd(), &before)), Some((CWD.as_fd(), &after))),
        Err(error) => comparison.unreadable(&error),
    }
    comparison.found
}

#[derive(Default)]
struct Comparison {
    /// Where we are.
    path: PathBuf,
    depth: usize,
    found: Vec<Difference>,
}

type Place<'a> = (std::os::fd::BorrowedFd<'a>, &'a CString);

impl Comparison {
    fn tell(&mut self, kind: DifferenceKind) {
        if self.found.len() < DIFFERENCES {
            let path = self.path.clone();
            self.found.push(Difference { path, kind });
        }
    }

    fn unreadable(&mut self, error: &io::Error) {
        self.tell(DifferenceKind::Unreadable(error.to_string()));
    }

    fn entry(&mut self, before: Option<Place<'_>>, after: Option<Place<'_>>) {
        match (before, after) {
            (Some(before), Some(after)) => {
                if let Err(error) = self.both(before, after) {
                    self.unreadable(&error);
                }
            }
            (Some(_), None) => self.tell(DifferenceKind::Gone),
            (None, Some(_)) => self.tell(DifferenceKind::New),
            (None, None) => {}
        }
    }

    fn both(&mut self, before: Place<'_>, after: Place<'_>) -> io::Result<()> {
        let (was, is) = (stat(before)?, stat(after)?);
        let (was_kind, is_kind) = (kind(&was), kind(&is));
        match (was_kind, is_kind) {
            (FileType::Directory, FileType::Directory) => self.folders(before, after),
            (FileType::RegularFile, FileType::RegularFile) => {
                let executable = |stat: &Stat| stat.st_mode & 0o100 != 0;
                if executable(&was) != executable(&is) {
                    let after = executable(&is);
                    self.tell(DifferenceKind::Executable { after });
                }
                self.files(before, after)
            }
            (FileType::Symlink, FileType::Symlink) => {
                let (before, after) = (target(before)?, target(after)?);
                if before != after {
                    self.tell(DifferenceKind::Target { before, after });
                }
                Ok(())
            }
            (was, is) => {
                let (before, after) = (named(was), named(is));
                self.tell(DifferenceKind::Kind { before, after });
                Ok(())
            }
        }
    }

    fn folders(&mut self, before: Place<'_>, after: Place<'_>) -> io::Result<()> {
        if self.depth >= COMPARE_DEPTH {
            return Err(io::Error::other("it lies too deep"));
        }
        let (before, after) = (open(before, OFlags::DIRECTORY)?, open(after, OFlags::DIRECTORY)?);
        let mut names: BTreeMap<CString, (bool, bool)> = BTreeMap::new();
        for name in entries(&before)? {
            names.entry(name).or_default().0 = true;
        }
        for name in entries(&after)? {
            names.entry(name).or_default().1 = true;
        }
        for (name, (was, is)) in &names {
            if self.found.len() >= DIFFERENCES {
                break;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.depth += 1;
            let was = was.then_some((before.as_fd(), name));
            let is = is.then_some((after.as_fd(), name));
            self.entry(was, is);
            self.depth -= 1;
            self.path.pop();
        }
        Ok(())
    }

    fn files(&mut self, before: Place<'_>, after: Place<'_>) -> io::Result<()> {
        let file = |place| Ok::<_, io::Error>(File::from(open(place, OFlags::NONBLOCK)?));
        let (before, after) = (file(before)?, file(after)?);
        let sizes = (before.metadata()?.len(), after.metadata()?.len());
        let mut readers = [before, after].map(|file| BufReader::with_capacity(BUFFER_BYTES, file));
        let mut equal = 0;
        loop {
            let [before, after] = &mut readers;
            let (left, right) = (before.fill_buf()?, after.fill_buf()?);
            let common = left
                .iter()
                .zip(right)
                .take_while(|(left, right)| left == right)
                .count();
            equal += common as u64;
            let compared = left.len().min(right.len());
            if common < compared || (compared == 0 && left.len() != right.len()) {
                let (before, after) = sizes;
                self.tell(DifferenceKind::Content { equal, before, after });
                return Ok(());
            }
            if compared == 0 {
                return Ok(());
            }
            before.consume(compared);
            after.consume(compared);
        }
    }
}

fn stat((folder, name): Place<'_>) -> io::Result<Stat> {
    Ok(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn named(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::RegularFile => "a file",
        FileType::Symlink => "a link",
        _ => "neither file, folder nor link",
    }
}

fn open((folder, name): Place<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

fn target((folder, name): Place<'_>) -> io::Result<PathBuf> {
    let target = readlinkat(folder, name, Vec::new())?;
    Ok(OsStr::from_bytes(target.to_bytes()).into())
}

fn entries(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn c_name(path: &[u8]) -> io::Result<CString> {
    CString::new(path).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
