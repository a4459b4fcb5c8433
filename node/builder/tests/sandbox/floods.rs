//! Builds that use more than they may.

use tvix_node_builder::{Cause, Config};

use crate::stage::{OUT, Stage, control_groups, fields, skipped, spec};

#[tokio::test]
async fn a_flood_of_log_is_ended() {
    let Some(stage) = Stage::new().await else { return };
    for what in ["log", "lines"] {
        let mut asked = spec(fields(&["fill", what, "-"]));
        asked.limits.log = Some(1_000_000);
        let played = stage.play(asked).await;
        let heard: usize = played.log.iter().map(String::len).sum();
        assert!(heard < 1_200_000, "{heard}");
        assert!(matches!(played.cause(), Cause::LogTooLarge(1_000_000)));
    }
}

#[tokio::test]
async fn a_flood_of_the_disk_is_ended() {
    let Some(stage) = Stage::new().await else { return };
    for place in [OUT, "/build/files", "/tmp/files"] {
        let mut asked = spec(fields(&["fill", "files", place]));
        asked.limits.disk = Some(8 << 20);
        let cause = stage.play(asked).await.cause();
        assert!(matches!(cause, Cause::DiskTooLarge(_)), "{place}: {cause}");
    }
    // In a folder of the build's own, which may not be read.
    let mut asked = spec(fields(&["fill", "unreadable", "/build"]));
    asked.limits.disk = Some(8 << 20);
    asked.limits.time = Some(120);
    let cause = stage.play(asked).await.cause();
    assert!(matches!(cause, Cause::DiskTooLarge(_)), "{cause}");
    // Files without content take disk as well.
    let mut asked = spec(fields(&["fill", "entries", "/build/files"]));
    asked.limits.disk = Some(1 << 20);
    assert!(matches!(stage.play(asked).await.cause(), Cause::DiskTooLarge(_)));
    // One file is bounded by the kernel.
    let mut asked = spec(fields(&["fill", "file", "/build/file"]));
    asked.limits.disk = Some(8 << 20);
    let played = stage.play(asked).await;
    assert!(
        played.log.iter().any(|line| line.contains("FileTooLarge")),
        "{:?}",
        played.log
    );
    assert!(matches!(played.cause(), Cause::DiskTooLarge(limit) if limit == 8 << 20));
    // And a build that fails with less fails as it says.
    let mut asked = spec(fields(&["exit", "77"]));
    asked.limits.disk = Some(8 << 20);
    assert!(matches!(stage.play(asked).await.cause(), Cause::Exit(77)));
}

/// Files without a name count as long as a process has them.
#[tokio::test]
async fn a_flood_of_the_disk_that_is_in_no_folder_is_ended() {
    let Some(stage) = Stage::new().await else { return };
    for (what, place) in [
        ("unlinked", "/build"),
        ("unlinked", "/tmp"),
        ("unlinked", "/nix/store"),
        ("unlinked-mapped", "/build"),
        ("unlinked-mapped-apart", "/build"),
    ] {
        let mut asked = spec(fields(&["hold", what, place]));
        asked.limits.disk = Some(8 << 20);
        asked.limits.time = Some(120);
        let played = stage.play(asked).await;
        let log = played.log.join("\n");
        let cause = played.cause();
        assert!(
            matches!(cause, Cause::DiskTooLarge(_)),
            "{what} {place}: {cause}, {log}"
        );
    }
}

/// Links, folders that become links, and what waits for whoever opens it.
#[tokio::test]
async fn nothing_leads_the_watch_out_of_a_build() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    let mut asked = spec(fields(&["mislead", OUT]));
    asked.limits.disk = Some(1 << 20);
    asked.limits.memory = Some(16 << 20);
    asked.limits.time = Some(120);
    drop(stage.play(asked).await.built());
}

