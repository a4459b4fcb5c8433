use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Two trees, made by a function that is told which one it makes.
fn compared(make: impl Fn(&Path, bool)) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    let [before, after] = ["before", "after"].map(|name| place.path().join(name));
    make(&before, false);
    make(&after, true);
    let found = differences(&before, &after);
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn equal_trees_do_not_differ_whatever_their_other_modes() {
    let found = compared(|top, after| {
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), vec![7; 200_000]).unwrap();
        symlink("nowhere", top.join("link")).unwrap();
        let mode = if after { 0o600 } else { 0o644 };
        fs::set_permissions(top.join("a/b/file"), fs::Permissions::from_mode(mode)).unwrap();
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_kind_of_difference_is_told_in_order() {
    let found = compared(|top, after| {
        fs::create_dir_all(top.join("bin")).unwrap();
        let mut content = vec![7; 100_000];
        if after {
            content[70_000] = 8;
        }
        fs::write(top.join("bin/content"), content).unwrap();
        fs::write(top.join("bin/longer"), if after { "abcd" } else { "abc" }).unwrap();
        fs::write(top.join("bin/mode"), "").unwrap();
        let mode = if after { 0o755 } else { 0o644 };
        fs::set_permissions(top.join("bin/mode"), fs::Permissions::from_mode(mode)).unwrap();
        symlink(if after { "b" } else { "a" }, top.join("link")).unwrap();
        let kind = top.join("kind");
        if after {
            fs::create_dir(&kind).unwrap();
            fs::write(top.join("new\nline"), "").unwrap();
        } else {
            fs::write(&kind, "").unwrap();
            fs::write(top.join("old"), "").unwrap();
        }
    });
    assert_eq!(
        found,
        [
            "\"bin/content\" differs from byte 70000 on (100000 bytes)",
            "\"bin/longer\" differs from byte 3 on (it had 3 bytes and has 4)",
            "\"bin/mode\" has become executable",
            "\"kind\" was a file and is a folder",
            "\"link\" pointed to \"a\" and points to \"b\"",
            "\"new\\nline\" is new",
            "\"old\" is missing",
        ]
    );
}

#[test]
fn the_top_may_be_no_folder() {
    let found = compared(|top, after| fs::write(top, if after { "x" } else { "y" }).unwrap());
    assert_eq!(found, ["the output itself differs from byte 0 on (1 bytes)"]);
}

#[test]
fn links_are_not_followed_and_other_things_not_opened() {
    let found = compared(|top, after| {
        fs::create_dir(top).unwrap();
        fs::write(top.join("secret"), if after { "x" } else { "y" }).unwrap();
        symlink("secret", top.join("link")).unwrap();
        if after {
            let path = CString::new(top.join("pipe").as_os_str().as_bytes()).unwrap();
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        } else {
            fs::write(top.join("pipe"), "").unwrap();
        }
    });
    assert_eq!(
        found,
        [
            "\"pipe\" was a file and is neither file, folder nor link",
            "\"secret\" differs from byte 0 on (1 bytes)"
        ]
    );
}

#[test]
fn many_differences_and_great_depth_end() {
    let found = compared(|top, after| {
        fs::create_dir(top).unwrap();
        for number in 0..2 * DIFFERENCES {
            fs::write(top.join(format!("{number:04}")), if after { "x" } else { "y" }).unwrap();
        }
    });
    assert_eq!(found.len(), DIFFERENCES);
    let found = compared(|top, _| {
        let deep = (0..=COMPARE_DEPTH).fold(top.to_path_buf(), |path, _| path.join("d"));
        fs::create_dir_all(deep).unwrap();
    });
    assert!(
        found[0].ends_with("cannot be compared: it lies too deep"),
        "{found:?}"
    );
}
