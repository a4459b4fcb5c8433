//! What a failed step of setting up a sandbox means, and what the user can do about it.

use std::fs;
use std::io;
use std::path::Path;

/// The sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox could not be set up: {step}: {source}{}", hint.as_deref().map(|hint| format!(". {hint}")).unwrap_or_default())]
pub struct SandboxError {
    /// What was being done, as in "mounting /proc".
    pub step: String,
    /// What the system said.
    pub source: io::Error,
    /// What forbids it and the way out, where that is known.
    pub hint: Option<String>,
}

impl SandboxError {
    /// An error of the system in a step, with whatever this machine's settings explain of it.
    pub(crate) fn new(step: impl Into<String>, source: io::Error) -> Self {
        let step = step.into();
        let hint = explain(&step, source.raw_os_error(), &Machine::read());
        Self { step, source, hint }
    }
}

/// The settings of a machine that can forbid sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Machine {
    /// Debian's `kernel.unprivileged_userns_clone`.
    unprivileged_namespaces: Option<u64>,
    /// `user.max_user_namespaces`.
    most_namespaces: Option<u64>,
    /// Ubuntu's `kernel.apparmor_restrict_unprivileged_userns`.
    apparmor_restricts: Option<u64>,
    /// A filter on system calls is on this process, as container engines install one.
    filtered: bool,
    /// Whether this process is root.
    root: bool,
}

impl Machine {
    fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            unprivileged_namespaces: number("/proc/sys/kernel/unprivileged_userns_clone"),
            most_namespaces: number("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            filtered: status
                .lines()
                .any(|line| line.starts_with("Seccomp:") && line.ends_with('2')),
            root: rustix::process::geteuid().is_root(),
        }
    }
}

const NO_PROC: &str = "The kernel only allows a new /proc where the machine's own is fully visible. In a container that \
     covers parts of /proc, start it with `--security-opt systempaths=unconfined` (Docker) or \
     `--security-opt unmask=ALL` (Podman).";

const FILTER: &str = "A filter on system calls is active, most likely that of a container engine. Start the container \
     with `--security-opt seccomp=unconfined`, or with a profile that allows clone with CLONE_NEWUSER, mount \
     and pivot_root.";

/// Explains an error in words for the user, with the way out.
fn explain(step: &str, errno: Option<i32>, machine: &Machine) -> Option<String> {
    let denied = matches!(errno, Some(libc::EPERM | libc::EACCES));
    // With these rules namespaces can be created, but everything after that is denied.
    let apparmor = || {
        (denied && machine.apparmor_restricts == Some(1) && !machine.root).then(|| {
            "Ubuntu's AppArmor rule against unprivileged user namespaces is on \
             (kernel.apparmor_restrict_unprivileged_userns = 1). Allow them with `sudo sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0`, or write an AppArmor profile with the rule \
             `userns,` for this program into /etc/apparmor.d."
                .to_owned()
        })
    };
    if step == "creating namespaces" {
        return match errno {
            Some(libc::ENOSPC | libc::EUSERS) => Some(match machine.most_namespaces {
                Some(0) => "User namespaces are switched off (user.max_user_namespaces = 0). Allow them with `sudo \
                     sysctl -w user.max_user_namespaces=15000`."
                    .to_owned(),
                Some(most) => format!(
                    "The limit on user namespaces is reached (user.max_user_namespaces = {most}), or they are \
                     nested more than 32 deep. Raise it with `sudo sysctl -w user.max_user_namespaces={}`.",
                    most.saturating_mul(2)
                ),
                None => "The limit on user namespaces is reached.".to_owned(),
            }),
            Some(libc::EINVAL | libc::ENOSYS) => Some(
                "The kernel was built without user, process, mount, network, IPC or UTS namespaces. A kernel with \
                 CONFIG_USER_NS and its siblings is needed."
                    .to_owned(),
            ),
            Some(libc::EPERM | libc::EACCES) if machine.unprivileged_namespaces == Some(0) && !machine.root => Some(
                "User namespaces are not allowed for ordinary users (kernel.unprivileged_userns_clone = 0). Allow \
                 them with `sudo sysctl -w kernel.unprivileged_userns_clone=1`."
                    .to_owned(),
            ),
            _ if denied => apparmor().or_else(|| {
                Some(if machine.filtered {
                    FILTER.to_owned()
                } else {
                    "The kernel does not let this process create user namespaces. This is so in a chroot, and where \
                     a security module forbids it."
                        .to_owned()
                })
            }),
            _ => None,
        };
    }
    if let Some(hint) = apparmor() {
        return Some(hint);
    }
    match errno {
        Some(libc::EPERM) if step == "mounting /proc" => Some(NO_PROC.to_owned()),
        Some(libc::EPERM | libc::ENOSYS) if machine.filtered => Some(FILTER.to_owned()),
        Some(libc::EACCES) if machine.root && step.starts_with("mounting '") => Some(
            "The node runs as root, but one of the folders above belongs to another user who lets nobody else in; \
             inside of a user namespace root cannot enter it. Give the node a home that belongs to root \
             (TVIX_NODE_HOME)."
                .to_owned(),
        ),
        Some(libc::ENOSPC | libc::EDQUOT) => Some("The disk that holds the node's home is full.".to_owned()),
        _ => None,
    }
}

/// What the failure to execute the builder program may mean; starts with a separator, or is empty.
pub(crate) fn explain_execution(errno: i32, builder: &str, store: Option<&Path>) -> &'static str {
    let in_sandbox_only = !builder.starts_with("/nix/store/");
    match errno {
        libc::ENOENT if in_sandbox_only => {
            ". Builds see no program of the machine: the builder must be an input, or be configured as a path of \
             the sandbox"
        }
        libc::ENOENT => ". The file, or the interpreter or loader that it names, is not among the inputs",
        libc::ENOEXEC => ". This machine cannot run programs of that kind",
        libc::EACCES if store.is_some_and(is_noexec) => {
            ". The node's home lies on a file system that is mounted noexec; set TVIX_NODE_HOME to one that is not"
        }
        libc::EACCES => ". It is not an executable file",
        libc::E2BIG => {
            ". Arguments and environment are too large; pass large attributes as files (passAsFile)"
        }
        _ => "",
    }
}

fn is_noexec(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
