//! Garbage collection: what no root and no lease reaches goes.
//!
//! One transaction decides and unregisters: while it runs, nothing is added and nothing is leased.
//! Only when the index on the disk does not know a tree any more is the tree moved out of the way and
//! removed, so a crash leaves at most rubbish, never a valid path without its tree.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use redb::{ReadableTable, WriteTransaction};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::TreeDigest;

use crate::disk::FileError;
use crate::index::{
    IndexError, IndexFault, PATHS, PINS, PathRecord, RECORD_AUDIENCES, RECORD_OUTPUTS, RECORDS, ROOTS,
    UNACCEPTED, USED, path_from_key, path_key, read_path, remove_path, remove_tree, write_uses,
};
use crate::intent::Intended;
use crate::leases::Held;
use crate::limits::LOG_BYTES;
use crate::pins::read_pins;
use crate::registration::Registration;
use crate::running::{ProgramUse, RunningError, used_by_programs};
use crate::store::{Inner, Store, now};
use crate::trees::unaccepted_name;

/// What a collection does.
#[derive(Debug, Clone, Default)]
pub struct GcOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// Stop when so many bytes of archives have gone; none: everything that can go. What was not used
    /// for longest goes first.
    pub most: Option<u64>,
    /// Stop when the archives of what is left have at most so many bytes together.
    pub target: Option<u64>,
    /// Keep what was added or used in the last so many seconds, and what it refers to.
    pub younger_than: Option<u64>,
    /// Keep also these paths and what they refer to.
    pub keep: BTreeSet<StorePath>,
}

/// What a collection did, or would have done.
#[derive(Debug, Clone, Default)]
pub struct GcReport {
    /// Paths that went, those that refer to others first.
    pub removed: Vec<StorePath>,
    /// Trees that went and were not the accepted ones of their paths.
    pub removed_unaccepted: Vec<(StorePath, TreeDigest)>,
    /// Bytes of their archives. Files shared with trees that stay are in it, so the disk may gain less.
    pub bytes: u64,
    /// Paths that stay.
    pub kept: u64,
    /// What is pinned, which stays with what it refers to.
    pub pins: Vec<StorePath>,
    /// What running programs use, which stays with what it refers to. In order.
    pub programs: Vec<ProgramUse>,
    /// Links of roots that are gone or point elsewhere, and were forgotten.
    pub stale_roots: Vec<PathBuf>,
    /// What is not part of the store any more, and old logs, that could not be removed now. For trees the next change
    /// of the store, or its next start, tries again, for logs the next collection.
    pub failures: Vec<FileError>,
}

/// Why a collection ended early. What was unregistered before is gone for good; everything else is as
/// it was.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// What running programs use could not be told; nothing was collected.
    #[error(transparent)]
    Running(#[from] RunningError),
}

/// What somebody works with at the moment.
#[derive(Default)]
pub(crate) struct InUse {
    leased: HashSet<StorePath>,
    programs: BTreeMap<StorePath, Option<u32>>,
}

impl InUse {
    fn new(held: &Held, programs: BTreeMap<StorePath, Option<u32>>) -> Self {
        let leased = held.paths().cloned().collect();
        Self { leased, programs }
    }
}

/// What a collection takes.
#[derive(Default)]
pub(crate) struct Sweep {
    report: GcReport,
    /// Names in the directory of trees.
    names: Vec<String>,
}

impl Store {
    /// Collects garbage. Builds, reads and additions under leases go on meanwhile.
    ///
    /// # Errors
    /// [`GcError`]
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, GcError> {
        let inner = &self.inner;
        let uses = inner.leases.take_uses();
        if !uses.is_empty() {
            inner
                .index
                .write_lazily(|transaction| write_uses(transaction, &uses))?;
        }
        // Processes are looked at before anybody is kept from leasing: that takes long. What a program uses is leased until it
        // is written down for it or named by a process, and with the watch it counts as leased until it has been looked at,
        // so whenever a program takes something up, and whenever it is seen, what it uses is in one of the three.
        let watch = inner.leases.watch();
        let programs = used_by_programs(&inner.trees.disk, &inner.home, inner.trees.path())?;
        if options.dry_run {
            let held = inner.leases.lock();
            let in_use = InUse::new(&held, programs);
            drop(held);
            drop(watch);
            let preview = inner
                .index
                .preview(|transaction| inner.sweep(transaction, options, &in_use));
            return Ok(preview?.report);
        }
        let mut registration = Registration::begin(inner, &[])?;
        // No path can be leased from here until the index is written.
        let held = inner.leases.lock();
        let in_use = InUse::new(&held, programs);
        let mut decided = None;
        let written = inner.index.write(|transaction| {
            let sweep = decided.insert(inner.sweep(transaction, options, &in_use)?);
            // Names that a crash from here on would leave behind.
            let names: Vec<Intended> = sweep.names.iter().cloned().map(Intended::from).collect();
            Ok(registration.intend(&names)?)
        });
        drop(held);
        drop(watch);
        let sweep = decided.unwrap_or_default();
        if let Err(error) = written
            && !inner.has_swept(&sweep)?
        {
            registration.end();
            return Err(error.into());
        }
        sweep.names.iter().for_each(|name| registration.discard(name));
        let mut failures = registration.end();
        // What has been collected is gone, and must be told of.
        failures.extend(inner.prune_logs(LOG_BYTES).err());
        Ok(GcReport {
            failures,
            ..sweep.report
        })
    }
}

