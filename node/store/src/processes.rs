//! What processes of this machine use of the store, as far as it can be seen from outside.
//!
//! A program that runs over the store says what it uses by a file with a lock ([`crate::running`]). One that closed the
//! descriptors it inherited, as daemons do and what Python starts, has let go of the lock. So a collection looks, as
//! stock Nix does (`findRuntimeRoots` in `gc.cc`), at what processes execute, map, have open, stand in and were given as
//! environment.
//!
//! A name counts where it leads to this store: `<home>/nix/store/…` in every process, `/nix/store/…` in one that sees this
//! store there. What may not be looked at, another user's, is left out.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::limits::{PROCESS_DESCRIPTORS, PROCESS_FILE_BYTES, PROCESS_STATUS_BYTES};

/// Where the kernel shows processes.
pub(crate) const PROC: &str = "/proc";

/// What follows [`STORE_DIR`] in the name of a path.
const SEPARATOR: u8 = b'/';

/// Characters of the hash part, the dash and the longest name of a store path.
const LONGEST_NAME: usize = 32 + 1 + 211;

/// Ancestors of a process that are looked at: far more than shells and supervisors make.
const ANCESTORS: usize = 256;

/// The store paths that processes name, each with the number of one of them. `store`: the folder of trees. `but`: a
/// process that is left out, with all that it has started.
pub(crate) fn named_by_processes(
    proc: &Path,
    store: &Path,
    but: Option<u32>,
) -> io::Result<BTreeMap<StorePath, u32>> {
    let mut look = Look::new(proc, store)?;
    let (mut named, mut hidden) = (BTreeMap::new(), 0usize);
    for entry in std::fs::read_dir(proc)? {
        let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let found = look.process(process, &mut hidden);
        if found.is_empty() || but.is_some_and(|but| look.is_family(process, but)) {
            continue;
        }
        for path in found {
            named.entry(path).or_insert(process);
        }
    }
    if hidden > 0 {
        tracing::debug!(
            hidden,
            "parts of processes may not be looked at; what they use is not seen"
        );
    }
    Ok(named)
}

/// How a name leads to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// By where it lies.
    Place,
    /// By `/nix/store`, where whoever says so may see another one.
    Name,
}

struct Look<'a> {
    proc: &'a Path,
    /// The folder of trees, as it is called and without links, each without `/nix/store`.
    homes: Vec<Vec<u8>>,
    store: PathBuf,
    /// Device and number of the folder.
    identity: (u64, u64),
    /// Whether the store is at `/nix/store`, by mount namespace.
    seen: HashMap<PathBuf, bool>,
    buffer: Vec<u8>,
}

impl<'a> Look<'a> {
    fn new(proc: &'a Path, store: &Path) -> io::Result<Self> {
        let real = std::fs::canonicalize(store)?;
        let metadata = std::fs::metadata(&real)?;
        let home = |store: &Path| {
            let store = store.as_os_str().as_bytes();
            let home = store.strip_suffix(STORE_DIR.as_bytes()).unwrap_or(store);
            home.to_vec()
        };
        let mut homes = vec![home(store), home(&real)];
        homes.dedup();
        Ok(Self {
            proc,
            homes,
            store: real,
            identity: (metadata.dev(), metadata.ino()),
            seen: HashMap::new(),
            buffer: Vec::new(),
        })
    }

    /// What a process names. `hidden`: what may not be looked at is counted there.
    fn process(&mut self, process: u32, hidden: &mut usize) -> Vec<StorePath> {
        let folder = self.proc.join(process.to_string());
        let mut found = Vec::new();
        let mut noted = |result: io::Result<()>| match result {
            Ok(()) => {}
            Err(error) if has_ended(&error) => {}
            Err(error) => {
                *hidden += 1;
                tracing::trace!(process, %error, "a part of a process may not be looked at");
            }
        };
        for link in ["exe", "cwd", "root"] {
            noted(self.link(&folder.join(link), &mut found));
        }
        noted(self.descriptors(&folder.join("fd"), &mut found));
        for file in ["maps", "environ"] {
            noted(self.file(&folder.join(file), &mut found));
        }
        let by_name = found.iter().any(|(_, by)| *by == By::Name) && self.is_seen_by(&folder);
        let counts = |(path, by): (StorePath, By)| (by == By::Place || by_name).then_some(path);
        found.into_iter().filter_map(counts).collect()
    }

    fn link(&self, link: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        let target = std::fs::read_link(link)?;
        names_in(target.as_os_str().as_bytes(), &self.homes, found);
        Ok(())
    }

