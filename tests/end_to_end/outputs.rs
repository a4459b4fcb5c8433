//! What a derivation says of its outputs: their hashes, what they refer to, how large they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Machine, finish, sandbox_works, skipped};

/// Hashes of a file with the line `hello`, and of a folder that has it as `text`, as stock Nix's
/// `nix-hash` prints them.
const HASHES: [(&str, &str, &str); 4] = [
    (
        "md5",
        "b1946ac92492d2347c6235b4d2611184",
        "642f8cc2cc3e80a58b4847ad7e222423",
    ),
    (
        "sha1",
        "f572d396fae9206628714fb2ce00f72e94f2258f",
        "785d27b065c5c915e5fade9130437ab33b6753fb",
    ),
    (
        "sha256",
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "b6dd991a146a47735514f28c3a1b4f8768f6f6d012c8afecaaad7151e8c4e65c",
    ),
    (
        "sha512",
        "e7c22b994c59d9cf2b48e549b1e24666636045930d3da7c1acb299d1c3b7f931\
         f94aae41edda2c2b207a36e10f8bcb8d45223e54878f5b316e7ce3b6bc019629",
        "aeb6c160305035b9f086c0b966990031fc77f06baff161733dbf04adf6872353\
         d27915ef720aba4fc5e6e3665d64d59947ee358faf8d7830aaa800de810b7c80",
    ),
];

/// Runs `build -k` on all these attributes.
fn build(machine: &Machine, attributes: &[String]) -> crate::harness::Finished {
    let mut arguments = vec!["build", "-k", "--no-out-link"];
    for attribute in attributes {
        arguments.extend(["-A", attribute]);
    }
    machine.run(&arguments)
}

#[test]
fn fixed_outputs_have_the_hash_they_say_or_are_refused() {
    if !sandbox_works("fixed_outputs_have_the_hash_they_say_or_are_refused") {
        return;
    }
    let (mut expression, mut right, mut wrong) = (String::new(), Vec::new(), Vec::new());
    for (algorithm, flat, recursive) in HASHES {
        let folder = "mkdir $out\\nwrite $out/text hello";
        for (mode, hash, script) in [
            ("flat", flat, "write $out hello"),
            ("recursive", recursive, folder),
        ] {
            // The first digit is another one.
            let other = if hash.starts_with('0') { "1" } else { "0" };
            let other = format!("{other}{}", &hash[1..]);
            for (kind, hash, names) in [("right", hash, &mut right), ("wrong", &other, &mut wrong)] {
                let name = format!("{kind}-{mode}-{algorithm}");
                writeln!(
                    expression,
                    r#"{name} = build "{name}" {{ outputHashMode = "{mode}"; outputHashAlgo = "{algorithm}"; outputHash = "{hash}"; }} "{script}";"#
                )
                .expect("a string takes it");
                names.push(name);
            }
        }
    }
    let machine = Machine::new();
    machine.expression(&format!("{{\n{expression}}}"));
    let built = build(&machine, &right);
    assert_eq!(built.ok().lines().count(), 8, "{}", built.stdout);
    let refused = build(&machine, &wrong);
    refused.failed(1, &["hash mismatch"]);
    let stored = machine.stored();
    for name in wrong {
        assert!(
            refused.stderr.contains(&format!("{name}.drv")),
            "{}",
            refused.stderr
        );
        assert!(!stored.iter().any(|path| path.ends_with(&name)), "{stored:?}");
    }
    // A folder has no bytes of its own to hash.
    let (_, flat, _) = HASHES[2];
    machine.expression(&format!(
        r#"{{ folder = build "folder" {{ outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "{flat}"; }} "mkdir $out"; }}"#
    ));
    machine
        .run(&["build", "-A", "folder"])
        .failed(1, &["-folder", "one file"]);
}

/// What is said of an output that refers to `plain`, which refers to `deep`, and whether it may be so.
const CHECKS: [(&str, &str, bool); 12] = [
    ("allowedReferences", "[ plain ]", true),
    ("allowedReferences", "[ ]", false),
    ("allowedReferences", "[ deep ]", false),
    // With structured attributes an output is among its own requisites, as in Nix.
    ("allowedRequisites", "[ plain deep \"out\" ]", true),
    ("allowedRequisites", "[ plain ]", false),
    ("disallowedReferences", "[ deep ]", true),
    ("disallowedReferences", "[ plain ]", false),
    ("disallowedRequisites", "[ tool ]", true),
    ("disallowedRequisites", "[ deep ]", false),
    ("maxSize", "10000", true),
    ("maxSize", "10", false),
    ("maxClosureSize", "10", false),
];

