//! What `store` says of paths and does with them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::harness::{Machine, examples, finish, release, sandbox_works, skipped, tool};

#[test]
fn paths_are_related_checked_and_collected() {
    if !sandbox_works("paths_are_related_checked_and_collected") {
        return;
    }
    let machine = Machine::new();
    fs::copy(
        examples().join("offline/default.nix"),
        machine.folder().join("default.nix"),
    )
    .expect("a copy");
    fs::copy(tool(), machine.folder().join("tool")).expect("a copy");
    let letter = machine.run(&["build", "-A", "letter", "--no-out-link"]);
    let letter = letter.ok().to_owned();
    let built = machine.run(&["build", "-A", "letter.envelope", "-o", "keep"]);
    let envelope = built.ok().to_owned();
    let store = |arguments: &[&str]| machine.run(&[&["store"], arguments].concat());

    assert_eq!(store(&["references", "keep-envelope"]).ok(), letter);
    assert_eq!(store(&["referrers", &letter]).ok(), envelope);
    let mut both = [letter.as_str(), envelope.as_str()];
    both.sort_unstable();
    assert_eq!(store(&["closure", "keep-envelope"]).ok(), both.join("\n"));
    assert!(store(&["deriver", &letter]).ok().ends_with("-letter.drv"));
    let why = store(&["why-depends", "keep-envelope", &letter]);
    assert_eq!(why.ok(), format!("{envelope}\n   in /contains\n-> {letter}"));
    store(&["why-depends", &letter, &envelope]).failed(1, &[&letter, "does not need", &envelope]);
    assert_eq!(store(&["diff", &letter, &letter]).ok(), "");
    let differences = store(&["diff", &letter, &envelope]);
    let lines: Vec<&str> = differences.ok().lines().collect();
    assert!(
        lines[0].starts_with("+ /contains: file of ") && lines[1].starts_with("- /text: file of 13 bytes")
    );
    let usage: serde_json::Value = serde_json::from_str(store(&["du", "--json"]).ok()).expect("JSON");
    assert_eq!(usage["paths"], 2, "{usage}");
    store(&["closure", "/nix/store/00000000000000000000000000000000-absent"]).failed(1, &["absent"]);

    // What the commands above used is free again.
    let plan = store(&["gc", "--dry-run"]).ok().to_owned();
    assert!(plan.contains("would go") && plan.contains("-letter.drv") && !plan.contains(&letter));
    store(&["info", &letter]).ok();
    let young = store(&["gc", "--older-than", "1h"]);
    assert!(young.ok().starts_with("0 paths went"), "{}", young.stdout);
    let collected: serde_json::Value = serde_json::from_str(store(&["gc", "--json"]).ok()).expect("JSON");
    assert_eq!(collected["kept"], 2, "{collected}");
    assert!(store(&["verify"]).ok().ends_with(" looked at, 0 damaged"));

    let harmed = machine.physical(&envelope).join("contains");
    fs::set_permissions(&harmed, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&harmed, "nothing").expect("it is writable now");
    let verified = store(&["verify"]);
    assert_eq!(verified.status, 1);
    assert!(verified.stdout.contains(&envelope) && verified.stdout.contains("1 damaged"));
    assert_eq!(store(&["verify", &letter]).status, 0);
    // Nobody has it: it is said, and what is left of it stays.
    let repaired = store(&["verify", "--repair", "--json"]);
    assert_eq!(repaired.status, 1);
    let repaired: serde_json::Value = serde_json::from_str(&repaired.stdout).expect("JSON");
    assert_eq!(
        repaired["damaged"][0]["repair"]["outcome"], "failed",
        "{repaired}"
    );
    store(&["verify", "--repair"]).failed(1, &["envelope was not repaired", "takes part in no team"]);
    assert_eq!(fs::read(&harmed).expect("it is left"), b"nothing");

    fs::remove_file(machine.folder().join("keep-envelope")).expect("the root goes");
    let gone = store(&["gc"]).ok().to_owned();
    assert!(
        gone.contains(&letter) && gone.contains("is no root any more"),
        "{gone}"
    );
    store(&["info", &letter]).failed(1, &["is not in the store"]);
}

#[test]
fn a_derivation_that_is_not_known_does_not_hide_the_others() {
    let machine = Machine::new();
    machine.write("note", "text");
    let note = machine.run(&["store", "add", "note"]).ok().to_owned();
    machine.write("other", "other");
    let other = machine.run(&["store", "add", "other"]).ok().to_owned();
    let derivers = machine.run(&["store", "deriver", &note, &other]);
    for path in [&note, &other] {
        derivers.failed(1, &[&format!("not known which derivation made {path}")]);
    }
    let log = machine.run(&["log", &note]);
    log.failed(1, &["not known which derivation made", &note]);
}

