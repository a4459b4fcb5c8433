//! Builds that fail, commands that are interrupted.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;

use crate::harness::{Machine, processes_with, sandbox_works};
use crate::swarm::nodes::Node;

#[test]
fn a_failing_build_ends_the_command_with_its_name_and_log() {
    if !sandbox_works("a_failing_build_ends_the_command_with_its_name_and_log") {
        return;
    }
    let machine = Machine::new();
    let lines: String = (0..40).map(|number| format!("echo line {number}\\n")).collect();
    machine.expression(&format!(
        r#"{{ broken = build "broken" {{ }} "{lines}fail 3"; }}"#
    ));
    let finished = machine.run(&["build", "-A", "broken"]);
    finished.failed(
        1,
        &[
            "-broken.drv",
            "exit code 3",
            "line 15",
            "line 39",
            "tvix-node log /nix/store/",
        ],
    );
    assert!(!machine.folder().join("result").exists());
    let command = finished
        .stderr
        .lines()
        .find_map(|line| line.split("tvix-node log ").nth(1))
        .expect("the command");
    let path = command
        .split(|c: char| c.is_whitespace() || "'`.,".contains(c))
        .next()
        .expect("a path");
    let path = if path.ends_with(".drv") {
        path.to_owned()
    } else {
        format!("{path}.drv")
    };
    let log = machine.run(&["log", &path]);
    assert_eq!(log.ok().lines().count(), 40, "{}", log.stdout);
}

#[test]
fn a_fetch_that_fails_says_what_of_and_why_in_its_log_too() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/gone.tar", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let mut stream = stream;
            let mut request = [0; 4096];
            // A client that goes away is no fault.
            let _read = stream.read(&mut request);
            let _written = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let machine = Machine::new();
    fs::create_dir_all(machine.home()).expect("a folder");
    let config = "allowed-addresses = [\"127.0.0.1\"]\n";
    fs::write(machine.home().join("config.toml"), config).expect("a file");
    machine.expression(&format!(
        r#"{{
          fetched = derivation {{
            name = "fetched"; builder = "builtin:fetchurl"; system = "builtin"; url = "{url}";
            outputHashMode = "flat"; outputHash = builtins.hashString "sha256" ""; outputHashAlgo = "sha256";
          }};
        }}"#
    ));
    let finished = machine.run(&["build", "-A", "fetched"]);
    let what = format!("'{url}' cannot be fetched: the server answered 404 Not Found");
    finished.failed(1, &["the build of fetched failed: ", &what]);
    // It would not be there the next time, or for another builder.
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert!(
        !finished.stderr.contains("Its log is empty"),
        "{}",
        finished.stderr
    );
    let path = finished
        .stderr
        .split("tvix-node log ")
        .nth(1)
        .expect("the command");
    let log = machine.run(&["log", path.split_whitespace().next().expect("a path")]);
    assert_eq!(log.ok(), format!("downloading '{url}'\n{what}"));
}

#[test]
fn the_folder_of_a_failed_build_is_kept_when_asked_for() {
    if !sandbox_works("the_folder_of_a_failed_build_is_kept_when_asked_for") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ broken = build "broken" { } "write evidence something\nfail 3"; }"#);
    let finished = machine.run(&["build", "-A", "broken"]);
    finished.failed(1, &["exit code 3"]);
    assert!(!finished.stderr.contains("kept"), "{}", finished.stderr);
    let finished = machine.run(&["build", "-K", "-A", "broken"]);
    finished.failed(1, &["exit code 3; its folder is kept as '"]);
    let kept = finished.stderr.split("kept as '").nth(1).expect("a path");
    let kept = std::path::Path::new(kept.split('\'').next().expect("a path"));
    let evidence = std::fs::read_to_string(kept.join("evidence")).expect("what the build wrote");
    assert_eq!(evidence.trim(), "something");
}

