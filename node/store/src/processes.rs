//! What processes of this machine use of the store, as far as it can be seen from outside.
//!
//! A program that runs over the store says what it uses by a file with a lock ([`crate::running`]). One that closed the
//! descriptors it inherited, as daemons do and what Python starts, has let go of the lock. So a collection looks, as
//! stock Nix does (`findRuntimeRoots` in `gc.cc`), at what processes execute, map, have open, stand in and were given as
//! environment.
//!
//! A name counts where it leads to this store: `<home>/nix/store/…` in every process, `/nix/store/…` in one that sees this
//! store there. What may not be looked at, another user's, is left out. What is too much to look at is an error: half of
//! what is used does not say what is not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use crate::disk::FileError;
use crate::limits::{PROCESS_FILE_BYTES, PROCESS_STATE_BYTES, PROCESSES_BYTES, PROCESSES_TIME};
use crate::running::RunningError;

/// Where the kernel shows processes.
pub(crate) const PROC: &str = "/proc";

/// What follows [`STORE_DIR`] in the name of a path.
const SEPARATOR: u8 = b'/';

/// Characters of the hash part, the dash and the longest name of a store path.
const LONGEST_NAME: usize = 32 + 1 + 211;

/// Ancestors of a process that are looked at: far more than shells and supervisors make.
const ANCESTORS: usize = 256;

/// How often all processes are listed: the second time for those that were started while others were looked at. Their
/// parents may have ended before they were.
const LISTINGS: usize = 2;

/// How much is looked at, for one collection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of what all processes say.
    pub bytes: u64,
    /// Bytes of what one file of a process says.
    pub file_bytes: u64,
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            bytes: PROCESSES_BYTES,
            file_bytes: PROCESS_FILE_BYTES,
            time: PROCESSES_TIME,
        }
    }
}

/// The store paths that processes name, each with the number of one of them. `store`: the folder of trees. `but`: a
/// process of which nothing is read, nor of what it has started.
pub(crate) fn named_by_processes(
    proc: &Path,
    store: &Path,
    but: Option<u32>,
    bounds: Bounds,
) -> Result<BTreeMap<StorePath, u32>, RunningError> {
    let failed = |error: io::Error| FileError::of_io("look at the processes in", proc, &error);
    let mut look = Look::new(proc, store, bounds).map_err(failed)?;
    let (mut named, mut looked_at) = (BTreeMap::new(), HashSet::new());
    for _ in 0..LISTINGS {
        // A number is given again.
        look.states.clear();
        for process in processes(proc).map_err(failed)? {
            if but.is_some_and(|but| look.is_family(process, but)) {
                continue;
            }
            // One whose state cannot be told is looked at each time.
            if let Some(state) = look.state(process)
                && !looked_at.insert((process, state.started))
            {
                continue;
            }
            for path in look.process(process)? {
                named.entry(path).or_insert(process);
            }
        }
    }
    if look.hidden > 0 {
        tracing::debug!(
            hidden = look.hidden,
            "parts of processes may not be looked at; what they use is not seen"
        );
    }
    Ok(named)
}

/// The numbers of all processes, in order.
fn processes(proc: &Path) -> io::Result<Vec<u32>> {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(proc)? {
        processes.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    processes.sort_unstable();
    Ok(processes)
}

/// How a name leads to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// By where it lies.
    Place,
    /// By `/nix/store`, where whoever says so may see another one.
    Name,
}

/// What a process sees at `/nix/store`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// This store, or it cannot be told.
    This,
    /// Another one.
    Other,
    /// Nothing: it changed its root, maybe after it had taken up what it uses.
    Nothing,
}

/// What decides what a process sees.
#[derive(Debug, PartialEq, Eq, Hash)]
struct View {
    mounts: PathBuf,
    /// Device and number of the root: one may have it changed and still share the mounts.
    root: (u64, u64),
}

/// What is known of a process without looking at what it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    parent: u32,
    /// Ticks of the clock since the machine was started. A later process of the same number has another one.
    started: u64,
}

