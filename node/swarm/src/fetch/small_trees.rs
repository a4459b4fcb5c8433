//! Fetching small trees, many with one question.
//!
//! A closure has hundreds of paths that are a file or two, and a stream for each of them costs more than what it brings. So
//! what is wanted of a provider waits while the provider is asked for something else, and is asked for together with what
//! has come to wait by then: alone where there is nothing else. What does not come this way is fetched by itself, as a large
//! tree is. What waits for long is asked for elsewhere, too, if it is to be had there.
//!
//! A small tree is verified when all of it is here, and not group by group as files that come by themselves are.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::oneshot;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{PACKED_TREE, TREES_BATCH, TREES_BYTES};
use tvix_node_protocol::messages::{ServeAnswer, TREE_APART, TREE_FOLLOWS, TREES_END, TreesQuestion};
use tvix_node_protocol::packed::{Packed, PackedError};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_protocol::walk::Files;

use super::arrival::{Arrival, Item, Kind};
use super::coming;
use super::plan::Signs;
use super::progress::Report;
use super::provider::ProviderError;
use super::walk::write;
use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::limits::{SHARES, SIGN_PAUSE, SMALL_TREE, TREES_PATIENCE, TREES_QUESTIONS};
use crate::line::{Priority, Rising};
use crate::net::wire::WireError;
use crate::net::{Door, OpenError};
use crate::places::OfEach;
use crate::room::Held;

/// What each provider is asked for.
pub(crate) type Askings = OfEach<Asking>;

/// So many questions to each of them at once.
pub(super) fn askings() -> Askings {
    Askings::made_by(Asking::new, TREES_QUESTIONS)
}

/// What one provider is asked for.
#[derive(Debug)]
pub(crate) struct Asking {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Wanted>,
    /// How many have waited so far.
    numbers: u64,
    /// Who asks, or stands in line for a stream to do so.
    askers: usize,
    /// How urgent it is for those who stand in line, and perhaps for some who did.
    lines: Vec<Rising>,
}

/// What may come this way, and how.
#[derive(Clone, Copy)]
pub(super) struct Small<'p> {
    /// Bytes that its files may have; none: nobody knows.
    pub(super) most: Option<u64>,
    pub(super) priority: &'p Rising,
    /// Whether others are asked for it already.
    pub(super) also: bool,
}

/// A tree that somebody waits for.
#[derive(Debug)]
struct Wanted {
    root: TreeDigest,
    /// Bytes that its files may have.
    most: u64,
    priority: Rising,
    /// Whether others are asked for it, too.
    also: bool,
    since: Instant,
    number: u64,
    signs: Signs,
    reply: oneshot::Sender<Result<Option<Came>, ProviderError>>,
}

/// A tree that has come.
#[derive(Debug)]
struct Came {
    tree: Packed,
    bytes: usize,
    /// Room for it, until it is where it belongs.
    held: Held,
}

/// Brings a small tree from a provider into its arrival, together with others. None: it has to be asked for by itself.
pub(super) async fn fetch(
    core: &Arc<Core>,
    (provider, signs): (NodeKey, &Signs),
    (arrival, report): (&Arc<Arrival>, &Report),
    small: Small<'_>,
) -> Result<Option<Files>, ProviderError> {
    let Small { priority, also, .. } = small;
    let Some(most) = small.most.filter(|most| *most <= SMALL_TREE) else {
        return Ok(None);
    };
    report.asked(provider);
    let (reply, mut told) = oneshot::channel();
    let wanted = Wanted {
        root: arrival.root(),
        most,
        priority: priority.clone(),
        also,
        since: Instant::now(),
        number: 0,
        signs: signs.clone(),
        reply,
    };
    let asking = core.fetching.asking.of(provider);
    if asking.wait(wanted) {
        tokio::spawn(ask_on(core.clone(), provider, Asker::of(&asking)));
    }
    let told = loop {
        let now = priority.now();
        asking.raise(now);
        tokio::select! {
            biased;
            told = &mut told => break told,
            _ = priority.above(now) => {}
        }
    };
    // Who asked is lost by a bug, or this node is shutting down.
    let Some(Came { tree, bytes, held }) = told.unwrap_or(Ok(None))? else {
        return Ok(None);
    };
    report.moves(bytes);
    let Packed { directories, files } = tree;
    let sizes = files.iter().map(|(blob, bytes)| (*blob, bytes.len() as u64));
    let sizes: Files = sizes.collect();
    let directories = directories.into_iter().map(|(digest, bytes)| Item {
        kind: Kind::Directory,
        digest: digest.0,
        bytes,
    });
    let files = files.into_iter().map(|(blob, bytes)| Item {
        kind: Kind::File,
        digest: blob.0,
        bytes,
    });
    write(arrival, directories.chain(files).collect()).await?;
    drop(held);
    let size = sizes.values().sum();
    report.expect(size);
    report.came(provider, size);
    Ok(Some(sizes))
}

