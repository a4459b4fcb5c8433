//! Build records: what builders said they built.

use redb::{ReadableTable, WriteTransaction};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord, SwarmId};
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, NodeKey};
use tvix_node_protocol::limits::PAYLOAD_BYTES;
use tvix_node_protocol::path_info::PathInfo;

use crate::add::{AddError, Prepared};
use crate::audience::{Audience, record_audience, write_record_audience};
use crate::commit::Batch;
use crate::index::{
    DecodeError, IndexError, IndexFault, RECORD_AUDIENCES, RECORD_OUTPUTS, RECORDS, path_key,
};
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
    pub(crate) fn insert(
        &self,
        transaction: &WriteTransaction,
        audience: &Audience,
    ) -> Result<(), IndexFault> {
        let row = (&self.key.0, &self.builder.0);
        let mut records = transaction.open_table(RECORDS)?;
        let old = records.insert(row, self.envelope.as_slice())?;
        let same = old.is_some_and(|old| old.value() == self.envelope);
        let audience = match same {
            true => record_audience(&transaction.open_table(RECORD_AUDIENCES)?, row)?.either(audience),
            false => audience.clone(),
        };
        write_record_audience(transaction, (&self.key, &self.builder), &audience)?;
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

    /// As [`Store::register`], or where there is a record [`Store::register_built`], for several that are independent of each other
    /// and share the cost: each has its own result, in their order.
    pub fn register_each(
        &self,
        several: Vec<(Vec<Prepared>, Option<Envelope>)>,
        lease: &Lease,
    ) -> Vec<Result<Vec<PathInfo>, RecordError>> {
        let mut refused = Vec::with_capacity(several.len());
        let mut batches = Vec::with_capacity(several.len());
        for (trees, record) in several {
            match record.as_ref().map(RecordRow::new).transpose() {
                Ok(row) => {
                    batches.push(Batch::accepted(trees, row));
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error)),
            }
        }
        let mut results = self.submit_each(batches, lease).into_iter();
        let result = |refused: Option<RecordError>| match refused {
            Some(error) => Err(error),
            None => Ok(results.next().unwrap_or(Err(AddError::Interrupted))?),
        };
        refused.into_iter().map(result).collect()
    }

    /// Stores a record by itself, of which no more than `audience` may learn. Whether it is believed is the caller's to
    /// decide.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn put_record(&self, record: &Envelope, audience: &Audience) -> Result<(), RecordError> {
        let row = RecordRow::new(record)?;
        let stored = self.inner.index.write(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let known = records.get((&row.key.0, &row.builder.0))?.is_some();
            let range = (&row.key.0, &[0; 32])..=(&row.key.0, &[255; 32]);
            let full = !known && records.range(range)?.take(RECORDS_PER_KEY).count() == RECORDS_PER_KEY;
            drop(records);
            if !full {
                row.insert(transaction, audience)?;
            }
            Ok(!full)
        })?;
        if stored { Ok(()) } else { Err(RecordError::TooMany) }
    }

    /// The records of a build key that the members of this team may learn of, one of each builder.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn records_known_to(&self, team: SwarmId, key: &BuildKey) -> Result<Vec<Envelope>, IndexError> {
        let all = self.inner.index.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let audiences = transaction.open_table(RECORD_AUDIENCES)?;
            let range = (&key.0, &[0; 32])..=(&key.0, &[255; 32]);
            let records = records.range(range)?.map(|entry| {
                let (row, record) = entry?;
                let audience = record_audience(&audiences, row.value())?;
                Ok((read_envelope(record.value())?, audience))
            });
            records.collect::<Result<Vec<_>, IndexFault>>()
        })?;
        Ok(known_to(team, all))
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

    /// The records that name this path as an output and that the members of this team may learn of.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn records_of_known_to(
        &self,
        team: SwarmId,
        output: &StorePath,
    ) -> Result<Vec<Envelope>, IndexError> {
        Ok(known_to(team, self.records_and_audiences_of(output)?))
    }

    /// All records that name this path as an output.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn records_of(&self, output: &StorePath) -> Result<Vec<Envelope>, IndexError> {
        let all = self.records_and_audiences_of(output)?.into_iter();
        Ok(all.map(|(record, _)| record).collect())
    }

    fn records_and_audiences_of(&self, output: &StorePath) -> Result<Vec<(Envelope, Audience)>, IndexError> {
        self.inner.index.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let audiences = transaction.open_table(RECORD_AUDIENCES)?;
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
                let audience = record_audience(&audiences, (build, builder))?;
                found.push((read_envelope(record.value())?, audience));
            }
            Ok(found)
        })
    }
}

fn known_to(team: SwarmId, all: Vec<(Envelope, Audience)>) -> Vec<Envelope> {
    let known = all.into_iter().filter(|(_, audience)| audience.includes(team));
    known.map(|(record, _)| record).collect()
}

fn read_envelope(bytes: &[u8]) -> Result<Envelope, IndexFault> {
    let damaged = |_: EnvelopeError| DecodeError::Field("record");
    Ok(Envelope::from_bytes(bytes, ENVELOPE_BYTES).map_err(damaged)?)
}
