//! `build` and what it leaves.

use std::fs;
use std::path::Path;

use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::Envelope;

use crate::harness::{Machine, examples, finish, sandbox_works, tool};

/// A copy of the offline example with its tool made.
fn offline() -> Machine {
    let machine = Machine::new();
    fs::copy(
        examples().join("offline/default.nix"),
        machine.folder().join("default.nix"),
    )
    .expect("a copy");
    fs::copy(tool(), machine.folder().join("tool")).expect("a copy");
    machine
}

#[test]
fn a_graph_is_built_and_its_result_is_a_root() {
    if !sandbox_works("a_graph_is_built_and_its_result_is_a_root") {
        return;
    }
    let machine = offline();
    let out = machine.run(&["build", "-A", "all"]).ok().to_owned();
    let result = fs::read_link(machine.folder().join("result")).expect("a result link");
    assert_eq!(result, machine.physical(&out));
    let letter = fs::read_to_string(result.join("letter/text"));
    // Links inside the store point to /nix/store, which is not there for this test to follow.
    assert!(letter.is_err() || letter.is_ok_and(|text| text == "hello, world\n"));
    let greeting = fs::read_link(result.join("greeting")).expect("a link");
    let greeting = fs::read_to_string(machine.physical(&greeting.to_string_lossy())).expect("the greeting");
    assert_eq!(greeting, "hello, world\n");
}

#[test]
fn what_was_built_has_a_signed_record() {
    if !sandbox_works("what_was_built_has_a_signed_record") {
        return;
    }
    let machine = offline();
    let out = machine.run(&["build", "-A", "greeting"]).ok().to_owned();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(machine.run(arguments).ok()).expect("JSON")
    };
    let records = json(&["record", "./result", "--json"]);
    let record = &records[0];
    assert_eq!(records.as_array().map(Vec::len), Some(1), "{records}");
    assert_eq!(record["signer"], json(&["status", "--json"])["node"]);
    assert_eq!(record["accepted"], true);
    // The bytes that are shown are what was signed.
    let text = record["envelope"].as_str().expect("base 16");
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("two digits"))
        .collect();
    let envelope = Envelope::from_bytes(&bytes, bytes.len()).expect("an envelope");
    let signed: BuildRecord = envelope.open().expect("the signature holds");
    assert_eq!(signed.outputs["out"].path.to_absolute_path(), out);
    let shown = machine.run(&["record", &out]);
    assert!(shown.ok().contains("accepted     yes"), "{}", shown.stdout);
    let derivation = machine.run(&["instantiate", "-A", "greeting"]).ok().to_owned();
    machine
        .run(&["record", &derivation])
        .failed(1, &["no record", &derivation]);
}

#[test]
fn without_others_nothing_can_be_built_elsewhere() {
    let machine = offline();
    machine
        .run(&["build", "-A", "greeting", "-j", "0"])
        .failed(1, &["greeting", "no builder builds for"]);
}

