//! Trees of Git repositories to folders.
//!
//! The files are the objects' bytes: no line endings are converted, nothing is substituted or filtered, unlike in a
//! checkout or `git archive`. So a tree is the same on every machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::FetchError;
use super::repository::{Kind, Listed, Repository};

/// Writes the tree of a commit to `target`, which must not exist. Submodules become empty folders, and are
/// returned.
pub(super) fn export(
    repository: &Repository,
    commit: &str,
    export_ignore: bool,
    target: &Path,
) -> Result<Vec<Listed>, FetchError> {
    let mut files = repository.files(commit)?;
    if export_ignore && has_attributes(repository, &files)? {
        let kept = exported(repository, commit)?;
        files.retain(|file| kept.contains(&file.path));
    }
    let mut folders = BTreeSet::from([PathBuf::new()]);
    fs::create_dir(target).map_err(FetchError::io(target, "created"))?;
    let mut submodules = Vec::new();
    let mut blobs = Vec::new();
    for file in files {
        let wrong = |what| repository.error(format!("the tree of {commit} has a path that {what}"));
        let path = inside(&file.path).ok_or_else(|| wrong("leads out of it"))?;
        // What is in a folder follows the folder; whatever else has its name, a link for instance, is none.
        if !path.parent().is_some_and(|parent| folders.contains(parent)) {
            return Err(wrong("lies in no folder"));
        }
        if matches!(file.kind, Kind::Folder | Kind::Submodule) {
            let folder = target.join(&path);
            fs::create_dir(&folder).map_err(FetchError::io(&folder, "created"))?;
        }
        match file.kind {
            Kind::Folder => drop(folders.insert(path)),
            Kind::Submodule => submodules.push(file),
            Kind::File | Kind::Executable | Kind::Link => blobs.push((path, file)),
        }
    }
    let objects: Vec<&str> = blobs.iter().map(|(_, file)| file.object.as_str()).collect();
    repository.contents(&objects, &mut |index, content| {
        let (path, file) = &blobs[index];
        let place = target.join(path);
        write(file.kind, content, &place).map_err(|error| format!("'{}': {error}", place.display()))
    })?;
    Ok(submodules)
}

fn write(kind: Kind, content: &mut dyn Read, place: &Path) -> io::Result<()> {
    if kind == Kind::Link {
        let mut to = Vec::new();
        content.read_to_end(&mut to)?;
        return symlink(OsStr::from_bytes(&to), place);
    }
    let mode = if kind == Kind::Executable { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(place)?;
    io::copy(content, &mut file)?;
    Ok(())
}

/// A path of a tree below the folder that it is written to; none where it leads out of it.
pub(super) fn inside(path: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && path.components().next().is_some()).then(|| path.to_owned())
}

/// Whether anything can be `export-ignore`.
fn has_attributes(repository: &Repository, files: &[Listed]) -> Result<bool, FetchError> {
    let objects: Vec<&str> = files
        .iter()
        .filter(|file| file.path.rsplit(|byte| *byte == b'/').next() == Some(b".gitattributes"))
        .map(|file| file.object.as_str())
        .collect();
    let mut found = false;
    repository.contents(&objects, &mut |_, content| {
        let mut text = Vec::new();
        content
            .read_to_end(&mut text)
            .map_err(|error| error.to_string())?;
        found |= text
            .windows(EXPORT_IGNORE.len())
            .any(|window| window == EXPORT_IGNORE);
        Ok(())
    })?;
    Ok(found)
}

const EXPORT_IGNORE: &[u8] = b"export-ignore";

/// Paths that `git archive` has; it knows what `export-ignore` leaves out.
fn exported(repository: &Repository, commit: &str) -> Result<BTreeSet<Vec<u8>>, FetchError> {
    let mut paths = BTreeSet::new();
    let mut archive = repository.git(["archive", "--format=tar", commit]);
    repository.feed(&mut archive, Vec::new(), &mut |output| {
        let mut archive = tar::Archive::new(output);
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            let mut path = entry.path_bytes().into_owned();
            if path.last() == Some(&b'/') {
                path.pop();
            }
            paths.insert(path);
        }
        Ok(())
    })?;
    Ok(paths)
}
