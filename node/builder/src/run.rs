//! One build, from its specification to its outputs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::build::BuildLimits;

use crate::StorePath;
use crate::build_spec::{BuildEvent, BuildSpec, Built, Timings};
use crate::channel;
use crate::config::Config;
use crate::diagnosis::{SandboxError, explain_execution};
use crate::disk;
use crate::environment::{self, Given};
use crate::error::{BuildError, Cause, Refused};
use crate::fetch::{Fetch, http::Client};
use crate::log::Log;
use crate::nat;
use crate::network::{Proxy, explain_network, tunnel_available};
use crate::outputs;
use crate::refusal;
use crate::scratch::{Scratch, slot_folder};
use crate::spare::Spare;
use crate::watch::{Outcome, Watch, say, tell};
use crate::wire::{Bytes, Exit, HostPath, JoinGroup, Order, Program, Report, Task, Usage};

/// A build that was not even tried.
pub(crate) fn not_begun(drv_path: StorePath, cause: Cause) -> BuildError {
    BuildError {
        drv_path,
        cause: Box::new(cause),
        log_tail: Vec::new(),
        disk_full: false,
        kept: None,
    }
}

/// Builds, and removes what is left of a build that failed.
pub(crate) async fn build(
    config: Arc<Config>,
    spare: Spare,
    spec: BuildSpec,
    events: mpsc::Sender<BuildEvent>,
    cancel: CancellationToken,
) -> Result<Built, BuildError> {
    let mut log = Log::default();
    let mut folder = None;
    let result = attempt((&config, &spare), &spec, &events, &cancel, &mut log, &mut folder).await;
    let cause = match (result, folder.take()) {
        (Ok((outputs, timings)), Some(scratch)) => {
            return Ok(Built {
                drv_path: spec.drv_path,
                outputs,
                timings,
                log_tail: log.into_tail(),
                scratch,
            });
        }
        (Ok(_), None) => Cause::HelperDied("no folder was made".to_owned()),
        (Err(cause), scratch) => {
            folder = scratch;
            cause
        }
    };
    // What was said last has no end where the build was stopped: a question that waits for an answer, often.
    if let Some(line) = log.finish() {
        tell(&events, BuildEvent::Log(line)).await;
    }
    let disk_full = folder
        .as_ref()
        .is_some_and(|scratch| outputs::is_disk_full(scratch.path()));
    let mut kept = None;
    if let Some(scratch) = folder {
        if spec.keep_failed && !matches!(cause, Cause::Cancelled | Cause::Refused(_)) {
            kept = keep(&config, &scratch, &spec.drv_path);
        }
        scratch.discard().await;
    }
    Err(BuildError {
        drv_path: spec.drv_path,
        cause: Box::new(cause),
        log_tail: log.into_tail(),
        disk_full,
        kept,
    })
}

/// The failure is what the user wants to hear of, so a folder that cannot be kept is only logged.
fn keep(config: &Config, scratch: &Scratch, drv_path: &StorePath) -> Option<PathBuf> {
    match scratch.keep(&config.kept, drv_path) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!(%error, "the folder of a failed build could not be kept");
            None
        }
    }
}

type Outputs = BTreeMap<String, PathBuf>;