#[test]
fn a_second_run_builds_nothing_and_adds_nothing() {
    if !sandbox_works("a_second_run_builds_nothing_and_adds_nothing") {
        return;
    }
    let machine = offline();
    let first = machine
        .run(&["build", "-A", "all", "--no-out-link"])
        .ok()
        .to_owned();
    let stored = machine.stored();
    let second = machine.run(&[
        "build",
        "-A",
        "all",
        "--no-out-link",
        "--log-format",
        "internal-json",
    ]);
    assert_eq!(second.ok(), first);
    assert!(!second.stderr.contains("build-started"), "{}", second.stderr);
    assert!(second.stderr.contains(r#""built":0"#), "{}", second.stderr);
    assert_eq!(machine.stored(), stored);
}

#[test]
fn what_is_known_of_a_path_is_shown() {
    if !sandbox_works("what_is_known_of_a_path_is_shown") {
        return;
    }
    let machine = offline();
    let paths = machine.run(&["build", "-A", "letter", "-A", "letter.envelope", "--no-out-link"]);
    let paths: Vec<&str> = paths.ok().lines().collect();
    let envelope = paths[1];
    let info = machine.run(&["store", "info", envelope, "--json"]);
    let info: serde_json::Value = serde_json::from_str(info.ok()).expect("JSON");
    let info = if info.is_array() { info[0].clone() } else { info };
    assert_eq!(info["path"], envelope);
    assert_eq!(info["references"], serde_json::json!([paths[0]]));
    assert!(
        info["narHash"]
            .as_str()
            .is_some_and(|hash| hash.starts_with("sha256:")),
        "{info}"
    );
    assert!(info["narSize"].as_u64().is_some_and(|size| size > 100), "{info}");
    assert_eq!(info["treeDigest"].as_str().map(str::len), Some(64), "{info}");
    assert!(
        info["deriver"]
            .as_str()
            .is_some_and(|path| path.ends_with("-letter.drv")),
        "{info}"
    );
    assert!(info["signatures"].is_array(), "{info}");
}

#[test]
fn a_built_program_runs_with_the_store_in_sight() {
    if !sandbox_works("a_built_program_runs_with_the_store_in_sight") {
        return;
    }
    let machine = offline();
    let script = "echo running\ncat $greeting";
    let mut command = machine.command(&["run", "-A", "hello", "--", script]);
    let greeting = machine
        .run(&["build", "-A", "greeting", "--no-out-link"])
        .ok()
        .to_owned();
    let ran = finish(command.env("greeting", &greeting));
    assert_eq!(ran.ok(), "running\nhello, world");
}

#[test]
fn a_program_has_the_machine_s_folders_and_its_own() {
    if !sandbox_works("a_program_has_the_machine_s_folders_and_its_own") {
        return;
    }
    let machine = offline();
    // Where the root of its namespace is put together, and elsewhere.
    for parent in [Path::new("/tmp"), Path::new(env!("CARGO_TARGET_TMPDIR"))] {
        let folder = tempfile::tempdir_in(parent).expect("a temporary folder can be made");
        fs::write(folder.path().join("here"), "text\n").expect("a file can be written");
        let file = machine.folder().join("default.nix");
        let file = file.to_str().expect("text");
        let script = format!("pwd; cat here; echo made > {}/made", folder.path().display());
        let mut command = machine.command(&["shell", "-f", file, "-A", "hello", "--", "sh", "-c", &script]);
        let ran = finish(command.current_dir(folder.path()));
        assert_eq!(ran.ok(), format!("{}\ntext", folder.path().display()));
        let made = fs::read_to_string(folder.path().join("made")).expect("what it made is there");
        assert_eq!(made, "made\n");
    }
}

#[test]
fn only_the_outputs_links_asked_for_are_made() {
    if !sandbox_works("only_the_outputs_links_asked_for_are_made") {
        return;
    }
    let machine = offline();
    machine.run(&["build", "-A", "greeting", "-o", "mine"]).ok();
    assert!(machine.folder().join("mine").is_symlink() && !machine.folder().join("result").exists());
    machine.run(&["build", "-A", "greeting", "-A", "letter"]).ok();
    assert!(machine.folder().join("result").is_symlink() && machine.folder().join("result-2").is_symlink());
}

#[test]
fn a_name_that_is_taken_is_told_before_anything_is_built() {
    let machine = offline();
    std::fs::write(machine.folder().join("mine"), "text").expect("a file");
    std::os::unix::fs::symlink("mine", machine.folder().join("result")).expect("a link");
    for name in ["mine", "result"] {
        machine
            .run(&["build", "-A", "greeting", "-o", name])
            .failed(1, &[&format!("'{name}'"), "not a link into this store", "-o"]);
    }
    machine
        .run(&["build", "-A", "greeting", "-o", "nowhere/result"])
        .failed(1, &["'nowhere/result'", "there is no folder 'nowhere'", "-o"]);
    assert!(
        !machine.home().join("nix/store").exists(),
        "nothing was even evaluated"
    );
    assert_eq!(
        std::fs::read_to_string(machine.folder().join("mine")).expect("it is there"),
        "text"
    );
}

#[test]
fn a_dry_run_names_what_would_be_built_and_builds_nothing() {
    let machine = offline();
    let dry = machine.run(&["build", "-A", "letter", "--dry-run"]);
    dry.ok();
    assert!(
        dry.stderr.contains("-letter.drv") && dry.stderr.contains("-greeting.drv"),
        "{}",
        dry.stderr
    );
    assert!(!machine.folder().join("result").exists());
    assert!(
        machine.stored().iter().all(|name| !name.ends_with("-letter")),
        "{:?}",
        machine.stored()
    );
}

#[test]
fn why_says_where_a_path_came_from() {
    if !sandbox_works("why_says_where_a_path_came_from") {
        return;
    }
    let machine = offline();
    let out = machine
        .run(&["build", "-A", "greeting", "--no-out-link"])
        .ok()
        .to_owned();
    let why = machine.run(&["why", &out]);
    assert!(why.ok().contains("built"), "{}", why.stdout);
    let log = machine.run(&["log", &out]);
    assert_eq!(log.ok(), "writing a greeting");
}

/// Two recipes for one content: a changed mirror, another fetcher.
#[test]
fn two_derivations_of_one_fixed_output_are_one_piece_of_work() {
    if !sandbox_works("two_derivations_of_one_fixed_output_are_one_piece_of_work") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"let
          fixed = text: build "fixed" {
            outputHash = "sha256-UGbG3IpNW4WMchQukQXd3PlZ6Bi+lo7GHpX6IXCpWug="; outputHashAlgo = "sha256";
          } "${text}write $out same";
        in { both = build "both" { a = fixed ""; b = fixed "echo another way\n"; } "copy $a $out"; }"#,
    );
    let hash = machine.run(&["eval", "-E", r#"builtins.hashString "sha256" "same\n""#]);
    let hash = hash.ok().trim_matches('"').to_owned();
    let text = std::fs::read_to_string(machine.folder().join("default.nix")).expect("the expression");
    let text = text.replace("sha256-UGbG3IpNW4WMchQukQXd3PlZ6Bi+lo7GHpX6IXCpWug=", &hash);
    machine.write("default.nix", &text);
    let out = machine
        .run(&["build", "-A", "both", "--no-out-link"])
        .ok()
        .to_owned();
    assert_eq!(
        fs::read_to_string(machine.physical(&out)).expect("the output"),
        "same\n"
    );
    assert_eq!(
        machine.run(&["instantiate", "-A", "both"]).ok().lines().count(),
        1
    );
}
