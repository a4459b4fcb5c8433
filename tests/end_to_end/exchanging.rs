//! Paths that are added, exported and imported.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::harness::{Finished, Machine, finish, sandbox_works, skipped};

/// Runs a command whose standard output is a file.
fn to_file(machine: &Machine, arguments: &[&str], file: &Path) -> i32 {
    let file = File::create(file).expect("a file");
    let mut command = machine.command(arguments);
    let status = command.stdout(file).stderr(Stdio::null()).status();
    status.expect("the program starts").code().unwrap_or(-1)
}

/// Runs a command that reads a file.
fn from_file(machine: &Machine, arguments: &[&str], file: &Path) -> Finished {
    finish(
        machine
            .command(arguments)
            .stdin(File::open(file).expect("the file")),
    )
}

fn sample(folder: &Path) {
    fs::create_dir_all(folder.join("sub")).expect("a folder");
    fs::write(folder.join("note"), "text\n").expect("a file");
    fs::write(folder.join("sub/run"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(folder.join("sub/run"), fs::Permissions::from_mode(0o755)).expect("it is ours");
    symlink("../note", folder.join("sub/link")).expect("a link");
}

#[test]
fn what_is_added_leaves_and_comes_back_the_same() {
    let machine = Machine::new();
    sample(&machine.folder().join("sample"));
    let added = machine.run(&["store", "add", "sample"]);
    let path = added.ok().to_owned();
    assert!(path.ends_with("-sample"), "{path}");
    let named = machine.run(&["store", "add", "sample", "--name", "other"]);
    assert!(named.ok().ends_with("-other") && named.ok() != path);
    // The evaluation names it the same.
    let value = machine.run(&["eval", "-E", r#""${./sample}""#, "--raw"]);
    assert_eq!(value.ok(), path);
    let inside = fs::canonicalize(machine.folder().join("sample")).expect("it is there");
    let here = finish(machine.command(&["store", "add", "."]).current_dir(inside));
    assert_eq!(here.ok(), path);

    let (export, archive) = (machine.folder().join("export"), machine.folder().join("nar"));
    assert_eq!(to_file(&machine, &["store", "export", &path], &export), 0);
    assert_eq!(
        to_file(&machine, &["store", "export", "--nar", &path], &archive),
        0
    );
    let other = Machine::new();
    assert_eq!(from_file(&other, &["store", "import"], &export).ok(), path);
    assert_eq!(other.run(&["store", "verify", &path]).status, 0);
    let info = other.run(&["store", "info", &path]);
    assert!(info.ok().contains("named by its content"), "{}", info.stdout);
    let third = Machine::new();
    let import = ["store", "import", "--nar", "sample"];
    assert_eq!(from_file(&third, &import, &archive).ok(), path);
    let again = machine.folder().join("again");
    assert_eq!(to_file(&third, &["store", "export", "--nar", &path], &again), 0);
    assert!(fs::read(again).expect("a file") == fs::read(&archive).expect("a file"));
}

#[test]
fn what_cannot_be_exchanged_is_refused_by_name() {
    let machine = Machine::new();
    sample(&machine.folder().join("sample"));
    let path = machine.run(&["store", "add", "sample"]).ok().to_owned();
    machine
        .run(&["store", "add", "absent"])
        .failed(2, &["'absent' cannot be added"]);
    machine.run(&["store", "add", "/"]).failed(2, &["--name"]);
    machine.write("sp ace", "text");
    let long = "x".repeat(300);
    let long = long.as_str();
    let allowed = ["1 to 211 characters", "a-z, A-Z, 0-9 and +-._?="];
    for (line, name, advice) in [
        (vec!["add", "sp ace"], "sp ace", "--name"),
        (vec!["add", "sample", "--name", "a/b"], "a/b", "--name"),
        (vec!["add", "sample", "--name", ""], "\"\"", "--name"),
        (vec!["add", "sample", "--name", long], long, "--name"),
        (vec!["import", "--nar", "bad name"], "bad name", "choose another"),
    ] {
        let refused = machine.run(&[vec!["store"], line].concat());
        refused.failed(2, &[&[name, advice], &allowed[..]].concat());
    }
    let named = machine.run(&["store", "add", "sp ace", "--name", "space"]);
    assert!(named.ok().ends_with("-space"));
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    machine.run(&["store", "export", absent]).failed(1, &[absent]);
    machine
        .run(&["store", "export", "--nar", absent])
        .failed(1, &[absent]);
    machine
        .run(&["store", "export", "--nar", &path, &path])
        .failed(2, &["one path"]);
    // A pipe is not waited for, but named.
    let pipe = machine.folder().join("sample/pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("a pipe");
    machine
        .run(&["store", "add", "sample"])
        .failed(1, &["pipe' is a named pipe"]);

    let export = machine.folder().join("export");
    assert_eq!(to_file(&machine, &["store", "export", &path], &export), 0);
    let whole = fs::read(&export).expect("a file");
    fs::write(&export, &whole[..whole.len() - 20]).expect("a file");
    let other = Machine::new();
    from_file(&other, &["store", "import"], &export).failed(1, &["ends in the middle"]);
    fs::write(&export, b"no export").expect("a file");
    from_file(&other, &["store", "import"], &export).failed(1, &["nix-store --export"]);
    from_file(&other, &["store", "import", "--nar", "x"], &export).failed(1, &["byte"]);
    other
        .run(&["store", "info", &path])
        .failed(1, &["is not in the store"]);

    // What is damaged is not passed on: the export ends before the path is named.
    let harmed = machine.physical(&path).join("note");
    fs::set_permissions(&harmed, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&harmed, "TEXT\n").expect("it is writable now");
    assert_eq!(to_file(&machine, &["store", "export", &path], &export), 1);
    assert_ne!(from_file(&other, &["store", "import"], &export).status, 0);
    let nar = ["store", "export", "--nar", &path];
    assert_eq!(to_file(&machine, &nar, &export), 1);
    assert_ne!(
        from_file(&other, &["store", "import", "--nar", "x"], &export).status,
        0
    );
    // It is said here, and not in the node's log alone.
    for line in [&nar[..], &["store", "export", &path]] {
        machine.run(line).failed(
            1,
            &[
                &format!("\n  {path} is damaged: "),
                "when it was registered",
                "'tvix-node store verify --repair'",
            ],
        );
    }
}

#[test]
fn what_was_built_moves_with_what_it_refers_to() {
    let test = "what_was_built_moves_with_what_it_refers_to";
    if !sandbox_works(test) {
        return;
    }
    let machine = Machine::new();
    machine.expression(
        r#"rec {
             low = build "low" { } "write $out low";
             high = build "high" { inherit low; } "write $out $low";
           }"#,
    );
    let high = machine
        .run(&["build", "-A", "high", "--no-out-link"])
        .ok()
        .to_owned();
    let closure = machine.run(&["store", "closure", &high]).ok().to_owned();
    let closure: Vec<&str> = closure.lines().collect();
    assert_eq!(closure.len(), 2);
    let export = machine.folder().join("export");
    assert_eq!(to_file(&machine, &["store", "export", &high], &export), 0);
    let other = Machine::new();
    from_file(&other, &["store", "import"], &export).failed(1, &["refers to", "-low", "add that first"]);
    let all = [&["store", "export"], closure.as_slice()].concat();
    assert_eq!(to_file(&machine, &all, &export), 0);
    let imported = from_file(&other, &["store", "import"], &export);
    assert_eq!(imported.ok().lines().count(), 2);
    let why = other.run(&["why", &high]);
    assert!(
        why.ok().contains("was imported from an export by the owner"),
        "{}",
        why.stdout
    );
    // It is there, so it is not built.
    other.write(
        "default.nix",
        &fs::read_to_string(machine.folder().join("default.nix")).expect("a file"),
    );
    let build = other.run(&[
        "build",
        "-A",
        "high",
        "--no-out-link",
        "--log-format",
        "internal-json",
    ]);
    assert_eq!(build.ok(), high);
    assert!(!build.stderr.contains("build-started"), "{}", build.stderr);
}

#[test]
fn stock_nix_and_this_store_understand_each_other() {
    let test = "stock_nix_and_this_store_understand_each_other";
    let machine = Machine::new();
    let root = machine.folder().join("root");
    let nix = |arguments: &[&str]| {
        let mut command = Command::new("nix-store");
        command
            .args(arguments)
            .env("HOME", machine.folder())
            .env_remove("NIX_CONFIG");
        command.env("NIX_REMOTE", format!("local?root={}", root.display()));
        command.env("NIX_CONF_DIR", machine.folder().join("etc"));
        command
    };
    if Command::new("nix-store").arg("--version").output().is_err() {
        return skipped(test, "stock Nix is not installed");
    }
    sample(&machine.folder().join("sample"));
    let theirs = finish(nix(&["--add", "sample"]).current_dir(machine.folder()));
    let path = theirs.ok().to_owned();
    let ours = machine.run(&["store", "add", "sample"]);
    assert_eq!(ours.ok(), path);

    let (from_them, from_us) = (machine.folder().join("theirs"), machine.folder().join("ours"));
    let status = nix(&["--export", &path])
        .stdout(File::create(&from_them).expect("a file"))
        .status();
    assert!(status.expect("it runs").success());
    assert_eq!(to_file(&machine, &["store", "export", &path], &from_us), 0);
    assert!(fs::read(&from_them).expect("a file") == fs::read(&from_us).expect("a file"));
    let other = Machine::new();
    assert_eq!(from_file(&other, &["store", "import"], &from_them).ok(), path);
}
