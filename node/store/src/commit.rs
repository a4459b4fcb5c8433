//! Making prepared trees part of the store.
//!
//! The order is what a crash cannot break. Trees are written to the side; the file system is synced,
//! so they are on the disk; they get their names; the index is written and synced, and only now
//! anybody is told. Before the index knows them they do not exist for anyone, and the next start
//! removes them. If power fails after the index is on the disk and before the names are, the next
//! start gives the names: both are known by then.
//!
//! Callers that arrive while a group is being committed form the next one, so many small paths share
//! the two syncs.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use redb::{ReadableTable, WriteTransaction};
use rustix::io::Errno;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::PathInfo;

use crate::add::{AddError, Prepared};
use crate::audience::{Audience, Offer, write_audiences};
use crate::disk::{Context, FileError};
use crate::index::{
    IndexError, IndexFault, PATHS, PathRecord, UNACCEPTED, insert_path, insert_tree, path_key, read_path,
    read_unaccepted, write_uses,
};
use crate::intent::Intended;
use crate::leases::Lease;
use crate::limits::RESERVED_BYTES;
use crate::records::RecordRow;
use crate::registration::Registration;
use crate::store::{Inner, Store, now};
use crate::sync::sync_trees;
use crate::tree_writer::Written;
use crate::trees::unaccepted_name;

/// Trees that become part of the store together or not at all.
pub(crate) struct Batch {
    trees: Vec<Prepared>,
    accepted: bool,
    record: Option<RecordRow>,
}

impl Batch {
    pub(crate) fn accepted(trees: Vec<Prepared>, record: Option<RecordRow>) -> Self {
        let accepted = true;
        Self {
            trees,
            accepted,
            record,
        }
    }

    pub(crate) fn unaccepted(trees: Vec<Prepared>) -> Self {
        Self {
            trees,
            accepted: false,
            record: None,
        }
    }

    fn write_audiences(&self, transaction: &WriteTransaction, known: &[bool]) -> Result<(), IndexFault> {
        let nothing = BTreeSet::new();
        let trees = self.trees.iter().zip(known);
        // What lies under its digest need not have what it refers to beside it. Where it was there before, by whatever
        // way, nobody hears of it by this one.
        let offers = trees
            .filter(|(_, known)| self.accepted || !**known)
            .map(|(tree, known)| Offer {
                path: &tree.info.path,
                references: if self.accepted {
                    &tree.info.references
                } else {
                    &nothing
                },
                name: final_name(&tree.info, self.accepted),
                audience: tree.audience.clone(),
                known: *known,
            });
        write_audiences(transaction, &offers.collect::<Vec<_>>())
    }
}

/// What one caller waits for. Each is woken by itself: many wait at once, and a group ends for few of them.
#[derive(Default)]
struct Answer {
    news: Mutex<Option<News>>,
    came: Condvar,
}

enum News {
    /// Nobody commits at the moment, and the caller's batch is next.
    Lead,
    Result(Result<Vec<PathInfo>, AddError>),
}

impl Answer {
    fn tell(&self, news: News) {
        *unpoisoned(&self.news) = Some(news);
        self.came.notify_one();
    }

    fn wait(&self) -> News {
        let mut news = unpoisoned(&self.news);
        loop {
            match news.take() {
                Some(news) => return news,
                None => news = self.came.wait(news).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A batch and who waits for it. Whoever drops it unanswered has failed.
struct Job {
    batch: Batch,
    answer: Arc<Answer>,
    /// Names given to trees of this batch that the index does not know yet.
    named: Vec<String>,
    /// The answer, once it is certain that it counts.
    outcome: Option<Result<Vec<PathInfo>, AddError>>,
}

impl Drop for Job {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Err(AddError::Interrupted));
        self.answer.tell(News::Result(outcome));
    }
}

/// Where batches wait for their turn.
#[derive(Default)]
pub(crate) struct Committer(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Vec<Job>,
    busy: bool,
}

/// Who commits. Whoever waits first is the next, however the group ended.
struct Turn<'a>(&'a Committer);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = unpoisoned(&self.0.0);
        match queue.waiting.first() {
            Some(next) => next.answer.tell(News::Lead),
            None => queue.busy = false,
        }
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(crate) fn submit(&self, batch: Batch, lease: &Lease) -> Result<Vec<PathInfo>, AddError> {
        let mut results = self.submit_each(vec![batch], lease);
        results.pop().unwrap_or(Err(AddError::Interrupted))
    }

