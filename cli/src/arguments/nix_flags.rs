//! The flags of `nix-build`, `nix-instantiate` and `nix-shell` that are refused, each by name: a flag
//! that is silently ignored builds something else than what was meant.
//!
//! The flags are those of Nix 2.8 and 2.34 (`nix-build.cc`, `nix-instantiate.cc`, `LegacyArgs`,
//! `MixCommonArgs`, `MixEvalArgs`), and every setting of `nix.conf`, which Nix takes as a flag too.

/// Flags, and what to do instead.
const FLAGS: &[(&[&str], &str)] = &[
    (
        &["--add-root", "--indirect", "--add-drv-link", "--drv-link"],
        "-o LINK makes a link that keeps the result",
    ),
    (
        &["--check"],
        "'tvix-node build --check' builds again what is there, and compares",
    ),
    (
        &["--repair"],
        "'tvix-node store verify' finds what is damaged; what is in the store is not built again",
    ),
    (
        &["--pure"],
        "there is no nix-shell here; 'tvix-node shell' adds programs to your PATH",
    ),
    (
        &["--packages", "-p", "--run-env", "--exclude", "--keep", "-i"],
        "there is no nix-shell here; 'tvix-node shell -f FILE -A NAME' runs a shell with the programs of NAME",
    ),
    (
        &["--run", "--command"],
        "a command goes behind '--', as in 'tvix-node shell -f FILE -A NAME -- COMMAND'",
    ),
    (
        &["--no-build-output", "-Q"],
        "--log-format bar shows only the last line of a build's log, and '2>/dev/null' nothing",
    ),
    (&["--fallback"], "what cannot be fetched is built anyway"),
    (
        &["--readonly-mode", "--read-write-mode"],
        "'eval' and 'instantiate' write what their expression instantiates",
    ),
    (&["--no-gc-warning"], "there is no such warning"),
    (
        &["--store", "--eval-store"],
        "the store is that of the home, and TVIX_NODE_HOME says where the home is",
    ),
    (
        &["--verbose", "-v", "--quiet", "--debug"],
        "--log-format raw tells every step and every line of the logs, --log-format bar less",
    ),
    (&["--override-flake"], "flakes are not supported"),
    (
        &["--arg-from-file", "--arg-from-stdin"],
        "use --argstr NAME \"$(cat FILE)\"",
    ),
    (&["--eval", "--eval-only"], "use 'tvix-node eval'"),
    (
        &["--parse", "--parse-only"],
        "'tvix-node eval' reports syntax errors, but parsed expressions are not printed",
    ),
    (&["--find-file"], "use 'tvix-node eval -E \"<NAME>\"'"),
    (
        &["--strict", "--xml", "--json", "--raw"],
        "values are printed by 'tvix-node eval'",
    ),
    (&["--no-location"], "values are printed without locations"),
    (
        &["--system"],
        "--eval-system says what builtins.currentSystem is; builds run on nodes of their own system",
    ),
];

/// What is said of settings that people do set.
const SETTINGS_ADVICE: &[(&[&str], &str)] = &[
    (
        &[
            "sandbox",
            "build-use-sandbox",
            "build-use-chroot",
            "sandbox-fallback",
        ],
        "every build runs in a sandbox",
    ),
    (
        &[
            "sandbox-paths",
            "build-sandbox-paths",
            "build-chroot-dirs",
            "extra-sandbox-paths",
        ],
        "a build sees its inputs alone",
    ),
    (&["cores", "build-cores"], "use --cores"),
    (&["max-jobs", "build-max-jobs"], "use -j"),
    (&["timeout", "build-timeout"], "use --timeout"),
    (
        &["max-silent-time", "build-max-silent-time"],
        "use --max-silent-time",
    ),
    (
        &["max-build-log-size", "build-max-log-size"],
        "use --max-build-log-size",
    ),
    (&["keep-going"], "use -k"),
    (&["keep-failed"], "use -K"),
    (&["show-trace"], "use --show-trace"),
    (&["nix-path"], "use -I or NIX_PATH"),
    (&["system", "eval-system"], "use --eval-system"),
    (
        &[
            "substituters",
            "binary-caches",
            "trusted-substituters",
            "trusted-public-keys",
            "binary-cache-public-keys",
        ],
        "all commands of a node share its binary caches: use --extra-substituters and --extra-trusted-public-keys, \
         config.toml of the home, or the flags of 'tvix-node up'",
    ),
    (
        &["substitute", "build-use-substitutes"],
        "paths are taken from the binary caches that are configured, none by default",
    ),
    (
        &["builders", "build-hook"],
        "members of a team build for each other ('tvix-node invite'), and -j 0 builds nothing on this node",
    ),
    (
        &["restrict-eval", "pure-eval"],
        "--restrict-eval and --pure-eval say what the evaluation may see",
    ),
];

