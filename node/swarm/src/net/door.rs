//! The names of the doors on the wire.

use std::collections::BTreeSet;

use libp2p::{StreamProtocol, relay};
use tvix_node_protocol::build::SwarmId;

/// One protocol of a node. See [`tvix_node_protocol::messages`] for what is said there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    /// Becoming a member.
    Join,
    /// Facts, and whether the rosters differ.
    Hello,
    /// Whether a member can be dialled.
    Reachability,
    /// Roster statements.
    Roster,
    /// Who has which path.
    Presence,
    /// Path infos.
    Paths,
    /// Directories of a tree.
    Tree,
    /// Small trees, many at once.
    Trees,
    /// Small files of a tree.
    Blobs,
    /// One large file, or a part of it.
    Blob,
    /// Derivations and other texts, many at once.
    Texts,
    /// Builds.
    Build,
    /// Paths for a desired store.
    Push,
    /// Being reached through this node, or reaching another one through it. Its name and messages are libp2p's.
    Hop,
    /// Telling one who is reached through this node that somebody wants to. The same; what comes in there is the library's.
    Stop,
}

impl Door {
    /// Every door.
    pub const ALL: [Self; 15] = [
        Self::Join,
        Self::Hello,
        Self::Reachability,
        Self::Roster,
        Self::Presence,
        Self::Paths,
        Self::Tree,
        Self::Trees,
        Self::Blobs,
        Self::Blob,
        Self::Texts,
        Self::Build,
        Self::Push,
        Self::Hop,
        Self::Stop,
    ];

    /// Its word in the protocol's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Hello => "hello",
            Self::Reachability => "reachability",
            Self::Roster => "roster",
            Self::Presence => "presence",
            Self::Paths => "paths",
            Self::Tree => "tree",
            Self::Trees => "trees",
            Self::Blobs => "blobs",
            Self::Blob => "blob",
            Self::Texts => "texts",
            Self::Build => "build",
            Self::Push => "push",
            Self::Hop => "hop",
            Self::Stop => "stop",
        }
    }

    /// Version of what is said there. One for each door: a node that speaks another version of one is still
    /// understood at the others.
    pub(crate) const fn version(self) -> u32 {
        match self {
            // Since requests bound the memory of builds.
            Self::Build => 2,
            // Since names are not said.
            Self::Paths => 2,
            _ => 1,
        }
    }

    /// Whether what goes through this door is the content of store paths.
    #[must_use]
    pub fn carries_content(self) -> bool {
        matches!(
            self,
            Self::Tree | Self::Trees | Self::Blobs | Self::Blob | Self::Texts
        )
    }
}

/// The names of one team's protocols. All but `join` and those of libp2p contain the team, so two teams do not even speak
/// the same language.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// None: of a node that is not a member of anything yet.
    swarm: Option<SwarmId>,
    doors: Vec<(StreamProtocol, Door)>,
}

impl Names {
    pub(crate) fn of(swarm: SwarmId) -> Self {
        Self::with_versions(swarm, Door::version)
    }

    /// As a program calls them that speaks these versions.
    pub(crate) fn with_versions(swarm: SwarmId, version: impl Fn(Door) -> u32) -> Self {
        let names = Door::ALL
            .into_iter()
            .filter_map(|door| Some((name(Some(swarm), door, version(door))?, door)));
        Self {
            swarm: Some(swarm),
            doors: names.collect(),
        }
    }

    /// The only name there is where one is not a member yet.
    pub(crate) fn join_only() -> Self {
        let join = name(None, Door::Join, Door::Join.version());
        Self {
            swarm: None,
            doors: join.map(|name| (name, Door::Join)).into_iter().collect(),
        }
    }

    /// As a program calls them that has not got this one.
    #[cfg(test)]
    pub(crate) fn without(mut self, door: Door) -> Self {
        self.doors.retain(|(_, other)| *other != door);
        self
    }

    /// The team that they are of.
    pub(crate) const fn swarm(&self) -> Option<SwarmId> {
        self.swarm
    }

