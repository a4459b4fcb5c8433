//! `builtin:unpack-channel`: a channel's archive to a folder.
//!
//! As Nix 2.34 (`builtins/unpack-channel.cc`): the archive `src` is unpacked, must have one entry at its top,
//! and that gets the name `channelName`. Archives are `tar`, plain or compressed.
//!
//! The archive is anybody's, so this runs in a sandbox as a builder program would: whatever it makes us
//! write, it is written where builds may write.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use tvix_node_protocol::nix::derivation::Derivation;

use crate::error::Refused;
use crate::limits::XZ_MEMORY_KIB;
use crate::options::{Source, unusable};
use crate::wire::{Bytes, UnpackChannel};

/// What the builder is called.
pub(crate) const BUILTIN: &str = "builtin:unpack-channel";

/// Bytes read at once: what decompressors work well with.
const BUFFER_BYTES: usize = 256 << 10;

/// Reads what a derivation wants to have unpacked to the path `output`.
///
/// # Errors
/// [`Refused::Attribute`] for one that is missing or cannot be.
pub(crate) fn read(derivation: &Derivation, output: &str) -> Result<UnpackChannel, Refused> {
    let source = Source::of(derivation);
    let needed = |name: &str| {
        source
            .string(name)?
            .ok_or_else(|| unusable(name, "'builtin:unpack-channel' needs one"))
    };
    let name = needed("channelName")?;
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(unusable(
            "channelName",
            &format!("'{name}' cannot be a file's name"),
        ));
    }
    Ok(UnpackChannel {
        archive: Bytes(needed("src")?.into()),
        output: Bytes(output.into()),
        name,
    })
}

/// Unpacks, in the sandbox and in the build folder.
///
/// # Errors
/// In words: what is wrong with the archive, or with the disk.
pub(crate) fn unpack(wanted: &UnpackChannel) -> Result<(), String> {
    let (archive, output) = (wanted.archive.as_path(), wanted.output.as_path());
    let place = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("'{path}': {error}")
    };
    fs::create_dir(output).map_err(place(output))?;
    open(archive)
        .and_then(|plain| restore(plain, output))
        .map_err(|error| format!("unpacking '{}': {}", archive.display(), with_sources(&error)))?;
    let entries: Vec<fs::DirEntry> = fs::read_dir(output)
        .and_then(Iterator::collect)
        .map_err(place(output))?;
    let [only] = entries.as_slice() else {
        return Err(format!(
            "channel tarball '{}' contains {} files at its top instead of one",
            archive.display(),
            entries.len()
        ));
    };
    let target = output.join(&wanted.name);
    fs::rename(only.path(), &target).map_err(place(&target))
}

/// Unpacks a `tar` into a folder. Folders come last, because they may be read-only.
fn restore(plain: impl Read, output: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(plain);
    archive.set_preserve_mtime(false);
    let mut folders = Vec::new();
    let place = |mut entry: tar::Entry<'_, _>| match entry.unpack_in(output)? {
        true => Ok(()),
        // The library leaves it out.
        false => {
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            Err(io::Error::other(format!("its entry '{path}' leads out of it")))
        }
    };
    for entry in archive.entries()? {
        let entry = entry?;
        match entry.header().entry_type() {
            tar::EntryType::Directory => folders.push(entry),
            _ => place(entry)?,
        }
    }
    folders.sort_by(|one, other| other.path_bytes().cmp(&one.path_bytes()));
    folders.into_iter().try_for_each(place)
}

/// The archive without its compression, which its first bytes tell.
fn open(archive: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(archive)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(6).read_to_end(&mut magic)?;
    file.rewind()?;
    let packed = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY_KIB))
        }
        _ => Box::new(packed),
    })
}

/// The archive library says in the outer error what it was doing, and in the inner ones why it failed.
fn with_sources(error: &dyn std::error::Error) -> String {
    let inner = std::iter::successors(error.source(), |&inner| inner.source());
    inner.fold(error.to_string(), |text, inner| format!("{text}: {inner}"))
}
