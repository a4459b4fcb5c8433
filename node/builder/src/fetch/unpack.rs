//! Archives (NAR), compressed or not, to files and folders.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use tvix_node_protocol::nix::nar::{Event, FileContents, NarError, decode_events_reader};

use crate::limits::XZ_MEMORY_KIB;

/// As the archive library wants its readers to be wrapped.
const BUFFER_BYTES: usize = 256 << 10;

/// Unpacks an archive of at most `most` bytes to `target`, where nothing may be yet.
///
/// # Errors
/// In words: what is wrong with the archive, or with the disk.
pub(super) fn unpack(archive: File, is_xz: bool, target: &Path, most: u64) -> Result<(), String> {
    let archive = BufReader::with_capacity(BUFFER_BYTES, archive);
    if !is_xz {
        return restore(&mut archive.take(most), target);
    }
    let plain = Bounded {
        from: XzReader::new_mem_limit(archive, true, XZ_MEMORY_KIB),
        left: most,
    };
    restore(&mut BufReader::with_capacity(BUFFER_BYTES, plain), target)
}

/// Fails where more is read than allowed: small files can decompress to very large ones.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than allowed"))?;
        Ok(read)
    }
}

/// Every name in an archive is checked by its decoder: one component, sorted, never twice. So nothing is
/// ever written through a link, and everything is new.
fn restore<R: Read>(archive: &mut R, target: &Path) -> Result<(), String> {
    let mut at: Vec<PathBuf> = Vec::new();
    let mut failure = None;
    let decoded = decode_events_reader(archive, |event| {
        place(event, &mut at, target).map_err(|error| {
            let message = error.to_string();
            failure = Some(message);
            NarError::Io(error)
        })
    });
    match (decoded, failure) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(message)) => Err(message),
        (Err(error), None) => Err(error.to_string()),
    }
}

fn place<R: Read>(
    event: Event<'_, FileContents<'_, R>>,
    at: &mut Vec<PathBuf>,
    target: &Path,
) -> io::Result<()> {
    let path = |name: Option<&[u8]>, at: &[PathBuf]| match (name, at.last()) {
        (Some(name), Some(folder)) => folder.join(std::ffi::OsStr::from_bytes(name)),
        _ => target.to_path_buf(),
    };
    match event {
        Event::DirectoryStart { name } => {
            let folder = path(name, at);
            fs::create_dir(&folder)?;
            // Whatever this process's umask is.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            at.push(folder);
        }
        Event::DirectoryEnd { .. } => {
            at.pop();
        }
        Event::Regular {
            name,
            executable,
            mut contents,
        } => {
            let mode = if executable { 0o755 } else { 0o644 };
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path(name, at))?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            contents.copy_to(&mut file)?;
        }
        Event::Symlink {
            name,
            target: points_to,
        } => {
            symlink(std::ffi::OsStr::from_bytes(points_to), path(name, at))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Bytes of a dictionary, as a block of xz says it.
    fn dictionary(said: u8) -> u64 {
        (2 | u64::from(said & 1)) << (said / 2 + 11)
    }

    #[test]
    fn what_takes_too_much_memory_to_unpack_is_refused() {
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(b"no archive").unwrap();
        let mut xz = xz.finish().unwrap();
        // The block's head follows the stream's 12 bytes: size, flags, LZMA2, one byte of properties.
        let head = 12..12 + (usize::from(xz[12]) + 1) * 4;
        assert_eq!(xz[13..16], [0, 0x21, 1]);
        let most = u64::from(XZ_MEMORY_KIB) << 10;
        let too_large = (0..40).find(|said| dictionary(*said) > most).unwrap();
        let place = tempfile::tempdir().unwrap();
        let as_it_is = xz[16];
        let mut unpacked = |said: u8| {
            xz[16] = said;
            let mut sum = flate2::Crc::new();
            sum.update(&xz[head.start..head.end - 4]);
            xz[head.end - 4..head.end].copy_from_slice(&sum.sum().to_le_bytes());
            let file = place.path().join("archive");
            fs::write(&file, &xz).unwrap();
            unpack(
                File::open(file).unwrap(),
                true,
                &place.path().join("target"),
                1 << 20,
            )
            .unwrap_err()
        };
        let small = unpacked(as_it_is);
        assert!(!small.contains("memory"), "{small}");
        let large = unpacked(too_large);
        assert!(large.contains("memory"), "{large}");
    }
}
