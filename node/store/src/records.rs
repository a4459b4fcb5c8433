//! Build records: what builders said they built.

use redb::{ReadableTable, WriteTransaction};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord};
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey};
use tvix_node_protocol::limits::PAYLOAD_BYTES;
use tvix_node_protocol::path_info::PathInfo;

use crate::add::{AddError, Prepared};
use crate::commit::Batch;
use crate::index::{DecodeError, IndexError, IndexFault, RECORD_OUTPUTS, RECORDS, path_key};
use crate::leases::Lease;
use crate::limits::RECORDS_PER_KEY;
use crate::store::Store;

/// Why a record was not stored or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not a record, or not signed by the builder it names.
    #[error("the build record is refused: {0}")]
    Envelope(#[from] EnvelopeError),
    /// Signed by somebody else.
    #[error("the build record says it is by {builder}, but is signed by {signer}")]
    Signer {
        /// Who is named.
        builder: NodeKey,
        /// Who signed.
        signer: NodeKey,
    },
    /// Too many for one key.
    #[error("there are {RECORDS_PER_KEY} records of other builders for this build already")]
    TooMany,
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The outputs were refused.
    #[error(transparent)]
    Add(#[from] AddError),
}

/// A record as the index keeps it.
#[derive(Debug, Clone)]
pub(crate) struct RecordRow {
    key: BuildKey,
    builder: NodeKey,
    outputs: Vec<Vec<u8>>,
    envelope: Vec<u8>,
}

/// Room for the envelope around the largest payload.
const ENVELOPE_BYTES: usize = PAYLOAD_BYTES + 4096;

impl RecordRow {
    fn new(envelope: &Envelope) -> Result<Self, RecordError> {
        let record: BuildRecord = envelope.open()?;
        if record.builder != envelope.signer {
            return Err(RecordError::Signer {
                builder: record.builder,
                signer: envelope.signer,
            });
        }
        Ok(Self {
            key: record.build_key,
            builder: record.builder,
            outputs: record
                .outputs
                .values()
                .map(|output| path_key(&output.path))
                .collect(),
            envelope: envelope.to_bytes()?,
        })
    }

    /// A builder's newer record for the same key takes the place of the older one.
    pub(crate) fn insert(&self, transaction: &WriteTransaction) -> Result<(), IndexFault> {
        let mut records = transaction.open_table(RECORDS)?;
        records.insert((&self.key.0, &self.builder.0), self.envelope.as_slice())?;
        let mut outputs = transaction.open_table(RECORD_OUTPUTS)?;
        for output in &self.outputs {
            outputs.insert((output.as_slice(), &self.key.0, &self.builder.0), ())?;
        }
        Ok(())
    }
}

impl Store {
    /// Registers the outputs of a build and its record, together and durably. See [`Store::register`].
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn register_built(
        &self,
        outputs: Vec<Prepared>,
        record: &Envelope,
        lease: &Lease,
    ) -> Result<Vec<PathInfo>, RecordError> {
        let row = RecordRow::new(record)?;
        Ok(self.submit(Batch::accepted(outputs, Some(row)), lease)?)
    }

    /// Stores a record by itself. Whether it is believed is the caller's to decide.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn put_record(&self, record: &Envelope) -> Result<(), RecordError> {
        let row = RecordRow::new(record)?;
        let stored = self.inner.index.write(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let known = records.get((&row.key.0, &row.builder.0))?.is_some();
            let range = (&row.key.0, &[0; 32])..=(&row.key.0, &[255; 32]);
            let full = !known && records.range(range)?.take(RECORDS_PER_KEY).count() == RECORDS_PER_KEY;
            drop(records);
            if !full {
                row.insert(transaction)?;
            }
            Ok(!full)
        })?;
        if stored { Ok(()) } else { Err(RecordError::TooMany) }
    }

    /// All records of a build key, one of each builder.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn records(&self, key: &BuildKey) -> Result<Vec<Envelope>, IndexError> {
        self.inner.index.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let range = (&key.0, &[0; 32])..=(&key.0, &[255; 32]);
            records
                .range(range)?
                .map(|entry| read_envelope(entry?.1.value()))
                .collect()
        })
    }

    /// All records that name this path as an output.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn records_of(&self, output: &StorePath) -> Result<Vec<Envelope>, IndexError> {
        self.inner.index.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let outputs = transaction.open_table(RECORD_OUTPUTS)?;
            let key = path_key(output);
            let range = (key.as_slice(), &[0; 32], &[0; 32])..=(key.as_slice(), &[255; 32], &[255; 32]);
            let mut found = Vec::new();
            for entry in outputs.range(range)? {
                let (entry, _) = entry?;
                let (_, build, builder) = entry.value();
                let record = records
                    .get((build, builder))?
                    .ok_or(DecodeError::Field("record"))?;
                found.push(read_envelope(record.value())?);
            }
            Ok(found)
        })
    }
}

fn read_envelope(bytes: &[u8]) -> Result<Envelope, IndexFault> {
    let damaged = |_: EnvelopeError| DecodeError::Field("record");
    Ok(Envelope::from_bytes(bytes, ENVELOPE_BYTES).map_err(damaged)?)
}