/// Adds files whose archives have a bit more than 100,000 bytes each.
fn add_large<const N: usize>(machine: &Machine) -> [String; N] {
    std::array::from_fn(|number| {
        let name = format!("large-{number}");
        machine.write(&name, &number.to_string().repeat(100_000));
        machine.run(&["store", "add", &name]).ok().to_owned()
    })
}

/// Collects, and says which of these paths went.
fn collected(machine: &Machine, flags: &[&str], paths: &[String]) -> Vec<bool> {
    let answer = machine.run(&[&["store", "gc", "--json"], flags].concat());
    let answer: serde_json::Value = serde_json::from_str(answer.ok()).expect("JSON");
    let removed = answer["removed"].to_string();
    let gone: Vec<bool> = paths.iter().map(|path| removed.contains(path)).collect();
    for (path, gone) in paths.iter().zip(&gone) {
        assert!(
            !(*gone && machine.physical(path).exists()),
            "{path} is still on the disk"
        );
    }
    gone
}

#[test]
fn a_collection_ends_where_enough_has_gone() {
    for flags in [["--max-freed", "150000"], ["--target-size", "250000"]] {
        let machine = Machine::new();
        let paths = add_large::<4>(&machine);
        let gone = collected(&machine, &flags, &paths);
        assert_eq!(
            gone.iter().filter(|gone| **gone).count(),
            2,
            "{flags:?}: {gone:?}"
        );
        for (path, gone) in paths.iter().zip(gone) {
            let info = machine.run(&["store", "info", path]);
            assert_eq!(info.status, i32::from(gone), "{flags:?}: {path}");
            assert_eq!(machine.physical(path).exists(), !gone, "{flags:?}: {path}");
        }
        assert!(machine.run(&["store", "verify"]).ok().ends_with(" 0 damaged"));
        if flags[0] == "--target-size" {
            // It is that small already.
            assert_eq!(collected(&machine, &flags, &paths), [false; 4]);
        }
    }
}

