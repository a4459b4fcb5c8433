//! What root's tests show, shown for an ordinary user.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::stage::skipped;

/// Nobody's on any machine, and not the one that the kernel shows for who has none.
const USER: u32 = 54_321;

/// Where the device lies that an ordinary user may open, as distributions have it.
const DEVICE: &str = "/dev/net/tun";

#[test]
fn all_of_this_holds_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        // All of these tests are an ordinary user's.
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--skip", "unprivileged::"]).gid(USER).uid(USER);
    run(command, "everything", "/tmp", 70);
}

#[test]
fn the_network_of_an_ordinary_user_s_builds_has_an_interface_where_he_may_open_the_device() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // In a mount namespace of its own: the machine's stays as it is.
    let open = format!(
        "mount -t tmpfs none \"$0\" && mknod -m 666 \"$0/tun\" c 10 200 && mount --bind \"$0/tun\" {DEVICE} && \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\""
    );
    let within = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &open]).arg(folder.path());
        command
    };
    let probe = format!(": <> {DEVICE}");
    match within().args(["sh", "-c", &probe]).output() {
        Ok(probed) if probed.status.success() => {}
        other => {
            return skipped(
                "the network of an ordinary user's builds",
                &format!("it cannot be opened: {other:?}"),
            );
        }
    }
    let mut command = within();
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["network::"]);
    run(command, "the network", "/tmp", 10);
}

/// A file system of which each part has a device of its own.
#[test]
fn the_disk_is_watched_on_btrfs_as_well() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
    std::fs::create_dir(&place).expect("a folder");
    // In a mount namespace of its own: with it the mount goes, and the device behind it.
    let within = |then: &str| {
        let made = format!(
            // The device behind the last one may not be gone yet.
            "rm -f \"$0\" && truncate -s 512M \"$0\" && mkfs.btrfs -q -f \"$0\" >&2 && mount -o loop \"$0\" \"$1\" && chmod 1777 \"$1\" && \
             shift && exec {then}"
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &made])
            .arg(&image)
            .arg(&place);
        command
    };
    match within("true").output() {
        Ok(probed) if probed.status.success() => {}
        other => {
            return skipped(
                "the watch of a disk with btrfs",
                &format!("there can be none: {other:?}"),
            );
        }
    }
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a folder");
    let this = std::env::current_exe().expect("this program");
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
    for then in ["\"$@\"", &user] {
        let mut command = within(then);
        command
            .arg(&this)
            .args(["floods::a_flood_of_the_disk", "builds::"]);
        let place = place.to_str().expect("a path in UTF-8");
        run(command, "builds on btrfs", place, 10);
    }
}

/// Runs this program's tests again, in a place. What the user skips is skipped here.
fn run(mut command: Command, what: &str, place: &str, least: usize) {
    let output = command.env("TMPDIR", place).current_dir("/").output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            let why = format!("one cannot run this program: {error}");
            return skipped(&format!("{what} as an ordinary user"), &why);
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    for line in complained.lines().filter(|line| line.starts_with("SKIPPED: ")) {
        skipped(
            &format!("as an ordinary user, {}", &line["SKIPPED: ".len()..]),
            &"it said so",
        );
    }
    let ran = said.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(ran >= least, "{ran}: {said}");
}