    /// Several that share one group, each with its own result, in their order.
    pub(crate) fn submit_each(
        &self,
        batches: Vec<Batch>,
        lease: &Lease,
    ) -> Vec<Result<Vec<PathInfo>, AddError>> {
        debug_assert!(
            lease.is_of(&self.inner),
            "a lease of another store protects nothing here"
        );
        let trees = batches.iter().flat_map(|batch| &batch.trees);
        lease.reserve(trees.map(|tree| &tree.info.path));
        let committer = &self.inner.committer;
        let jobs = batches.into_iter().map(|batch| Job {
            batch,
            answer: Arc::default(),
            named: Vec::new(),
            outcome: None,
        });
        let jobs: Vec<Job> = jobs.collect();
        let answers: Vec<Arc<Answer>> = jobs.iter().map(|job| Arc::clone(&job.answer)).collect();
        let Some(first) = answers.first() else {
            return Vec::new();
        };
        {
            let mut queue = unpoisoned(&committer.0);
            queue.waiting.extend(jobs);
            if !std::mem::replace(&mut queue.busy, true) {
                first.tell(News::Lead);
            }
        }
        // All of them are in one group: the first of them leads it, if anybody here does.
        answers.iter().map(|answer| self.answered(answer)).collect()
    }

    fn answered(&self, answer: &Answer) -> Result<Vec<PathInfo>, AddError> {
        let committer = &self.inner.committer;
        loop {
            match answer.wait() {
                News::Result(result) => return result,
                // The own batch is in the group, and answered when it is committed.
                News::Lead => {
                    let _turn = Turn(committer);
                    let group = std::mem::take(&mut unpoisoned(&committer.0).waiting);
                    self.inner.commit(group);
                }
            }
        }
    }
}

/// What fails a whole group.
#[derive(Debug, Clone)]
enum GroupError {
    File(FileError),
    Index(IndexError),
}

impl From<FileError> for GroupError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<GroupError> for AddError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::File(error) => error.into(),
            GroupError::Index(error) => error.into(),
        }
    }
}

impl Inner {
    fn commit(&self, mut group: Vec<Job>) {
        // Dropping the group answers, and removes what was written and not registered.
        if let Err(error) = self.try_commit(&mut group) {
            for job in &mut group {
                job.outcome = Some(Err(error.clone().into()));
            }
        }
    }

    fn try_commit(&self, group: &mut [Job]) -> Result<(), GroupError> {
        let written: Vec<&Written> = group
            .iter()
            .flat_map(|job| &job.batch.trees)
            .map(|tree| &tree.written)
            .collect();
        if !written.is_empty() {
            sync_trees(&self.trees, &written)?;
        }
        self.check_space()?;
        let mut registration = Registration::begin(self, &intended_names(group))?;
        let now = now();
        let uses = self.leases.take_uses();
        let written = self.index.write(|transaction| {
            write_uses(transaction, &uses)?;
            group.iter_mut().try_for_each(|job| {
                job.outcome = Some(self.register_job(transaction, job, now, &mut registration)?);
                Ok(())
            })
        });
        let result = match written {
            Ok(()) => Ok(()),
            Err(error) => self.after_failed_write(group, &error, &mut registration),
        };
        // What could not be removed was warned of, and changes nothing about the answer.
        registration.end();
        if result.is_ok() {
            group.iter_mut().for_each(|job| self.mend_known(job));
        }
        result
    }

    /// What was valid already and has been damaged since has come again, whole. Where that cannot be put in its place, the
    /// whole batch is answered with why, though the rest of it is registered: it can be added again.
    fn mend_known(&self, job: &mut Job) {
        if !job.batch.accepted || !matches!(job.outcome, Some(Ok(_))) {
            return;
        }
        for tree in &mut job.batch.trees {
            if tree.written.temporary.is_kept() {
                continue;
            }
            if let Err(error) = self.mend(&tree.info.path, &mut tree.written) {
                job.outcome = Some(Err(error.into()));
                return;
            }
        }
    }

    /// The index may have been written after all: only opening it again tells.
    fn after_failed_write(
        &self,
        group: &mut [Job],
        error: &IndexError,
        registration: &mut Registration<'_>,
    ) -> Result<(), GroupError> {
        // Where this fails, too, the names stay as they are; the next start finds out.
        self.index.reopen().map_err(GroupError::Index)?;
        let mut numbers = group.iter().flat_map(|job| &job.batch.trees);
        let registered = match numbers.find(|tree| tree.written.temporary.is_kept()) {
            Some(tree) => self
                .index
                .tree_name(tree.written.temporary.number())
                .map_err(GroupError::Index)?,
            None => None,
        };
        if registered.is_some() {
            return Ok(());
        }
        let named = group.iter_mut().flat_map(|job| job.named.drain(..));
        named.for_each(|name| registration.discard(&name));
        Err(GroupError::Index(error.clone()))
    }

