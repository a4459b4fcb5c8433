//! A folder that grows by the entries of an archive.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

/// Where an entry lies, below the folder that the archive is unpacked to.
pub(super) struct EntryPath {
    path: PathBuf,
    shown: String,
}

impl EntryPath {
    /// The path that an archive's name means; none where it is the folder itself that everything is in.
    ///
    /// # Errors
    /// It leads out of the folder.
    pub(super) fn of(name: &[u8]) -> Result<Option<Self>, String> {
        let shown = String::from_utf8_lossy(name).into_owned();
        match inside(name) {
            None => Err(format!("the entry '{shown}' leads out of it")),
            Some(path) if path.as_os_str().is_empty() => Ok(None),
            Some(path) => Ok(Some(Self { path, shown })),
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> String {
        move |error| format!("'{}': {error}", self.shown)
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What was made of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Folder,
    File,
    Link,
}

/// A tree that grows entry by entry. Nothing is ever written through a link: the kinds of all that was made are
/// known, and everything is made new. All errors are in words.
pub(super) struct Growing<'a> {
    root: &'a Path,
    made: BTreeMap<PathBuf, Made>,
}

impl<'a> Growing<'a> {
    /// Makes the folder, which must not exist.
    pub(super) fn new(root: &'a Path) -> Result<Self, String> {
        fs::create_dir(root).map_err(|error| error.to_string())?;
        Ok(Self {
            root,
            made: BTreeMap::new(),
        })
    }

    /// The folder of what was unpacked: the one at the top of the archive, where that is all there is. None where
    /// there is nothing.
    pub(super) fn root(&self) -> Option<PathBuf> {
        let mut top = self
            .made
            .iter()
            .filter(|(path, _)| path.components().count() == 1);
        match (top.next(), top.next()) {
            (None, _) => None,
            (Some((only, Made::Folder)), None) => Some(self.root.join(only)),
            _ => Some(self.root.to_owned()),
        }
    }

    /// A folder, perhaps there already.
    pub(super) fn folder(&mut self, entry: &EntryPath) -> Result<(), String> {
        self.folders(&entry.path)
    }

    /// A symbolic link, wherever it leads.
    pub(super) fn link(&mut self, entry: &EntryPath, to: &[u8]) -> Result<(), String> {
        let place = self.place(entry)?;
        symlink(std::ffi::OsStr::from_bytes(to), place).map_err(entry.failed())?;
        self.made.insert(entry.path.clone(), Made::Link);
        Ok(())
    }

    /// A hard link to an earlier file of the archive, which becomes a copy of it.
    pub(super) fn copy(&mut self, entry: &EntryPath, of: &[u8]) -> Result<(), String> {
        let place = self.place(entry)?;
        let of = inside(of).filter(|of| self.made.get(of) == Some(&Made::File));
        let of = of.ok_or_else(|| format!("'{entry}' is a hard link to what is no file of the archive"))?;
        fs::copy(self.root.join(of), place).map_err(entry.failed())?;
        self.made.insert(entry.path.clone(), Made::File);
        Ok(())
    }

    /// A file.
    pub(super) fn file(
        &mut self,
        entry: &EntryPath,
        executable: bool,
        content: &mut impl Read,
    ) -> Result<(), String> {
        let place = self.place(entry)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o755 } else { 0o644 })
            .open(place)
            .map_err(entry.failed())?;
        io::copy(content, &mut file).map_err(entry.failed())?;
        self.made.insert(entry.path.clone(), Made::File);
        Ok(())
    }

    /// Where something that is no folder is to be made. A later entry takes the place of an earlier one of its name.
    fn place(&mut self, entry: &EntryPath) -> Result<PathBuf, String> {
        if let Some(parent) = entry.path.parent() {
            self.folders(parent)?;
        }
        let place = self.root.join(&entry.path);
        match self.made.remove(&entry.path) {
            None => {}
            Some(Made::Folder) => return Err(both(&entry.path)),
            Some(Made::File | Made::Link) => fs::remove_file(&place).map_err(entry.failed())?,
        }
        Ok(place)
    }

    /// Makes a folder and those above it.
    fn folders(&mut self, path: &Path) -> Result<(), String> {
        let mut folder = PathBuf::new();
        for component in path.components() {
            folder.push(component);
            match self.made.get(&folder) {
                Some(Made::Folder) => {}
                Some(Made::File | Made::Link) => return Err(both(&folder)),
                None => {
                    fs::create_dir(self.root.join(&folder))
                        .map_err(|error| format!("'{}': {error}", folder.display()))?;
                    self.made.insert(folder.clone(), Made::Folder);
                }
            }
        }
        Ok(())
    }
}

fn both(path: &Path) -> String {
    format!("'{}' is both a folder and something else", path.display())
}

/// The path of an entry below the folder it is unpacked to; none where it leads out of it.
fn inside(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}