impl Asking {
    fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// Something waits from now on. Whether one more is needed who asks for it.
    fn wait(&self, mut wanted: Wanted) -> bool {
        wanted.signs.queued();
        let mut state = lock(&self.state);
        state.numbers += 1;
        wanted.number = state.numbers;
        state.waiting.push(wanted);
        let one_more = state.askers < self.most;
        state.askers += usize::from(one_more);
        one_more
    }

    /// What waits is at least so urgent.
    fn raise(&self, to: Priority) {
        let mut state = lock(&self.state);
        state.lines.retain(Rising::is_shared);
        state.lines.iter().for_each(|line| line.raise(to));
    }

    /// How urgent what waits is, and becomes, for one who is going to ask. Where nothing waits, there is one less who asks.
    fn urgency(&self) -> Option<Rising> {
        let mut state = lock(&self.state);
        state.waiting.retain(|wanted| !wanted.reply.is_closed());
        let Some(most) = state.waiting.iter().map(|wanted| wanted.priority.now()).max() else {
            state.askers -= 1;
            return None;
        };
        let urgency = Rising::from(most);
        state.lines.push(urgency.clone());
        Some(urgency)
    }

    /// What is most urgent of what waits, as much as one question may be about.
    fn next(&self) -> VecDeque<Wanted> {
        let mut state = lock(&self.state);
        state.waiting.retain(|wanted| !wanted.reply.is_closed());
        // Priorities rise meanwhile: each is looked at once. Two who are asked for the same begin at its two ends.
        state.waiting.sort_by_cached_key(|wanted| {
            let turn = if wanted.also {
                u64::MAX - wanted.number
            } else {
                wanted.number
            };
            (Reverse(wanted.priority.now()), wanted.also, turn)
        });
        let mut bytes = 0;
        let fits = |wanted: &&Wanted| {
            bytes += wanted.most;
            bytes <= TREES_BYTES as u64
        };
        let count = state.waiting.iter().take(TREES_BATCH).take_while(fits).count();
        state.waiting.drain(..count).collect()
    }

    /// The provider brings something, so the others wait on, unless they have waited for long: then they may be had elsewhere.
    fn brings(&self, asked: &VecDeque<Wanted>) {
        let waits = |wanted: &&Wanted| wanted.since.elapsed() < TREES_PATIENCE;
        for wanted in asked.iter().filter(waits) {
            wanted.signs.came();
            wanted.signs.waits();
        }
        let state = lock(&self.state);
        state
            .waiting
            .iter()
            .filter(waits)
            .for_each(|wanted| wanted.signs.queued());
    }

