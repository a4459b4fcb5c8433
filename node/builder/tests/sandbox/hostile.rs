//! Builders that mean harm. Each ends as in stock Nix or safer, and nothing of it is left.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use tvix_node_builder::{BuildInput, Cause, StorePath};
use tvix_node_protocol::nix::derivation::OutputKind;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};

use crate::keys::add_session_key;
use crate::stage::{Bystander, OUT, Stage, actor_path, fields, is_running, skipped, spec, token};

/// No line of a log says that something worked.
fn nothing_worked(log: &[String]) {
    let worked: Vec<_> = log.iter().filter(|line| line.contains("DONE")).collect();
    assert!(worked.is_empty(), "{worked:?} in {log:?}");
}

#[tokio::test]
async fn the_machine_and_other_builds_cannot_be_read() {
    let Some(stage) = Stage::new().await else { return };
    let secret = stage.folder.path().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    let other = stage.builder.config().scratch.clone();
    for path in [
        secret.as_path(),
        other.as_path(),
        "/etc/hostname".as_ref(),
        "/etc/shadow".as_ref(),
        "/sys".as_ref(),
    ] {
        // Also past the top, where the machine's root must not lie on the build's.
        for path in [path.display().to_string(), format!("/..{}", path.display())] {
            let played = stage.act(&["read", &path]).await;
            let found_nothing = played.log.iter().any(|line| line.contains("NotFound"));
            assert!(found_nothing, "{path}: {:?}", played.log);
        }
    }
    // Nor through what processes leave open: there is none but its own.
    let played = stage.act(&["read", "/proc/1/root/etc/hostname"]).await;
    assert!(
        played.log.iter().any(|line| line.contains("NotFound")),
        "{:?}",
        played.log
    );
}

#[tokio::test]
async fn store_paths_that_are_not_inputs_cannot_be_read() {
    let Some(stage) = Stage::new().await else { return };
    let listed = stage.look(&["list", "/nix/store"]).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0].contains("-actor"));
}

/// Whoever has the same user id outside, as every build of an ordinary user's node.
#[tokio::test]
async fn processes_of_the_machine_are_neither_seen_nor_signalled() {
    let Some(stage) = Stage::new().await else { return };
    let mut other = Bystander::new();
    let log = stage.look(&["see", &other.pid().to_string()]).await;
    assert_eq!(log, ["no such process: true"]);
    assert!(other.is_alive());
}

/// That there are some of the same user, and what they are called, can be seen, as in Nix.
#[tokio::test]
async fn keys_of_the_machine_cannot_be_used() {
    let Some(stage) = Stage::new().await else { return };
    let name = token();
    let number = match add_session_key(&name) {
        Ok(number) => number.to_string(),
        Err(error) => {
            skipped("a look for keys", &format!("this machine keeps none: {error}"));
            return;
        }
    };
    let log = stage.look(&["keys", &name, &number]).await;
    assert_eq!(log.len(), 3, "{log:?}");
    nothing_worked(&log);
}

#[tokio::test]
async fn listeners_of_the_machine_cannot_be_reached() {
    let Some(stage) = Stage::new().await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = token();
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let log = stage.look(&["connect", &port, &name]).await;
    assert_eq!(log.len(), 5);
    nothing_worked(&log);
}

/// Neither over the network nor over sockets that have no place in the file system, over which a
/// descriptor of an output could be passed on (CVE-2024-27297). Fixed-output builds, which reach more,
/// included.
#[tokio::test]
async fn builds_cannot_reach_each_other() {
    let Some(stage) = Stage::new().await else { return };
    for fixed_output in [false, true] {
        let play = |arguments: &[&str]| {
            let mut fields = fields(arguments);
            if fixed_output {
                let ca = CAHash::Flat(NixHash::Sha256([9; 32]));
                fields.outputs.insert("out".to_owned(), OutputKind::Fixed(ca));
            }
            spec(fields)
        };
        let name = token();
        let mut first = play(&["listen", &name]);
        first.slot = 1;
        let (ready, mut when_ready) = tokio::sync::mpsc::unbounded_channel();
        let (done, when_done) = tokio::sync::oneshot::channel::<()>();
        let cancel = tokio_util::sync::CancellationToken::new();
        let (events, mut heard) = tokio::sync::mpsc::channel(16);
        let listen = async {
            let mut log = Vec::new();
            while let Some(event) = heard.recv().await {
                if let tvix_node_builder::BuildEvent::Log(line) = event {
                    let line = String::from_utf8(line).unwrap();
                    ready.send(line.clone()).unwrap();
                    log.push(line);
                }
            }
            log
        };
        let connect = async {
            let port = when_ready.recv().await.unwrap();
            let port = port.strip_prefix("port ").unwrap();
            let log = stage.play(play(&["connect", port, &name])).await.log;
            done.send(()).unwrap();
            log
        };
        let stop = async {
            when_done.await.unwrap();
            cancel.cancel();
        };
        let build = stage.builder.build(first, events, cancel.clone());
        let (heard, log, (), result) = tokio::join!(listen, connect, stop, build);
        assert!(matches!(*result.unwrap_err().cause, Cause::Cancelled));
        assert_eq!(log.len(), 5, "{log:?}");
        nothing_worked(&log);
        assert!(!heard.iter().any(|line| line.contains("ACCEPTED")));
    }
}