/// Settings of Nix that are on or off: also `--no-SETTING`.
const SWITCHES: &str = "abort-on-warn accept-flake-config allow-dirty allow-dirty-locks \
    allow-import-from-derivation allow-new-privileges allow-symlinked-store \
    allow-unsafe-native-code-during-evaluation always-allow-substitutes auto-allocate-uids auto-optimise-store \
    build-compress-log build-fallback build-impersonate-linux-26 build-keep-log build-use-chroot \
    build-use-sandbox build-use-substitutes builders-use-substitutes compress-build-log debugger-on-trace \
    debugger-on-warn enforce-determinism env-keep-derivations eval-cache fallback filter-syscalls \
    fsync-metadata fsync-store-paths gc-keep-derivations gc-keep-outputs http2 ignore-try impersonate-linux-26 \
    keep-build-log keep-derivations keep-env-derivations keep-failed keep-going keep-outputs \
    nix-shell-always-looks-for-shell-nix nix-shell-shebang-arguments-relative-to-script \
    preallocate-contents print-missing pure-eval require-drop-supplementary-groups require-sigs restrict-eval \
    run-diff-hook sandbox sandbox-fallback show-trace substitute sync-before-registering trace-function-calls \
    trace-import-from-derivation trace-verbose trust-tarballs-from-git-forges use-case-hack use-cgroups \
    use-registries use-sqlite-wal use-xdg-base-directories warn-dirty warn-short-path-literals";

/// Settings of Nix that have a value: also `--extra-SETTING`.
const VALUES: &str = "access-tokens allowed-impure-host-deps allowed-uris allowed-users bash-prompt \
    bash-prompt-prefix bash-prompt-suffix binary-cache-public-keys binary-caches \
    binary-caches-parallel-connections build-chroot-dirs build-cores build-dir build-hook build-max-jobs \
    build-max-log-size build-max-silent-time build-poll-interval build-repeat build-sandbox-paths \
    build-timeout build-users-group builders commit-lock-file-summary commit-lockfile-summary connect-timeout cores \
    diff-hook download-attempts download-buffer-size download-speed eval-attrset-update-layer-rhs-threshold \
    eval-profile-file eval-profiler eval-profiler-frequency eval-system experimental-features \
    external-builders extra-platforms flake-registry gc-reserved-space hashed-mirrors http-connections id-count \
    ignored-acls impure-env json-log-path lint-absolute-path-literals lint-short-path-literals \
    lint-url-literals log-lines max-build-log-size max-call-depth max-free max-jobs max-silent-time \
    max-substitution-jobs min-free min-free-check-interval nar-buffer-size narinfo-cache-meta-ttl \
    narinfo-cache-negative-ttl narinfo-cache-positive-ttl netrc-file nix-path plugin-files post-build-hook \
    pre-build-hook repeat sandbox-build-dir sandbox-dev-shm-size sandbox-paths secret-key-files ssl-cert-file \
    stalled-download-timeout start-id store substituters substitution-max-jobs system system-features \
    tarball-ttl timeout trusted-binary-caches trusted-public-keys trusted-substituters trusted-users \
    upgrade-nix-store-path-url user-agent-suffix warn-large-path-threshold";

/// What to say of a flag that `command` does not take, where Nix knows it. `following` is what stands
/// behind it on the command line.
pub fn refusal(command: &str, flag: &str, following: Option<&str>) -> Option<String> {
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) if name.starts_with("--") => (name, Some(value)),
        _ => (flag, following),
    };
    if name == "--option" {
        let setting = value.unwrap_or_default();
        let advice = setting_advice(setting).unwrap_or(NO_SETTINGS);
        let shown = if setting.is_empty() {
            name.to_owned()
        } else {
            format!("{name} {setting}")
        };
        return Some(refuse(command, &shown, advice));
    }
    let advice = FLAGS
        .iter()
        .find(|(names, _)| names.contains(&name))
        .map(|(_, advice)| *advice)
        .or_else(|| setting_flag(name).map(|setting| setting_advice(setting).unwrap_or(NO_SETTINGS)))?;
    Some(refuse(command, name, advice))
}

const NO_SETTINGS: &str = "there is no nix.conf, and none of its settings";

fn refuse(command: &str, flag: &str, advice: &str) -> String {
    format!("Nix's '{flag}' is not supported by '{command}': {advice}")
}

/// The setting that a flag sets.
fn setting_flag(flag: &str) -> Option<&str> {
    let name = flag.strip_prefix("--")?;
    let switch = |name: &str| SWITCHES.split_whitespace().any(|known| known == name);
    let value = |name: &str| VALUES.split_whitespace().any(|known| known == name);
    if switch(name) || value(name) {
        return Some(name);
    }
    if let Some(name) = name.strip_prefix("no-").filter(|name| switch(name)) {
        return Some(name);
    }
    name.strip_prefix("extra-").filter(|name| value(name))
}

fn setting_advice(setting: &str) -> Option<&'static str> {
    SETTINGS_ADVICE
        .iter()
        .find(|(settings, _)| settings.contains(&setting))
        .map(|(_, advice)| *advice)
}

/// Every flag that is refused, for tests.
#[cfg(test)]
pub fn all() -> Vec<String> {
    let flags = FLAGS
        .iter()
        .flat_map(|(names, _)| names.iter())
        .map(|name| (*name).to_owned());
    let switches = SWITCHES
        .split_whitespace()
        .flat_map(|name| [format!("--{name}"), format!("--no-{name}")]);
    let values = VALUES
        .split_whitespace()
        .flat_map(|name| [format!("--{name}"), format!("--extra-{name}")]);
    flags
        .chain(switches)
        .chain(values)
        .chain(["--option".to_owned()])
        .collect()
}
