use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn folders_without_permissions_go() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    fs::create_dir_all(victim.join("a/b/c")).unwrap();
    fs::write(victim.join("a/b/c/file"), b"x").unwrap();
    for folder in ["a/b/c", "a/b", "a", ""] {
        fs::set_permissions(victim.join(folder), fs::Permissions::from_mode(0o000)).unwrap();
    }
    remove_tree(&victim).unwrap();
    assert!(!victim.exists());
}

#[test]
fn links_are_removed_and_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let kept = place.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), b"x").unwrap();
    let victim = place.path().join("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&kept, victim.join("link")).unwrap();
    symlink(kept.join("file"), victim.join("other")).unwrap();
    remove_tree(&victim).unwrap();
    assert!(!victim.exists());
    assert_eq!(fs::read(kept.join("file")).unwrap(), b"x");
    // The thing itself may be a link as well.
    symlink(&kept, &victim).unwrap();
    remove_tree(&victim).unwrap();
    assert!(kept.join("file").exists());
}

#[test]
fn a_path_longer_than_the_system_allows_goes() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let name = "n".repeat(200);
    let mut here = openat(CWD, &victim, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..100 {
        rustix::fs::mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
        here = openat(
            &here,
            name.as_str(),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
    }
    remove_tree(&victim).unwrap();
    assert!(!victim.exists());
}

#[test]
fn names_that_the_remover_uses_itself_are_no_obstacle() {
    let place = tempfile::tempdir().unwrap();
    let victim = place.path().join("victim");
    for number in 1..4 {
        fs::create_dir_all(victim.join(format!(".removed-{number}/in/deep"))).unwrap();
        fs::write(victim.join(format!(".removed-{number}/file")), b"").unwrap();
    }
    fs::create_dir_all(victim.join("z/.removed-1/.removed-2")).unwrap();
    remove_tree(&victim).unwrap();
    assert!(!victim.exists());
}

#[test]
fn nothing_there_is_no_error() {
    let place = tempfile::tempdir().unwrap();
    remove_tree(&place.path().join("none")).unwrap();
    remove_tree(&place.path().join("none/deeper")).unwrap();
}