#[tokio::test]
async fn a_flood_of_memory_is_ended() {
    let Some(stage) = Stage::new().await else {
        return;
    };
    for what in ["memory", "children", "shared"] {
        let mut asked = spec(fields(&["fill", what, "-"]));
        asked.limits.memory = Some(64 << 20);
        let cause = stage.play(asked).await.cause();
        assert!(matches!(cause, Cause::MemoryTooLarge(_)), "{what}: {cause}");
    }
    // Shared memory that belongs to no process.
    let mut asked = spec(fields(&["fill", "file", "/dev/shm/file"]));
    asked.limits.memory = Some(64 << 20);
    let played = stage.play(asked).await;
    let full = played.log.iter().any(|line| line.contains("StorageFull"));
    assert!(full || matches!(played.cause(), Cause::MemoryTooLarge(_)));
}

/// Plays something that takes more memory than it may, and is to be ended for that, and not for its time.
async fn takes_too_much_memory(stage: &Stage, act: &[&str]) {
    let mut asked = spec(fields(act));
    asked.limits.memory = Some(64 << 20);
    asked.limits.time = Some(120);
    let played = stage.play(asked).await;
    let log = played.log.join("\n");
    let cause = played.cause();
    assert!(
        matches!(cause, Cause::MemoryTooLarge(_)),
        "{act:?}: {cause}, {log}"
    );
}

/// Memory that no process has mapped, wherever it is kept. A flood that is not seen goes on until its time is over.
#[tokio::test]
async fn a_flood_of_memory_that_nobody_has_mapped_is_ended() {
    for control_groups in [true, false] {
        let Some(stage) = Stage::with(|config| config.control_groups = control_groups).await else {
            return;
        };
        for act in [
            ["hold", "memfd", "-"],
            ["hold", "memfd-undumpable", "-"],
            ["hold", "memfd-of-thread", "-"],
            ["hold", "memfd-apart", "-"],
            ["hold", "memfd-among-many", "-"],
            ["hold", "memory-of-thread", "-"],
            ["hold", "segments", "-"],
            ["hold", "segments-apart", "-"],
            ["hold", "file-system", "/tmp"],
            ["hold", "file-system-hidden", "/tmp"],
            ["hold", "file-system-without-bound", "/tmp"],
        ] {
            takes_too_much_memory(&stage, &act).await;
        }
    }
}

/// File systems in memory that are mounted nowhere any more, never were, or are mounted where no path leads.
#[tokio::test]
async fn a_flood_of_a_file_system_that_is_mounted_nowhere_is_ended() {
    for control_groups in [true, false] {
        let Some(stage) = Stage::with(|config| config.control_groups = control_groups).await else {
            return;
        };
        for how in [
            "folder",
            "folder-hidden",
            "folder-of-nothing-mounted",
            "folder-without-bound",
            "file",
            "working-directory",
            "root",
            "working-directory-of-thread",
            "mounted-by-thread",
            "mounted-outside-of-root",
            "mounted-at-an-odd-name",
            "mounted-at-a-long-path",
            "mounted-after-many",
            "namespace",
            "namespace-bound-to-file",
            "segments-of-namespace",
        ] {
            takes_too_much_memory(&stage, &["detach", how]).await;
        }
    }
}

/// What has no bound does not tell what it has: it is added up from what leads there.
#[tokio::test]
async fn a_flood_of_a_file_system_without_a_bound_is_ended() {
    for control_groups in [true, false] {
        let Some(stage) = Stage::with(|config| config.control_groups = control_groups).await else {
            return;
        };
        for what in [
            "parts",
            "names",
            "mapped-without-a-name",
            "mapped-out-of-sight",
            "open-out-of-sight",
        ] {
            // The kernel may need less for a name than we count.
            if what != "names" || !control_groups {
                takes_too_much_memory(&stage, &["flood-unbound", what]).await;
            }
        }
    }
}

