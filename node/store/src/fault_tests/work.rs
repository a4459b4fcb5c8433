//! What a store goes through: every operation that writes, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput, SwarmId};
use tvix_node_protocol::envelope::{Envelope, NodeSecret, seal};
use tvix_node_protocol::path_info::{Origin, PathInfo};

use super::place::{How, Peer, Place, disk};
use super::{Failure, source, text};
use crate::faults::Faults;
use crate::running::named_in_files;
use crate::{Audience, FolderCache, GcOptions, Lease, Naming, Running, ScratchOutput, Store};

/// What the work says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// An operation begins.
    Begin(&'static str),
    /// This is so from now on: see [`super::holds`].
    Done(String),
    /// Facts that begin so may be over from now on.
    Risk(String),
    /// The test damages a tree.
    Hurt,
    /// That has been repaired.
    Healed,
}

/// What one operation does.
type Act<Work> = fn(&mut Work) -> Result<(), Failure>;

/// One round of all the work.
pub(super) struct Work<'a> {
    pub(super) place: &'a Place,
    pub(super) faults: &'a Faults,
    pub(super) tell: &'a mut dyn FnMut(Told),
    theirs: Store,
    pub(super) store: Option<Store>,
    lease: Option<Lease>,
}

const TEAM: SwarmId = SwarmId([1; 32]);

/// The build of the record that is stored by itself.
pub(super) const KEY: BuildKey = BuildKey([4; 32]);

impl<'a> Work<'a> {
    pub(super) fn new(place: &'a Place, faults: &'a Faults, tell: &'a mut dyn FnMut(Told)) -> Self {
        Self {
            place,
            faults,
            tell,
            theirs: place.theirs(),
            store: None,
            lease: None,
        }
    }

    pub(super) fn all(&mut self) -> Result<(), Failure> {
        let operations: [(&str, Act<Self>); 20] = [
            ("open a home, made where there is none", Self::open),
            ("add texts", Self::texts),
            ("add sources", Self::sources),
            ("add an archive", Self::archive),
            ("register outputs with their record", Self::built),
            ("store a record by itself", Self::record),
            ("store beside, then accept", Self::beside),
            ("a tree arrives in memory", |work| {
                work.arrive("sent", How::InMemory)
            }),
            ("a tree arrives as files of the spool", |work| {
                work.arrive("given", How::Given)
            }),
            ("a tree arrives in parts", |work| {
                work.arrive("coming", How::InParts)
            }),
            ("import an export", Self::import),
            ("repair a damaged path", Self::repair),
            ("add what has been touched again", Self::mend),
            ("open a home of version 1", Self::open_older),
            ("pin and unpin", Self::pins),
            ("make and change a root", Self::root),
            ("write logs", Self::logs),
            ("note what a program uses", Self::running),
            ("put into a folder's cache", Self::cache),
            ("collect garbage, and fetch from the cache", Self::collect),
        ];
        for (name, operation) in operations {
            (self.tell)(Told::Begin(name));
            operation(self)?;
        }
        Ok(())
    }

    fn done(&mut self, kind: &str, path: &StorePath) {
        (self.tell)(Told::Done(format!("{kind} {}", path.to_basename())));
    }

    fn added(&mut self, infos: &[PathInfo]) {
        infos.iter().for_each(|info| self.done("path", &info.path));
    }

    fn risk(&mut self, prefix: &str) {
        (self.tell)(Told::Risk(prefix.to_owned()));
    }

    fn store(&self) -> Result<&Store, Failure> {
        Ok(self.store.as_ref().ok_or("the store is not open")?)
    }

    fn lease(&self) -> Result<&Lease, Failure> {
        Ok(self.lease.as_ref().ok_or("nothing is leased")?)
    }