    /// A door as a program of another version calls it.
    pub(crate) fn other(&self, door: Door, version: u32) -> Option<StreamProtocol> {
        name(self.swarm, door, version)
    }

    /// The versions of a door among the names that a peer says it knows; none where the door is libp2p's.
    pub(crate) fn versions_among<'a>(
        &self,
        door: Door,
        names: impl IntoIterator<Item = &'a StreamProtocol>,
    ) -> BTreeSet<u32> {
        let own = self.get(door).and_then(|name| name.as_ref().rsplit_once('/'));
        let Some((kind, _)) = own else {
            return BTreeSet::new();
        };
        let versions = names.into_iter().filter_map(|name| {
            let (other, version) = name.as_ref().rsplit_once('/')?;
            version.parse().ok().filter(|_| other == kind)
        });
        versions.collect()
    }

    pub(crate) fn get(&self, door: Door) -> Option<&StreamProtocol> {
        self.doors
            .iter()
            .find(|(_, other)| *other == door)
            .map(|(name, _)| name)
    }

    /// What a peer may open: everything, or `join` alone.
    pub(crate) fn open_to(&self, member: bool) -> Vec<(StreamProtocol, Door)> {
        let open = |(_, door): &&(StreamProtocol, Door)| match door {
            Door::Join => true,
            Door::Stop => false,
            _ => member,
        };
        self.doors.iter().filter(open).cloned().collect()
    }
}

/// What a door is called in a version.
fn name(swarm: Option<SwarmId>, door: Door, version: u32) -> Option<StreamProtocol> {
    let name = match (door, swarm) {
        (Door::Join, _) => format!("/tvix-node/join/{version}"),
        (Door::Hop, _) => relay::HOP_PROTOCOL_NAME.to_string(),
        (Door::Stop, _) => relay::STOP_PROTOCOL_NAME.to_string(),
        (_, Some(swarm)) => format!("/tvix-node/{swarm}/{}/{version}", door.name()),
        (_, None) => return None,
    };
    // It is refused only where it does not begin with a slash.
    StreamProtocol::try_from_owned(name).ok()
}

/// The name of a team's routing protocol.
pub(crate) fn kad_name(swarm: SwarmId) -> Option<StreamProtocol> {
    StreamProtocol::try_from_owned(format!("/tvix-node/{swarm}/kad/1")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_may_open_join_and_nothing_else() {
        let names = Names::of(SwarmId([1; 32]));
        assert_eq!(
            names.open_to(true).len(),
            Door::ALL.len() - 1,
            "all but the library's"
        );
        let open = names.open_to(false);
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].1, Door::Join);
        assert_eq!(Names::join_only().open_to(true), open);
    }

    #[test]
    fn the_versions_that_a_peer_speaks_are_found_among_its_names() {
        let (one, other) = (Names::of(SwarmId([1; 32])), SwarmId([2; 32]));
        let theirs = [
            Names::with_versions(SwarmId([1; 32]), |_| 7),
            Names::with_versions(SwarmId([1; 32]), |_| 9),
            Names::with_versions(other, |_| 8),
        ];
        let offered: Vec<StreamProtocol> = theirs
            .iter()
            .flat_map(|names| names.open_to(true))
            .map(|(name, _)| name)
            .collect();
        let versions = |door| -> Vec<u32> { one.versions_among(door, &offered).into_iter().collect() };
        assert_eq!(versions(Door::Build), [7, 9], "another team's are none");
        assert_eq!(versions(Door::Join), [7, 8, 9]);
        assert!(versions(Door::Hop).is_empty());
        assert_eq!(one.other(Door::Join, 3).unwrap().as_ref(), "/tvix-node/join/3");
    }

    #[test]
    fn teams_do_not_share_names_but_for_join() {
        let (one, other) = (Names::of(SwarmId([1; 32])), Names::of(SwarmId([2; 32])));
        for door in Door::ALL {
            let of_all = matches!(door, Door::Join | Door::Hop | Door::Stop);
            assert_eq!(one.get(door) == other.get(door), of_all, "{door:?}");
        }
    }
}
