//! Archives (tar, perhaps compressed, or zip) to folders.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Path, PathBuf};

use super::growing::{EntryPath, Growing};
use super::limits::{MOST_BYTES, MOST_ENTRIES, XZ_MEMORY_KIB};
use super::zip;

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
    let archive = BufReader::with_capacity(BLOCK, archive);
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
            let plain = lzma_rust2::XzReader::new_mem_limit(archive, true, XZ_MEMORY_KIB);
            extract(BufReader::with_capacity(BLOCK, plain), target)
        }
        Some(Compression::Zip) => zip::extract(archive, target),
    }
}

fn extract(reader: impl Read, target: &Path) -> Result<Unpacked, String> {
    let mut archive = tar::Archive::new(reader.take(MOST_BYTES));
    let mut growing = Growing::new(target)?;
    let mut last_modified = 0;
    let wrong = |error: io::Error| format!("not a valid tar archive: {error}");
    for (number, entry) in archive.entries().map_err(wrong)?.enumerate() {
        if number >= MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} entries"));
        }
        let mut entry = entry.map_err(wrong)?;
        last_modified = last_modified.max(entry.header().mtime().map_err(wrong)?);
        take(&mut growing, &mut entry)?;
    }
    let root = growing.root().ok_or("it is empty, or not a tar archive")?;
    Ok(Unpacked { root, last_modified })
}

fn take(growing: &mut Growing<'_>, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), String> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(());
    }
    let Some(entry_path) = EntryPath::of(&entry.path_bytes())? else {
        return Ok(());
    };
    let shown = entry_path.to_string();
    let link_name = |entry: &tar::Entry<'_, _>| -> Result<Vec<u8>, String> {
        let name = entry.link_name_bytes();
        Ok(name
            .ok_or_else(|| format!("the link '{shown}' leads nowhere"))?
            .into_owned())
    };
    if kind.is_dir() {
        growing.folder(&entry_path)
    } else if kind.is_symlink() {
        growing.link(&entry_path, &link_name(entry)?)
    } else if kind.is_hard_link() {
        growing.copy(&entry_path, &link_name(entry)?)
    } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
        let mode = entry.header().mode();
        let mode = mode.map_err(|error| format!("'{shown}': {error}"))?;
        growing.file(&entry_path, mode & 0o100 != 0, entry)
    } else {
        Err(format!(
            "'{shown}' is neither a file nor a folder nor a link (type {:?})",
            char::from(kind.as_byte())
        ))
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