struct Look<'a> {
    proc: &'a Path,
    /// The folder of trees, as it is called and without links, each without `/nix/store`.
    homes: Vec<Vec<u8>>,
    store: PathBuf,
    /// Device and number of the folder.
    identity: (u64, u64),
    seen: HashMap<View, Sight>,
    states: HashMap<u32, Option<State>>,
    /// How many parts of processes may not be looked at.
    hidden: usize,
    bounds: Bounds,
    began: Instant,
    /// Bytes that processes have said.
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Look<'a> {
    fn new(proc: &'a Path, store: &Path, bounds: Bounds) -> io::Result<Self> {
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
            states: HashMap::new(),
            hidden: 0,
            bounds,
            began: Instant::now(),
            bytes: 0,
            buffer: Vec::new(),
        })
    }

    /// What a process names.
    fn process(&mut self, process: u32) -> Result<Vec<StorePath>, RunningError> {
        let folder = self.proc.join(process.to_string());
        // What the kernel says of it, and what it was told.
        let (mut shown, mut said) = (Vec::new(), Vec::new());
        for link in ["exe", "cwd", "root"] {
            let read = self.link(&folder.join(link), &mut shown);
            self.note(process, read);
        }
        let read = self.descriptors(&folder.join("fd"), &mut shown);
        self.note(process, read);
        for (file, found) in [("maps", &mut shown), ("environ", &mut said)] {
            self.check(process)?;
            let file = folder.join(file);
            let read = self.file(&file, found);
            if self.buffer.len() as u64 > self.bounds.file_bytes {
                return Err(RunningError::ProcessTooLarge {
                    file,
                    most: self.bounds.file_bytes,
                });
            }
            self.note(process, read);
        }
        self.check(process)?;
        let by_name = shown.iter().chain(&said).any(|(_, by)| *by == By::Name);
        let sight = if by_name {
            self.sight(&folder)
        } else {
            Sight::Other
        };
        let counts = |by, shown: bool| match (by, sight) {
            (By::Place, _) | (By::Name, Sight::This) => true,
            // What it executes or has open may well be of this store all the same.
            (By::Name, Sight::Nothing) => shown,
            (By::Name, Sight::Other) => false,
        };
        let shown = shown.into_iter().filter(|(_, by)| counts(*by, true));
        let said = said.into_iter().filter(|(_, by)| counts(*by, false));
        Ok(shown.chain(said).map(|(path, _)| path).collect())
    }

    fn note(&mut self, process: u32, read: io::Result<()>) {
        match read {
            Ok(()) => {}
            Err(error) if has_ended(&error) => {}
            Err(error) => {
                self.hidden += 1;
                tracing::trace!(process, %error, "a part of a process may not be looked at");
            }
        }
    }

    /// Whether there is more than is looked at.
    fn is_spent(&self) -> bool {
        self.bytes > self.bounds.bytes || self.began.elapsed() > self.bounds.time
    }

    fn check(&self, process: u32) -> Result<(), RunningError> {
        if self.is_spent() {
            return Err(RunningError::TooManyProcesses {
                process,
                bytes: self.bytes,
                most: self.bounds.bytes,
                seconds: self.began.elapsed().as_secs(),
                longest: self.bounds.time.as_secs(),
            });
        }
        Ok(())
    }

    fn link(&mut self, link: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        let target = std::fs::read_link(link)?;
        self.bytes += target.as_os_str().len() as u64;
        names_in(target.as_os_str().as_bytes(), &self.homes, found);
        Ok(())
    }

    fn descriptors(&mut self, folder: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            match self.link(&entry?.path(), found) {
                // Closed meanwhile.
                Err(error) if has_ended(&error) => {}
                read => read?,
            }
            if self.is_spent() {
                // Whoever asked finds that, too.
                break;
            }
        }
        Ok(())
    }

    /// Reads one byte more than is looked at where there is more.
    fn file(&mut self, file: &Path, found: &mut Vec<(StorePath, By)>) -> io::Result<()> {
        self.buffer.clear();
        let read = File::open(file).and_then(|file| {
            file.take(self.bounds.file_bytes + 1)
                .read_to_end(&mut self.buffer)
        });
        self.bytes += self.buffer.len() as u64;
        names_in(&self.buffer, &self.homes, found);
        read.map(drop)
    }

    /// What a process sees at `/nix/store`.
    fn sight(&mut self, process: &Path) -> Sight {
        let view = std::fs::read_link(process.join("ns/mnt")).and_then(|mounts| {
            let root = std::fs::metadata(process.join("root"))?;
            let root = (root.dev(), root.ino());
            Ok(View { mounts, root })
        });
        let Ok(view) = view else {
            return Sight::This;
        };
        if let Some(sight) = self.seen.get(&view) {
            return *sight;
        }
        match self.look_from(process) {
            Ok(sight) => {
                self.seen.insert(view, sight);
                sight
            }
            // Another process with the same view may say more.
            Err(_) => Sight::This,
        }
    }

    fn look_from(&self, process: &Path) -> io::Result<Sight> {
        let there = process.join("root").join(STORE_DIR.trim_start_matches('/'));
        match std::fs::metadata(&there) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => return Ok(Sight::This),
            // Nothing there, or it has ended: then it makes no difference, and says nothing of others.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::metadata(process.join("root"))?;
                return Ok(Sight::Nothing);
            }
            seen => seen?,
        };
        // Over the machine's own store it is one of several layers, which have no device and number of their own.
        let mut mounts = Vec::new();
        File::open(process.join("mountinfo"))?
            .take(PROCESS_FILE_BYTES)
            .read_to_end(&mut mounts)?;
        match is_layer(&mounts, &self.store) {
            true => Ok(Sight::This),
            false => Ok(Sight::Other),
        }
    }

    /// Whether a process is `root`, or was started by it or by what it started.
    fn is_family(&mut self, process: u32, root: u32) -> bool {
        let mut at = process;
        for _ in 0..ANCESTORS {
            if at == root {
                return true;
            }
            match self.state(at) {
                Some(state) if state.parent != 0 => at = state.parent,
                _ => return false,
            }
        }
        false
    }

    /// None: it has ended, or does not say.
    fn state(&mut self, process: u32) -> Option<State> {
        let proc = self.proc;
        *self.states.entry(process).or_insert_with(|| {
            let mut said = Vec::new();
            let file = File::open(proc.join(process.to_string()).join("stat")).ok()?;
            file.take(PROCESS_STATE_BYTES).read_to_end(&mut said).ok()?;
            state_in(&said)
        })
    }
}

/// What a process's state says (proc_pid_stat(5)): fields 4 and 22. The second is a name in brackets, which may have
/// brackets and spaces itself.
fn state_in(said: &[u8]) -> Option<State> {
    let name_end = said.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&said[name_end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(State { parent, started })
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

/// The paths in a text that a process shows, by whatever they are named.
pub(crate) fn named_in(text: &[u8], homes: &[Vec<u8>]) -> Vec<StorePath> {
    let mut found = Vec::new();
    names_in(text, homes, &mut found);
    found.into_iter().map(|(path, _)| path).collect()
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