    fn descriptors(&self, folder: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        for (number, entry) in std::fs::read_dir(folder)?.enumerate() {
            if number == PROCESS_DESCRIPTORS {
                tracing::warn!(
                    folder = %folder.display(),
                    "a process has more than {PROCESS_DESCRIPTORS} descriptors; what the others are of is not seen"
                );
                break;
            }
            match self.link(&entry?.path(), found) {
                // Closed meanwhile.
                Err(error) if has_ended(&error) => {}
                read => read?,
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        self.buffer.clear();
        File::open(file)?
            .take(PROCESS_FILE_BYTES)
            .read_to_end(&mut self.buffer)?;
        if self.buffer.len() as u64 == PROCESS_FILE_BYTES {
            tracing::warn!(
                file = %file.display(),
                "of a process no more than {PROCESS_FILE_BYTES} bytes are looked at; what is said after them is not seen"
            );
        }
        names_in(&self.buffer, &self.homes, found);
        Ok(())
    }

    /// Whether this store is at `/nix/store` for a process. Where that cannot be told it is taken to be.
    fn is_seen_by(&mut self, process: &Path) -> bool {
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else {
            return true;
        };
        if let Some(seen) = self.seen.get(&namespace) {
            return *seen;
        }
        let seen = self.sees(process).unwrap_or(true);
        self.seen.insert(namespace, seen);
        seen
    }

    fn sees(&self, process: &Path) -> io::Result<bool> {
        let there = process.join("root").join(STORE_DIR.trim_start_matches('/'));
        match std::fs::metadata(&there) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            seen => seen?,
        };
        // Over the machine's own store it is one of several layers, which have no device and number of their own.
        let mut mounts = Vec::new();
        File::open(process.join("mountinfo"))?
            .take(PROCESS_FILE_BYTES)
            .read_to_end(&mut mounts)?;
        Ok(is_layer(&mounts, &self.store))
    }

    /// Whether a process is `root`, or was started by it or by what it started.
    fn is_family(&self, process: u32, root: u32) -> bool {
        let mut at = process;
        for _ in 0..ANCESTORS {
            if at == root {
                return true;
            }
            match self.parent(at) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }

    fn parent(&self, process: u32) -> Option<u32> {
        let mut status = Vec::new();
        File::open(self.proc.join(process.to_string()).join("status"))
            .ok()?
            .take(PROCESS_STATUS_BYTES)
            .read_to_end(&mut status)
            .ok()?;
        let status = String::from_utf8_lossy(&status);
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        parent.trim().parse().ok().filter(|parent| *parent != 0)
    }
}

/// Whether a process, or what was asked of it, is gone.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The names of store paths in a text that processes show. `homes`: what stands before `/nix/store` where this store lies.
fn names_in(text: &[u8], homes: &[Vec<u8>], found: &mut Vec<(StorePath, By)>) {
    let folder = STORE_DIR.as_bytes();
    for at in memchr::memmem::find_iter(text, folder) {
        let (before, after) = (&text[..at], &text[at + folder.len()..]);
        let by = if homes.iter().any(|home| before.ends_with(home)) {
            By::Place
        } else if begins_here(before) {
            By::Name
        } else {
            // Another home's.
            continue;
        };
        let Some((&SEPARATOR, name)) = after.split_first() else {
            continue;
        };
        let end = name.iter().position(|byte| !is_of_name(*byte) && *byte != b'=');
        let name = &name[..end.unwrap_or(name.len()).min(LONGEST_NAME)];
        if let Ok(path) = StorePath::from_basename(name) {
            found.push((path, by));
        }
    }
}

/// Whether a place begins after this: `-I/nix/store` has it whole, `/elsewhere/nix/store` has not.
fn begins_here(before: &[u8]) -> bool {
    let folder = before.iter().rposition(|byte| !is_of_name(*byte));
    match folder {
        Some(at) if at + 1 < before.len() => before[at] != SEPARATOR,
        _ => true,
    }
}

/// What names of store paths consist of; `=`, which they may have too, ends a word elsewhere.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._?".contains(&byte)
}

/// Whether among these mounts (proc_pid_mountinfo(5)) one at `/nix/store` has a store as a layer: `run` and `shell` call
/// such a mount by the place of the store.
fn is_layer(mounts: &[u8], store: &Path) -> bool {
    mounts.split(|byte| *byte == b'\n').any(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(end) = fields.iter().position(|field| *field == b"-") else {
            return false;
        };
        let field = |number: usize| fields.get(number).map(|field| unescaped(field));
        field(4).is_some_and(|at| at.as_bytes() == STORE_DIR.as_bytes())
            && field(end + 1).is_some_and(|kind| kind == "overlay")
            && field(end + 2).is_some_and(|source| source == store.as_os_str())
    })
}

/// What the kernel wrote as `\040` and the like.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
