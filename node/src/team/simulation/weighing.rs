//! What a node finds out before it places a build: who has the inputs, who builds it, who has made it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tvix_node_coordinator::Event;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildTerms;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::underway::{Asked, ForOthers, Seen, Turn};

use super::super::limits::WEIGH_TIME;
use super::node::Node;
use super::world::lock;

/// How long one waits at most for another to decide, and how often it is looked, in milliseconds.
const DECIDING: u64 = 150;
const LOOK: u64 = 10;

/// What one says that was asked.
struct Answer {
    bytes: u64,
    made: bool,
    maker: Seen,
}

/// What is asked about.
struct Question {
    derivation: StorePath,
    turn: Turn,
    terms: BuildTerms,
    closure: Vec<(StorePath, u64)>,
    outputs: Vec<StorePath>,
    /// Whether it is to be told who builds it.
    joins: bool,
}

impl Node {
    pub async fn weigh(
        self: &Arc<Self>,
        derivation: StorePath,
        (turn, terms): (Turn, BuildTerms),
        inputs: Vec<StorePath>,
        outputs: Vec<StorePath>,
        nodes: Vec<NodeKey>,
    ) {
        let from = self.world.now();
        let question = {
            let disk = lock(&self.world.disks[self.at]);
            let closure: Vec<(StorePath, u64)> = disk
                .closure(&inputs)
                .into_values()
                .map(|info| (info.path, info.nar_size))
                .collect();
            let private = |path: &StorePath| disk.private.is_private(path);
            let read = closure.iter().map(|(path, _)| path);
            let secret = read
                .chain(&inputs)
                .chain(&outputs)
                .chain([&derivation])
                .any(private);
            let seen = closure.into_iter().filter(|(path, _)| !private(path));
            Arc::new(Question {
                derivation: derivation.clone(),
                turn,
                terms,
                closure: seen.collect(),
                outputs: if secret { vec![] } else { outputs },
                joins: !secret,
            })
        };
        let total: u64 = question.closure.iter().map(|(_, size)| size).sum();
        let asked = nodes.into_iter().map(|node| {
            let question = Arc::clone(&question);
            async move {
                let asking = self.ask_before_placing(node, &question);
                let answer = self
                    .world
                    .executor
                    .within(WEIGH_TIME.as_millis() as u64, asking)
                    .await;
                Some((node, answer.flatten()?))
            }
        });
        let answers: Vec<(NodeKey, Answer)> = futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect();
        let heard = answers
            .iter()
            .filter_map(|(node, _)| self.world.number(*node))
            .collect();
        let mut there = vec![(None, total)];
        let (mut makers, mut made, mut promised) = (BTreeSet::new(), false, false);
        match self.underway.for_others(&derivation, terms) {
            ForOthers::Runs => drop(makers.insert(None)),
            ForOthers::Waits => promised = true,
            ForOthers::Not => {}
        }
        for (node, answer) in answers {
            there.push((Some(node), answer.bytes));
            made |= answer.made;
            match answer.maker {
                // Its request may be on its way.
                Seen::At(maker) if maker == self.key => promised = true,
                Seen::At(maker) => drop(makers.insert(Some(maker))),
                Seen::Nowhere | Seen::Deciding => {}
            }
        }
        let here = promised.then_some(None);
        let said = makers
            .iter()
            .map(|maker| maker.and_then(|maker| self.world.number(maker)));
        let said = said.chain(here).collect();
        let times = (from, self.world.now());
        self.world
            .ledger()
            .looked(self.at, self.world.jobs[&derivation], times, heard, said);
        self.event(Event::InputsWeighed {
            derivation,
            total,
            there,
            makers: makers.into_iter().collect(),
            promised,
            made,
        });
    }

    /// None: it does not answer.
    async fn ask_before_placing(self: &Arc<Self>, node: NodeKey, question: &Arc<Question>) -> Option<Answer> {
        let to = self.world.number(node)?;
        let until = self.world.now() + DECIDING;
        loop {
            let (of, asker) = (Arc::clone(question), Arc::clone(self));
            let answer = self
                .world
                .ask(self.at, to, move |peer| peer.tell_before_placing(&of, &asker))
                .await?;
            if answer.maker != Seen::Deciding || self.world.now() >= until {
                return Some(answer);
            }
            self.sleep(LOOK).await;
        }
    }

    fn tell_before_placing(&self, question: &Question, asker: &Node) -> Answer {
        let disk = lock(&self.world.disks[self.at]);
        let has = |path: &StorePath| disk.paths.contains_key(path) && !disk.private.is_private(path);
        let closure = question.closure.iter().filter(|(path, _)| has(path));
        let (outputs, me) = (&question.outputs, self.key);
        let mut answer = Answer {
            bytes: closure.map(|(_, size)| size).sum(),
            made: !outputs.is_empty() && outputs.iter().all(has),
            maker: Seen::Nowhere,
        };
        // Who has not heard of a revocation, or has before the other one, does not understand the question.
        let understands = std::ptr::eq(self.view(), asker.view());
        if question.joins && understands && self.is_honest() {
            let known = disk.texts.contains_key(&question.derivation)
                && !disk.private.is_private(&question.derivation);
            self.underway.heard(question.turn);
            let asked = Asked {
                team: self.world.plan.swarm,
                me,
                asker: asker.key,
                turn: question.turn,
                terms: question.terms,
                owners: known,
            };
            answer.maker = self.underway.seen(&question.derivation, asked);
        } else if !self.is_honest() {
            // It draws builds to itself, or has others look for what is not there.
            let mut dice = self.world.dice();
            if dice.percent(30) {
                answer.maker = Seen::At(me);
            }
            answer.made = dice.percent(10);
        }
        answer
    }
}
