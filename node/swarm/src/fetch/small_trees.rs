//! Fetching small trees, many with one question.
//!
//! A closure has hundreds of paths that are a file or two, and a stream for each of them costs more than what it brings. So
//! what is wanted of a provider waits while the provider is asked for something else, and is asked for together with what
//! has come to wait by then: alone where there is nothing else, without any delay. What does not come this way is fetched by
//! itself, as a large tree is.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::oneshot;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{PACKED_TREE, TREES_BATCH};
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
use crate::limits::{SHARES, SIGN_PAUSE, SMALL_TREE, TREES_QUESTIONS};
use crate::line::Rising;
use crate::net::{Door, OpenError};
use crate::places::OfEach;
use crate::room::Held;

/// What each provider is asked for.
pub(super) type Askings = OfEach<Asking>;

/// So many questions to each of them at once.
pub(super) fn askings() -> Askings {
    Askings::made_by(Asking::new, TREES_QUESTIONS)
}

/// What one provider is asked for.
#[derive(Debug)]
pub(super) struct Asking {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Wanted>,
    /// Questions under way.
    questions: usize,
}

/// A tree that somebody waits for.
#[derive(Debug)]
struct Wanted {
    root: TreeDigest,
    /// Bytes that its files may have.
    most: u64,
    priority: Rising,
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
    (most, priority): (Option<u64>, &Rising),
) -> Result<Option<Files>, ProviderError> {
    let Some(most) = most.filter(|most| *most <= SMALL_TREE) else {
        return Ok(None);
    };
    report.asked(provider);
    let (reply, told) = oneshot::channel();
    let wanted = Wanted {
        root: arrival.root(),
        most,
        priority: priority.clone(),
        signs: signs.clone(),
        reply,
    };
    let asking = core.fetching.asking.of(provider);
    if asking.wait(wanted) {
        tokio::spawn(ask_on(core.clone(), provider, asking));
    }
    let Ok(told) = told.await else {
        return Err(ProviderError::Ended("this node is shutting down".to_owned()));
    };
    let Some(Came { tree, bytes, held }) = told? else {
        return Ok(None);
    };
    report.moves(bytes);
    let Packed { directories, files } = tree;
    let sizes: Files = files
        .iter()
        .map(|(blob, bytes)| (*blob, bytes.len() as u64))
        .collect();
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

    /// Something waits from now on. Whether nobody asks for it who is busy with a question already.
    fn wait(&self, wanted: Wanted) -> bool {
        let mut state = lock(&self.state);
        state.waiting.push(wanted);
        let one_more = state.questions < self.most;
        state.questions += usize::from(one_more);
        one_more
    }

    /// What is most urgent of what waits, for one who asks; where nothing does, there is one less who asks.
    fn next(&self) -> Option<VecDeque<Wanted>> {
        let mut state = lock(&self.state);
        state.waiting.retain(|wanted| !wanted.reply.is_closed());
        if state.waiting.is_empty() {
            state.questions -= 1;
            return None;
        }
        state.waiting.sort_by_key(|wanted| Reverse(wanted.priority.now()));
        let count = state.waiting.len().min(TREES_BATCH);
        Some(state.waiting.drain(..count).collect())
    }

    /// The provider gives signs of life. What waits here waits for it all the same.
    fn signs(&self, asked: &VecDeque<Wanted>) {
        for wanted in lock(&self.state).waiting.iter().chain(asked) {
            wanted.signs.came();
            wanted.signs.waits();
        }
    }
}

/// Asks a provider until nothing waits for it any more.
async fn ask_on(core: Arc<Core>, provider: NodeKey, asking: Arc<Asking>) {
    let mut stopping = core.stopping.subscribe();
    while let Some(mut left) = asking.next() {
        let asked = tokio::select! {
            asked = ask(&core, provider, &asking, &mut left) => asked,
            _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
        };
        match asked {
            // The rest of them, as far as somebody waits for it.
            Ok(()) => left
                .into_iter()
                .for_each(|wanted| drop(wanted.reply.send(Ok(None)))),
            Err(error) => fail(left, error),
        }
    }
}