async fn attempt(
    (config, spare): (&Config, &Spare),
    spec: &BuildSpec,
    events: &mpsc::Sender<BuildEvent>,
    cancel: &CancellationToken,
    log: &mut Log,
    folder: &mut Option<Scratch>,
) -> Result<(Outputs, Timings), Cause> {
    let began = Instant::now();
    let options = refusal::check(config, &spec.derivation, &spec.drv_path, spec.for_another)?;
    let paths = environment::output_paths(&spec.derivation)?;
    if spec.derivation.builder() == FETCH {
        return fetch((config, spec, events, cancel), log, folder, &paths).await;
    }
    let given = environment::given(spec, &options, &paths, config.network.is_some())?;
    let scratch = folder.insert(Scratch::create(&config.scratch, &spec.drv_path)?);
    let mut order = order(config, spec, given, &paths, scratch)?;
    let memory = memory_limit(config, spec);
    order.memory_group = memory.filter(|_| config.control_groups).and_then(|bytes| {
        let group = scratch.bound_memory(bytes, spec.niceness())?;
        Some(JoinGroup {
            door: Bytes::path(&group.door()),
            events: Bytes::path(&group.events()),
        })
    });
    if options.no_chroot {
        let text = "it asks to be built outside of the sandbox (__noChroot), and is built in it, as 'no-chroot-in-sandbox' in \
                    config.toml says";
        say(text, log, events).await;
    }
    let failed = |(step, source)| SandboxError::new(step, source);
    let waiting = spare.take(config).map_err(failed)?;
    let mut helper = waiting.begin(&order).await.map_err(failed)?;
    drop(order);

    let watch = Watch::new(began, spec.limits);
    let id = helper.id();
    let mut proxy = Proxy::new(config.allowed(spec.for_another));
    // Pinned here and gone at the end of the block, so that the helper is free again.
    let outcome = {
        let mut work = pin!(async {
            tokio::try_join!(
                watch.reports(&mut helper.control, events, &mut proxy),
                watch.log(&mut helper.log, log, events)
            )
        });
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Cause::Cancelled),
            cause = watch.limits() => Err(cause),
            cause = disk_limit(scratch, id, spec.limits.disk) => Err(cause),
            done = &mut work => done.map(|(outcome, ())| outcome),
        }
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(cause) => {
            helper.kill().await;
            return Err(cause);
        }
    };
    let status = helper.wait().await;
    drop(proxy);
    let no_tunnel = outcome.no_tunnel.clone();
    let (started, exit, usage) = finished(outcome, status, config, spec)?;
    // Also where it succeeded: what it did without the process it lost is not what it would have done.
    if scratch.exceeded_memory() {
        return Err(too_much_memory(config, spec));
    }
    if exit != Exit::Code(0)
        && let Some(limit) = spec.limits.disk
        && disk::is_exceeded(scratch.written(), limit).await
    {
        // By one file, which the kernel stopped; or between two looks.
        return Err(Cause::DiskTooLarge(limit));
    }
    let ended = match exit {
        Exit::Code(0) => None,
        Exit::Code(code) => Some(Cause::Exit(code)),
        Exit::Signal(number) => Some(Cause::Signal {
            number,
            name: signal_name(number),
        }),
    };
    if let Some(ended) = ended {
        if disk::is_full(scratch.path()) {
            return Err(Cause::DiskOfBuilder(Box::new(ended)));
        }
        if matches!(ended, Cause::Exit(_)) && environment::is_fixed_output(&spec.derivation) {
            explain_network(config, no_tunnel, log, events).await;
        }
        return Err(ended);
    }
    let owner = order_host_id(config, spec).unwrap_or_else(own_id);
    let outputs = outputs::check(scratch, &paths, owner)?;
    let run = started.elapsed();
    let timings = Timings {
        setup: started - began,
        run,
        user: Duration::from_micros(usage.user_microseconds),
        system: Duration::from_micros(usage.system_microseconds),
        peak_memory: usage.peak_memory,
    };
    Ok((outputs, timings))
}

/// The builder that runs in the node.
const FETCH: &str = "builtin:fetchurl";