#[test]
fn a_collection_keeps_what_was_used_lately() {
    let machine = Machine::new();
    let paths = add_large::<2>(&machine);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        // Only the second one is used again and again.
        let used = machine.run(&["store", "export", &paths[1]]);
        assert_eq!(used.status, 0, "{}", used.stderr);
        match collected(&machine, &["--older-than", "10s"], &paths)[..] {
            [true, false] => break,
            [false, false] => assert!(Instant::now() < deadline, "what is old stays"),
            ref gone => panic!("what was used went: {gone:?}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    machine.run(&["store", "info", &paths[1]]).ok();
    machine
        .run(&["store", "info", &paths[0]])
        .failed(1, &["is not in the store"]);
}

#[test]
fn what_an_evaluation_has_read_is_not_collected_while_it_goes_on() {
    if !sandbox_works("what_an_evaluation_has_read_is_not_collected_while_it_goes_on") {
        return;
    }
    let machine = Machine::new();
    machine.write("note", "text");
    machine.write("other", "other");
    let add = |name| machine.run(&["store", "add", name]).ok().to_owned();
    let (note, other) = (add("note"), add("other"));
    machine.run(&["down"]).ok();
    // It reads the path, then waits for a build, then reads it again.
    machine.expression(&format!(
        r#"let
             read = builtins.readFile "{note}";
             slow = build "slow" {{ inherit read; }} "echo collecting-meanwhile\nwait\nwrite $out slow";
           in builtins.seq read (builtins.readFile slow + builtins.readFile (builtins.storePath "{note}"))"#
    ));
    let mut evaluating = machine.start(&["eval", "--raw"]);
    evaluating.until("collecting-meanwhile");
    let collected = machine.run(&["store", "gc", "--json"]);
    let collected: serde_json::Value = serde_json::from_str(collected.ok()).expect("JSON");
    let removed = collected["removed"].to_string();
    assert!(
        removed.contains(&other) && !removed.contains(&note),
        "{collected}"
    );
    release("collecting-meanwhile");
    assert_eq!(evaluating.finish().ok(), "slow\ntext");
}

#[test]
fn what_is_pinned_is_kept_and_named_until_it_is_unpinned() {
    let machine = Machine::new();
    machine.write("note", "text");
    machine.write("other", "other");
    let add = |name| machine.run(&["store", "add", name]).ok().to_owned();
    let (note, other) = (add("note"), add("other"));
    let store = |arguments: &[&str]| machine.run(&[&["store"], arguments].concat());
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    store(&["pin", &note, absent]).failed(1, &[absent, "cannot be pinned"]);
    assert_eq!(store(&["pins"]).ok(), "");
    assert_eq!(store(&["pin", &note]).ok(), "");
    // It outlives the node.
    machine.run(&["down"]).ok();
    assert_eq!(store(&["pins"]).ok(), note);
    let pins: serde_json::Value = serde_json::from_str(store(&["pins", "--json"]).ok()).expect("JSON");
    assert_eq!(pins[0]["path"], note);
    assert!(pins[0]["since"].as_u64().is_some_and(|since| since > 0), "{pins}");
    assert!(store(&["info", &note]).ok().contains("\npinned "));
    assert!(!store(&["info", &other]).ok().contains("pinned"));
    assert!(machine.run(&["why", &note]).ok().contains("it is pinned"));
    let plan = store(&["gc", "--dry-run"]).ok().to_owned();
    assert!(
        plan.contains(&format!("{note} stays")) && plan.contains("because it is pinned"),
        "{plan}"
    );
    let collected: serde_json::Value = serde_json::from_str(store(&["gc", "--json"]).ok()).expect("JSON");
    assert_eq!(
        (&collected["removed"][0], &collected["pins"][0]),
        (&other.into(), &note.clone().into())
    );
    store(&["unpin", &note, absent]).failed(1, &[absent, "is not pinned"]);
    assert_eq!(store(&["pins"]).ok(), note);
    assert_eq!(store(&["unpin", &note]).ok(), "");
    store(&["unpin", &note]).failed(1, &[&note, "is not pinned"]);
    assert!(store(&["gc"]).ok().starts_with(&note));
}

#[test]
fn what_a_program_uses_stays_until_it_has_ended_whatever_has_ended_before() {
    if !sandbox_works("what_a_program_uses_stays_until_it_has_ended_whatever_has_ended_before") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
          hello = build "hello" { inherit needed; } "mkdir $out\nmkdir $out/bin\ncopy ${tool} $out/bin/hello\nexecutable $out/bin/hello\nwrite $out/needs $needed";
          needed = build "needed" { } "write $out x";
        }"#,
    );
    let mut command = machine.start(&["run", "-A", "hello", "--", "echo program-that-stays\nwait"]);
    // Read until the end: a program that nobody listens to any more would end.
    let mut said = BufReader::new(command.child.stdout.take().expect("a pipe")).lines();
    for expected in ["program-that-stays", "waiting"] {
        let line = said.next().expect("the program speaks").expect("it can be heard");
        assert_eq!(line, expected);
    }
    let programs = programs_with("program-that-stays");
    let [program] = programs[..] else {
        panic!("not one program: {programs:?}");
    };
    // The command, then the node.
    command.signal(Signal::KILL);
    command.child.wait().expect("it has ended");
    machine.run(&["down"]).ok();

    let removed = || {
        let collected = machine.run(&["store", "gc", "--json"]);
        let collected: serde_json::Value = serde_json::from_str(collected.ok()).expect("JSON");
        collected["removed"].to_string()
    };
    let first = removed();
    assert!(
        first.contains("-hello.drv") && !first.contains("-hello\"") && !first.contains("-needed\""),
        "{first}"
    );
    rustix::process::kill_process(program, Signal::KILL).expect("it still runs");
    // Nobody here is its parent, so there is nobody to wait for it.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let then = removed();
        if then.contains("-hello\"") && then.contains("-needed\"") {
            break;
        }
        assert!(Instant::now() < deadline, "the program has ended: {then}");
    }
}

#[test]
fn a_program_that_lets_go_of_what_it_inherited_keeps_what_it_uses_all_the_same() {
    let test = "a_program_that_lets_go_of_what_it_inherited_keeps_what_it_uses_all_the_same";
    if !sandbox_works(test) {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
          hello = build "hello" { inherit needed; } "mkdir $out\nmkdir $out/bin\ncopy ${tool} $out/bin/hello\nexecutable $out/bin/hello\nwrite $out/needs $needed";
          needed = build "needed" { } "write $out forgotten";
        }"#,
    );
    let script = "forget\necho program-that-forgets\nwait";
    let mut command = machine.start(&["run", "-A", "hello", "--", script]);
    let mut said = BufReader::new(command.child.stdout.take().expect("a pipe")).lines();
    for expected in ["program-that-forgets", "waiting"] {
        let line = said.next().expect("the program speaks").expect("it can be heard");
        assert_eq!(line, expected);
    }
    let programs = programs_with("program-that-forgets");
    let [program] = programs[..] else {
        panic!("not one program: {programs:?}");
    };
    // Whatever else knows of it goes.
    command.signal(Signal::KILL);
    command.child.wait().expect("it has ended");
    machine.run(&["down"]).ok();

    let plan = machine.run(&["store", "gc", "--dry-run"]).ok().to_owned();
    let number = program.as_raw_nonzero();
    let kept = plan
        .lines()
        .find(|line| line.contains(&format!("because process {number} uses it")));
    assert!(kept.is_some_and(|line| line.contains("-hello stays")), "{plan}");
    let collect = || {
        let collected = machine.run(&["store", "gc", "--json"]);
        serde_json::from_str::<serde_json::Value>(collected.ok()).expect("JSON")
    };
    let first = collect();
    let removed = first["removed"].to_string();
    assert!(
        removed.contains("-hello.drv") && !removed.contains("-hello\"") && !removed.contains("-needed\""),
        "{first}"
    );
    assert_eq!(first["programs"][0]["process"], number.get(), "{first}");
    rustix::process::kill_process(program, Signal::KILL).expect("it still runs");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let then = collect();
        let removed = then["removed"].to_string();
        if removed.contains("-hello\"") && removed.contains("-needed\"") {
            break;
        }
        assert!(Instant::now() < deadline, "the program has ended: {then}");
    }
}