impl Inner {
    /// After a failed write: whether the index on the disk has the sweep all the same.
    fn has_swept(&self, sweep: &Sweep) -> Result<bool, IndexError> {
        self.index.reopen()?;
        if let Some(path) = sweep.report.removed.first() {
            return Ok(self.index.path(path)?.is_none());
        }
        match sweep.report.removed_unaccepted.first() {
            Some((path, tree)) => Ok(self.index.unaccepted(path, *tree)?.is_none()),
            None => Ok(false),
        }
    }

    pub(crate) fn sweep(
        &self,
        transaction: &WriteTransaction,
        options: &GcOptions,
        in_use: &InUse,
    ) -> Result<Sweep, IndexFault> {
        let mut sweep = Sweep::default();
        let (roots, stale) = self.read_roots(&transaction.open_table(ROOTS)?)?;
        let roots = roots.into_iter().map(|root| root.path);
        let mut all = read_all(transaction)?;
        let since = options.younger_than.map(|seconds| now().saturating_sub(seconds));
        let young = all
            .iter()
            .filter(|(_, used)| since.is_some_and(|since| *used >= since));
        let pins = read_pins(&transaction.open_table(PINS)?)?;
        sweep.report.pins = pins.into_iter().map(|pin| pin.path).collect();
        let start = roots
            .chain(sweep.report.pins.iter().cloned())
            .chain(in_use.leased.iter().cloned())
            .chain(in_use.programs.keys().cloned())
            .chain(options.keep.iter().cloned())
            .chain(young.map(|(record, _)| record.info.path.clone()));
        let paths = transaction.open_table(PATHS)?;
        let live = mark(&paths, start)?;
        for (path, process) in &in_use.programs {
            if read_path(&paths, path)?.is_some() {
                let (path, process) = (path.clone(), *process);
                sweep.report.programs.push(ProgramUse { path, process });
            }
        }
        drop(paths);
        let sizes = all.iter().map(|(record, _)| record.info.nar_size);
        let mut total = sizes.fold(0, u64::saturating_add);
        for record in transaction.open_table(UNACCEPTED)?.iter()? {
            let (key, record) = record?;
            let path = path_from_key(key.value().0)?;
            total = total.saturating_add(PathRecord::decode(path, record.value())?.info.nar_size);
        }
        let before = all.len();
        all.retain(|(record, _)| !live.contains(&record.info.path));
        let dead = all;
        sweep.report.kept = (before - dead.len()) as u64;
        let most = options
            .target
            .map(|target| total.saturating_sub(target))
            .into_iter()
            .chain(options.most)
            .min();
        let full = |report: &GcReport| most.is_some_and(|most| report.bytes >= most);
        // A path goes before what it refers to, so a collection that stops early leaves closures whole.
        for record in referrers_first(dead) {
            if full(&sweep.report) {
                sweep.report.kept += 1;
                continue;
            }
            remove_path(transaction, &record)?;
            remove_tree(transaction, record.number, record.info.tree)?;
            sweep.report.bytes = sweep.report.bytes.saturating_add(record.info.nar_size);
            sweep.names.push(record.info.path.to_basename());
            sweep.report.removed.push(record.info.path);
        }
        let keeps = |record: &PathRecord| {
            let path = &record.info.path;
            let used = in_use.leased.contains(path) || in_use.programs.contains_key(path);
            used || since.is_some_and(|since| record.info.registered >= since)
        };
        self.sweep_unaccepted(transaction, &keeps, &mut sweep, &full)?;
        sweep_records(transaction)?;
        let mut table = transaction.open_table(ROOTS)?;
        for link in &stale {
            table.remove(link.as_os_str().as_bytes())?;
        }
        sweep.report.stale_roots = stale;
        Ok(sweep)
    }

