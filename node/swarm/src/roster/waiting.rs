//! Who was vouched for and is no member: what is known of them, and why.

use std::collections::BTreeMap;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::roster::{Lapse, Member, Role, Roles};

use super::{Members, Roster};

/// Somebody who needs a new statement. All but the reason is from the last statement about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What people called it.
    pub name: String,
    /// What it was to be allowed.
    pub roles: Roles,
    /// Who vouched for it.
    pub issued_by: NodeKey,
    /// Until when it was to last, in seconds since 1970.
    pub not_after: u64,
    /// Why that does not count.
    pub why: Lapse,
}

/// All who were vouched for, and are neither members at this time nor out for ever.
pub(super) fn waiting(roster: &Roster, now: u64) -> BTreeMap<NodeKey, Waiting> {
    let members = roster.members(now);
    let mut last: BTreeMap<NodeKey, &Member> = BTreeMap::new();
    let age = |member: &Member| (member.issued_at, member.serial, member.issued_by);
    for kept in roster.memberships.values() {
        let says = &kept.says;
        if members.contains(says.key) {
            continue;
        }
        let slot = last.entry(says.key).or_insert(says);
        if age(slot) < age(says) {
            *slot = says;
        }
    }
    // Once for each key: it looks through all statements that put somebody out.
    last.retain(|key, _| !roster.is_revoked(*key));
    let waits = |(key, says): (NodeKey, &Member)| {
        let waiting = Waiting {
            name: says.name.clone(),
            roles: says.roles.clone(),
            issued_by: says.issued_by,
            not_after: says.not_after,
            why: lapse(roster, &members, says, now),
        };
        (key, waiting)
    };
    last.into_iter().map(waits).collect()
}

fn lapse(roster: &Roster, members: &Members, says: &Member, now: u64) -> Lapse {
    if now > says.not_after {
        Lapse::Ended
    } else if roster.is_revoked(says.issued_by) {
        Lapse::IssuerOut
    } else if !members.contains(says.issued_by) {
        Lapse::IssuerNoMember
    } else if !members.may(says.issued_by, Role::Invite) {
        Lapse::IssuerMayNot
    } else {
        Lapse::NotCounted
    }
}
