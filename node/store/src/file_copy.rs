//! One file on its way into a tree and its archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tvix_node_protocol::tree::{BlobDigest, PathComponent};

use crate::arrived::ComingFile;
use crate::limits::{NAR_BUFFER, SMALL_FILE};
use crate::nar_tap::NarTap;
use crate::tree_writer::{TreeWriteError, TreeWriter};

/// Why a file was not copied whole.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// It has more or fewer bytes than said.
    Size,
    Read(io::Error),
    Write(TreeWriteError),
}

impl From<TreeWriteError> for CopyError {
    fn from(error: TreeWriteError) -> Self {
        Self::Write(error)
    }
}

fn read_error(error: io::Error) -> CopyError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Size,
        _ => CopyError::Read(error),
    }
}

/// Copies what `from` has, which must be exactly `size` bytes, and returns the digest of them. The words
/// of the archive around them are the caller's.
pub(crate) fn copy_file(
    from: &mut impl Read,
    (name, executable, size): (Option<PathComponent>, bool, u64),
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<BlobDigest, CopyError> {
    if let Ok(size) = usize::try_from(size)
        && size <= SMALL_FILE
    {
        let bytes = tap.take_whole(from, size).map_err(read_error)?;
        return Ok(writer.small_file(name, executable, bytes)?);
    }
    writer.open_file(name, executable, size)?;
    copy_rest(from, size, tap, writer)
}

/// As [`copy_file`], from a file that nothing writes to any more, which becomes the tree's own where it can.
pub(crate) fn take_file(
    given: &Path,
    (name, executable, size): (Option<PathComponent>, bool, u64),
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<BlobDigest, CopyError> {
    if size > SMALL_FILE as u64
        && let Some(mut taken) = writer.take_over(name.as_ref(), executable, given)?
    {
        return copy_rest(&mut taken, size, tap, writer);
    }
    let mut file = File::open(given).map_err(CopyError::Read)?;
    copy_file(&mut file, (name, executable, size), tap, writer)
}

/// As [`take_file`], from a file that is written to until all of it has been read.
pub(crate) fn take_coming(
    coming: &dyn ComingFile,
    (name, executable, size): (Option<PathComponent>, bool, u64),
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<BlobDigest, CopyError> {
    let taken = match size > SMALL_FILE as u64 {
        true => writer.take_over(name.as_ref(), executable, coming.path())?,
        false => None,
    };
    let mut content = AsItComes {
        file: taken.as_ref().unwrap_or_else(|| coming.file()),
        coming,
        at: 0,
        come: 0,
    };
    match &taken {
        Some(_) => copy_rest(&mut content, size, tap, writer),
        None => copy_file(&mut content, (name, executable, size), tap, writer),
    }
}

/// Reads a file as far as it has come, and waits for the rest.
struct AsItComes<'a> {
    file: &'a File,
    coming: &'a dyn ComingFile,
    /// Where it is read next.
    at: u64,
    /// So many bytes have come.
    come: u64,
}

impl Read for AsItComes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.come {
            self.come = self.coming.wait(self.at)?;
        }
        let left = usize::try_from(self.come - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The bytes of the writer's open file.
fn copy_rest(
    from: &mut impl Read,
    size: u64,
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<BlobDigest, CopyError> {
    tap.begin_file(size).map_err(CopyError::Read)?;
    let mut left = size;
    while writer.wants_pieces()
        && left >= NAR_BUFFER as u64
        && let Some(piece) = tap.take_shared(from).map_err(read_error)?
    {
        left -= piece.len() as u64;
        writer.write_piece(piece)?;
    }
    while left > 0 {
        let bytes = tap.take(from, left).map_err(read_error)?;
        if bytes.is_empty() {
            return Err(CopyError::Size);
        }
        left -= bytes.len() as u64;
        writer.write(bytes)?;
    }
    if !tap.take(from, 1).map_err(read_error)?.is_empty() {
        return Err(CopyError::Size);
    }
    Ok(writer.close_file()?)
}