#[test]
fn outputs_that_are_refused_fail_as_a_program_does_with_log_and_folder() {
    if !sandbox_works("outputs_that_are_refused_fail_as_a_program_does_with_log_and_folder") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{
          fixed = build "fixed" {
            outputHash = "0000000000000000000000000000000000000000000000000000000000000000";
            outputHashAlgo = "sha256";
            outputHashMode = "flat";
          } "echo writing it\nwrite evidence something\nwrite $out text";
          circle = build "circle" { outputs = [ "out" "doc" ]; } "echo turning\nwrite $out $doc\nwrite $doc $out";
          elsewhere = build "elsewhere" { system = "m68k-linux"; } "write $out text";
        }"#,
    );
    let finished = machine.run(&["build", "-K", "-A", "fixed"]);
    finished.failed(
        1,
        &[
            "hash mismatch",
            "> writing it",
            "tvix-node log",
            "its folder is kept as '",
        ],
    );
    let kept = finished.stderr.split("kept as '").nth(1).expect("a path");
    let kept = std::path::Path::new(kept.split('\'').next().expect("a path"));
    let evidence = std::fs::read_to_string(kept.join("evidence")).expect("what the build wrote");
    assert_eq!(evidence.trim(), "something");
    let finished = machine.run(&["build", "-A", "circle"]);
    finished.failed(1, &["refer to each other", "> turning"]);
    assert!(!finished.stderr.contains("kept"), "{}", finished.stderr);
    // Of what was not begun there is no log.
    let finished = machine.run(&["build", "-A", "elsewhere"]);
    finished.failed(1, &["m68k-linux"]);
    assert!(!finished.stderr.contains("tvix-node log"), "{}", finished.stderr);
}

#[test]
fn builds_see_what_the_owner_shows_them_of_the_machine_and_the_record_says_so() {
    if !sandbox_works("builds_see_what_the_owner_shows_them_of_the_machine_and_the_record_says_so") {
        return;
    }
    let machine = Machine::new();
    let shown = machine.write("shown", "of the machine");
    machine.expression(
        r#"{
          seeing = build "seeing" { __impureHostDeps = [ "/seen/here" ]; } "copy /seen/here $out";
          featured = build "featured" { requiredSystemFeatures = [ "ours" ]; } "write $out text";
        }"#,
    );
    let refused = machine.run(&["build", "-A", "seeing"]);
    refused.failed(1, &["/seen/here", "'sandbox-paths' in config.toml"]);
    machine.run(&["down"]).ok();
    let config = format!(
        "sandbox-paths = [\"/seen/here={}\"]\nsystem-features = [\"ours\"]\n",
        shown.display()
    );
    fs::write(machine.home().join("config.toml"), config).expect("a file");
    let path = machine.run(&["build", "-A", "seeing"]).ok().to_owned();
    assert_eq!(
        fs::read_to_string(machine.physical(&path)).expect("it is there"),
        "of the machine"
    );
    let record = machine.run(&["record", &path]);
    assert!(
        record.ok().contains("saw /seen/here of the machine"),
        "{}",
        record.stdout
    );
}

#[test]
fn a_build_that_uses_too_much_disk_is_stopped() {
    if !sandbox_works("a_build_that_uses_too_much_disk_is_stopped") {
        return;
    }
    let machine = Machine::new();
    let folders: String = (0..200).map(|number| format!("mkdir $out-{number}\\n")).collect();
    machine.expression(&format!(
        r#"{{ large = build "large" {{ }} "{folders}wait never"; }}"#
    ));
    let finished = machine.run(&["build", "-A", "large", "--max-build-disk-size", "32K"]);
    finished.failed(1, &["killed after using more than 32768 bytes of disk"]);
}

