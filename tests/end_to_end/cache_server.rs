//! An HTTP server in the test's process that serves a binary cache in a folder, well or badly.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a server treats requests for archives; everything else it answers well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Well,
    /// With a byte changed.
    Damaged,
    /// It says that it will send, and does not.
    Silent,
    /// A byte a second.
    Dripping,
    /// As it should, and what it has it says a second late.
    Late,
    /// It sends whoever asks for one to this port of the machine, under its other name.
    Astray(u16),
}

/// A server that is up until it is dropped; what is asked of it is counted.
pub struct CacheServer {
    pub url: String,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl CacheServer {
    pub fn up(folder: &Path, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let (folder, notes) = (folder.to_owned(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, notes) = (folder.clone(), Arc::clone(&notes));
                // A client that goes away in the middle is no fault.
                std::thread::spawn(move || drop(serve(stream, &folder, manner, &notes)));
            }
        });
        Self { url, asked }
    }

    /// How often something was asked for whose name ends so.
    pub fn asked(&self, end: &str) -> usize {
        let asked = self.asked.lock().expect("no test failed meanwhile");
        asked
            .iter()
            .filter(|(name, _)| name.ends_with(end))
            .map(|(_, count)| count)
            .sum()
    }
}

fn serve(
    stream: TcpStream,
    folder: &Path,
    manner: Manner,
    notes: &Mutex<BTreeMap<String, usize>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut name = String::new();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if name.is_empty() {
                name = line
                    .split(' ')
                    .nth(1)
                    .unwrap_or_default()
                    .trim_start_matches('/')
                    .to_owned();
            }
        }
        *notes
            .lock()
            .expect("no test failed meanwhile")
            .entry(name.clone())
            .or_default() += 1;
        let is_archive = name.starts_with("nar/");
        if let (Manner::Astray(port), true) = (manner, is_archive) {
            let head = format!(
                "HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/{name}\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            continue;
        }
        if manner == Manner::Late && name.ends_with(".narinfo") {
            std::thread::sleep(Duration::from_secs(1));
        }
        let Ok(mut body) = fs::read(folder.join(&name)) else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        match manner {
            Manner::Damaged if is_archive => {
                let middle = body.len() / 2;
                body[middle] ^= 1;
            }
            Manner::Silent if is_archive => {
                std::thread::sleep(Duration::from_secs(3600));
                return Ok(());
            }
            Manner::Dripping if is_archive => {
                for byte in &body {
                    stream.write_all(std::slice::from_ref(byte))?;
                    std::thread::sleep(Duration::from_secs(1));
                }
                continue;
            }
            _ => {}
        }
        stream.write_all(&body)?;
    }
}
