//! Archives as they lie in a cache, unpacked while they are read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::FrameDecoderError;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, NixHasher};
use tvix_node_protocol::nix::narinfo::Compression;

use crate::limits::NAR_BUFFER;

/// Memory that unpacking xz may take, in KiB: `xz -9` needs 65 MiB. (The zstd decoder refuses windows
/// of more than 100 MiB by itself.)
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// A file that is hashed as it is read.
pub(super) struct Hashed {
    file: BufReader<File>,
    hasher: NixHasher,
    size: u64,
}

impl Hashed {
    fn new(file: File, algorithm: HashAlgorithm) -> Box<Self> {
        Box::new(Self {
            file: BufReader::with_capacity(NAR_BUFFER, file),
            hasher: NixHasher::new(algorithm),
            size: 0,
        })
    }

    /// Reads what is left; the hash and size of all of it.
    fn finish(mut self: Box<Self>) -> io::Result<(NixHash, u64)> {
        io::copy(&mut *self, &mut io::sink())?;
        Ok((self.hasher.finalize(), self.size))
    }
}

impl BufRead for Hashed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.hasher.update(&self.file.buffer()[..count]);
        self.size += count as u64;
        self.file.consume(count);
    }
}

impl Read for Hashed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

type Frame = StreamingDecoder<Box<Hashed>, ruzstd::decoding::FrameDecoder>;

/// An archive, unpacked.
pub(super) enum Decoder {
    None(Box<Hashed>),
    Xz(Box<XzReader<Box<Hashed>>>),
    Zstd(Frames),
}

impl Decoder {
    /// Whether archives that are packed like this can be unpacked.
    pub(super) const fn knows(compression: &Compression) -> bool {
        match compression {
            Compression::None | Compression::Xz | Compression::Zstd => true,
            Compression::Bzip2 | Compression::Gzip | Compression::Other(_) => false,
        }
    }

    /// Begins to read a file; nothing where its packing is not known. The file's own hash is made with
    /// `algorithm`.
    pub(super) fn open(
        file: &Path,
        compression: &Compression,
        algorithm: HashAlgorithm,
    ) -> io::Result<Option<Self>> {
        let hashed = || File::open(file).map(|file| Hashed::new(file, algorithm));
        Ok(Some(match compression {
            Compression::None => Self::None(hashed()?),
            Compression::Xz => Self::Xz(Box::new(XzReader::new_mem_limit(hashed()?, true, XZ_MEMORY_KIB))),
            Compression::Zstd => Self::Zstd(Frames(State::Between(hashed()?))),
            Compression::Bzip2 | Compression::Gzip | Compression::Other(_) => return Ok(None),
        }))
    }

    /// The hash and size of the whole file as it lies there.
    pub(super) fn finish(self) -> io::Result<(NixHash, u64)> {
        match self {
            Self::None(file) => file.finish(),
            Self::Xz(reader) => reader.into_inner().finish(),
            Self::Zstd(frames) => match frames.0 {
                State::Between(file) => file.finish(),
                State::In(frame) => frame.into_inner().finish(),
                State::Failed => Err(failed()),
            },
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(file) => file.read(to),
            Self::Xz(reader) => reader.read(to),
            Self::Zstd(frames) => frames.read(to),
        }
    }
}

/// Zstandard allows any number of frames after each other; programs that pack with several threads make
/// them.
pub(super) struct Frames(State);

enum State {
    Between(Box<Hashed>),
    In(Box<Frame>),
    /// A frame could not be begun.
    Failed,
}

fn failed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the zstd frame before was not valid")
}

impl Read for Frames {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.0, State::Failed) {
                State::Failed => return Err(failed()),
                State::Between(mut file) => {
                    if file.fill_buf()?.is_empty() {
                        self.0 = State::Between(file);
                        return Ok(0);
                    }
                    let invalid = |error: FrameDecoderError| {
                        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                    };
                    self.0 = State::In(Box::new(StreamingDecoder::new(file).map_err(invalid)?));
                }
                State::In(mut frame) => match frame.read(to)? {
                    0 if !to.is_empty() => self.0 = State::Between(frame.into_inner()),
                    read => {
                        self.0 = State::In(frame);
                        return Ok(read);
                    }
                },
            }
        }
    }
}