#[tokio::test]
async fn nothing_but_its_own_places_can_be_written() {
    let Some(stage) = Stage::new().await else { return };
    let actor = actor_path().to_string();
    let log = stage
        .look(&[
            "try-writing",
            "/",
            "/etc",
            "/etc/passwd",
            "/dev",
            "/nix",
            &actor,
            "/proc",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/hostname",
            "/proc/sys/vm/drop_caches",
            "/proc/sysrq-trigger",
        ])
        .await;
    // Opening a file for writing, removing and renaming it; a folder the same.
    assert!(log.len() >= 33, "{log:?}");
    nothing_worked(&log);
}

/// Even where modes would allow it: a store that somebody else manages may have such modes.
#[tokio::test]
async fn inputs_cannot_be_written() {
    let Some(stage) = Stage::new().await else { return };
    let folder = stage.folder.path().join("input");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "original").unwrap();
    for path in [&folder, &folder.join("file")] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let path = StorePath::from_parts([1; 20], "input").unwrap();
    let file = format!("{path}/file");
    let mut asked = spec(fields(&["try-writing", &path.to_string(), &file]));
    asked.inputs.push(BuildInput {
        path,
        physical: folder.clone(),
    });
    let log = stage.play(asked).await.log;
    assert_eq!(log.len(), 6, "{log:?}");
    nothing_worked(&log);
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"original");
}

#[tokio::test]
async fn set_id_bits_and_attributes_are_refused() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.look(&["bits", "/build"]).await;
    nothing_worked(&log);
    for line in log
        .iter()
        .filter(|line| !line.contains("not there") && !line.contains("attribute"))
    {
        assert!(
            line.ends_with("permission denied") || line.starts_with("fchmodat2: unsupported"),
            "{line}"
        );
    }
    // Capabilities of files are attributes.
    assert_eq!(&log[log.len() - 3..], ["attribute: true"; 3]);
}

/// No filter sees them come into being, and the kernel takes them with the first byte.
#[tokio::test]
async fn a_program_that_is_made_with_set_id_bits_loses_them() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.look(&["made-with-bits", "/build"]).await;
    assert_eq!(log, ["4755: lost", "2755: lost", "6755: lost"]);
}

#[tokio::test]
async fn outputs_of_other_kinds_are_rejected() {
    let Some(stage) = Stage::new().await else { return };
    for kind in ["fifo", "socket", "world-writable", "group-writable-file"] {
        let cause = stage.act(&["make", kind, OUT]).await.cause();
        assert!(matches!(cause, Cause::OutputRejected { .. }), "{kind}: {cause}");
    }
    for kind in ["device", "block", "hard-link"] {
        let played = stage.act(&["make", kind, OUT]).await;
        nothing_worked(&played.log);
        assert!(matches!(played.cause(), Cause::OutputMissing { .. }), "{kind}");
    }
}

#[tokio::test]
async fn a_link_as_output_stays_a_link() {
    let Some(stage) = Stage::new().await else { return };
    let built = stage.act(&["make", "link", OUT]).await.built();
    let target = std::fs::read_link(&built.outputs["out"]).unwrap();
    assert_eq!(target, std::path::Path::new("/etc/passwd"));
}

#[tokio::test]
async fn namespaces_of_its_own_do_not_lead_out() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.look(&["namespaces", &actor_path().to_string()]).await;
    nothing_worked(&log);
}

#[tokio::test]
async fn a_fork_bomb_ends_in_its_sandbox() {
    let Some(stage) = Stage::new().await else { return };
    for kind in ["processes", "threads"] {
        let mut asked = spec(fields(&["fork-bomb", kind]));
        asked.limits.processes = Some(50);
        asked.limits.time = Some(120);
        let cause = stage.play(asked).await.cause();
        assert!(matches!(cause, Cause::TooManyProcesses(50)), "{kind}: {cause}");
        let said = cause.to_string();
        assert!(said.contains("more than 50 processes and threads"), "{said}");
        assert!(said.contains("'--max-build-processes'"), "{said}");
    }
    // As many as are allowed are no bomb.
    let mut asked = spec(fields(&["crowd", "50", OUT]));
    asked.limits.processes = Some(50);
    drop(stage.play(asked).await.built());
}

#[tokio::test]
async fn the_smaller_bound_on_processes_counts() {
    for (own, asked, of_builder) in [(50, None, true), (50, Some(60), true), (60, Some(50), false)] {
        let Some(stage) = Stage::with(|config| config.processes = Some(own)).await else {
            return;
        };
        let mut bomb = spec(fields(&["fork-bomb", "processes"]));
        bomb.limits.processes = asked;
        bomb.limits.time = Some(120);
        match stage.play(bomb).await.cause() {
            Cause::ProcessesOfBuilder(limit) => assert!(of_builder && limit == own),
            Cause::TooManyProcesses(limit) => assert!(!of_builder && Some(limit) == asked),
            other => panic!("{other}"),
        }
    }
}

