//! Acts that look around.

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;

use crate::Done;

/// Which files the dynamic linker has mapped: what a sandbox needs to run this program.
pub fn libraries() -> Done {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut files: Vec<&str> = maps
        .lines()
        .filter_map(|line| Some(&line[line.find('/')?..]))
        .collect();
    files.sort_unstable();
    files.dedup();
    println!("{}", files.join("\n"));
    Ok(())
}

/// All variables.
pub fn environment() -> Done {
    for (name, value) in std::env::vars_os() {
        let mut out = std::io::stdout();
        out.write_all(name.as_bytes())?;
        out.write_all(b"=")?;
        out.write_all(value.as_bytes())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Who and where the program is.
pub fn place() -> Done {
    let status = fs::read_to_string("/proc/self/status")?;
    for line in status.lines() {
        if [
            "Pid:",
            "PPid:",
            "Uid:",
            "Gid:",
            "Umask:",
            "NoNewPrivs:",
            "Seccomp:",
            "Cap",
            "Sig",
        ]
        .iter()
        .any(|wanted| line.starts_with(wanted))
        {
            println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    println!("cwd {}", std::env::current_dir()?.display());
    println!("host {}", fs::read_to_string("/proc/sys/kernel/hostname")?.trim());
    println!(
        "domain {}",
        fs::read_to_string("/proc/sys/kernel/domainname")?.trim()
    );
    println!(
        "personality {}",
        fs::read_to_string("/proc/self/personality")?.trim()
    );
    println!(
        "terminal {}",
        std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
    );
    println!("stdin {}", fs::read_link("/proc/self/fd/0")?.display());
    let mut open: Vec<u32> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.push(entry?.file_name().to_string_lossy().parse()?);
    }
    open.sort_unstable();
    // The last one is the listing itself.
    println!("descriptors {:?}", &open[..open.len() - 1]);
    let processes = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .count();
    println!("processes {processes}");
    for map in ["uid_map", "gid_map"] {
        let text = fs::read_to_string(format!("/proc/self/{map}"))?;
        println!("{map} {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let interfaces = fs::read_to_string("/proc/net/dev")?;
    let names: Vec<&str> = interfaces
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split(':').next()?.trim()))
        .collect();
    println!("interfaces {names:?}");
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let link = fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        println!("namespace-{namespace} {}", link.display());
    }
    let limits = fs::read_to_string("/proc/self/limits")?;
    for line in limits
        .lines()
        .filter(|line| line.starts_with("Max core") || line.starts_with("Max processes"))
    {
        println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

/// Paths and what is to be in them, in turns.
pub fn write(pairs: &[&str]) -> Done {
    for pair in pairs.chunks(2) {
        match pair {
            [path, text] => fs::write(path, text)?,
            _ => return Err("a path without text".into()),
        }
    }
    Ok(())
}

/// A folder that not even its owner may write to.
pub fn write_read_only(path: &str) -> Done {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path)?;
    fs::write(format!("{path}/file"), "x")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o555))?;
    Ok(())
}

pub fn read(path: &str) -> Done {
    print!("{}", String::from_utf8_lossy(&fs::read(path)?));
    Ok(())
}

/// The names in a folder, sorted, with the modes and kinds of what they are.
pub fn list(path: &str) -> Done {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut lines = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let about = entry.metadata()?;
        let kind = about.file_type();
        let letter = if kind.is_dir() {
            'd'
        } else if kind.is_symlink() {
            'l'
        } else if kind.is_char_device() {
            'c'
        } else {
            '-'
        };
        lines.push(format!(
            "{} {letter}{:04o}",
            entry.file_name().to_string_lossy(),
            about.mode() & 0o7777
        ));
    }
    lines.sort();
    println!("{}", lines.join("\n"));
    Ok(())
}

pub fn say(text: &str, count: usize) -> Done {
    for _ in 0..count {
        println!("{text}");
    }
    Ok(())
}

/// Until a file's content ends so, which is then said.
pub fn wait_until(path: &str, end: &str) -> Done {
    loop {
        let content = std::fs::read_to_string(path)?;
        if content.trim_end().ends_with(end) {
            println!("it does");
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

pub fn wait_forever() -> Done {
    println!("waiting");
    loop {
        std::thread::park();
    }
}

/// Asks something and waits for an answer on the same line.
pub fn ask(question: &str) -> Done {
    print!("{question}");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// Fetches as a program does that knows of proxies, and writes the whole answer to a file.
pub fn fetch(url: &str, path: &str) -> Done {
    let proxy = std::env::var("http_proxy")?;
    let address = proxy.strip_prefix("http://").ok_or("not an HTTP proxy")?;
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {url} HTTP/1.1\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    fs::write(path, answer)?;
    Ok(())
}