/// Runs it, bounded and cancelled like any other.
async fn fetch(
    (config, spec, events, cancel): (&Config, &BuildSpec, &mpsc::Sender<BuildEvent>, &CancellationToken),
    log: &mut Log,
    folder: &mut Option<Scratch>,
    paths: &BTreeMap<String, StorePath>,
) -> Result<(Outputs, Timings), Cause> {
    let began = Instant::now();
    let wanted = Fetch::read(&spec.derivation)?;
    let scratch = &*folder.insert(Scratch::create(&config.scratch, &spec.drv_path)?);
    let Some(output) = paths.get("out") else {
        return Err(Refused::Builtin("fetchurl without the output 'out'".to_owned()).into());
    };
    // Silence is looked for where the bytes come.
    let limits = BuildLimits {
        silence: None,
        ..spec.limits
    };
    let watch = Watch::new(began, limits);
    let client = Client::new(config, spec.for_another)?.patient(spec.limits.silence);
    tell(events, BuildEvent::Started).await;
    let log = Mutex::new(log);
    let say = |line: String| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = log.push(format!("{line}\n").as_bytes());
        async move {
            for line in lines {
                tell(events, BuildEvent::Log(line)).await;
            }
        }
    };
    let fetched = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Cause::Cancelled),
        cause = watch.limits() => Err(cause),
        fetched = wanted.run(client, scratch, output, spec.limits.disk, say) => fetched,
    };
    if let Err(cause) = fetched {
        if !matches!(cause, Cause::Cancelled) {
            // Whoever reads the log later has nothing else of it.
            say(cause.to_string()).await;
        }
        return Err(cause);
    }
    let timings = Timings {
        run: began.elapsed(),
        ..Timings::default()
    };
    Ok((outputs::check(scratch, paths, own_id())?, timings))
}

/// Whether the builder program ran to its end, and how that was.
fn finished(
    outcome: Outcome,
    status: String,
    config: &Config,
    spec: &BuildSpec,
) -> Result<(Instant, Exit, Usage), Cause> {
    match (outcome.failure, outcome.started, outcome.ended) {
        (Some(Report::NotExecuted { errno }), ..) => {
            let builder = spec.derivation.builder();
            let physical = spec
                .inputs
                .iter()
                .find(|input| builder.starts_with(&input.path.to_string()))
                .map(|input| input.physical.as_path());
            Err(Cause::Execute {
                builder: builder.to_owned(),
                source: std::io::Error::from_raw_os_error(errno),
                hint: explain_execution(errno, builder, physical),
            })
        }
        (Some(Report::TooMuchMemory), ..) => Err(too_much_memory(config, spec)),
        (Some(Report::TooManyProcesses), ..) => Err(too_many_processes(config, spec)),
        (Some(failure), ..) => Err(setup_failure(failure)),
        (None, Some(started), Some((exit, usage))) => Ok((started, exit, usage)),
        (None, ..) => Err(Cause::HelperDied(status)),
    }
}

/// The cause that a report of failure stands for.
pub(crate) fn setup_failure(report: Report) -> Cause {
    let Report::Failed {
        step,
        errno,
        message,
        input,
    } = report
    else {
        return Cause::HelperDied("it reported something unexpected".to_owned());
    };
    let input = input.and_then(|base| StorePath::from_basename(base.as_bytes()).ok());
    if let (Some(path), None | Some(libc::ENOENT)) = (input, errno) {
        let mut reason = format!("{step}: {message}");
        if errno == Some(libc::ENOENT) {
            reason.push_str("; 'tvix-node store verify --repair' fetches what the store has lost");
        }
        return Cause::Input { path, reason };
    }
    let source = errno.map_or_else(
        || std::io::Error::other(message),
        std::io::Error::from_raw_os_error,
    );
    SandboxError::new(step, source).into()
}

/// Ends when a build uses more disk than it may.
async fn disk_limit(scratch: &Scratch, helper: Option<u32>, limit: Option<u64>) -> Cause {
    match limit {
        None => std::future::pending().await,
        Some(limit) => {
            disk::exceeds(scratch, helper, limit).await;
            Cause::DiskTooLarge(limit)
        }
    }
}

/// Bytes of memory that a build may use: the smaller of what it and the builder allow.
fn memory_limit(config: &Config, spec: &BuildSpec) -> Option<u64> {
    spec.limits.memory.into_iter().chain(config.memory).min()
}

/// Whose limit it was decides whether another builder may do better.
fn too_much_memory(config: &Config, spec: &BuildSpec) -> Cause {
    match (spec.limits.memory, config.memory) {
        (asked, Some(own)) if asked.is_none_or(|asked| own < asked) => Cause::MemoryOfBuilder(own),
        (asked, _) => Cause::MemoryTooLarge(asked.unwrap_or_default()),
    }
}