    fn peer(&self, how: How) -> Peer<'a> {
        let store = self.theirs.clone();
        Peer {
            store,
            place: self.place,
            how,
        }
    }

    fn open(&mut self) -> Result<(), Failure> {
        self.open_in(None)
    }

    fn open_in(&mut self, teams: Option<&BTreeSet<SwarmId>>) -> Result<(), Failure> {
        let store = self.place.open(self.faults, teams)?;
        self.lease = Some(store.lease());
        self.store = Some(store);
        Ok(())
    }

    fn texts(&mut self) -> Result<(), Failure> {
        let first = text("first", "first", &[]);
        let second = text("second", "second", &[&first]);
        let third = text("third", "third", &[&first, &second]);
        let added = self.store()?.add_texts(&[first, second, third], self.lease()?)?;
        self.added(&added);
        Ok(())
    }

    fn source(&mut self, name: &str) -> Result<PathInfo, Failure> {
        let at = self.place.source(name);
        let info = self.store()?.add_source(&at, source(name), self.lease()?)?;
        self.done("path", &info.path);
        Ok(info)
    }

    fn sources(&mut self) -> Result<(), Failure> {
        let one = self.source("one")?;
        self.source("two")?;
        self.store()?.remember_source("fingerprint of one", &one.path)?;
        Ok(())
    }

    fn archive(&mut self) -> Result<(), Failure> {
        let one = self.source("one")?;
        let mut archive = Vec::new();
        self.store()?.dump_nar(&one.path, &mut archive)?;
        let again = self
            .store()?
            .add_nar(&archive[..], source("again"), self.lease()?)?;
        self.added(&[again]);
        Ok(())
    }

    fn built(&mut self) -> Result<(), Failure> {
        let one = self.source("one")?;
        let scratch = self.place.source("two");
        let (out, dev) = (output("out"), output("dev"));
        let outputs = [scratch_output(&out, &scratch), scratch_output(&dev, &scratch)];
        let candidates = BTreeSet::from([one.path]);
        let store = self.store()?;
        let prepared = store.prepare_built(&outputs, &candidates, &output("out.drv"), &Origin::Built)?;
        let record = record(BuildKey([3; 32]), &[prepared[0].info(), prepared[1].info()])?;
        let infos = store.register_built(prepared, &record, self.lease()?)?;
        self.added(&infos);
        self.done("record", &out);
        Ok(())
    }

    fn record(&mut self) -> Result<(), Failure> {
        let store = self.store()?;
        let info = store.query(&output("out"))?.ok_or("it was registered")?;
        store.put_record(&record(KEY, &[&info])?, &Audience::team(TEAM))?;
        (self.tell)(Told::Done("key".to_owned()));
        Ok(())
    }

    fn beside(&mut self) -> Result<(), Failure> {
        let scratch = self.place.source("two");
        let beside = output("beside");
        let outputs = [scratch_output(&beside, &scratch)];
        let store = self.store()?;
        let prepared = store.prepare_built(&outputs, &BTreeSet::new(), &output("out.drv"), &Origin::Built)?;
        let info = store.register_unaccepted(prepared, self.lease()?)?.remove(0);
        let info = store.accept(&beside, &info.tree, self.lease()?)?;
        self.added(&[info]);
        Ok(())
    }

    fn arrive(&mut self, name: &str, how: How) -> Result<(), Failure> {
        let peer = self.peer(how);
        let info = peer.info(name)?;
        let store = self.store()?;
        let prepared = store.prepare_arrived(info.tree, &peer, Naming::Known(info.clone()))?;
        let team = Audience::team(TEAM);
        let infos = store.register(vec![prepared.within(&team)], self.lease()?)?;
        store.widen([&info.path], &Audience::Everyone)?;
        self.added(&infos);
        Ok(())
    }

    fn import(&mut self) -> Result<(), Failure> {
        let export = self.peer(How::InMemory).export(&["low", "high", "exported"])?;
        let infos = self
            .store()?
            .import(&mut &export[..], &Origin::Imported, self.lease()?)?;
        self.added(&infos);
        Ok(())
    }

    /// Bytes that nobody sees who does not read them.
    fn repair(&mut self) -> Result<(), Failure> {
        let info = self.peer(How::InMemory).info("sent")?;
        (self.tell)(Told::Hurt);
        let own = self.store()?.physical(&info.path).join("own");
        let size = fs::metadata(&own)?.len();
        damage(&own, &vec![b'?'; usize::try_from(size)?])?;
        self.store()?.repair(&info.path, &self.peer(How::Given))?;
        (self.tell)(Told::Healed);
        self.added(&[info]);
        Ok(())
    }

    /// A size that everybody sees.
    fn mend(&mut self) -> Result<(), Failure> {
        let info = self.peer(How::InMemory).info("given")?;
        (self.tell)(Told::Hurt);
        damage(&self.store()?.physical(&info.path).join("own"), b"?")?;
        self.arrive("given", How::InParts)?;
        (self.tell)(Told::Healed);
        Ok(())
    }

    fn open_older(&mut self) -> Result<(), Failure> {
        self.lease = None;
        self.store = None;
        let schema = self.place.home().join("store/schema");
        let beside = self.place.path().join("schema");
        fs::write(&beside, "1\n")?;
        fs::rename(beside, schema)?;
        self.open_in(Some(&BTreeSet::from([TEAM])))
    }

    fn pins(&mut self) -> Result<(), Failure> {
        let (first, second) = (text("first", "first", &[]).path, output("out"));
        self.risk("unpinned ");
        self.store()?.pin(&[first.clone(), second.clone()])?;
        self.done("pin", &first);
        self.done("pin", &second);
        self.risk(&format!("pin {}", second.to_basename()));
        self.store()?.unpin(std::slice::from_ref(&second))?;
        self.done("unpinned", &second);
        Ok(())
    }

    fn root(&mut self) -> Result<(), Failure> {
        let (one, two) = (self.source("one")?.path, self.source("two")?.path);
        for path in [one, two] {
            self.risk("root ");
            self.store()?.add_root(&self.place.link(), &path)?;
            self.done("root", &path);
            (self.tell)(Told::Done("link".to_owned()));
        }
        Ok(())
    }

    fn logs(&mut self) -> Result<(), Failure> {
        self.risk("log ");
        let derivation = output("out.drv");
        for lines in [&["one\n", "two\n"][..], &["three\n"]] {
            let mut log = self.store()?.create_log(&derivation, None)?;
            for line in lines {
                log.write(line.as_bytes())?;
            }
            log.finish()?;
        }
        self.done("log", &derivation);
        // One that was being written when a process was killed is the last one.
        self.risk("log ");
        let mut log = self.store()?.create_log(&derivation, None)?;
        log.write(b"of no use")?;
        log.discard()?;
        self.done("log", &derivation);
        self.risk("log ");
        self.store()?.inner.prune_logs(0)?;
        let mut log = self.store()?.create_log(&derivation, None)?;
        log.write(b"three\n")?;
        log.finish()?;
        self.done("log", &derivation);
        Ok(())
    }

    fn running(&mut self) -> Result<(), Failure> {
        let disk = disk(self.faults);
        let used = BTreeSet::from([output("out")]);
        let running = Running::begin_on(&disk, &self.place.home(), &used)?;
        if named_in_files(&disk, &self.place.home())? != used {
            return Err("a collection does not see what a program uses".into());
        }
        drop(running);
        Ok(())
    }

    fn cache(&mut self) -> Result<(), Failure> {
        let third = third();
        let cache = folder_cache(self.place, self.faults)?;
        cache.put(self.store()?, &third)?;
        self.done("cached", &third);
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Failure> {
        self.lease = None;
        // Of the paths, what is pinned and what the link points to stay, with what they refer to.
        let kept = [text("first", "first", &[]).path, self.path_of_root()?];
        self.risk("path ");
        self.risk("record ");
        self.risk("key");
        kept.iter().for_each(|path| self.done("path", path));
        let report = self.store()?.gc(&GcOptions::default())?;
        if !report.failures.is_empty() {
            return Err(format!("not all could be removed: {:?}", report.failures).into());
        }
        // Some of what went comes again.
        self.lease = Some(self.store()?.lease());
        let cache = folder_cache(self.place, self.faults)?;
        let info = cache.fetch(self.store()?, &third(), &[], self.lease()?)?;
        self.added(&[info]);
        self.texts()
    }

    fn path_of_root(&self) -> Result<StorePath, Failure> {
        let root = self.store()?.roots()?.pop();
        Ok(root.ok_or("there is a root")?.path)
    }
}