#[test]
fn a_build_that_uses_too_much_memory_is_stopped() {
    if !sandbox_works("a_build_that_uses_too_much_memory_is_stopped") {
        return;
    }
    // No process is as small as that. Watched, so that nobody takes the kernel's kill for that of the tests.
    let small = |limits: &[&str], arguments: &[&str]| {
        let mut node = Node::up("small", 1);
        node.down();
        node.start(&[&["--listen", "none", "--no-control-groups"], limits].concat());
        node.machine
            .expression(r#"{ large = build "large" { } "echo begun\nwait never"; }"#);
        node.machine.run(&[&["build", "-A", "large"], arguments].concat())
    };
    small(&[], &["--max-build-memory", "1K"])
        .failed(1, &["killed after using more than 1024 bytes of memory"]);
    let of_node = "killed after using more than the 512 bytes of memory that a build may use on this node";
    let limit = ["--max-build-memory", "512"];
    small(&limit, &[]).failed(1, &[of_node]);
    small(&limit, &["--max-build-memory", "1K"]).failed(1, &[of_node]);
}

#[test]
fn what_wants_no_sandbox_is_built_in_one_where_the_owner_names_it() {
    if !sandbox_works("what_wants_no_sandbox_is_built_in_one_where_the_owner_names_it") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ odd = build "odd" { __noChroot = true; } "write $out x"; }"#);
    let build = || machine.run(&["build", "-A", "odd", "--no-out-link"]);
    build().failed(
        1,
        &[
            "__noChroot",
            "name 'odd' in 'no-chroot-in-sandbox' in config.toml",
        ],
    );
    machine.run(&["down"]).ok();
    fs::write(
        machine.home().join("config.toml"),
        "no-chroot-in-sandbox = [\"odd\"]\n",
    )
    .expect("a file");
    let built = build();
    built.ok();
    assert!(built.stderr.contains("is built in it"), "{}", built.stderr);
}

#[test]
fn a_build_that_has_too_many_processes_is_stopped() {
    if !sandbox_works("a_build_that_has_too_many_processes_is_stopped") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ crowd = build "crowd" { } "spawn 20\nwait never"; }"#);
    let finished = machine.run(&["build", "-A", "crowd", "--max-build-processes", "10"]);
    finished.failed(
        1,
        &["killed after having more than 10 processes and threads at once ('--max-build-processes' raises that"],
    );
}

#[test]
fn a_node_has_a_limit_on_processes_of_its_own() {
    if !sandbox_works("a_node_has_a_limit_on_processes_of_its_own") {
        return;
    }
    let mut node = Node::up("few", 1);
    node.machine
        .expression(r#"{ crowd = build "crowd" { } "spawn 20\nwait never"; }"#);
    let of_node = |most: u8| {
        format!(
            "killed after having more than the {most} processes and threads at once that a build may have on this node"
        )
    };
    node.down();
    fs::write(
        node.machine.home().join("config.toml"),
        "max-build-processes = 8\n",
    )
    .expect("a file");
    node.start(&["--listen", "none"]);
    node.machine
        .run(&["build", "-A", "crowd"])
        .failed(1, &[&of_node(8)[..]]);
    // A flag is used instead.
    node.down();
    node.start(&["--listen", "none", "--max-build-processes", "10"]);
    let of_node = &of_node(10)[..];
    for asked in [&[][..], &["--max-build-processes", "15"]] {
        node.machine
            .run(&[&["build", "-A", "crowd"], asked].concat())
            .failed(1, &[of_node]);
    }
    let finished = node
        .machine
        .run(&["build", "-A", "crowd", "--max-build-processes", "5"]);
    finished.failed(
        1,
        &["killed after having more than 5 processes and threads at once"],
    );
}

#[test]
fn keep_going_builds_what_does_not_depend_on_the_failure() {
    if !sandbox_works("keep_going_builds_what_does_not_depend_on_the_failure") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
          broken = build "broken" { } "fail 3";
          needs = build "needs" { inherit broken; } "copy $broken $out";
          good = build "good" { } "write $out good";
          better = build "better" { inherit good; } "copy $good $out";
        }"#,
    );
    let finished = machine.run(&["build", "-k", "-A", "needs", "-A", "better", "--no-out-link"]);
    finished.failed(1, &["-broken.drv"]);
    assert!(
        machine.stored().iter().any(|name| name.ends_with("-better")),
        "{:?}",
        machine.stored()
    );
}

#[test]
fn an_output_that_is_not_made_is_named() {
    if !sandbox_works("an_output_that_is_not_made_is_named") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ none = build "none" { outputs = [ "out" "dev" ]; } "write $out x"; }"#);
    machine
        .run(&["build", "-A", "none"])
        .failed(1, &["-none.drv", "dev"]);
    assert!(
        machine.stored().iter().all(|name| !name.ends_with("-none")),
        "{:?}",
        machine.stored()
    );
}

