//! The index's file with faults below it, for tests.

use std::io;

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::faults::{Faults, Step};

#[derive(Debug)]
pub(super) struct FaultyBackend {
    file: FileBackend,
    faults: Faults,
}

impl FaultyBackend {
    pub(super) fn new(file: FileBackend, faults: Faults) -> Self {
        Self { file, faults }
    }

    fn reach(&self, step: Step) -> io::Result<()> {
        self.faults.reach(step).map_err(io::Error::from)
    }
}

impl StorageBackend for FaultyBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.reach(Step::IndexGrow)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // What a killed process wrote stays in memory: a test that kills needs no disk.
        self.reach(Step::IndexSync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.reach(Step::IndexWrite)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
