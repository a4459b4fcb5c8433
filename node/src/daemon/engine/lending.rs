//! Slots of the own builder, lent to builds for other members and to checks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tvix_node_coordinator::Event;
use tvix_node_protocol::StorePath;

use super::{Engine, Message};

/// Whom a lent slot builds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LentTo {
    /// Another member, by name.
    Member(String),
    /// What a member built is built again here, to be compared: who, in words.
    Sample(String),
    /// An own session that checks what is there.
    Session(u64),
}

impl LentTo {
    /// Whether it is for this node after all, which its owner's terms do not keep from it.
    const fn is_own(&self) -> bool {
        matches!(self, Self::Sample(_) | Self::Session(_))
    }

    /// Whether nobody here waits for it, so that it gives way to what somebody does.
    const fn gives_way(&self) -> bool {
        matches!(self, Self::Member(_) | Self::Sample(_))
    }
}

/// A build for another member, or a check, that waits for a slot.
pub(super) struct Borrower {
    pub(super) derivation: StorePath,
    pub(super) to: LentTo,
    pub(super) urgency: u8,
    pub(super) reply: oneshot::Sender<Result<LentSlot, String>>,
}

/// One that has a slot.
pub(super) struct Lent {
    pub(super) derivation: StorePath,
    pub(super) to: LentTo,
    pub(super) since: Instant,
    pub(super) last_line: String,
}

/// A slot of the own builder, lent. Goes back when dropped.
pub struct LentSlot {
    /// Which.
    pub slot: u32,
    engine: mpsc::Sender<Message>,
    /// Why it is to come back before the build is over; none: it is for this node after all, and is not.
    withheld: Option<watch::Receiver<Option<String>>>,
}

impl LentSlot {
    /// Waits until the owner wants the slot back, and says why.
    pub async fn withdrawn(&self) -> String {
        if let Some(withheld) = &self.withheld
            && let Ok(reason) = withheld.clone().wait_for(Option::is_some).await
            && let Some(reason) = reason.as_ref()
        {
            return reason.clone();
        }
        // The engine has ended, and with it everything else; or it never comes about.
        std::future::pending().await
    }

    /// Shows the build's last line to who looks on here.
    pub async fn line(&self, line: String) {
        let message = Message::LentLine {
            slot: self.slot,
            line,
        };
        // Where the engine has ended, nobody looks on.
        drop(self.engine.send(message).await);
    }
}

impl Drop for LentSlot {
    fn drop(&mut self) {
        let (slot, engine) = (self.slot, self.engine.clone());
        // Where the engine has ended, nobody needs the slot.
        tokio::spawn(async move { drop(engine.send(Message::SlotBack { slot }).await) });
    }
}

/// Who is lent a slot next: one of those who have fewest, of these what is most urgent, and then who has waited longest. Whoever
/// asks for much leaves something to the others, however urgent it says that it is.
fn next_borrower(waiting: &mut VecDeque<Borrower>, lent: &BTreeMap<u32, Lent>) -> Option<Borrower> {
    // Their requesters have cancelled.
    waiting.retain(|borrower| !borrower.reply.is_closed());
    let has = |to: &LentTo| lent.values().filter(|lent| lent.to == *to).count();
    let next = waiting
        .iter()
        .enumerate()
        .min_by_key(|(_, borrower)| (has(&borrower.to), Reverse(borrower.urgency)));
    let (next, _) = next?;
    waiting.remove(next)
}

impl Engine {
    /// Gives slots that this node's own builds have left to builds for others. A slot that is promised to a
    /// build whose inputs are still on their way is not among them.
    pub(super) fn lend(&mut self) {
        let withheld = self.withheld.borrow().clone();
        if let Some(reason) = &withheld {
            let (own, others) = std::mem::take(&mut self.borrowers)
                .into_iter()
                .partition(|borrower| borrower.to.is_own());
            self.borrowers = own;
            let others: VecDeque<Borrower> = others;
            for borrower in others {
                // Its requester may have cancelled.
                drop(borrower.reply.send(Err(reason.clone())));
            }
        }
        self.in_use.send_if_modified(|known| {
            let now = !self.sessions.is_empty();
            std::mem::replace(known, now) != now
        });
        while self.coordinator.free_slots() > 0
            && !self.free_slots.is_empty()
            && let Some(borrower) = next_borrower(&mut self.borrowers, &self.lent)
        {
            let Some(slot) = self.free_slots.pop_last() else {
                break;
            };
            let own = borrower.to.is_own();
            let lent = Lent {
                derivation: borrower.derivation,
                to: borrower.to,
                since: Instant::now(),
                last_line: String::new(),
            };
            self.lent.insert(slot, lent);
            self.lent_changed();
            let engine = self.outbox.clone();
            // Where its requester cancels before it takes the slot, that comes back by itself.
            let withheld = (!own).then(|| self.withheld.subscribe());
            drop(borrower.reply.send(Ok(LentSlot {
                slot,
                engine,
                withheld,
            })));
        }
        let free = if withheld.is_some() {
            0
        } else {
            self.coordinator.free_slots()
        };
        self.free
            .send_if_modified(|known| std::mem::replace(known, free) != free);
    }

    /// What the coordinator knows of the slots that are lent.
    pub(super) fn lent_changed(&mut self) {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let count = number(self.lent.len());
        let giving_way = number(self.lent.values().filter(|lent| lent.to.gives_way()).count());
        self.happened(Event::SlotsLent { count, giving_way });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> LentTo {
        LentTo::Member(name.to_owned())
    }

    fn derivation(number: usize) -> StorePath {
        StorePath::from_parts([0; 20], &format!("{number}.drv")).unwrap()
    }

    /// The order in which slots are lent, none of which comes back, to these, so urgent.
    fn order(asked: &[(&str, u8)]) -> Vec<usize> {
        let (mut waiting, mut replies) = (VecDeque::new(), vec![]);
        for (number, (name, urgency)) in asked.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            if *name != "gone" {
                replies.push(answer);
            }
            waiting.push_back(Borrower {
                derivation: derivation(number),
                to: member(name),
                urgency: *urgency,
                reply,
            });
        }
        let mut lent = BTreeMap::new();
        let mut order = vec![];
        while let Some(next) = next_borrower(&mut waiting, &lent) {
            let number = next.derivation.name().strip_suffix(".drv");
            order.push(number.and_then(|number| number.parse().ok()).unwrap());
            let slot = u32::try_from(lent.len()).unwrap();
            lent.insert(
                slot,
                Lent {
                    derivation: next.derivation,
                    to: next.to,
                    since: Instant::now(),
                    last_line: String::new(),
                },
            );
        }
        order
    }

    #[test]
    fn who_has_fewest_slots_is_next_and_of_equals_who_waits_longest() {
        let asked = ["ann", "ann", "ann", "bob", "ann", "gone", "cat", "bob"];
        assert_eq!(order(&asked.map(|name| (name, 100))), [0, 3, 6, 1, 7, 2, 4]);
    }

    #[test]
    fn what_an_evaluation_waits_for_goes_first_and_takes_nothing_from_others() {
        let asked = [
            ("ann", 100),
            ("ann", 100),
            ("bob", 100),
            ("ann", 200),
            ("ann", 200),
        ];
        assert_eq!(order(&asked), [3, 2, 4, 0, 1]);
    }
}
