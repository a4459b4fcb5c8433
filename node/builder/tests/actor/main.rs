//! The program that the tests of the builder run: as the sandbox helper, and as the builder program,
//! well-behaved or not. Its first argument names the act.
//!
//! What an act finds out it prints, for the test to judge; its exit status says that it got so far.

mod attack;
mod detach;
mod flood;
mod look;
mod node;
mod raw;
mod sockets;
mod unbound;

use std::error::Error;

/// What an act comes to.
type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    tvix_node_builder::run_if_sandbox();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["libraries"] => look::libraries(),
        ["environment"] => look::environment(),
        ["place"] => look::place(),
        ["read", path] => look::read(path),
        ["list", path] => look::list(path),
        ["write", pairs @ ..] => look::write(pairs),
        ["fetch", url, path] => look::fetch(url, path),
        ["say", text, count] => look::say(text, count.parse()?),
        ["exit", code] => std::process::exit(code.parse()?),
        ["die", signal] => raw::die(signal.parse()?),
        ["wait"] => look::wait_forever(),
        ["wait-until", path, end] => look::wait_until(path, end),
        ["ask", question] => look::ask(question),
        ["node", scratch, token] => node::build_and_wait(scratch, token),
        ["try-writing", paths @ ..] => attack::try_writing(paths),
        ["connect", port, name] => attack::connect(port.parse()?, name),
        ["talk", place] => attack::talk(place),
        ["exchange", place] => attack::exchange(place),
        ["listen", name] => attack::listen(name),
        ["bits", folder] => attack::set_bits(folder),
        ["made-with-bits", folder] => attack::make_with_bits(folder),
        ["make", kind, path] => attack::make(kind, path),
        ["namespaces", input] => attack::namespaces(input),
        ["fork-bomb", kind] => flood::fork_bomb(kind),
        ["crowd", size, path] => flood::crowd(size.parse()?, path),
        ["linger", how, token] => attack::linger(how, token),
        ["kill-init", path] => attack::kill_init(path),
        ["close-log", path] => attack::close_log(path),
        ["fill", what, path] => flood::fill(what, path),
        ["hold", what, path] => flood::hold(what, path),
        ["flood-behind-sockets"] => sockets::flood_behind_sockets(),
        ["mislead", out] => detach::mislead(out),
        ["detach", how] => detach::detach(how),
        ["flood-unbound", what] => unbound::flood(what),
        ["modest-unbound", what, out] => unbound::modest(what, out),
        ["mess", path] => attack::mess(path),
        ["read-only", path] => look::write_read_only(path),
        ["landlock-layers"] => attack::landlock_layers(),
        ["trace"] => attack::trace(),
        ["see", pid] => attack::see(pid.parse()?),
        ["keys", name, number] => attack::keys(name, number.parse()?),
        ["change-later", path, token] => attack::change_later(path, token),
        other => Err(format!("no act {other:?}").into()),
    }
}