/// Processes and threads that a build may have at once: the smaller of what it and the builder allow.
fn process_limit(config: &Config, spec: &BuildSpec) -> u64 {
    let asked = spec.limits.processes();
    config.processes.map_or(asked, |own| own.min(asked))
}

/// As with memory.
fn too_many_processes(config: &Config, spec: &BuildSpec) -> Cause {
    let asked = spec.limits.processes();
    match config.processes {
        Some(own) if own < asked => Cause::ProcessesOfBuilder(own),
        _ => Cause::TooManyProcesses(asked),
    }
}

/// The host uid and gid that a build must run as; none where the node is an ordinary user.
pub(crate) fn order_host_id(config: &Config, spec: &BuildSpec) -> Option<u32> {
    rustix::process::geteuid()
        .is_root()
        .then(|| config.first_build_user.saturating_add(spec.slot))
}

/// The node's own uid.
fn own_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn order(
    config: &Config,
    spec: &BuildSpec,
    given: Given,
    outputs: &BTreeMap<String, StorePath>,
    scratch: &Scratch,
) -> Result<Order, Cause> {
    let derivation = &spec.derivation;
    let mut inputs = Vec::with_capacity(spec.inputs.len());
    for input in &spec.inputs {
        if !input.physical.is_absolute() {
            return Err(Cause::Input {
                path: input.path.clone(),
                reason: format!("its place '{}' is not an absolute path", input.physical.display()),
            });
        }
        // What is built now must not be in its own way.
        if outputs.values().all(|output| *output != input.path) {
            inputs.push((input.path.to_basename(), Bytes::path(&input.physical)));
        }
    }
    inputs.sort();
    inputs.dedup_by(|a, b| a.0 == b.0);
    let fixed_output = environment::is_fixed_output(derivation);
    let certificates = config
        .ca_certificates
        .iter()
        .filter(|_| fixed_output)
        .map(|outside| HostPath {
            inside: Bytes(crate::sandbox::CERTIFICATES.into()),
            outside: Bytes::path(outside),
            writable: false,
        });
    let tunnel = tunnel_available(config);
    let paths = config.sandbox_paths.iter().map(|(inside, path)| HostPath {
        inside: Bytes::path(inside),
        outside: Bytes::path(&path.outside),
        writable: path.writable,
    });
    let task = if derivation.builder() == channel::BUILTIN {
        let output = outputs
            .get("out")
            .ok_or_else(|| Refused::Builtin("unpack-channel without the output 'out'".to_owned()))?;
        Task::UnpackChannel(channel::read(derivation, &output.to_absolute_path())?)
    } else {
        Task::Program(Program {
            path: Bytes(derivation.builder().into()),
            arguments: given.arguments.into_iter().map(Bytes).collect(),
            environment: given.environment.into_iter().map(Bytes).collect(),
            thirty_two_bit: environment::is_thirty_two_bit(derivation.system()),
        })
    };
    Ok(Order {
        scratch: Bytes::path(scratch.path()),
        slot: Bytes::path(&slot_folder(&config.scratch, spec.slot)),
        host_id: order_host_id(config, spec),
        task: Some(task),
        inputs,
        files: given
            .files
            .into_iter()
            .map(|(name, content)| (name, Bytes(content)))
            .collect(),
        paths: paths.chain(certificates).collect(),
        fixed_output,
        proxy: fixed_output && config.network.is_some(),
        tunnel: fixed_output && tunnel.is_some_and(|available| available.is_ok()),
        ipv6: nat::has_ipv6(&config.allowed(spec.for_another)),
        kvm: config.features.contains("kvm"),
        niceness: spec.niceness(),
        processes: process_limit(config, spec),
        memory: memory_limit(config, spec),
        memory_group: None,
        file_bytes: spec.limits.disk,
    })
}

/// The usual name of a signal.
fn signal_name(number: i32) -> &'static str {
    match number {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "arithmetic error",
        libc::SIGKILL => "killed, perhaps because memory ran out",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGSYS => "bad system call",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm",
        libc::SIGTERM => "terminated",
        libc::SIGXCPU => "processor time limit",
        libc::SIGXFSZ => "file size limit",
        _ => "no common name",
    }
}