    /// For all who wait, asked for or not.
    fn each(&self, asked: &VecDeque<Wanted>, act: fn(&Signs)) {
        let state = lock(&self.state);
        state
            .waiting
            .iter()
            .chain(asked)
            .for_each(|wanted| act(&wanted.signs));
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

/// One who asks a provider. Where it ends early, as a bug would end it, nobody waits for it for ever.
struct Asker {
    asking: Arc<Asking>,
    /// Whether it is no longer among those who ask.
    has_left: bool,
}

impl Asker {
    fn of(asking: &Arc<Asking>) -> Self {
        Self {
            asking: Arc::clone(asking),
            has_left: false,
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if self.has_left {
            return;
        }
        let mut state = lock(&self.asking.state);
        state.askers -= 1;
        if state.askers == 0 {
            state.waiting.clear();
        }
    }
}

/// Asks a provider until nothing waits for it any more.
async fn ask_on(core: Arc<Core>, provider: NodeKey, mut asker: Asker) {
    let asking = &asker.asking;
    let mut stopping = core.stopping.subscribe();
    let streams = core.fetching.streams.of(provider);
    while let Some(urgency) = asking.urgency() {
        let asked = async {
            // What comes meanwhile comes along.
            let _stream = streams.enter_rising(&urgency, SHARES).await;
            drop(urgency);
            let mut left = asking.next();
            let asked = ask(&core, provider, asking, &mut left).await;
            (left, asked)
        };
        tokio::select! {
            (left, asked) = asked => end(provider, left, asked),
            // Who waits is told by the end of this.
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
    asker.has_left = true;
}

/// Tells those of whom a question has brought nothing: the first of them what went wrong, the others what it comes to.
fn end(provider: NodeKey, mut left: VecDeque<Wanted>, asked: Result<(), ProviderError>) {
    let others = || match &asked {
        // What was not lied about may come by itself.
        Ok(()) | Err(ProviderError::NotThere | ProviderError::Spool(_) | ProviderError::Lied(_)) => Ok(None),
        Err(ProviderError::Busy) => Err(ProviderError::Busy),
        Err(ProviderError::Broken) => Err(ProviderError::Broken),
        Err(ProviderError::Ended(why)) => Err(ProviderError::Ended(why.clone())),
        Err(ProviderError::Call(CallError::Wire {
            source: WireError::Silent(time),
            ..
        })) => Err(call::at(provider, Door::Trees)(WireError::Silent(*time)).into()),
        Err(ProviderError::Call(error)) if error.is_away() => Err(ProviderError::Ended(error.to_string())),
        Err(ProviderError::Call(_)) => Ok(None),
    };
    let first = left.pop_front();
    for wanted in left {
        drop(wanted.reply.send(others()));
    }
    let Some(first) = first else {
        return;
    };
    let told = match asked {
        Err(error) if !is_without_door(&error) => Err(error),
        _ => Ok(None),
    };
    drop(first.reply.send(told));
}

/// Whether it is of a version that has no such door.
fn is_without_door(error: &ProviderError) -> bool {
    matches!(
        error,
        ProviderError::Call(CallError::Open {
            source: OpenError::NotOffered(_) | OpenError::OtherVersion { .. },
            ..
        })
    )
}

/// Asks once. Those that are answered are not left any more.
async fn ask(
    core: &Arc<Core>,
    provider: NodeKey,
    asking: &Asking,
    left: &mut VecDeque<Wanted>,
) -> Result<(), ProviderError> {
    let count = left.len();
    if count == 0 {
        return Ok(());
    }
    left.iter().for_each(|wanted| wanted.signs.asked());
    let question = TreesQuestion::about(left.iter().map(|wanted| wanted.root));
    let at = call::at(provider, Door::Trees);
    let asked = async {
        let mut wire = core.open_at_provider(provider, Door::Trees).await?;
        coming(wire.ask::<_, ServeAnswer>(&question).await.map_err(at)?)?;
        Ok::<_, ProviderError>(wire)
    };
    let mut wire = tokio::select! {
        wire = asked => wire?,
        () = nobody_waits(left) => return Ok(()),
    };
    let mut sign = Instant::now();
    while !left.is_empty() {
        let size = tokio::select! {
            size = wire.reader.size(PACKED_TREE + 1) => size.map_err(at)?,
            () = nobody_waits(left) => return Ok(()),
        };
        let size = size.ok_or_else(|| ProviderError::Ended("not all trees came".to_owned()))?;
        let room = &core.fetching.coming;
        let held = match room.try_take(provider, size) {
            Some(held) => Some(held),
            // What has come has room of its own, and gives it back without anything that is read here.
            None => {
                asking.each(left, Signs::rests);
                let held = room.take(provider, size).await;
                asking.each(left, Signs::waits);
                held
            }
        };
        let held = held.ok_or_else(|| ProviderError::Ended("this node is shutting down".to_owned()))?;
        let frame = wire.reader.frame(size).await.map_err(at)?;
        if core.throttles.download.rate().is_some() {
            asking.each(left, Signs::rests);
            core.throttles.download.pass(size).await;
            asking.each(left, Signs::waits);
        }
        let Some(wanted) = left.front() else {
            break;
        };
        let came = match frame.split_first() {
            Some((&TREE_FOLLOWS, tree)) => {
                match Packed::from_bytes(tree, wanted.root, wanted.most) {
                    Ok(tree) => Some(Came {
                        tree,
                        bytes: size,
                        held,
                    }),
                    // Who said how large it is may be another one than who brings it.
                    Err(PackedError::TooLarge { .. }) => None,
                    Err(error) => return Err(ProviderError::Lied(error.to_string())),
                }
            }
            Some((&TREE_APART, [])) => None,
            Some((&TREES_END, [])) if left.len() < count => {
                left.iter().for_each(|wanted| wanted.signs.queued());
                lock(&asking.state).waiting.extend(left.drain(..));
                return Ok(());
            }
            _ => {
                let what = "what came is not what answers a question for trees";
                return Err(ProviderError::Lied(what.to_owned()));
            }
        };
        let brought = came.is_some();
        if let Some(wanted) = left.pop_front() {
            match brought {
                true => wanted.signs.came(),
                // By itself.
                false => wanted.signs.asked(),
            }
            drop(wanted.reply.send(Ok(came)));
        }
        if brought && sign.elapsed() >= SIGN_PAUSE {
            sign = Instant::now();
            asking.brings(left);
        }
    }
    Ok(())
}

/// Returns when nobody waits for any of these any more.
async fn nobody_waits(left: &mut VecDeque<Wanted>) {
    for wanted in left {
        wanted.reply.closed().await;
    }
}

#[cfg(test)]
#[path = "small_trees_tests.rs"]
mod tests;
