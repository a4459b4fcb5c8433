//! The teams that a node takes part in at the moment, in the order in which it came to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tvix_node_coordinator::Event;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::roster::Role;
use tvix_node_protocol::trust::TrustPolicy;
use tvix_node_swarm::SwarmHandle;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Roll(Mutex<Vec<SwarmHandle>>);

/// Letters of a team's id that people are shown.
const SHORT: usize = 12;

/// A team as people are shown it.
pub fn short(team: SwarmId) -> String {
    let mut id = team.to_string();
    id.truncate(SHORT);
    id
}

impl Roll {
    fn lock(&self) -> MutexGuard<'_, Vec<SwarmHandle>> {
        // Changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this node takes part in this team, too.
    pub fn enter(&self, swarm: SwarmHandle) {
        self.lock().push(swarm);
    }

    /// From now on it does so no more.
    pub fn strike(&self, team: SwarmId) {
        self.lock().retain(|swarm| swarm.swarm() != team);
    }

    /// All of them.
    pub fn all(&self) -> Vec<SwarmHandle> {
        self.lock().clone()
    }

    /// The team that a node is met in: the first in which it is a member. Nodes have another key in each team; one that
    /// has the same in several is met in one.
    pub fn team_of(&self, node: NodeKey) -> Option<SwarmId> {
        let all = self.lock();
        let team = all.iter().find(|swarm| swarm.members().contains(node));
        team.map(SwarmHandle::swarm)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// What people call a member. Where there are several teams, its team is named, too.
    pub fn name_of(&self, node: NodeKey) -> Option<String> {
        let all = self.all();
        let mut names = all.iter().filter_map(|swarm| {
            let members = swarm.members();
            Some(called(&members.get(node)?.name, swarm.swarm(), all.len()))
        });
        names.next()
    }

    /// What people call the members of all teams.
    pub fn names(&self) -> BTreeMap<NodeKey, String> {
        let all = self.all();
        let mut names = BTreeMap::new();
        for swarm in &all {
            for (key, member) in swarm.members().iter() {
                let name = || called(&member.name, swarm.swarm(), all.len());
                names.entry(key).or_insert_with(name);
            }
        }
        names
    }

    /// Members of all teams, besides this node, whose role lets them build for it.
    fn builders(&self) -> BTreeSet<NodeKey> {
        let mut builders = BTreeSet::new();
        for swarm in self.all() {
            let (members, own) = (swarm.members(), swarm.key());
            if members.may(own, Role::Request) {
                let others = members.iter().map(|(key, _)| key).filter(|key| *key != own);
                builders.extend(others.filter(|key| members.may(*key, Role::Build)));
            }
        }
        builders
    }

    /// What the coordinator is told of the teams, whether anybody is connected or not.
    pub fn told(&self, policy: &TrustPolicy) -> Event {
        let mut builders = self.builders();
        builders.retain(|key| !policy.distrusts_wholly(*key));
        Event::Team {
            names: self.names(),
            builders,
        }
    }
}

fn called(name: &str, team: SwarmId, teams: usize) -> String {
    match teams {
        1 => name.to_owned(),
        _ => format!("{name} (team {})", short(team)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_called_with_its_team_where_there_are_several() {
        assert_eq!(called("bob", SwarmId([0xab; 32]), 1), "bob");
        assert_eq!(called("bob", SwarmId([0xab; 32]), 2), "bob (team abababababab)");
    }
}
