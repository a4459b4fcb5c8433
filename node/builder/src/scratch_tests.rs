use super::*;

fn drv() -> StorePath {
    StorePath::from_parts([1; 20], "thing.drv").unwrap()
}

#[test]
fn each_build_has_a_private_folder_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let (one, two) = (
        Scratch::create(place.path(), &drv()).unwrap(),
        Scratch::create(place.path(), &drv()).unwrap(),
    );
    assert_ne!(one.path(), two.path());
    let mode = fs::metadata(one.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    let path = one.path().to_path_buf();
    drop(one);
    assert!(!path.exists());
}

#[test]
fn leftovers_are_removed_at_the_start() {
    let place = tempfile::tempdir().unwrap();
    let scratch = place.path().join("builds");
    fs::create_dir_all(scratch.join("left/root/nix")).unwrap();
    fs::write(scratch.join("left/lock"), b"").unwrap();
    fs::write(scratch.join("file"), b"").unwrap();
    fs::set_permissions(scratch.join("left/root"), fs::Permissions::from_mode(0o000)).unwrap();
    prepare(&scratch).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    assert_eq!(
        fs::metadata(&scratch).unwrap().permissions().mode() & 0o7777,
        0o700
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), b"").unwrap();
    let error = prepare(&place.path().join("file/builds"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("file/builds' cannot be created"), "{error}");
}

#[test]
fn kept_folders_do_not_overwrite_each_other() {
    let place = tempfile::tempdir().unwrap();
    let kept = place.path().join("kept");
    for number in 0..2 {
        let scratch = Scratch::create(place.path(), &drv()).unwrap();
        fs::create_dir(scratch.path().join("build")).unwrap();
        fs::write(scratch.path().join("build/file"), number.to_string()).unwrap();
        let to = scratch.keep(&kept, &drv()).unwrap();
        assert_eq!(to, kept.join(format!("thing.drv-{number}")));
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), number.to_string());
    }
}

#[test]
fn nobody_else_gets_at_what_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let kept = place.path().join("kept");
    // Made by an owner who thought nothing of it.
    fs::create_dir(&kept).unwrap();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o755)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let scratch = Scratch::create(place.path(), &drv()).unwrap();
    let build = scratch.path().join("build");
    fs::create_dir(&build).unwrap();
    fs::set_permissions(&build, fs::Permissions::from_mode(0o777)).unwrap();
    scratch.keep(&kept, &drv()).unwrap();
    assert_eq!(mode(&kept), 0o700);
    let output = place.path().join("output");
    fs::write(&output, "output").unwrap();
    let output = keep_output(&output, &kept).unwrap();
    assert_eq!(mode(output.parent().unwrap()), 0o700);
}