#[tokio::test]
async fn what_lies_in_a_file_system_without_a_bound_counts_once() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    for what in [
        "mounted-several-times",
        "several-names",
        "mapped-with-a-name",
        "mapped-and-open",
    ] {
        let mut asked = spec(fields(&["modest-unbound", what, OUT]));
        asked.limits.memory = Some(64 << 20);
        let played = stage.play(asked).await;
        assert!(played.result.is_ok(), "{what}: {:?}", played.cause());
    }
}

#[tokio::test]
async fn a_build_with_thousands_of_mounts_hides_nothing() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    let mut asked = spec(fields(&["detach", "nothing-after-many"]));
    asked.limits.memory = Some(64 << 20);
    // It makes no output, which is what it may fail for.
    let cause = stage.play(asked).await.cause();
    assert!(!matches!(cause, Cause::MemoryTooLarge(_)), "{cause}");
    assert!(cause.to_string().contains("output"), "{cause}");
}

#[tokio::test]
async fn more_namespaces_bound_to_files_than_are_looked_into_are_too_much() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    takes_too_much_memory(&stage, &["detach", "more-bound-namespaces-than-are-looked-into"]).await;
}

/// The watch has copies of what a process has that nobody may look at, and must not wait where that wants to.
#[tokio::test]
async fn sockets_that_linger_do_not_hold_up_the_watch() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    takes_too_much_memory(&stage, &["flood-behind-sockets"]).await;
}

/// In `/dev/shm`, which is as large as the limit: together with what processes have it counts once.
#[tokio::test]
async fn what_lies_in_shared_memory_counts_with_the_rest() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    for act in [
        ["fill", "entries", "/dev/shm/files"],
        ["fill", "half-and-half", "/dev/shm/file"],
    ] {
        takes_too_much_memory(&stage, &act).await;
    }
    // What is mapped as well as open is there once.
    let mut asked = spec(fields(&["fill", "mapped-twice", OUT]));
    asked.limits.memory = Some(64 << 20);
    drop(stage.play(asked).await.built());
}

#[tokio::test]
async fn the_smaller_bound_on_memory_counts() {
    for (own, asked, of_builder) in [(32, None, true), (32, Some(64), true), (128, Some(64), false)] {
        let small = |config: &mut Config| {
            config.control_groups = false;
            config.memory = Some(own << 20);
        };
        let Some(stage) = Stage::with(small).await else {
            return;
        };
        let mut flood = spec(fields(&["fill", "memory", "-"]));
        flood.limits.memory = asked.map(|asked: u64| asked << 20);
        match stage.play(flood).await.cause() {
            Cause::MemoryOfBuilder(limit) => assert!(of_builder && limit == own << 20),
            Cause::MemoryTooLarge(limit) => assert!(!of_builder && Some(limit >> 20) == asked),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn without_control_groups_none_is_made() {
    let Some(stage) = Stage::with(|config| config.control_groups = false).await else {
        return;
    };
    let mut asked = spec(fields(&["wait"]));
    asked.limits.memory = Some(64 << 20);
    let none = std::cell::Cell::new(false);
    let look = |line: &str| {
        none.set(control_groups().is_empty());
        line == "waiting"
    };
    assert!(matches!(
        stage.play_until(asked, look).await.cause(),
        Cause::Cancelled
    ));
    assert!(none.get());
}

/// The kernel's own bound, where this user may set one.
#[tokio::test]
async fn a_build_with_a_bound_on_memory_is_in_a_group_while_it_runs() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["wait"]));
    asked.limits.memory = Some(64 << 20);
    let groups = std::cell::RefCell::new(Vec::new());
    let look = |line: &str| {
        let found = control_groups().into_iter().map(|group| {
            let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
            members.lines().count()
        });
        *groups.borrow_mut() = found.collect::<Vec<_>>();
        line == "waiting"
    };
    let played = stage.play_until(asked, look).await;
    assert!(matches!(played.cause(), Cause::Cancelled));
    assert!(control_groups().is_empty());
    match groups.borrow().as_slice() {
        [] => skipped("a control group for a build", &"this user may make none here"),
        members => assert_eq!(members, [1]),
    }
}