#[test]
fn a_node_that_is_started_in_a_shell_does_not_keep_what_the_shell_used() {
    if !sandbox_works("a_node_that_is_started_in_a_shell_does_not_keep_what_the_shell_used") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{ hello = build "hello" { } "mkdir $out\nmkdir $out/bin\ncopy ${tool} $out/bin/hello\nexecutable $out/bin/hello"; }"#,
    );
    let program = env!("CARGO_BIN_EXE_tvix-node");
    let script = format!("{program} down; {program} store pins");
    machine
        .run(&["shell", "-A", "hello", "--", "sh", "-c", &script])
        .ok();
    let collected = machine.run(&["store", "gc", "--json"]);
    let collected: serde_json::Value = serde_json::from_str(collected.ok()).expect("JSON");
    assert!(
        collected["removed"].to_string().contains("-hello\""),
        "{collected}"
    );
}

#[test]
fn a_store_below_a_link_is_shown_by_the_name_that_a_collection_knows() {
    let test = "a_store_below_a_link_is_shown_by_the_name_that_a_collection_knows";
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("it is there");
    let store = folder.join("place/home/nix/store");
    fs::create_dir_all(&store).expect("a store");
    std::os::unix::fs::symlink("place", folder.join("link")).expect("a link");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tvix-node"));
    command
        .arg("__enter-store")
        .arg(folder.join("link/home/nix/store"))
        .args(["cat", "/proc/self/mountinfo"]);
    let finished = finish(&mut command);
    if finished.stderr.contains("does not let you see the store") {
        return skipped(test, &finished.stderr);
    }
    let mounts = finished.ok();
    let layers = mounts
        .lines()
        .find(|line| line.contains(" /nix/store ") && line.contains(" - overlay "));
    let Some(layers) = layers else {
        return skipped(
            test,
            "this machine has no store of its own that the home's would be laid over",
        );
    };
    let named = format!(" - overlay {} ", store.display());
    assert!(layers.contains(&named), "no '{named}' in: {layers}");
}

/// Processes of a built program that has this marker of a test among its arguments.
fn programs_with(marker: &str) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc can be read").flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            let (program, arguments) = line.split_once('\0')?;
            let found = program.starts_with("/nix/store/") && arguments.contains(marker);
            if found { Pid::from_raw(pid) } else { None }
        })
        .collect()
}

#[test]
fn a_node_that_stays_up_collects_what_is_not_wanted_any_more() {
    if !sandbox_works("a_node_that_stays_up_collects_what_is_not_wanted_any_more") {
        return;
    }
    let node = super::swarm::nodes::Node::up("ann", 1);
    let machine = &node.machine;
    machine.expression(
        r#"rec {
          input = build "input" { } "write $out x";
          gone = build "gone" { inherit input; } "write $out 1";
          kept = build "kept" { } "write $out 2";
          held = build "held" { inherit input; } "echo mark-of-holding\nwait\nwrite $out 3";
        }"#,
    );
    let gone = machine
        .run(&["build", "-A", "gone", "-o", "result"])
        .ok()
        .to_owned();
    let kept = machine
        .run(&["build", "-A", "kept", "-o", "stays"])
        .ok()
        .to_owned();
    let input = machine
        .run(&["build", "-A", "input", "--no-out-link"])
        .ok()
        .to_owned();
    fs::remove_file(machine.folder().join("result")).expect("the link");
    // What a build reads stays while it runs, whoever built it before.
    let mut running = node.start_build("held", &[]);
    running.until(r#""line":"waiting""#);
    machine.run(&["store", "gc"]).ok();
    assert!(node.has(&input), "the input of a running build");
    release("mark-of-holding");
    let held = running.finish();
    assert_eq!(held.status, 0, "{}", held.stderr);
    machine.run(&["store", "gc"]).ok();
    for path in [&gone, &input, &held.stdout.trim().to_owned()] {
        assert!(!node.has(path), "{path} is still there");
    }
    assert!(node.has(&kept));
}