#[test]
fn what_outputs_may_refer_to_is_checked_in_both_spellings() {
    if !sandbox_works("what_outputs_may_refer_to_is_checked_in_both_spellings") {
        return;
    }
    let (mut expression, mut right, mut wrong) = (String::new(), Vec::new(), Vec::new());
    for (number, (attribute, value, allowed)) in CHECKS.into_iter().enumerate() {
        // Bounds on sizes have one spelling, as in Nix.
        if !attribute.starts_with("max") {
            let name = format!("plainly-{number}");
            writeln!(
                expression,
                r#"{name} = build "{name}" {{ inherit plain; {attribute} = {value}; }} "write $out $plain";"#
            )
            .expect("a string takes it");
            (if allowed { &mut right } else { &mut wrong }).push(name);
        }
        let name = format!("structured-{number}");
        writeln!(
            expression,
            r#"{name} = build "{name}" {{ __structuredAttrs = true; outputChecks.out.{attribute} = {value}; }}
                 "write ${{placeholder "out"}} ${{plain}}";"#
        )
        .expect("a string takes it");
        (if allowed { &mut right } else { &mut wrong }).push(name);
    }
    let machine = Machine::new();
    machine.expression(&format!(
        "rec {{\ndeep = build \"deep\" {{ }} \"write $out deep\";\n\
         plain = build \"plain\" {{ inherit deep; }} \"write $out $deep\";\n{expression}}}"
    ));
    let built = build(&machine, &right);
    assert_eq!(built.ok().lines().count(), right.len(), "{}", built.stdout);
    let refused = build(&machine, &wrong);
    refused.failed(1, &["-plain", "-deep", "10 bytes"]);
    let stored = machine.stored();
    for name in wrong {
        assert!(
            refused.stderr.contains(&format!("{name}.drv")),
            "{}",
            refused.stderr
        );
        assert!(!stored.iter().any(|path| path.ends_with(&name)), "{stored:?}");
    }
}

#[test]
fn references_are_not_looked_for_where_a_derivation_discards_them() {
    if !sandbox_works("references_are_not_looked_for_where_a_derivation_discards_them") {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
          low = build "low" { } "write $out low";
          discard = name: which: build name {
            __structuredAttrs = true; outputs = [ "out" "other" ];
            unsafeDiscardReferences.${which} = true;
          } "write ${placeholder "out"} ${low}\nwrite ${placeholder "other"} ${low}";
          one = discard "one" "out";
          plain = build "plain" { __structuredAttrs = true; unsafeDiscardReferences = true; } "write ${placeholder "out"} ${low}";
        }"#,
    );
    let low = machine.run(&["build", "-A", "low", "--no-out-link"]);
    let low = low.ok();
    let references = |output: &str| {
        let path = machine.run(&["build", "-A", &format!("one.{output}"), "--no-out-link"]);
        let listed = machine.run(&["store", "references", path.ok()]);
        listed.ok().to_owned()
    };
    assert_eq!(references("out"), "");
    assert_eq!(references("other"), low);
    let refused = machine.run(&["build", "-A", "plain", "--no-out-link"]);
    refused.failed(1, &["unsafeDiscardReferences"]);
}

/// Names of files as bytes, with what the files contain.
type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything in a folder that has no folders.
fn files(folder: &Path) -> Files {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("an entry");
        (
            entry.file_name().into_vec(),
            fs::read(entry.path()).expect("a file"),
        )
    };
    fs::read_dir(folder).expect("a folder").map(read).collect()
}

