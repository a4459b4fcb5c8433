//! What a build sees of itself and the machine.

use std::collections::BTreeMap;

use crate::stage::{OUT, Stage, fields, spec};

#[tokio::test]
async fn it_is_process_1_of_user_1000_without_privileges() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["place"]));
    asked.slot = 5;
    asked.limits.processes = Some(4320);
    let log = stage.play(asked).await.log;
    let facts: BTreeMap<&str, &str> = log.iter().filter_map(|line| line.split_once(' ')).collect();
    let root = rustix::process::geteuid().is_root();
    let host_uid = if root {
        stage.builder.config().first_build_user + 5
    } else {
        rustix::process::geteuid().as_raw()
    };
    let host_gid = if root {
        host_uid
    } else {
        rustix::process::getegid().as_raw()
    };
    let (uid_map, gid_map) = (format!("1000 {host_uid} 1"), format!("100 {host_gid} 1"));
    for (name, expected) in [
        ("Pid:", "1"),
        ("PPid:", "0"),
        ("Uid:", "1000 1000 1000 1000"),
        ("Gid:", "100 100 100 100"),
        ("Umask:", "0022"),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
        ("CapEff:", "0000000000000000"),
        ("CapPrm:", "0000000000000000"),
        ("CapInh:", "0000000000000000"),
        ("CapAmb:", "0000000000000000"),
        ("SigBlk:", "0000000000000000"),
        // Rust's own start ignores SIGPIPE; everything else has its default.
        ("SigIgn:", "0000000000001000"),
        ("cwd", "/build"),
        ("host", "localhost"),
        ("domain", "(none)"),
        ("terminal", "true"),
        ("stdin", "/dev/null"),
        ("descriptors", "[0, 1, 2]"),
        ("processes", "1"),
        ("interfaces", "[\"lo\"]"),
        ("uid_map", &uid_map),
        ("gid_map", &gid_map),
    ] {
        assert_eq!(facts.get(name), Some(&expected), "{name} in {log:?}");
    }
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let outside = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        let inside = facts[format!("namespace-{namespace}").as_str()];
        assert!(inside.starts_with(namespace) && *inside != *outside, "{inside}");
    }
    // Addresses are not randomised, as in Nix; some containers forbid the switch.
    assert!(
        ["00040000", "00000000"].contains(&facts["personality"]),
        "{log:?}"
    );
    assert!(
        facts["Max"].starts_with("processes 4321 4321")
            || log.iter().any(|line| line.contains("core file size 0 "))
    );
}

#[tokio::test]
async fn the_file_system_has_what_nix_has() {
    let Some(stage) = Stage::new().await else { return };
    let names = |log: Vec<String>| log.join(", ");
    let root = names(stage.look(&["list", "/"]).await);
    for entry in [
        "build d0700",
        "dev d0755",
        "etc d0555",
        "nix d0755",
        "proc d0555",
        "tmp d1777",
    ] {
        assert!(root.contains(entry), "{entry} in {root}");
    }
    assert!(!root.contains("sys") && !root.contains("bin "), "{root}");
    let dev = names(stage.look(&["list", "/dev"]).await);
    let expected = "fd l0777, full c0666, null c0666, ptmx l0777, pts d0755, random c0666, shm d1777, stderr l0777, stdin l0777, stdout l0777, tty c0666, urandom c0666, zero c0666";
    assert_eq!(dev.replace("kvm c0666, ", ""), expected);
    assert_eq!(names(stage.look(&["list", "/dev/pts"]).await), "ptmx c0666");
    assert_eq!(
        names(stage.look(&["list", "/etc"]).await),
        "group -0644, hosts -0644, passwd -0644"
    );
    assert_eq!(
        stage.look(&["read", "/etc/passwd"]).await,
        [
            "root:x:0:0:Nix build user:/build:/noshell",
            "nixbld:x:1000:100:Nix build user:/build:/noshell",
            "nobody:x:65534:65534:Nobody:/:/noshell"
        ]
    );
    assert_eq!(
        stage.look(&["read", "/etc/group"]).await,
        ["root:x:0:", "nixbld:!:100:", "nogroup:x:65534:"]
    );
    assert_eq!(
        stage.look(&["read", "/etc/hosts"]).await,
        ["127.0.0.1 localhost", "::1 localhost"]
    );
}

#[tokio::test]
async fn it_may_write_where_builds_write() {
    let Some(stage) = Stage::new().await else { return };
    for path in [
        "/build/file",
        "/tmp/file",
        "/dev/shm/file",
        "/dev/null",
        "/dev/stdout",
        OUT,
    ] {
        let played = stage.act(&["write", path, "x"]).await;
        assert!(
            !played.log.iter().any(|line| line.contains("Error")),
            "{path}: {:?}",
            played.log
        );
    }
}

#[tokio::test]
async fn a_sandbox_path_is_shown_read_only_unless_asked_otherwise() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "of the host").unwrap();
    // The build's user is another one where the tests run as root.
    std::fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for (writable, inside) in [
        (false, "/some/where"),
        (true, "/some/where"),
        (false, "/tmp/a/b"),
        (false, "/build/a"),
    ] {
        let path = tvix_node_builder::SandboxPath {
            outside: host.path().to_path_buf(),
            writable,
        };
        let show = |config: &mut tvix_node_builder::Config| {
            config.sandbox_paths.insert(inside.into(), path);
        };
        let Some(stage) = Stage::with(show).await else {
            return;
        };
        assert_eq!(
            stage.look(&["read", &format!("{inside}/file")]).await,
            ["of the host"]
        );
        stage.act(&["write", &format!("{inside}/new"), "x"]).await;
        let new = host.path().join("new");
        assert_eq!(new.exists(), writable);
        if writable {
            std::fs::remove_file(new).unwrap();
        }
    }
}

/// The niceness, the 19th field of a process's `stat` (proc_pid_stat(5)): the 17th after its name in brackets.
fn niceness(log: &[String]) -> &str {
    let after_name = log.iter().find_map(|line| Some(line.rsplit_once(')')?.1));
    after_name
        .and_then(|fields| fields.split_whitespace().nth(16))
        .unwrap_or("none")
}

#[tokio::test]
async fn a_build_that_gives_way_is_worth_less_than_what_the_owner_does() {
    let Some(stage) = Stage::new().await else { return };
    let own = rustix::process::getpriority_process(None).unwrap();
    for (gives_way, expected) in [(false, own), (true, own.max(10))] {
        let mut asked = spec(fields(&["read", "/proc/self/stat"]));
        asked.gives_way = gives_way;
        let log = stage.play(asked).await.log;
        assert_eq!(niceness(&log), expected.to_string(), "{log:?}");
    }
}

/// The kernel hears of one session in a tenth of a second, whoever asks.
#[tokio::test]
async fn so_are_all_of_many_that_begin_at_once() {
    let file = "/proc/self/autogroup";
    if !std::path::Path::new(file).exists() {
        println!("SKIPPED: the weight of sessions, because this kernel does not weigh them");
        return;
    }
    let Some(stage) = Stage::new().await else { return };
    let play = |slot| {
        let mut asked = spec(fields(&["wait-until", file, "nice 10"]));
        asked.gives_way = true;
        asked.slot = slot;
        asked.limits.time = Some(60);
        stage.play(asked)
    };
    let (first, second, third) = tokio::join!(play(0), play(1), play(2));
    for played in [first, second, third] {
        assert_eq!(played.log, ["it does"]);
    }
}