#[test]
fn a_command_whose_node_is_stopped_says_so_and_was_not_interrupted() {
    let name = "a_command_whose_node_is_stopped_says_so_and_was_not_interrupted";
    if !sandbox_works(name) {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ endless = build "endless" { } "echo mark-of-stopping\nwait"; }"#);
    let mut running = machine.start(&["build", "-A", "endless"]);
    running.until("waiting");
    machine.run(&["down"]).ok();
    let finished = running.finish();
    assert_eq!(finished.status, 1, "{}", finished.stderr);
    assert!(
        finished.stderr.contains("the node was stopped"),
        "{}",
        finished.stderr
    );
    assert_eq!(processes_with("mark-of-stopping"), Vec::<i32>::new());
}

#[test]
fn an_interrupted_command_leaves_nothing() {
    if !sandbox_works("an_interrupted_command_leaves_nothing") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{ endless = build "endless" { } "echo mark-of-interruption\nwrite $out half\nwait"; }"#,
    );
    let mut running = machine.start(&["build", "-A", "endless"]);
    running.until("waiting");
    assert!(!processes_with("mark-of-interruption").is_empty());
    running.signal(Signal::INT);
    let finished = running.finish();
    assert_eq!(finished.status, 130, "{}", finished.stderr);
    machine.run(&["down"]).ok();
    assert_eq!(processes_with("mark-of-interruption"), Vec::<i32>::new());
    assert!(
        machine.stored().iter().all(|name| !name.ends_with("-endless")),
        "{:?}",
        machine.stored()
    );
    // Folders and mount points are used again from build to build; what the build wrote is gone.
    let left = files_below(&machine.home().join("scratch"));
    assert!(left.iter().all(|file| !file.ends_with("-endless")), "{left:?}");
}

#[test]
fn limits_end_a_build_and_say_which() {
    if !sandbox_works("limits_end_a_build_and_say_which") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{
          silent = build "silent" { } "sleep 600";
          loud = build "loud" { } "cat $tool\ncat $tool\ncat $tool";
        }"#,
    );
    machine
        .run(&["build", "-A", "silent", "--timeout", "1"])
        .failed(1, &["-silent.drv", "1 second"]);
    machine
        .run(&["build", "-A", "silent", "--max-silent-time", "1"])
        .failed(1, &["-silent.drv", "silent"]);
    machine
        .run(&[
            "build",
            "-A",
            "loud",
            "--max-build-log-size",
            "100",
            "--argstr",
            "unused",
            "x",
        ])
        .failed(1, &["-loud.drv"]);
}

#[test]
fn an_output_that_refers_to_what_it_may_not_is_refused() {
    if !sandbox_works("an_output_that_refers_to_what_it_may_not_is_refused") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
          plain = build "plain" { } "write $out x";
          refers = build "refers" { inherit plain; allowedReferences = [ ]; } "write $out $plain";
          closed = build "closed" { inherit plain; allowedReferences = [ ]; } "copy $plain $out";
        }"#,
    );
    machine
        .run(&["build", "-A", "refers", "--no-out-link"])
        .failed(1, &["-refers", "-plain"]);
    assert!(
        machine.stored().iter().all(|name| !name.ends_with("-refers")),
        "{:?}",
        machine.stored()
    );
    machine.run(&["build", "-A", "closed", "--no-out-link"]).ok();
}

#[test]
fn a_fixed_output_with_another_hash_is_refused_with_both() {
    if !sandbox_works("a_fixed_output_with_another_hash_is_refused_with_both") {
        return;
    }
    let machine = Machine::new();
    let zeros = "0".repeat(64);
    machine.expression(&format!(
        r#"{{ fixed = build "fixed" {{ outputHash = "{zeros}"; outputHashAlgo = "sha256"; outputHashMode = "recursive"; }} "write $out x"; }}"#
    ));
    machine.run(&["build", "-A", "fixed"]).failed(
        1,
        &[
            "-fixed.drv",
            "hash mismatch",
            "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ],
    );
}

/// Names of everything in a folder that is not a folder.
fn files_below(folder: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().expect("an entry").is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    files
}