    fn sweep_unaccepted(
        &self,
        transaction: &WriteTransaction,
        keeps: &dyn Fn(&PathRecord) -> bool,
        sweep: &mut Sweep,
        full: &dyn Fn(&GcReport) -> bool,
    ) -> Result<(), IndexFault> {
        let mut unaccepted = transaction.open_table(UNACCEPTED)?;
        let mut dead = Vec::new();
        for entry in unaccepted.iter()? {
            let (key, record) = entry?;
            let path = path_from_key(key.value().0)?;
            let record = PathRecord::decode(path, record.value())?;
            if !keeps(&record) {
                dead.push(record);
            }
        }
        for record in dead {
            if full(&sweep.report) {
                break;
            }
            let (path, tree) = (record.info.path, record.info.tree);
            unaccepted.remove((path_key(&path).as_slice(), &tree.0))?;
            remove_tree(transaction, record.number, tree)?;
            sweep.report.bytes = sweep.report.bytes.saturating_add(record.info.nar_size);
            sweep.names.push(unaccepted_name(&path, tree));
            sweep.report.removed_unaccepted.push((path, tree));
        }
        Ok(())
    }
}

/// All accepted paths, each with when it was added or last used.
fn read_all(transaction: &WriteTransaction) -> Result<Vec<(PathRecord, u64)>, IndexFault> {
    let used = transaction.open_table(USED)?;
    let paths = transaction.open_table(PATHS)?;
    let mut all = Vec::new();
    for entry in paths.iter()? {
        let (key, record) = entry?;
        let record = PathRecord::decode(path_from_key(key.value())?, record.value())?;
        let used = used.get(key.value())?.map_or(0, |time| time.value());
        let last = used.max(record.info.registered);
        all.push((record, last));
    }
    Ok(all)
}

/// Everything that is reached.
fn mark(
    paths: &impl ReadableTable<&'static [u8], &'static [u8]>,
    start: impl Iterator<Item = StorePath>,
) -> Result<HashSet<StorePath>, IndexFault> {
    let mut live = HashSet::new();
    let mut pending: Vec<StorePath> = start.collect();
    while let Some(path) = pending.pop() {
        if live.contains(&path) {
            continue;
        }
        if let Some(record) = read_path(paths, &path)? {
            pending.extend(
                record
                    .info
                    .references
                    .into_iter()
                    .filter(|reference| !live.contains(reference)),
            );
        }
        live.insert(path);
    }
    Ok(live)
}

/// Orders paths so that each comes before what it refers to, and among those that could be next the one
/// that was not used for longest.
fn referrers_first(dead: Vec<(PathRecord, u64)>) -> Vec<PathRecord> {
    let (dead, used): (Vec<PathRecord>, Vec<u64>) = dead.into_iter().unzip();
    let numbers: std::collections::HashMap<StorePath, usize> = dead
        .iter()
        .enumerate()
        .map(|(number, record)| (record.info.path.clone(), number))
        .collect();
    let references = |record: &PathRecord| -> Vec<usize> {
        let others = record
            .info
            .references
            .iter()
            .filter(|&reference| *reference != record.info.path);
        others
            .filter_map(|reference| numbers.get(reference).copied())
            .collect()
    };
    let mut referrers = vec![0usize; dead.len()];
    for record in &dead {
        references(record)
            .into_iter()
            .for_each(|number| referrers[number] += 1);
    }
    let mut ready: BinaryHeap<Reverse<(u64, usize)>> = (0..dead.len())
        .filter(|&number| referrers[number] == 0)
        .map(|number| Reverse((used[number], number)))
        .collect();
    let mut order = Vec::with_capacity(dead.len());
    while let Some(Reverse((_, number))) = ready.pop() {
        order.push(number);
        for reference in references(&dead[number]) {
            referrers[reference] -= 1;
            if referrers[reference] == 0 {
                ready.push(Reverse((used[reference], reference)));
            }
        }
    }
    let mut slots: Vec<Option<PathRecord>> = dead.into_iter().map(Some).collect();
    let mut ordered: Vec<PathRecord> = order
        .into_iter()
        .filter_map(|number| slots[number].take())
        .collect();
    // References have no cycles but self-references; should a damaged index have one, it goes last.
    ordered.extend(slots.into_iter().flatten());
    ordered
}

/// Records of which no output is left.
fn sweep_records(transaction: &WriteTransaction) -> Result<(), IndexFault> {
    let paths = transaction.open_table(PATHS)?;
    let unaccepted = transaction.open_table(UNACCEPTED)?;
    let mut outputs = transaction.open_table(RECORD_OUTPUTS)?;
    let (mut living, mut dead) = (HashSet::new(), Vec::new());
    for entry in outputs.iter()? {
        let (entry, _) = entry?;
        let (path, key, builder) = entry.value();
        let beside = (path, &[0; 32])..=(path, &[255; 32]);
        if paths.get(path)?.is_some() || unaccepted.range(beside)?.next().is_some() {
            living.insert((*key, *builder));
        } else {
            dead.push((path.to_vec(), *key, *builder));
        }
    }
    let mut records = transaction.open_table(RECORDS)?;
    let mut audiences = transaction.open_table(RECORD_AUDIENCES)?;
    for (path, key, builder) in dead {
        if !living.contains(&(key, builder)) {
            records.remove((&key, &builder))?;
            audiences.remove((&key, &builder))?;
            outputs.remove((path.as_slice(), &key, &builder))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