fn third() -> StorePath {
    let first = text("first", "first", &[]);
    let second = text("second", "second", &[&first]);
    text("third", "third", &[&first, &second]).path
}

fn folder_cache(place: &Place, faults: &Faults) -> Result<FolderCache, Failure> {
    Ok(FolderCache::open_on(&place.cache(), disk(faults))?)
}

/// Writes over a file of a tree, and leaves its time as it was.
fn damage(file: &std::path::Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
    fs::write(file, bytes)?;
    let opened = fs::File::options().write(true).open(file)?;
    opened.set_times(fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)))?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o444))?)
}

pub(super) fn output(name: &str) -> StorePath {
    StorePath::from_parts([9; 20], name).unwrap()
}

fn scratch_output<'a>(path: &StorePath, scratch: &'a std::path::Path) -> ScratchOutput<'a> {
    ScratchOutput {
        path: path.clone(),
        scratch,
        ca: None,
        scanned: true,
    }
}

fn record(build_key: BuildKey, outputs: &[&PathInfo]) -> Result<Envelope, Failure> {
    let secret = NodeSecret::from_bytes(&[5; 32]);
    let built = |info: &&PathInfo| {
        let output = BuiltOutput {
            path: info.path.clone(),
            tree: info.tree,
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.iter().cloned().collect(),
        };
        (info.path.name().to_owned(), output)
    };
    let record = BuildRecord {
        build_key,
        request: None,
        derivation: output("out.drv"),
        inputs: Vec::new(),
        outputs: outputs.iter().map(built).collect::<BTreeMap<_, _>>(),
        builder: secret.key(),
        started: 1,
        finished: 2,
        sandbox: "none".to_owned(),
    };
    Ok(seal(&record, &secret)?)
}