/// The same error for all. Where that cannot be said twice, whoever is not the first finds it out by itself.
fn fail(left: VecDeque<Wanted>, error: ProviderError) {
    let again = || match &error {
        ProviderError::NotThere => Ok(None),
        ProviderError::Busy => Err(ProviderError::Busy),
        ProviderError::Broken => Err(ProviderError::Broken),
        ProviderError::Lied(what) => Err(ProviderError::Lied(what.clone())),
        ProviderError::Ended(why) => Err(ProviderError::Ended(why.clone())),
        ProviderError::Call(error) if error.is_breach() => Err(ProviderError::Lied(error.to_string())),
        ProviderError::Call(error) if error.is_away() => Err(ProviderError::Ended(error.to_string())),
        ProviderError::Call(_) | ProviderError::Spool(_) => Ok(None),
    };
    let mut left = left.into_iter();
    let first = left.next();
    for wanted in left {
        drop(wanted.reply.send(again()));
    }
    if let Some(first) = first {
        let is_apart = matches!(error, ProviderError::NotThere) || is_without_door(&error);
        drop(first.reply.send(if is_apart { Ok(None) } else { Err(error) }));
    }
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
    let Some(most_urgent) = left.front().map(|wanted| wanted.priority.clone()) else {
        return Ok(());
    };
    let streams = core.fetching.streams.of(provider);
    let _stream = streams.enter_rising(&most_urgent, SHARES).await;
    let at = call::at(provider, Door::Trees);
    let mut wire = core.open_at_provider(provider, Door::Trees).await?;
    let question = TreesQuestion::about(left.iter().map(|wanted| wanted.root));
    coming(wire.ask::<_, ServeAnswer>(&question).await.map_err(at)?)?;
    let mut signs = Instant::now();
    asking.signs(left);
    let count = left.len();
    while let Some(wanted) = left.front() {
        if left.iter().all(|wanted| wanted.reply.is_closed()) {
            return Ok(());
        }
        let size = wire.reader.size(PACKED_TREE + 1).await.map_err(at)?;
        let size = size.ok_or_else(|| ProviderError::Ended("not all trees came".to_owned()))?;
        // Who has trees that wait to be written gives room back for what is written, without anything that is read here.
        let held = core.fetching.coming.take(provider, size).await;
        let held = held.ok_or_else(|| ProviderError::Ended("this node is shutting down".to_owned()))?;
        let frame = wire.reader.frame(size).await.map_err(at)?;
        core.throttles.download.pass(size).await;
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
                let mut state = lock(&asking.state);
                state.waiting.extend(left.drain(..));
                return Ok(());
            }
            _ => {
                return Err(ProviderError::Lied(
                    "what came is not what answers a question for trees".to_owned(),
                ));
            }
        };
        if let Some(wanted) = left.pop_front() {
            wanted.signs.came();
            drop(wanted.reply.send(Ok(came)));
        }
        if signs.elapsed() >= SIGN_PAUSE {
            signs = Instant::now();
            asking.signs(left);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::line::Priority;

    type Told = oneshot::Receiver<Result<Option<Came>, ProviderError>>;

    fn wanted(number: usize, priority: &Rising) -> (Wanted, Told) {
        let (reply, told) = oneshot::channel();
        let mut root = [0; 32];
        root[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let wanted = Wanted {
            root: TreeDigest(root),
            most: 1,
            priority: priority.clone(),
            signs: Signs::new(),
            reply,
        };
        (wanted, told)
    }

    #[test]
    fn what_is_most_urgent_by_then_is_asked_for_first_and_no_more_than_one_question_may_name() {
        let asking = Asking::new(1);
        let [ordinary, rises] = [Priority::Demanded, Priority::Speculative].map(Rising::from);
        let mut told = Vec::new();
        for number in 0..TREES_BATCH + 3 {
            let last = number == TREES_BATCH + 2;
            let (wanted, reply) = wanted(number, if last { &rises } else { &ordinary });
            assert_eq!(asking.wait(wanted), number == 0, "one is asked at once");
            told.push(reply);
        }
        rises.raise(Priority::Import);
        // Nobody waits for this one any more.
        drop(told.remove(0));
        let first = asking.next().unwrap();
        assert_eq!(first.len(), TREES_BATCH);
        let number = |wanted: &Wanted| u16::from_le_bytes([wanted.root.0[0], wanted.root.0[1]]);
        assert_eq!(usize::from(number(&first[0])), TREES_BATCH + 2);
        assert_eq!(number(&first[1]), 1);
        assert_eq!(asking.next().unwrap().len(), 2);
        assert!(asking.next().is_none());
        let (again, _told) = wanted(0, &ordinary);
        assert!(asking.wait(again), "nobody asks any more");
    }

    #[test]
    fn what_fails_fails_for_all_that_were_asked_for_together() {
        let fails = |error| {
            let (left, told): (VecDeque<_>, Vec<_>) =
                (0..3).map(|number| wanted(number, &Rising::default())).unzip();
            fail(left, error);
            told.into_iter()
                .map(|mut told| told.try_recv().unwrap())
                .collect::<Vec<_>>()
        };
        let peer = NodeKey([1; 32]);
        for told in fails(ProviderError::Lied("it".to_owned())) {
            assert!(matches!(told, Err(ProviderError::Lied(what)) if what == "it"));
        }
        // What broke: the first is told exactly, the others what it comes to.
        let source = crate::net::wire::WireError::Closed;
        let door = Door::Trees;
        let mut told = fails(CallError::Wire { peer, door, source }.into()).into_iter();
        assert!(matches!(told.next(), Some(Err(ProviderError::Call(error))) if error.is_away()));
        assert!(told.all(|told| matches!(told, Err(ProviderError::Ended(_)))));
        let (size, limit) = (2, 1);
        let source = crate::net::wire::WireError::TooLarge { size, limit };
        let told = fails(CallError::Wire { peer, door, source }.into());
        assert!(matches!(told[1], Err(ProviderError::Lied(_))));
        // A program that has no such door is asked for each.
        let theirs = BTreeSet::new();
        let source = OpenError::OtherVersion { door, theirs };
        for told in fails(CallError::Open { peer, source }.into()) {
            assert!(matches!(told, Ok(None)));
        }
    }
}
