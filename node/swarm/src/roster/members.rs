//! Who is a member at a given time: from the founders outward.

use std::collections::BTreeMap;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::roster::{Member, Role, Roles};

use super::Roster;
use crate::limits::{CHAIN, CLOCK_SKEW};

/// A member, as the roster has it at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
    /// Who vouches for it; none for a founder.
    pub issued_by: Option<NodeKey>,
    /// Until when, in seconds since 1970; none for a founder.
    pub not_after: Option<u64>,
}

/// All members at some time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members(BTreeMap<NodeKey, MemberView>);

impl Members {
    /// What is known of this member; none: it is not one.
    #[must_use]
    pub fn get(&self, key: NodeKey) -> Option<&MemberView> {
        self.0.get(&key)
    }

    /// Whether this key is a member's.
    #[must_use]
    pub fn contains(&self, key: NodeKey) -> bool {
        self.0.contains_key(&key)
    }

    /// Whether this key is a member's that has the role.
    #[must_use]
    pub fn may(&self, key: NodeKey, role: Role) -> bool {
        self.get(key).is_some_and(|member| member.roles.has(role))
    }

    /// By key.
    pub fn iter(&self) -> impl Iterator<Item = (NodeKey, &MemberView)> {
        self.0.iter().map(|(key, member)| (*key, member))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none: all founders are out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes roles away, and with the last thing a member may do nothing else: it stays a member. What a
    /// node trusts is what the roster says and what it decides for itself.
    #[must_use]
    pub fn without(mut self, distrusted: &BTreeMap<NodeKey, Roles>) -> Self {
        for (key, taken) in distrusted {
            if let Some(member) = self.0.get_mut(key) {
                member.roles = member.roles.iter().filter(|role| !taken.has(*role)).collect();
            }
        }
        self
    }
}

/// Layer by layer: founders, whom they vouch for, whom those vouch for.
///
/// A key belongs to the first layer in which somebody vouches for it, and within that layer the
/// youngest statement counts. So whether a key is a member never depends on keys further out, and
/// there is exactly one answer, however statements refer to each other.
pub(super) fn members(roster: &Roster, now: u64) -> Members {
    let mut members = BTreeMap::new();
    let mut inviting = Vec::new();
    for founder in &roster.genesis.founders {
        if roster.is_revoked(founder.key) {
            continue;
        }
        inviting.push(founder.key);
        members.insert(
            founder.key,
            MemberView {
                name: founder.name.clone(),
                roles: Roles::all(),
                issued_by: None,
                not_after: None,
            },
        );
    }
    for _ in 0..CHAIN {
        let layer = next_layer(roster, now, &members, &inviting);
        if layer.is_empty() {
            break;
        }
        inviting.clear();
        for (key, statement) in layer {
            let Some(issuer) = members.get(&statement.issued_by) else {
                continue;
            };
            let given = statement.roles.iter();
            let roles: Roles = given.filter(|role| issuer.roles.has(*role)).collect();
            if roles.has(Role::Invite) {
                inviting.push(key);
            }
            members.insert(
                key,
                MemberView {
                    name: statement.name.clone(),
                    roles,
                    issued_by: Some(statement.issued_by),
                    not_after: Some(statement.not_after),
                },
            );
        }
    }
    Members(members)
}

fn next_layer<'a>(
    roster: &'a Roster,
    now: u64,
    members: &BTreeMap<NodeKey, MemberView>,
    inviting: &[NodeKey],
) -> BTreeMap<NodeKey, &'a Member> {
    let mut layer: BTreeMap<NodeKey, &Member> = BTreeMap::new();
    for issuer in inviting {
        let range = (*issuer, NodeKey([0; 32]))..=(*issuer, NodeKey([0xff; 32]));
        for ((_, key), kept) in roster.memberships.range(range) {
            let statement = &kept.says;
            let in_time = statement.issued_at <= now.saturating_add(CLOCK_SKEW) && now <= statement.not_after;
            if !in_time || members.contains_key(key) || roster.is_revoked(*key) {
                continue;
            }
            let age = |member: &Member| (member.issued_at, member.serial, member.issued_by);
            let slot = layer.entry(*key).or_insert(statement);
            if age(slot) < age(statement) {
                *slot = statement;
            }
        }
    }
    layer
}
