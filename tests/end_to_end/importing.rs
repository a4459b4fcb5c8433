//! Import from derivation, and builds that start while the evaluation still runs.

use crate::harness::{Machine, release, sandbox_works};

#[test]
fn what_a_build_made_is_imported() {
    if !sandbox_works("what_a_build_made_is_imported") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ value = import (build "made.nix" { } "write $out { a = 1 + 2; }"); }"#);
    assert_eq!(machine.run(&["eval", "-A", "value.a"]).ok(), "3");
}

/// Every builtin that reads files is asked about a file that a build of its own has to make first.
#[test]
fn every_builtin_that_reads_files_builds_what_it_reads() {
    if !sandbox_works("every_builtin_that_reads_files_builds_what_it_reads") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"let
          file = name: text: build name { } "write $out ${text}";
          folder = name: build name { } "mkdir $out\nwrite $out/file inside\nwrite $out/default.nix 7";
        in {
          import = import (file "import.nix" "1 + 1");
          importFolder = import (folder "import-folder");
          scopedImport = builtins.scopedImport { three = 3; } (file "scoped.nix" "three");
          readFile = builtins.readFile (file "read" "text");
          readFileOf = builtins.readFile "${folder "read-of"}/file";
          readDir = builtins.readDir (folder "read-dir");
          readFileType = builtins.readFileType (folder "type");
          pathExists = [ (builtins.pathExists (file "exists" "x")) (builtins.pathExists "${folder "lacks"}/absent") ];
          hashFile = builtins.hashFile "md5" (file "hash" "x");
          findFile = toString (builtins.findFile [ { prefix = "found"; path = folder "found"; } ] "found/file") == "${folder "found"}/file";
          path = builtins.readFile (builtins.path { name = "copy"; path = file "path" "copied"; });
          filterSource = builtins.readDir (builtins.filterSource (path: type: baseNameOf path == "file") (folder "filtered"));
          fetchTree = builtins.readFile "${builtins.fetchTree { type = "path"; path = "${folder "tree"}"; }}/file";
        }"#,
    );
    let expected = r#"{ fetchTree = "inside\n"; filterSource = { file = "regular"; }; findFile = true; hashFile = "401b30e3b8b5d629635a5c613cdb7919"; import = 2; importFolder = 7; path = "copied\n"; pathExists = [ true false ]; readDir = { "default.nix" = "regular"; file = "regular"; }; readFile = "text\n"; readFileOf = "inside\n"; readFileType = "directory"; scopedImport = 3; }"#;
    assert_eq!(machine.run(&["eval", "--strict"]).ok(), expected);
}

/// The evaluation stands still at an import whose build waits for this test. Until then, a
/// derivation instantiated before it is built, though the evaluation has not ended.
#[test]
fn builds_start_while_the_evaluation_still_runs() {
    if !sandbox_works("builds_start_while_the_evaluation_still_runs") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"let
          early = build "early" { } "write $out early";
          gate = build "gate.nix" { } "echo gate-of-streaming\nwait\nwrite $out true";
          late = build "late" { inherit early; gate = toString (import gate); } "copy $early $out";
        in { target = builtins.seq early.drvPath late; }"#,
    );
    let mut running = machine.start(&[
        "build",
        "-A",
        "target",
        "--no-out-link",
        "-j",
        "2",
        "--log-format",
        "internal-json",
    ]);
    // Both go on: the build of `early` ends while the evaluation waits for `gate`.
    let (mut waiting, mut early) = (false, false);
    while !(waiting && early) {
        let line = running.until("");
        assert!(
            !line.contains("evaluation-ended"),
            "the evaluation did not wait: {line}"
        );
        waiting |= line.contains(r#""line":"waiting""#);
        early |= line.contains("build-finished") && line.contains("-early");
    }
    release("gate-of-streaming");
    running.until("evaluation-ended");
    let finished = running.finish();
    assert!(finished.ok().ends_with("-late"), "{}", finished.stdout);
}

/// While one target waits for its import, twenty others of the same command are evaluated and built.
#[test]
fn twenty_targets_are_evaluated_and_built_while_one_imports() {
    if !sandbox_works("twenty_targets_are_evaluated_and_built_while_one_imports") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{
          waits = build "waits" { value = toString (import (build "gate.nix" { } "echo gate-of-targets\nwait\nwrite $out true")); } "write $out x";
          others = { recurseForDerivations = true; } // builtins.listToAttrs (builtins.genList (number: {
            name = "o${toString number}";
            value = build "other-${toString number}" { } "write $out y";
          }) 20);
        }"#,
    );
    let mut running = machine.start(&[
        "build",
        "-A",
        "waits",
        "-A",
        "others",
        "--no-out-link",
        "-j",
        "2",
        "--log-format",
        "internal-json",
    ]);
    let (mut waiting, mut others) = (false, 0);
    while !waiting || others < 20 {
        let line = running.until("");
        waiting |= line.contains(r#""line":"waiting""#);
        others += usize::from(line.contains("target-done") && line.contains(r#""name":"others.o"#));
        assert!(
            !line.contains("target-done") || !line.contains(r#""name":"waits""#),
            "nothing waited: {line}"
        );
    }
    release("gate-of-targets");
    let finished = running.finish();
    assert_eq!(finished.ok().lines().count(), 21);
}

#[test]
fn a_failed_import_is_an_evaluation_error_that_nothing_catches() {
    if !sandbox_works("a_failed_import_is_an_evaluation_error_that_nothing_catches") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"{ value = builtins.tryEval (import (build "broken.nix" { } "echo no good\nfail 4")); }"#,
    );
    machine
        .run(&["eval", "-A", "value.success"])
        .failed(1, &["broken.nix", "exit code 4"]);
}
