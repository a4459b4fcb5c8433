//! Archives (tar, perhaps compressed) to folders.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::limits::{MOST_BYTES, MOST_ENTRIES};

/// What came of an archive.
pub(super) struct Unpacked {
    /// The folder: the one at the top of the archive, where that is all there is.
    pub(super) root: PathBuf,
    /// The time of the youngest entry, in seconds since 1970.
    pub(super) last_modified: u64,
}

/// Bytes that tell the compression, from the first.
const MAGIC: &[(&[u8], Compression)] = &[
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (b"BZh", Compression::Bzip2),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstandard),
    (b"PK\x03\x04", Compression::Zip),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Xz,
    Bzip2,
    Zstandard,
    Zip,
}

/// Bytes of the longest magic number.
const MAGIC_BYTES: u64 = 6;

/// Read at a time.
const BLOCK: usize = 256 << 10;

/// Unpacks an archive into `target`, which must not exist. Tells the kind by its first bytes.
///
/// # Errors
/// In words: what is wrong with the archive, or with the disk.
pub(super) fn unpack(mut archive: File, target: &Path) -> Result<Unpacked, String> {
    let mut first = Vec::new();
    Read::by_ref(&mut archive)
        .take(MAGIC_BYTES)
        .read_to_end(&mut first)
        .and_then(|_| archive.rewind())
        .map_err(|error| error.to_string())?;
    let compression = MAGIC.iter().find(|(magic, _)| first.starts_with(magic));
    let mut archive = BufReader::with_capacity(BLOCK, archive);
    match compression.map(|(_, compression)| *compression) {
        None => extract(archive, target),
        Some(Compression::Gzip) => extract(flate2::bufread::MultiGzDecoder::new(archive), target),
        Some(Compression::Bzip2) => extract(bzip2::bufread::MultiBzDecoder::new(archive), target),
        Some(Compression::Zstandard) => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(archive)
                .map_err(|error| format!("not valid zstd: {error}"))?;
            extract(decoder, target)
        }
        Some(Compression::Xz) => {
            // The decoder wants to write: it does so aside.
            let plain = target.with_extension("tar");
            let file = File::create(&plain).map_err(|error| error.to_string())?;
            let mut bounded = Bounded {
                to: io::BufWriter::with_capacity(BLOCK, file),
                left: MOST_BYTES,
            };
            lzma_rs::xz_decompress(&mut archive, &mut bounded)
                .map_err(|error| format!("not valid xz: {error:?}"))?;
            io::Write::flush(&mut bounded).map_err(|error| error.to_string())?;
            let plain = File::open(&plain).map_err(|error| error.to_string())?;
            extract(BufReader::with_capacity(BLOCK, plain), target)
        }
        Some(Compression::Zip) => {
            Err("it is a zip file; only tar archives (plain, gzip, bzip2, xz, zstd) are supported".to_owned())
        }
    }
}

/// Fails where more is written than allowed: small files can decompress to very large ones.
struct Bounded<W> {
    to: W,
    left: u64,
}

impl<W: io::Write> io::Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        let left = self.left.checked_sub(written as u64);
        self.left = left.ok_or_else(|| io::Error::other("it unpacks to more than allowed"))?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
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
/// known, and everything is made new.
struct Growing<'a> {
    root: &'a Path,
    made: BTreeMap<PathBuf, Made>,
}

fn extract(reader: impl Read, target: &Path) -> Result<Unpacked, String> {
    let mut archive = tar::Archive::new(reader.take(MOST_BYTES));
    fs::create_dir(target).map_err(|error| error.to_string())?;
    let mut growing = Growing {
        root: target,
        made: BTreeMap::new(),
    };
    let mut last_modified = 0;
    let wrong = |error: io::Error| format!("not a valid tar archive: {error}");
    for (number, entry) in archive.entries().map_err(wrong)?.enumerate() {
        if number >= MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} entries"));
        }
        let mut entry = entry.map_err(wrong)?;
        last_modified = last_modified.max(entry.header().mtime().map_err(wrong)?);
        growing.take(&mut entry)?;
    }
    if growing.made.is_empty() {
        return Err("it is empty, or not a tar archive".to_owned());
    }
    let mut top = growing
        .made
        .iter()
        .filter(|(path, _)| path.components().count() == 1);
    let root = match (top.next(), top.next()) {
        (Some((only, Made::Folder)), None) => target.join(only),
        _ => target.to_owned(),
    };
    Ok(Unpacked { root, last_modified })
}

impl Growing<'_> {
    fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), String> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        let path = inside(&name).ok_or_else(|| format!("the entry '{shown}' leads out of it"))?;
        if path.as_os_str().is_empty() {
            // The folder that everything is in.
            return Ok(());
        }
        let failed = |error: io::Error| format!("'{shown}': {error}");
        let link_name = |entry: &tar::Entry<'_, _>| -> Result<Vec<u8>, String> {
            let name = entry.link_name_bytes();
            Ok(name
                .ok_or_else(|| format!("the link '{shown}' leads nowhere"))?
                .into_owned())
        };
        if kind.is_dir() {
            return self.folders(&path);
        }
        if let Some(parent) = path.parent() {
            self.folders(parent)?;
        }
        self.make_way(&path)?;
        let place = self.root.join(&path);
        if kind.is_symlink() {
            let to = link_name(entry)?;
            symlink(std::ffi::OsStr::from_bytes(&to), &place).map_err(failed)?;
            self.made.insert(path, Made::Link);
        } else if kind.is_hard_link() {
            let to = link_name(entry)?;
            let to = inside(&to).filter(|to| self.made.get(to) == Some(&Made::File));
            let to =
                to.ok_or_else(|| format!("'{shown}' is a hard link to what is no file of the archive"))?;
            fs::copy(self.root.join(to), &place).map_err(failed)?;
            self.made.insert(path, Made::File);
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let executable = entry.header().mode().map_err(failed)? & 0o100 != 0;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(if executable { 0o755 } else { 0o644 })
                .open(&place)
                .map_err(failed)?;
            io::copy(entry, &mut file).map_err(failed)?;
            self.made.insert(path, Made::File);
        } else {
            return Err(format!(
                "'{shown}' is neither a file nor a folder nor a link (type {:?})",
                char::from(kind.as_byte())
            ));
        }
        Ok(())
    }

    /// Makes a folder and those above it.
    fn folders(&mut self, path: &Path) -> Result<(), String> {
        let mut folder = PathBuf::new();
        for component in path.components() {
            folder.push(component);
            match self.made.get(&folder) {
                Some(Made::Folder) => {}
                Some(Made::File | Made::Link) => {
                    return Err(format!(
                        "'{}' is both a folder and something else",
                        folder.display()
                    ));
                }
                None => {
                    fs::create_dir(self.root.join(&folder))
                        .map_err(|error| format!("'{}': {error}", folder.display()))?;
                    self.made.insert(folder.clone(), Made::Folder);
                }
            }
        }
        Ok(())
    }

    /// A later entry takes the place of an earlier one of its name.
    fn make_way(&mut self, path: &Path) -> Result<(), String> {
        match self.made.remove(path) {
            None => Ok(()),
            Some(Made::Folder) => Err(format!(
                "'{}' is both a folder and something else",
                path.display()
            )),
            Some(Made::File | Made::Link) => fs::remove_file(self.root.join(path))
                .map_err(|error| format!("'{}': {error}", path.display())),
        }
    }
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

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
