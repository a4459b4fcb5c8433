//! What the kernel offers beside namespaces: control groups, with which it bounds the memory of builds, and Landlock.

use tvix_node_builder::{ControlGroups, GroupLayout, Landlock};
use tvix_node_protocol::control::{Finding, Health};

use super::{finding, good};

/// `wanted`: whether this node may make any.
pub(super) fn control_groups(found: ControlGroups, wanted: bool) -> Finding {
    const ABOUT: &str = "control groups";
    const WATCHED: &str = "where a build has a limit on memory, this node looks four times a second at what it uses, and sees a \
                           flood a little late";
    let layout = match found.layout {
        GroupLayout::Absent => "this machine has none",
        GroupLayout::One => "version 1",
        GroupLayout::Hybrid => "version 1, with version 2 beside it",
        GroupLayout::Two => "version 2",
        _ => "of a kind that is not known",
    };
    if !wanted {
        return good(
            ABOUT,
            format!("{layout}; none are made, as is configured ('--no-control-groups'): {WATCHED}"),
        );
    }
    if let Some(version) = found.bounds_memory {
        return good(
            ABOUT,
            format!(
                "{layout}: where a build has a limit on memory, the kernel keeps all of it within that (a group of version {version})"
            ),
        );
    }
    let advice = match found.layout {
        GroupLayout::Absent => {
            "where that is too late, mount them at /sys/fs/cgroup; in a container, have its engine show them writable"
        }
        GroupLayout::Two => {
            "where that is too late, start the node in a group of its user's own: 'systemd-run --user --scope -p Delegate=yes \
             tvix-node up'"
        }
        _ => {
            "where that is too late, have root make a folder in /sys/fs/cgroup/memory that belongs to this user, and start the \
             node from a shell whose number root wrote into its cgroup.procs; or start the machine with version 2 alone \
             (systemd.unified_cgroup_hierarchy=1)"
        }
    };
    let state = match found.layout {
        GroupLayout::Absent => String::new(),
        _ => ", of which this user may make none that bounds memory".to_owned(),
    };
    finding(
        ABOUT,
        Health::Warning,
        format!("{layout}{state}: {WATCHED}"),
        Some(advice.to_owned()),
    )
}

pub(super) fn landlock(found: Landlock) -> Finding {
    const ABOUT: &str = "landlock";
    let found = match (found.version, found.is_used) {
        (Some(version), true) => format!(
            "version {version}: a second wall, beside namespaces, between builds and the machine's processes and abstract sockets"
        ),
        (Some(version), false) => format!(
            "version {version}, which is too old to be of use here (version 6, of Linux 6.12, is needed): namespaces alone are \
             between builds and the machine"
        ),
        (None, _) => {
            "this kernel has none, or it is switched off: namespaces alone are between builds and the machine"
                .to_owned()
        }
    };
    good(ABOUT, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(layout: GroupLayout, bounds_memory: Option<u32>) -> Finding {
        let found = ControlGroups {
            layout,
            bounds_memory,
        };
        control_groups(found, true)
    }

    #[test]
    fn every_state_of_control_groups_is_told_with_what_it_means() {
        for (layout, bounds_memory, parts) in [
            (
                GroupLayout::Absent,
                None,
                ["this machine has none: ", "mount them"],
            ),
            (
                GroupLayout::One,
                None,
                [
                    "version 1, of which this user may make none",
                    "/sys/fs/cgroup/memory",
                ],
            ),
            (
                GroupLayout::Hybrid,
                None,
                ["with version 2 beside it, of which", "/sys/fs/cgroup/memory"],
            ),
            (
                GroupLayout::Two,
                None,
                ["version 2, of which this user may make none", "Delegate=yes"],
            ),
        ] {
            let found = groups(layout, bounds_memory);
            assert_eq!(found.state, Health::Warning);
            assert!(found.found.contains(parts[0]), "{}", found.found);
            assert!(found.found.contains("four times a second"), "{}", found.found);
            assert!(
                found
                    .advice
                    .as_ref()
                    .is_some_and(|advice| advice.contains(parts[1])),
                "{found:?}"
            );
        }
        for (layout, version) in [
            (GroupLayout::One, 1),
            (GroupLayout::Hybrid, 1),
            (GroupLayout::Two, 2),
        ] {
            let found = groups(layout, Some(version));
            assert_eq!((found.state, &found.advice), (Health::Good, &None));
            assert!(
                found.found.contains(&format!("a group of version {version}")),
                "{}",
                found.found
            );
        }
        let found = ControlGroups {
            layout: GroupLayout::Two,
            bounds_memory: None,
        };
        let off = control_groups(found, false);
        assert_eq!(off.state, Health::Good);
        assert!(off.found.contains("'--no-control-groups'"), "{}", off.found);
    }

    #[test]
    fn landlock_is_told_whatever_its_version() {
        let told = |version, is_used| landlock(Landlock { version, is_used }).found;
        assert!(told(Some(7), true).starts_with("version 7: a second wall"));
        assert!(told(Some(3), false).contains("too old"));
        assert!(told(None, false).contains("has none"));
    }
}
