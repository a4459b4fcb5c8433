//! Paths as text, and following links in them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Evaluation;
use crate::derivation::{COREPKGS, corepkgs_file};
use crate::error::{Error, ErrorKind, EvalError, Result};
use crate::host::{FileKind, HostError};
use crate::limits::MAX_LINKS;
use crate::options::Reading;
use crate::syntax::position::Pos;

/// The path as the system wants it.
pub(crate) fn os(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path)
}

/// The path as messages show it.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// An absolute path without `.`, `..`, doubled and trailing slashes; links are not looked at.
pub(crate) fn canonical(path: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let parent = result.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                result.truncate(parent);
            }
            part => {
                result.push(b'/');
                result.extend_from_slice(part);
            }
        }
    }
    if result.is_empty() {
        result.push(b'/');
    }
    result
}

/// The last component.
pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// The folder of an absolute path without trailing slash.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(slash) => &path[..slash],
    }
}

/// A path inside of a folder.
pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// A path that is relative to a folder unless it is absolute.
pub(crate) fn join_absolute(folder: &[u8], path: &[u8]) -> Vec<u8> {
    match path.starts_with(b"/") {
        true => path.to_vec(),
        false => join(folder, path),
    }
}

impl<'h> Evaluation<'h> {
    /// An error of the host about a file.
    #[cold]
    pub(crate) fn file_error(&self, pos: Pos, what: &str, path: &[u8], error: &std::io::Error) -> Error {
        self.error(pos, format!("{what} '{}': {error}", show(path)))
    }

    /// Any other error of the host.
    #[cold]
    pub(crate) fn host_error(&self, pos: Pos, error: &HostError) -> Error {
        EvalError::new(ErrorKind::Realisation, pos, describe(error))
    }

    /// Kind of what a path names, links not followed; the folders above it must not be links.
    pub(crate) fn lstat(&self, path: &[u8], pos: Pos) -> Result<Option<FileKind>> {
        if path.starts_with(COREPKGS) {
            return Ok(corepkgs_file(path).map(|_| FileKind::Regular { executable: false }));
        }
        self.host
            .lstat(Path::new(os(path)))
            .map_err(|error| self.file_error(pos, "cannot look at", path, &error))
    }

    /// The path with all links followed, except a link that is the last component.
    pub(crate) fn resolve_ancestors(&self, path: &[u8], pos: Pos) -> Result<Vec<u8>> {
        if path == b"/" {
            return Ok(path.to_vec());
        }
        let folder = self.resolve(parent(path), pos)?;
        Ok(join(&folder, base_name(path)))
    }

    /// The path with all links followed. What does not exist stays as it is.
    pub(crate) fn resolve(&self, path: &[u8], pos: Pos) -> Result<Vec<u8>> {
        if path == b"/" || self.plain.borrow().contains(path) {
            return Ok(path.to_vec());
        }
        let mut left: Vec<Vec<u8>> = Vec::new();
        let push = |left: &mut Vec<Vec<u8>>, path: &[u8]| {
            left.extend(
                path.split(|byte| *byte == b'/')
                    .rev()
                    .filter(|part| !part.is_empty())
                    .map(<[u8]>::to_vec),
            );
        };
        push(&mut left, path);
        let mut resolved = Vec::with_capacity(path.len());
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"." => continue,
                b".." => {
                    resolved.truncate(parent(&resolved).len());
                    if resolved == b"/" {
                        resolved.clear();
                    }
                    continue;
                }
                _ => {}
            }
            let before = resolved.len();
            resolved.push(b'/');
            resolved.extend_from_slice(&part);
            if self.plain.borrow().contains(&resolved) {
                continue;
            }
            match self.lstat(&resolved, pos)? {
                Some(FileKind::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(self.error(
                            pos,
                            format!(
                                "too many symbolic links encountered while traversing the path '{}'",
                                show(path)
                            ),
                        ));
                    }
                    let target = self.read_link(&resolved, pos)?;
                    resolved.truncate(if target.starts_with(b"/") { 0 } else { before });
                    push(&mut left, &target);
                }
                Some(FileKind::Directory) => {
                    self.plain.borrow_mut().insert(resolved.clone());
                }
                _ => {}
            }
        }
        if resolved.is_empty() {
            resolved.push(b'/');
        }
        Ok(resolved)
    }

    /// Target of a link.
    pub(crate) fn read_link(&self, path: &[u8], pos: Pos) -> Result<Vec<u8>> {
        let target = self
            .host
            .read_link(Path::new(os(path)))
            .map_err(|error| self.file_error(pos, "cannot read the link", path, &error))?;
        Ok(target.as_os_str().as_bytes().to_vec())
    }

    /// Entries of a folder whose path has no links left.
    pub(crate) fn read_folder(&self, path: &[u8], pos: Pos) -> Result<Vec<(std::ffi::OsString, FileKind)>> {
        self.host
            .read_dir(Path::new(os(path)))
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    self.error(pos, format!("path '{}' does not exist", show(path)))
                }
                std::io::ErrorKind::NotADirectory => {
                    self.error(pos, format!("'{}' is not a directory", show(path)))
                }
                _ => self.file_error(pos, "cannot read the directory", path, &error),
            })
    }

    /// Contents of a file whose path has no links left.
    pub(crate) fn read_file(&self, path: &[u8], pos: Pos) -> Result<Vec<u8>> {
        if let Some(text) = corepkgs_file(path) {
            return Ok(text.as_bytes().to_vec());
        }
        self.check_reading(path, pos)?;
        self.host
            .read_file(Path::new(os(path)))
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    self.error(pos, format!("path '{}' does not exist", show(path)))
                }
                std::io::ErrorKind::IsADirectory => {
                    self.error(pos, format!("cannot read '{}': it is a directory", show(path)))
                }
                _ => self.file_error(pos, "cannot read", path, &error),
            })
    }

    /// Refuses paths that a restricted evaluation must not look at.
    pub(crate) fn check_reading(&self, path: &[u8], pos: Pos) -> Result<()> {
        if self.options.reading == Reading::Impure {
            return Ok(());
        }
        let inside = |folder: &[u8]| {
            path == folder || (path.starts_with(folder) && path.get(folder.len()) == Some(&b'/'))
        };
        if inside(b"/nix/store") {
            return Ok(());
        }
        if self.options.reading == Reading::Restricted {
            for entry in &self.options.search_path {
                let base = self.options.base.as_os_str().as_bytes();
                let folder = canonical(&join_absolute(base, entry.location.as_bytes()));
                // What is compared with has its links followed.
                if inside(&folder) || inside(&self.resolve(&folder, pos)?) {
                    return Ok(());
                }
            }
        }
        let mode = if self.options.reading == Reading::Pure {
            "pure"
        } else {
            "restricted"
        };
        Err(self.error(
            pos,
            format!(
                "access to absolute path '{}' is forbidden in {mode} evaluation mode",
                show(path)
            ),
        ))
    }
}

/// An error of the host with its causes, in one line.
fn describe(error: &HostError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Some errors tell their cause themselves.
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_canonical_without_looking() {
        for (path, expected) in [
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("/a/../../b/.", "/b"),
            ("/a/b/..", "/a"),
            ("/..", "/"),
        ] {
            assert_eq!(show(&canonical(path.as_bytes())), expected, "{path}");
        }
        assert_eq!(parent(b"/a"), b"/");
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(join(b"/", b"a"), b"/a");
    }
}
