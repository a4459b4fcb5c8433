use super::*;

fn hint(step: &str, errno: i32, machine: Machine) -> String {
    explain(step, Some(errno), &machine).unwrap_or_default()
}

fn ordinary() -> Machine {
    Machine {
        most_namespaces: Some(10_000),
        ..Machine::default()
    }
}

#[test]
fn what_forbids_namespaces_is_named_with_the_way_out() {
    let step = "creating namespaces";
    let debian = Machine {
        unprivileged_namespaces: Some(0),
        ..ordinary()
    };
    assert!(hint(step, libc::EPERM, debian.clone()).contains("kernel.unprivileged_userns_clone=1"));
    let off = Machine {
        most_namespaces: Some(0),
        ..ordinary()
    };
    assert!(hint(step, libc::ENOSPC, off).contains("user.max_user_namespaces=15000"));
    assert!(hint(step, libc::ENOSPC, ordinary()).contains("user.max_user_namespaces=20000"));
    assert!(hint(step, libc::EINVAL, ordinary()).contains("CONFIG_USER_NS"));
    let container = Machine {
        filtered: true,
        ..ordinary()
    };
    assert!(hint(step, libc::EPERM, container).contains("seccomp=unconfined"));
    assert!(hint(step, libc::EPERM, ordinary()).contains("chroot"));
    // Root is not bound by Debian's switch.
    let root = Machine { root: true, ..debian };
    assert!(!hint(step, libc::EPERM, root).contains("unprivileged_userns_clone"));
}

#[test]
fn ubuntus_rule_is_named_wherever_it_strikes() {
    let ubuntu = Machine {
        apparmor_restricts: Some(1),
        ..ordinary()
    };
    for step in [
        "creating namespaces",
        "writing /proc/7/uid_map",
        "making all mounts private",
        "setting the host name",
    ] {
        for errno in [libc::EPERM, libc::EACCES] {
            assert!(
                hint(step, errno, ubuntu.clone()).contains("apparmor_restrict_unprivileged_userns=0"),
                "{step}"
            );
        }
    }
    assert_eq!(hint("setting the host name", libc::EIO, ubuntu), "");
}

#[test]
fn a_covered_proc_a_full_disk_and_a_foreign_home_are_named() {
    assert!(hint("mounting /proc", libc::EPERM, ordinary()).contains("systempaths=unconfined"));
    assert!(
        hint(
            "writing '/home/x/builds/1/root/etc/passwd'",
            libc::ENOSPC,
            ordinary()
        )
        .contains("full")
    );
    let root = Machine {
        root: true,
        ..ordinary()
    };
    assert!(hint("mounting '/home/x/a' on '/home/x/b'", libc::EACCES, root).contains("TVIX_NODE_HOME"));
}

#[test]
fn an_error_says_step_reason_and_way_out() {
    let error = SandboxError {
        step: "creating namespaces".to_owned(),
        source: io::Error::from_raw_os_error(libc::EPERM),
        hint: Some("Do this.".to_owned()),
    };
    let text = error.to_string();
    assert!(
        text.starts_with("the sandbox could not be set up: creating namespaces: Operation not permitted")
    );
    assert!(text.ends_with("(os error 1). Do this."), "{text}");
}