/// Whatever the node is busy with: the kernel refuses.
#[tokio::test]
async fn more_processes_than_allowed_are_refused() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["fork-bomb", "once"]));
    asked.limits.processes = Some(50);
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let numbers: Vec<u32> = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok())
        .collect();
    if numbers < vec![5, 14] && !rustix::process::geteuid().is_root() {
        skipped(
            "a limit on processes",
            &format!("kernel {release} counts them per user"),
        );
        return;
    }
    let played = stage.play(asked).await;
    let refused = played.log == ["processes 51: operation would block"];
    let said = format!("{:?}", played.log);
    // A look may come just before it says so.
    let cause = played.cause();
    assert!(
        refused || matches!(cause, Cause::TooManyProcesses(50)),
        "{said}, {cause}"
    );
}

#[tokio::test]
async fn processes_left_behind_are_dead_when_the_build_is() {
    let Some(stage) = Stage::new().await else { return };
    for how in ["loudly", "quietly"] {
        let token = token();
        let log = stage.look(&["linger", how, &token]).await;
        assert_eq!(log, [format!("lingering {token}")]);
        assert!(!is_running(&token));
    }
}

#[tokio::test]
async fn an_output_does_not_change_after_the_end() {
    let Some(stage) = Stage::new().await else { return };
    let token = token();
    let played = stage.act(&["change-later", OUT, &token]).await;
    assert_eq!(played.log, [format!("changing {token}")]);
    let built = played.built();
    assert!(!is_running(&token));
    let size = || std::fs::metadata(&built.outputs["out"]).unwrap().len();
    let before = size();
    // A look at all processes is time enough for a write.
    assert!(!is_running(&token));
    assert_eq!(size(), before);
}

#[tokio::test]
async fn what_is_no_output_is_not_taken() {
    let Some(stage) = Stage::new().await else { return };
    let other = StorePath::from_parts([5; 20], "other").unwrap();
    let played = stage
        .act(&[
            "write",
            OUT,
            "x",
            &other.to_string(),
            "y",
            "/nix/store/.hidden",
            "z",
        ])
        .await;
    let built = played.built();
    assert_eq!(built.outputs.keys().collect::<Vec<_>>(), ["out"]);
    built.discard().await;
}

#[tokio::test]
async fn killing_everything_kills_only_its_own() {
    let Some(stage) = Stage::new().await else { return };
    let mut other = Bystander::new();
    let built = stage.act(&["kill-init", OUT]).await.built();
    assert!(other.is_alive());
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"alive");
}

#[tokio::test]
async fn closing_the_log_does_not_end_the_build() {
    let Some(stage) = Stage::new().await else { return };
    let built = stage.act(&["close-log", OUT]).await.built();
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"quiet");
}

#[tokio::test]
async fn a_mess_is_removed() {
    let Some(stage) = Stage::new().await else { return };
    let played = stage.act(&["mess", OUT]).await;
    drop(played.built());
}

#[tokio::test]
async fn only_its_own_processes_can_be_traced() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.look(&["trace"]).await;
    assert_eq!(log, ["child: DONE"]);
}

/// Who is allowed to ask for no sandbox has one.
#[tokio::test]
async fn a_build_that_wants_no_sandbox_has_one() {
    let allow = |config: &mut tvix_node_builder::Config| {
        config.no_chroot_in_sandbox.insert("play".to_owned());
    };
    let Some(stage) = Stage::with(allow).await else {
        return;
    };
    let secret = stage.folder.path().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    let mut asked = fields(&["read", &secret.display().to_string()]);
    asked.environment.insert(b"__noChroot".to_vec(), b"1".to_vec());
    let played = stage.play(spec(asked.clone())).await;
    assert!(played.log[0].contains("__noChroot"), "{:?}", played.log);
    assert!(
        played.log.iter().any(|line| line.contains("NotFound")),
        "{:?}",
        played.log
    );
    assert!(
        !played.log.iter().any(|line| line.contains("s3cret")),
        "{:?}",
        played.log
    );
    let mut asked = spec(asked);
    asked.for_another = true;
    let cause = stage.play(asked).await.cause();
    assert!(matches!(cause, Cause::Refused(_)), "{cause}");
}

/// The kernel lets a process be confined so often and no more, so what a build has above it can be counted.
#[tokio::test]
async fn landlock_is_a_second_wall_where_there_is_one() {
    let Some(stage) = Stage::new().await else { return };
    let outside = std::process::Command::new(crate::stage::ACTOR)
        .arg("landlock-layers")
        .output()
        .unwrap();
    let outside = String::from_utf8(outside.stdout).unwrap();
    let layers = |text: &str| text.trim().strip_prefix("layers ")?.parse::<u32>().ok();
    let outside = layers(&outside).unwrap();
    if outside == 0 {
        return skipped("Landlock", &"this kernel does not offer what is used of it");
    }
    assert!(stage.builder.landlock().is_used);
    let inside = stage.look(&["landlock-layers"]).await;
    assert_eq!(layers(&inside[0]), Some(outside - 1));
}