#[test]
fn odd_names_in_an_output_are_kept_as_they_are() {
    if !sandbox_works("odd_names_in_an_output_are_kept_as_they_are") {
        return;
    }
    let long = "n".repeat(255);
    let names: [&[u8]; 12] = [
        b"new\nline",
        b"\n",
        b"quote'\"`$(x)",
        b"\xff\xfe\x80",
        b"...",
        b"-rf",
        b"--help",
        b" ",
        b"\\",
        b"*?[a]~",
        "\u{e9} and e\u{301}".as_bytes(),
        long.as_bytes(),
    ];
    let mut script = "mkdir $out".to_owned();
    let mut wanted = Files::new();
    for (number, name) in names.iter().enumerate() {
        write!(script, "\\nnamed $out ").expect("memory");
        for byte in *name {
            write!(script, "{byte:02x}").expect("memory");
        }
        write!(script, " {number}").expect("memory");
        wanted.insert(name.to_vec(), number.to_string().into_bytes());
    }
    let machine = Machine::new();
    machine.expression(&format!(r#"{{ odd = build "odd" {{ }} "{script}"; }}"#));
    let path = machine
        .run(&["build", "-A", "odd", "--no-out-link"])
        .ok()
        .to_owned();
    assert_eq!(files(&machine.physical(&path)), wanted);
    // And on another machine, in Nix's own form.
    let export = machine.folder().join("export");
    let mut exporting = machine.command(&["store", "export", &path]);
    exporting
        .stdout(File::create(&export).expect("a file"))
        .stderr(Stdio::null());
    assert!(exporting.status().expect("the program starts").success());
    let other = Machine::new();
    let mut importing = other.command(&["store", "import"]);
    let imported = finish(importing.stdin(File::open(&export).expect("a file")));
    assert_eq!(imported.ok(), path);
    assert_eq!(files(&other.physical(&path)), wanted);
    other.run(&["store", "verify"]).ok();
}

/// What builds are told of the closures of their inputs.
const GRAPHS: &str = r#"rec {
  low = build "low" { } "write $out low";
  high = build "high" { inherit low; } "mkdir $out\nwrite $out/low $low\nwrite $out/self $out";
  graph = build "graph" { exportReferencesGraph = [ "closure" high "lowest" low ]; }
    "mkdir $out\ncopy closure $out/closure\ncopy /build/lowest $out/lowest";
  structured = build "structured" { __structuredAttrs = true; exportReferencesGraph.closure = [ high ]; }
    "copy .attrs.json ${builtins.placeholder "out"}";
}"#;

#[test]
fn builds_are_told_the_closures_that_they_ask_for() {
    let test = "builds_are_told_the_closures_that_they_ask_for";
    if !sandbox_works(test) {
        return;
    }
    let machine = Machine::new();
    machine.expression(GRAPHS);
    let build = |attribute: &str| {
        let built = machine.run(&["build", "-A", attribute, "--no-out-link"]);
        built.ok().to_owned()
    };
    let (low, high) = (build("low"), build("high"));
    let block = |path: &str, references: &[&str]| {
        let mut references = references.to_vec();
        references.sort_unstable();
        let mut text = format!("{path}\n\n{}\n", references.len());
        for reference in references {
            writeln!(text, "{reference}").expect("memory");
        }
        text
    };
    let mut blocks = [block(&low, &[]), block(&high, &[&low, &high])];
    blocks.sort();
    let graph = machine.physical(&build("graph"));
    let read = |name: &str| fs::read_to_string(graph.join(name)).expect("a file");
    assert_eq!(read("closure"), blocks.concat());
    assert_eq!(read("lowest"), block(&low, &[]));

    let structured = fs::read(machine.physical(&build("structured"))).expect("a file");
    let told: Value = serde_json::from_slice(&structured).expect("JSON");
    let closure = told["closure"].as_array().expect("a list");
    let paths: Vec<&str> = closure
        .iter()
        .filter_map(|member| member["path"].as_str())
        .collect();
    let mut wanted = [low.as_str(), high.as_str()];
    wanted.sort_unstable();
    assert_eq!(paths, wanted);
    for member in closure {
        let of_high = member["path"] == high.as_str();
        assert_eq!(
            member["references"].as_array().map(Vec::len),
            Some(if of_high { 2 } else { 0 })
        );
        let (own, all) = (member["narSize"].as_u64(), member["closureSize"].as_u64());
        assert_eq!(own < all, of_high, "{member}");
    }

    // The same as from stock Nix.
    let root = machine.folder().join("root");
    for (attribute, ours) in [
        ("graph", &graph.join("closure")),
        ("structured", &machine.physical(&build("structured"))),
    ] {
        let mut stock = Command::new("nix-build");
        stock
            .args(["default.nix", "--no-out-link", "-A", attribute])
            .args([
                "--option",
                "substituters",
                "",
                "--option",
                "build-users-group",
                "",
            ])
            .current_dir(machine.folder())
            .env("HOME", machine.folder())
            .env("NIX_REMOTE", format!("local?root={}", root.display()))
            .env("NIX_CONF_DIR", machine.folder().join("etc"))
            .env_remove("NIX_CONFIG");
        let built = match stock.output() {
            Ok(built) if built.status.success() => built,
            Ok(failed) => {
                let why = String::from_utf8_lossy(&failed.stderr).into_owned();
                return skipped(test, &format!("stock Nix cannot build here: {why}"));
            }
            Err(error) => return skipped(test, &format!("stock Nix is not installed: {error}")),
        };
        let path = String::from_utf8(built.stdout).expect("a path");
        let theirs = root.join(path.trim().trim_start_matches('/'));
        if attribute == "graph" {
            let read = |file: &Path| fs::read_to_string(file).expect("a file");
            assert_eq!(read(&theirs.join("closure")), read(ours));
        } else {
            let read = |file: &Path| {
                let mut told: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
                for member in told["closure"].as_array_mut().expect("a list") {
                    // Not told by all versions, and always the same.
                    member.as_object_mut().expect("an object").remove("valid");
                }
                told
            };
            assert_eq!(read(&theirs), read(ours));
        }
    }
}
