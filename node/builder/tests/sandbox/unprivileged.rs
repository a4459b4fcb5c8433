//! What root's tests show, shown for an ordinary user.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::stage::skipped;

/// Nobody's on any machine, and not the one that the kernel shows for who has none.
const USER: u32 = 54_321;

#[test]
fn hostile_builders_of_an_ordinary_user_do_no_more_harm_than_root_s() {
    if !rustix::process::geteuid().is_root() {
        // All of these tests are an ordinary user's.
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["hostile::", "ends::", "floods::"])
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .gid(USER)
        .uid(USER)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            let why = format!("one cannot run this program: {error}");
            return skipped("everything as an ordinary user", &why);
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    // What that user skipped is skipped here.
    for line in complained.lines().filter(|line| line.starts_with("SKIPPED: ")) {
        skipped(
            &format!("as an ordinary user, {}", &line["SKIPPED: ".len()..]),
            &"it said so",
        );
    }
    let ran = said.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(ran > 30, "{said}");
}