    /// An index that cannot grow cannot even unregister what a garbage collection frees.
    fn check_space(&self) -> Result<(), FileError> {
        let path = || self.index.file();
        let free = rustix::fs::fstatvfs(self.trees.fd()).on("look at the file system of", path)?;
        if free.f_bavail.saturating_mul(free.f_frsize) < RESERVED_BYTES {
            return Err(FileError::new("write", path(), Errno::NOSPC));
        }
        Ok(())
    }

    /// Checks, names and enters the trees of one batch. An outer error ends the whole transaction; an
    /// inner one leaves it as it was.
    fn register_job(
        &self,
        transaction: &WriteTransaction,
        job: &mut Job,
        now: u64,
        registration: &mut Registration<'_>,
    ) -> Result<Result<Vec<PathInfo>, AddError>, IndexFault> {
        let known = match self.check(transaction, &job.batch)? {
            Ok(known) => known,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for (tree, known) in job.batch.trees.iter_mut().zip(&known) {
            if known.is_some() {
                continue;
            }
            let name = final_name(&tree.info, job.batch.accepted);
            if let Err(error) = registration.name_tree(tree.written.temporary.name(), &name) {
                job.named.drain(..).for_each(|name| registration.discard(&name));
                return Ok(Err(error.into()));
            }
            tree.written.temporary.keep();
            job.named.push(name);
        }
        let was_known: Vec<bool> = known.iter().map(Option::is_some).collect();
        let mut infos = Vec::with_capacity(known.len());
        for (tree, known) in job.batch.trees.iter_mut().zip(known) {
            if let Some(info) = known {
                infos.push(info);
                continue;
            }
            tree.info.registered = now;
            let number = tree.written.temporary.number();
            let name = final_name(&tree.info, job.batch.accepted);
            let written = &mut tree.written;
            insert_tree(transaction, number, &name, written)?;
            let info = tree.info.clone();
            let record = PathRecord { number, info };
            if job.batch.accepted {
                insert_path(transaction, &record)?;
            } else {
                let key = path_key(&tree.info.path);
                let mut unaccepted = transaction.open_table(UNACCEPTED)?;
                unaccepted.insert((key.as_slice(), &written.tree.0), record.encode().as_slice())?;
            }
            infos.push(record.info);
        }
        job.batch.write_audiences(transaction, &was_known)?;
        if let Some(record) = &job.batch.record {
            let audience = job
                .batch
                .trees
                .iter()
                .fold(Audience::Everyone, |all, tree| all.both(&tree.audience));
            record.insert(transaction, &audience)?;
        }
        Ok(Ok(infos))
    }

    /// Whether the trees of a batch may be registered: what is known of those that are already, or why
    /// not.
    fn check(
        &self,
        transaction: &WriteTransaction,
        batch: &Batch,
    ) -> Result<Result<Vec<Option<PathInfo>>, AddError>, IndexFault> {
        let paths = transaction.open_table(PATHS)?;
        let unaccepted = transaction.open_table(UNACCEPTED)?;
        let mut together: HashSet<&StorePath> = HashSet::new();
        let mut known = Vec::with_capacity(batch.trees.len());
        for tree in &batch.trees {
            let path = &tree.info.path;
            let mut present = read_path(&paths, path)?.map(|record| record.info);
            if !batch.accepted
                && present
                    .as_ref()
                    .is_none_or(|present| present.tree != tree.written.tree)
            {
                let record = read_unaccepted(&unaccepted, path, tree.written.tree)?;
                present = record.map(|record| record.info);
            }
            if let Some(present) = &present
                && present.tree != tree.written.tree
            {
                return Ok(Err(AddError::Conflict {
                    path: path.clone(),
                    have: present.tree,
                    offered: tree.written.tree,
                }));
            }
            if present.is_none() && !together.insert(path) {
                return Ok(Err(AddError::Twice(path.clone())));
            }
            known.push(present);
        }
        if batch.accepted {
            for reference in batch
                .trees
                .iter()
                .flat_map(|tree| tree.info.references.iter().map(move |r| (tree, r)))
            {
                let (tree, reference) = reference;
                let valid =
                    together.contains(reference) || paths.get(path_key(reference).as_slice())?.is_some();
                if !valid {
                    return Ok(Err(AddError::MissingReference {
                        path: tree.info.path.clone(),
                        reference: reference.clone(),
                    }));
                }
            }
        }
        Ok(Ok(known))
    }
}

fn final_name(info: &PathInfo, accepted: bool) -> String {
    if accepted {
        info.path.to_basename()
    } else {
        unaccepted_name(&info.path, info.tree)
    }
}

fn intended_names(group: &[Job]) -> Vec<Intended> {
    let names = group.iter().flat_map(|job| {
        let accepted = job.batch.accepted;
        job.batch
            .trees
            .iter()
            .map(move |tree| final_name(&tree.info, accepted).into())
    });
    names.collect()
}
